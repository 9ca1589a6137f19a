"""Whatever stands for a model becomes the function of raw inputs that is really computed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipaudit
from lipaudit.errors import BadThreat, CaptureError, LoadError
from lipaudit.graph.capture import capture
from lipaudit.graph.wrappers import Normalise, Normalised, as_module, stated_domain

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 0.125)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)).eval()


def images() -> torch.Tensor:
    return torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def art_classifier(model: nn.Module | None = None, shape: tuple[int, ...] = (3, 8, 8), **settings: Any) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model or network(), nn.CrossEntropyLoss(), input_shape=shape, nb_classes=5, device_type="cpu", **settings
    )


def test_normalise_is_per_channel() -> None:
    x = images()

    for c in range(3):
        assert torch.equal(Normalise(MEAN, STD)(x)[:, c], (x[:, c] - np.float32(MEAN[c])) / np.float32(STD[c]))


def test_a_module_passes_unchanged() -> None:
    model = network()

    assert as_module(model) is model


def test_mean_and_std_go_in_front_and_the_model_stays_as_it_was() -> None:
    model = network().train()

    wrapped = as_module(model, mean=MEAN, std=STD)

    assert isinstance(wrapped, Normalised)
    assert wrapped.training
    assert model.training
    mean, std = torch.tensor(MEAN).reshape(3, 1, 1), torch.tensor(STD).reshape(3, 1, 1)
    assert torch.equal(wrapped(images()), model((images() - mean) / std))


def test_the_normalisation_follows_the_precision_of_the_network() -> None:
    wrapped = as_module(network().double(), mean=MEAN, std=STD)

    assert wrapped(images().double()).dtype == torch.float64


@pytest.mark.parametrize(
    "preprocessing",
    [
        (0.0, 1.0),
        (0.5, 0.25),
        (MEAN, STD),
        (np.array(MEAN), np.array(STD)),
        (np.array(MEAN).reshape(1, 3, 1, 1), np.array(STD).reshape(1, 3, 1, 1)),
        (np.linspace(0, 1, 192).reshape(3, 8, 8), np.linspace(1, 2, 192).reshape(3, 8, 8)),
        None,
    ],
)
def test_an_art_classifier_gives_the_function_that_art_attacks(preprocessing: Any) -> None:
    classifier = art_classifier(preprocessing=preprocessing)
    x = images()

    logits = as_module(classifier).eval()(x)

    expected = classifier.predict(x.numpy())
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_art_defences_are_refused() -> None:
    from art.defences.postprocessor import Rounded
    from art.defences.preprocessor import FeatureSqueezing

    before = art_classifier(preprocessing_defences=FeatureSqueezing(clip_values=(0.0, 1.0)))
    after = art_classifier(postprocessing_defences=Rounded())

    with pytest.raises(CaptureError, match=r"FeatureSqueezing.*preprocessing_defences"):
        as_module(before)
    with pytest.raises(CaptureError, match=r"Rounded.*postprocessing_defences"):
        as_module(after)


@pytest.mark.parametrize("preprocessing", [(0.5, 0.25), (np.linspace(0, 1, 20), np.linspace(1, 2, 20))])
def test_an_art_classifier_of_inputs_that_are_no_images(preprocessing: Any) -> None:
    torch.manual_seed(2)
    classifier = art_classifier(nn.Linear(20, 5).eval(), (20,), preprocessing=preprocessing)
    x = torch.rand(7, 20)

    expected = classifier.predict(x.numpy())
    np.testing.assert_allclose(as_module(classifier)(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    bound = lipaudit.bound(classifier, (20,))
    weight = classifier.model.weight.detach().double().numpy() / np.float32(preprocessing[1])  # ART has float32
    assert bound.value >= np.linalg.norm(weight, 2)
    assert bound.value == pytest.approx(np.linalg.norm(weight, 2), rel=1e-6)


def test_channels_last_as_art_has_them() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.permute(0, 3, 1, 2))

    classifier = art_classifier(Last().eval(), (8, 8, 3), preprocessing=(MEAN, STD), channels_first=False)
    x = images().permute(0, 2, 3, 1).contiguous()

    expected = classifier.predict(x.numpy())
    np.testing.assert_allclose(as_module(classifier)(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_std_of_an_art_classifier_enters_the_bound_per_channel() -> None:
    for channel, std in enumerate(STD):
        twice_a_corner = nn.Linear(192, 2, bias=False)
        nn.init.zeros_(twice_a_corner.weight).data[0, 64 * channel] = 2.0
        model = nn.Sequential(nn.Flatten(), twice_a_corner).eval()

        bound = lipaudit.bound(art_classifier(model, preprocessing=(MEAN, STD)), (3, 8, 8))

        assert 2 / std <= bound.pairwise[0][1] <= 2 / std * (1 + 1e-6)


def test_the_network_of_an_art_classifier_is_audited_in_eval_mode_and_left_in_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 5)).train()
    classifier = art_classifier(model)

    wrapped = as_module(classifier)

    assert model.training
    assert not any(module.training for module in wrapped.modules())
    expected = classifier.predict(images().numpy())
    np.testing.assert_allclose(wrapped(images()).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_art_estimators_that_compute_something_else_are_refused() -> None:
    from art.estimators.certification.deep_z import PytorchDeepZ
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
    from art.estimators.classification import PyTorchClassifier

    class Half(PyTorchClassifier):
        def predict(self, x: np.ndarray, **more: Any) -> np.ndarray:
            return super().predict(x / 2, **more)

    class Renamed(PyTorchClassifier):
        pass

    given = {"loss": nn.CrossEntropyLoss(), "input_shape": (4,), "nb_classes": 3, "device_type": "cpu"}
    smoothed = PyTorchRandomizedSmoothing(nn.Linear(4, 3).eval(), **given)
    with pytest.warns(UserWarning, match="does not support networks"):
        zonotopes = PytorchDeepZ(nn.Sequential(nn.Linear(4, 3)).eval(), **given)

    for estimator in (smoothed, zonotopes, Half(nn.Linear(4, 3).eval(), **given)):
        with pytest.raises(CaptureError, match=rf"{type(estimator).__name__} computes something else"):
            as_module(estimator)
    linear = nn.Linear(4, 3).eval()
    assert as_module(Renamed(linear, **given)) is linear


def test_statistics_of_another_shape_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"fit inputs of shape \(3, 8, 8\), got shape \(5,\)"):
        as_module(art_classifier(preprocessing=(np.zeros(5), np.full(5, 0.5))))
    with pytest.raises(LoadError, match="positive std"):
        as_module(art_classifier(preprocessing=(0.0, -1.0)))


def test_clip_values_state_the_range_of_the_inputs() -> None:
    assert stated_domain(network()) is None
    assert stated_domain(art_classifier()) is None
    assert stated_domain(art_classifier(clip_values=(-1, 1))) == (-1.0, 1.0)
    assert stated_domain(art_classifier(clip_values=(np.zeros((3, 8, 8)), np.full((3, 8, 8), 255.0)))) == (0.0, 255.0)
    with pytest.raises(BadThreat, match="range per feature"):
        stated_domain(art_classifier(clip_values=(np.zeros(3), np.array([1.0, 2.0, 3.0]))))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(LoadError, match="got int"):
        as_module(3)
    with pytest.raises(LoadError, match="together"):
        as_module(network(), mean=MEAN)
    with pytest.raises(LoadError, match="brings its own"):
        as_module(art_classifier(), mean=MEAN, std=STD)
    with pytest.raises(LoadError, match="positive std"):
        as_module(network(), mean=MEAN, std=(1.0, 0.0, 1.0))


class Compiled(nn.Module):
    """Compiled here and there, as people do it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.part = torch.compile(nn.Linear(4, 4))
        self.placed = nn.Linear(4, 4)
        self.placed.compile()
        self.twice = torch.compile(lambda x: 2 * x)
        self.forward = torch.compile(self.forward)  # type: ignore[method-assign]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.twice(self.placed(self.part(x))))


class CompiledForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    @torch.compile
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


@pytest.mark.parametrize("make", [Compiled, CompiledForward, lambda: torch.compile(Compiled())])
def test_compiled_models_run_as_they_were_written(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    x = torch.rand(2, 4)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        expected = model(x)
    with torch.no_grad():
        plain = as_module(model)
        before = torch._dynamo.utils.counters["frames"]["total"]
        assert torch.equal(plain(x), expected)
        assert torch._dynamo.utils.counters["frames"]["total"] == before, "something was compiled"
        precise = copy.deepcopy(plain).double()(x.double())
    assert torch.allclose(precise.float(), expected, atol=1e-6)
    assert [n.layer for n in capture(model, (4,)).nodes][-1] == "head"


def test_a_model_in_which_nothing_is_compiled_is_not_copied() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    assert as_module(model) is model
