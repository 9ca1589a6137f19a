"""What every entry point takes: kinds of models, ranges of inputs, arrays and labels; and what it refuses by name."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms
from torchvision.transforms import v2

import lipaudit
from lipaudit.certification.inputs import check_inputs, check_labels
from lipaudit.errors import BadThreat, CaptureError, LoadError
from lipaudit.graph.wrappers import Normalised
from lipaudit.results.json import from_json
from lipaudit.results.metrics import reached

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def body() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 3, 3)).eval()


def images(count: int = 6) -> torch.Tensor:
    """On the 8-bit grid, in [0, 1]."""
    levels = torch.randint(0, 256, (count, 3, 5, 5), generator=torch.Generator().manual_seed(1))
    return levels.float() / 255


def art_classifier(model: nn.Module, **settings: Any) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=(3, 5, 5), nb_classes=3, device_type="cpu", **settings
    )


class Rescaled(nn.Module):
    """`body` for inputs in [low, high]."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.width, self.body = low, high - low, body()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body((x - self.low) / self.width)


# Normalisation as RobustBench's models have it inside.


class ImageNormalizer(nn.Module):
    """In front, as a child `normalize` with buffers of shape (1, 3, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.as_tensor(STD).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


class Inside(nn.Module):
    """Somewhere in forward, by numbers kept in one way or the other."""

    def __init__(self, keep: str) -> None:
        super().__init__()
        self.body, self.keep = body(), keep
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        if keep == "buffers":
            self.register_buffer("mu", mean.view(1, 3, 1, 1))
            self.register_buffer("sigma", std.view(1, 3, 1, 1))
        elif keep == "plain tensors":
            self.mu, self.sigma = mean.view(3, 1, 1), std.view(3, 1, 1)
        elif keep == "flat buffers":
            self.register_buffer("mu", mean)
            self.register_buffer("sigma", std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.keep == "torchvision":
            return self.body(transforms.functional.normalize(x, MEAN, STD))
        if self.keep == "flat buffers":
            return self.body((x - self.mu[None, :, None, None]) / self.sigma[None, :, None, None])
        if self.keep == "lists":
            channels = [(x[:, c] - MEAN[c]) / STD[c] for c in range(3)]
            return self.body(torch.stack(channels, 1))
        return self.body((x - self.mu) / self.sigma)


ROBUSTBENCH: dict[str, Callable[[], nn.Module]] = {
    "a child in front": lambda: nn.Sequential(OrderedDict(normalize=ImageNormalizer(), model=body())).eval(),
    **{keep: lambda keep=keep: Inside(keep).eval() for keep in ("buffers", "plain tensors", "flat buffers")},
    **{keep: lambda keep=keep: Inside(keep).eval() for keep in ("torchvision", "lists")},
    "transforms.Normalize": lambda: nn.Sequential(transforms.Normalize(MEAN, STD), body()).eval(),
    "transforms.v2.Normalize": lambda: nn.Sequential(v2.Normalize(MEAN, STD), body()).eval(),
}


@pytest.mark.parametrize("form", ROBUSTBENCH)
def test_normalisation_inside_a_module_counts_as_normalisation_in_front(form: str) -> None:
    model, x = ROBUSTBENCH[form](), images()
    known = lipaudit.certify(body(), x, mean=MEAN, std=STD, local="off")

    found = lipaudit.certify(model, x, local="off")

    assert torch.allclose(model(x), Normalised(body(), MEAN, STD)(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.prediction, known.prediction)
    # Through one slice per channel, the bound may not see that channels are stretched apart.
    np.testing.assert_allclose(found.radius, known.radius, rtol=0.2 if form == "lists" else 1e-3)


def test_twice_the_pixel_minus_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(2.0 * x - 1.0)

    x = images()
    found = lipaudit.certify(Twice().eval(), x, local="off").radius
    np.testing.assert_allclose(found, lipaudit.certify(body(), 2 * x - 1, local="off").radius / 2, rtol=1e-4)


def test_an_ensemble_of_softmaxes_is_audited_as_what_it_computes() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.models = nn.ModuleList([body(), body()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(torch.softmax(model(x), dim=1) for model in self.models) / 2

    model, x = Ensemble().eval(), images()
    audit = lipaudit.audit(model, x, model(x).argmax(1), attacks="deepfool", local="off")

    assert audit.verdict.integrity == "SOUND"
    assert min(audit.samples.radius) > 0


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-1.0, 1.0)])
def test_radii_are_in_units_of_clip_values(low: float, high: float) -> None:
    x, width = images(3), high - low
    settings = {"attacks": ("deepfool", "pgd-at-radius"), "local": "off"}
    labels = body()(x).argmax(1)
    known = lipaudit.audit(body(), x, labels, eps=("8/255", 0.5), **settings)
    classifier = art_classifier(Rescaled(low, high).eval(), clip_values=(low, high))

    found = lipaudit.audit(classifier, low + width * x, labels, eps=(8 / 255 * width, 0.5 * width), **settings)

    assert found.verdict.integrity == known.verdict.integrity == "SOUND"
    assert (found.threat.low, found.threat.high) == (low, high)
    assert found.threat.units == f"inputs in [{low:g}, {high:g}]"
    # The rescaled inputs and network are rounded to float32.
    np.testing.assert_allclose(found.samples.radius, width * np.array(known.samples.radius), rtol=1e-3)
    np.testing.assert_allclose(found.samples.distance, width * np.array(known.samples.distance), rtol=0.05)
    assert found.dataset.levels == 255
    assert found.dataset.smallest_change == pytest.approx(width / 255)
    assert reached(found) == reached(known)
    assert f"{width:g}/255" in found.to_html()
    assert from_json(found.to_json()).dataset == found.dataset


def test_budgets_follow_the_range_unless_they_are_given() -> None:
    classifier = art_classifier(Rescaled(0, 255).eval(), clip_values=(0, 255))
    audit = lipaudit.audit(classifier, 255 * images(2), [0, 1], attacks="none", local="off")

    assert audit.threat.eps == ("36", "63.75", "127.5", "255")


def test_a_domain_can_be_given_for_any_model() -> None:
    model, x = Rescaled(0, 255).eval(), 255 * images()
    given = lipaudit.audit(model, x, model(x).argmax(1), attacks="none", local="off", domain=(0, 255))
    stated = lipaudit.audit(
        art_classifier(model, clip_values=(0, 255)), x, model(x).argmax(1), attacks="none", local="off"
    )

    assert given.samples.radius == stated.samples.radius
    assert given.threat == stated.threat


def test_a_range_that_does_not_fit_is_refused() -> None:
    classifier, x = art_classifier(body(), clip_values=(0, 1)), images()
    with pytest.raises(BadThreat, match=r"expected inputs in \[0, 1\], got values from 0.* to 255; divide them by 255"):
        lipaudit.audit(classifier, 255 * x, [0] * 6)
    with pytest.raises(BadThreat, match=r"the clip_values of the ART classifier, 0 to 1, got 0 to 255"):
        lipaudit.audit(classifier, 255 * x, [0] * 6, domain=(0, 255))
    with pytest.raises(BadThreat, match=r"domain \[0, 1\], got entries from"):
        lipaudit.certify(classifier, 255 * x)
    with pytest.raises(BadThreat, match="finite low < high"):
        lipaudit.audit(body(), x, [0] * 6, domain=(1, 0))


def test_a_classifier_without_clip_values_is_taken_at_its_pixels_and_the_report_says_so() -> None:
    audit = lipaudit.audit(art_classifier(body()), images(2), [0, 1], attacks="none", local="off")

    assert any("clip_values" in warning for warning in audit.warnings)
    assert audit.model.name == "Sequential"
    assert audit.model.source == "passed to lipaudit.audit in a PyTorchClassifier"


def test_the_normalisation_of_a_classifier_is_a_fact_of_the_report() -> None:
    audit = lipaudit.audit(
        art_classifier(body(), preprocessing=(MEAN, STD)), images(2), [0, 1], attacks="none", local="off"
    )
    assert (audit.model.mean, audit.model.std) == (MEAN, STD)
    finding = next(f for f in audit.findings if f.id == "LA007")
    assert finding.value == f"1/std up to {1 / min(STD):.2f}"


def test_a_domain_stated_by_a_classifier_serves_networks_that_need_one() -> None:
    class Squared(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return adaptive_avg_pool2d(x * x, 1).flatten(1)

    bound = lipaudit.bound(art_classifier(Squared().eval(), clip_values=(0, 1)), (3, 5, 5))
    assert bound.domain == (0.0, 1.0)
    assert len(lipaudit.certify(art_classifier(Squared().eval(), clip_values=(0, 1)), images()).rows) == 6


ARRAYS: dict[str, Callable[[torch.Tensor], Any]] = {
    "numpy": lambda x: x.numpy(),
    "read-only": lambda x: np.frombuffer(x.numpy().tobytes(), np.float32).reshape(x.shape),
    "reversed": lambda x: x.flip(0).numpy()[::-1],
    "other byte order": lambda x: x.numpy().astype(">f4"),
    "float64": lambda x: x.numpy().astype(np.float64),
    "long double": lambda x: x.numpy().astype(np.longdouble),
    "a list of tensors": lambda x: list(x),
    "with gradient": lambda x: x.clone().requires_grad_(),
    "channels last in memory": lambda x: x.contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind_give_the_same_audit(kind: str) -> None:
    x = images(3)
    known = lipaudit.certify(body(), x, local="off")

    found = lipaudit.certify(body(), ARRAYS[kind](x), local="off")

    assert found.rows == known.rows
    assert min(found.radius) > 0


def test_an_audit_takes_what_certify_takes() -> None:
    x = images(2)
    for array in (ARRAYS["read-only"](x), ARRAYS["with gradient"](x), x.half()):
        audit = lipaudit.audit(body(), array, [0, 1], attacks="none", local="off")
        assert len(audit.samples.radius) == 2


class Pairs(Dataset[Any]):
    """Images with labels."""

    def __init__(self, give: Callable[[torch.Tensor, int], Any] = lambda x, y: (x, y)) -> None:
        self.give = give

    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> Any:
        return self.give(images(3)[row], (0, 2, 1)[row])


LOADED: dict[str, Callable[[], Any]] = {
    "a DataLoader": lambda: DataLoader(Pairs(), batch_size=2),
    "a Dataset": Pairs,
    "a TensorDataset": lambda: TensorDataset(images(3), torch.tensor([0, 2, 1])),
    "labels in a column": lambda: TensorDataset(images(3), torch.tensor([[0], [2], [1]])),
    "more than a label": lambda: DataLoader(Pairs(lambda x, y: (x, y, "name")), batch_size=3),
}


@pytest.mark.parametrize("kind", LOADED)
def test_a_loader_brings_images_and_labels(kind: str) -> None:
    known = lipaudit.certify(body(), images(3), [0, 2, 1], local="off")

    assert lipaudit.certify(body(), LOADED[kind](), local="off").rows == known.rows
    audit = lipaudit.audit(body(), LOADED[kind](), attacks="none", local="off")
    assert audit.samples.label == (0, 2, 1)
    assert audit.samples.radius == tuple(known.radius)


@pytest.mark.parametrize(
    ("inputs", "labels", "says"),
    [
        (lambda: DataLoader(Pairs()), [0, 2, 1], "a DataLoader brings its labels"),
        (lambda: DataLoader(Pairs(lambda x, y: {"image": x, "label": y})), None, "got dict of image, label"),
        (lambda: Pairs(lambda x, _: x), None, "expected pairs (input, label) from the Dataset, got Tensor"),
        (lambda: images(3), None, "expected 3 labels, got none"),
    ],
)
def test_what_has_no_labels_or_two_is_refused(inputs: Callable[[], Any], labels: Any, says: str) -> None:
    with pytest.raises((LoadError, BadThreat), match=re.escape(says)):
        lipaudit.audit(body(), inputs(), labels, attacks="none", local="off")


WHOLE: dict[str, tuple[Any, str]] = {
    "uint8": (np.uint8, "as pixels in [0, 1] they are x / 255"),
    "uint16": (np.uint16, "x / 65535"),
    "int16 up to 255": (np.int16, "x / 255"),
    "int64": (np.int64, "x / 255"),
    "bool": (bool, "x.astype('float32')"),
    "complex": (np.complex64, "take the real parts"),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_whole_numbers_are_told_how_they_become_pixels(kind: str, make: Callable[[Any], Any]) -> None:
    dtype, says = WHOLE[kind]

    with pytest.raises(BadThreat, match=re.escape(says)):
        lipaudit.certify(body(), make((images(2).numpy() * 255).astype(dtype)))


def test_more_than_eight_bits_are_told_by_their_values() -> None:
    levels = (images(2).double() * 65535).to(torch.int32)

    with pytest.raises(BadThreat, match=re.escape("x / 65535")):
        lipaudit.certify(body(), levels)
    with pytest.raises(BadThreat, match=r"from -\d+ to \d+: shift and scale"):
        lipaudit.certify(body(), levels - 40000)


@pytest.mark.parametrize("top", [255, 65535])
def test_pixels_of_whole_levels_are_refused_or_warned_of(top: int) -> None:
    with pytest.warns(UserWarning, match=rf"divide them by {top}, or say that it is meant so by domain=\(0, {top}\)"):
        lipaudit.certify(body(), images(2) * top, local="off")
    with pytest.raises(BadThreat, match=f"divide them by {top}"):
        lipaudit.audit(body(), images(2) * top, [0, 1], attacks="none", local="off")
    lipaudit.certify(body(), images(2) * top, local="off", domain=(0, top))
    lipaudit.certify(body(), images(2) * 4 - 2, local="off")
    lipaudit.certify(nn.Linear(3, 2).eval(), torch.tensor([[40.0, 180.0, 2.0]]), local="off")  # no image
    with pytest.warns(UserWarning, match="divide them by"):
        lipaudit.certify(nn.Linear(64, 2).eval(), torch.rand(1, 64) * top, local="off")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_floats_of_every_size_are_taken_exactly(dtype: torch.dtype) -> None:
    points = check_inputs(images(2).to(dtype))

    assert torch.equal(points.double(), images(2).to(dtype).double())


@pytest.mark.parametrize("inputs", [torch.rand(2, 3, 5, 5).to_sparse(), torch.empty(2, 3, 5, 5, device="meta")])
def test_tensors_without_all_values_are_refused(inputs: torch.Tensor) -> None:
    with pytest.raises(BadThreat, match="all values one by one"):
        lipaudit.certify(body(), inputs)


LABELS: dict[str, Any] = {
    "numpy": np.array([0, 2, 1]),
    "uint8": np.array([0, 2, 1], np.uint8),
    "uint16, other byte order": np.array([0, 2, 1], ">u2"),
    "torch": torch.tensor([0, 2, 1]),
    "int32": torch.tensor([0, 2, 1], dtype=torch.int32),
    "one-hot integers": np.eye(3, dtype=int)[[0, 2, 1]],
    "one-hot floats": np.eye(3, dtype=np.float32)[[0, 2, 1]],
    "one-hot booleans": np.eye(3, dtype=bool)[[0, 2, 1]],
    "torch one-hot floats": torch.eye(3)[[0, 2, 1]],
    "a column": np.array([[0], [2], [1]]),
    "a column of torch": torch.tensor([[0], [2], [1]]),
    "a list of tensors": [torch.tensor(0), torch.tensor(2), torch.tensor(1)],
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_kind(kind: str) -> None:
    assert check_labels(LABELS[kind], 3, 3) == [0, 2, 1]


@pytest.mark.parametrize(
    "labels",
    [
        np.full((3, 3), 1 / 3),
        np.array([[0.9, 0.1, 0], [1, 0, 0], [0, 1, 0]]),
        np.array([[2, -1, 0], [1, 0, 0], [0, 1, 0]]),
        np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0]]),
        np.zeros((3, 3)),
    ],
)
def test_soft_labels_are_refused_by_name(labels: np.ndarray) -> None:
    with pytest.raises(BadThreat, match=r"one-hot labels.*soft or several"):
        check_labels(labels, 3, 3)


def test_labels_reach_every_entry_point() -> None:
    one_hot = np.eye(3, dtype=np.float32)[[0, 2, 1]]
    known = lipaudit.certify(body(), images(3), [0, 2, 1], local="off")

    assert lipaudit.certify(body(), images(3), one_hot, local="off").rows == known.rows
    assert lipaudit.audit(body(), images(3), one_hot, attacks="none", local="off").samples.label == (0, 2, 1)


def test_what_is_no_array_of_numbers_is_refused() -> None:
    with pytest.raises(BadThreat, match="array of numbers"):
        lipaudit.audit(body(), np.array([["a"], ["b"]]), [0, 1])
    with pytest.raises(BadThreat, match="integer or one-hot labels"):
        lipaudit.certify(body(), images(3), np.array([0.0, 1.0, 2.0]))


def test_a_single_output_has_no_largest_logit() -> None:
    """Otherwise its only class would be certified everywhere."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 1)).eval()

    assert lipaudit.bound(model, (3, 5, 5)).value > 0
    with pytest.raises(CaptureError, match="at least two logits"):
        lipaudit.certify(model, images())
    with pytest.raises(CaptureError, match="at least two logits"):
        lipaudit.audit(model, images(), [0] * 6, attacks="none")
