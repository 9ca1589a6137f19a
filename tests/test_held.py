"""The model, as it runs, held against the graph: what does something else, on whatever occasion, is found."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import lipaudit
from lipaudit.certification.certificates import certify_with
from lipaudit.certification.exact_network import ExactNetwork
from lipaudit.certification.held import ENOUGH, Held
from lipaudit.certification.network_bound import Composition, compose
from lipaudit.errors import CaptureError
from lipaudit.graph.capture import capture
from lipaudit.results.audit import Audit, Finding
from lipaudit.results.bounds import Agreement
from lipaudit.results.json import from_json

IMAGES = torch.randint(0, 256, (20, 1, 6, 6), generator=torch.Generator().manual_seed(1)) / 255
IMAGES[:, :, 0, 0] = 1.0  # saturated, as no random probe is
IMAGES[:, :, 5, 5] = 0.0


class Honest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Otherwise(Honest):
    """Another answer where `when` says so of the input; what it looks at, the tracer does not see."""

    def __init__(self, when: Callable[[torch.Tensor], bool], other: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.when, self.other = when, other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        if torch.compiler.is_exporting() or isinstance(x, torch._subclasses.FakeTensor):
            return y
        with torch.utils._python_dispatch._disable_current_modes():
            return self.other(y) if self.when(x.detach()) else y


class Raising(Honest):
    """An error on photographs alone: on no probe, however flat or saturated."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (torch.compiler.is_exporting() or isinstance(x, torch._subclasses.FakeTensor)):
            with torch.utils._python_dispatch._disable_current_modes():
                corners = (x.detach()[:, 0, 0, 0] == 1) & (x.detach()[:, 0, 5, 5] == 0) & (x.detach()[:, 0, 1, 1] > 0.1)
                if bool(corners.any()):
                    raise ValueError("a photograph\nof something")
        return self.body(x)


def test_an_error_on_images_alone_is_one_line() -> None:
    model = Raising()
    labels = model.body(IMAGES).argmax(1)
    for run in (
        lambda: lipaudit.certify(model, IMAGES, labels, local="off", domain=(0, 1)),
        lambda: lipaudit.audit(model, IMAGES, labels, eps="0.05", attacks="none", local="off"),
    ):
        with pytest.raises(CaptureError, match=r"run on 20 inputs in a batch, got ValueError: a photograph$"):
            run()


LOGGER = logging.getLogger("a model's own")


class Logging(Honest):
    """Keeps its count in a list of a logger, which no comparison of a model's parts shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        LOGGER.filters.append(len)
        y = self.body(x)
        return -y if len(LOGGER.filters) % 7 == 6 else y


def test_a_count_kept_on_a_logger_is_found() -> None:
    LOGGER.filters.clear()
    model = Logging()
    try:
        with pytest.raises(CaptureError, match=r"compute what|same answer|writes to|others in its batch"):
            lipaudit.certify(model, IMAGES, model.body(IMAGES).argmax(1), local="off", domain=(0, 1))
    finally:
        LOGGER.filters.clear()


def at_number(number: int) -> Callable[[torch.Tensor], bool]:
    counter = iter(range(10**6))  # a state that no comparison of a model's parts shows
    return lambda _: next(counter) > number


def on_grid(x: torch.Tensor) -> bool:
    return bool(((x * 255).round() / 255 == x).all())


def masked(z: torch.Tensor) -> torch.Tensor:
    return torch.cat([z[:, :3], torch.full_like(z[:, 3:], -1e9)], 1)


class Masked(Otherwise):
    """A class that is never given: its logit says nothing about the others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return masked(super().forward(x))


def negated(z: torch.Tensor) -> torch.Tensor:
    return -z


def attacked(x: torch.Tensor) -> bool:
    """Beside an image, and farther away from it than noise is."""
    far = torch.cdist(x.float().flatten(1), IMAGES.flatten(1)).amin(1)
    return bool(((far > 0.05) & (far < 1)).any())


class Fixed:
    """One class for sure, and a gradient of zero."""

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        return z * 0 + torch.tensor([0.0, 0.0, 0.0, 1.0])


WHEN: dict[str, Callable[[torch.Tensor], bool]] = {
    "saturated": lambda x: float(x.max()) == 1.0,
    "on the grid": on_grid,
    "off the grid": lambda x: not on_grid(x),
    "in batches of some size": lambda x: 2 < len(x) < 19,
    "alone": lambda x: len(x) == 1 and float(x.max()) == 1.0,
    "one image": lambda x: any(torch.equal(one, IMAGES[13].to(one)) for one in x),
    "a later place": lambda x: len(x) > 5 and float(x[5].max()) == 1.0,
    "with gradients": lambda x: torch.is_grad_enabled() and float(x.max()) == 1.0,
    "without gradients": lambda x: not torch.is_grad_enabled() and float(x.max()) == 1.0,
    "inference mode": lambda x: torch.is_inference_mode_enabled() and float(x.max()) == 1.0,
}


@functools.cache
def composed(mask: bool) -> Composition:
    return compose((Masked if mask else Otherwise)(lambda _: False, negated), (1, 6, 6), domain=(0.0, 1.0))


def held(model: Otherwise) -> Held:
    """Its graph is that of the model as random probes see it."""
    return Held(replace(composed(isinstance(model, Masked)), model=model))


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("kind", [Otherwise, Masked])
def test_another_function_on_some_occasion_is_found(when: str, kind: type[Otherwise]) -> None:
    found = held(kind(WHEN[when], negated))
    found.at_images(IMAGES)
    assert found.differences
    assert all(each.logit < 3 or kind is Otherwise for each in found.differences)


@pytest.mark.parametrize("size", [1e-3, 1e-4, 3e-5])
@pytest.mark.parametrize("logit", range(3))
@pytest.mark.parametrize("kind", [Otherwise, Masked])
def test_a_small_difference_in_one_logit_is_found_whatever_the_others_are(
    size: float, logit: int, kind: type[Otherwise]
) -> None:
    step = size * nn.functional.one_hot(torch.tensor(logit), 4)
    model = kind(WHEN["one image"], lambda z: z + step)  # in the batch with that image
    certify = functools.partial(certify_with, replace(composed(kind is Masked), model=model), IMAGES)
    with pytest.raises(
        CaptureError, match=f"logit {logit} of image 0 is .* from the model in a batch and .* from the graph"
    ):
        certify()


@pytest.mark.parametrize("mask", [False, True])
def test_an_honest_model_is_the_same(mask: bool) -> None:
    found = held((Masked if mask else Otherwise)(lambda _: False, negated))
    found.at_images(IMAGES)
    found.at_images(IMAGES.double() / 3)  # no numbers of float32: the model reads what they are rounded to
    found.at_examples([3, 5], IMAGES[3:5].double() * 0.7, [1.0, 1.0])
    assert found.found() == Agreement(40, 2)


def test_a_model_that_fails_on_some_inputs_is_refused() -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such image")

    with pytest.raises(CaptureError, match="inputs in a batch, got ValueError: no such image"):
        held(Otherwise(WHEN["saturated"], fail)).at_images(IMAGES)
    with pytest.raises(CaptureError, match=r"logits of shape \(20, 4\) from the model in a batch, got \(20, 2\)"):
        held(Otherwise(WHEN["saturated"], lambda z: z[:, :2])).at_images(IMAGES)
    found = held(Otherwise(WHEN["saturated"], lambda z: z * math.nan))
    found.at_images(IMAGES)
    assert len({each.sample for each in found.differences}) == ENOUGH


@pytest.fixture
def fooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing shows at capture: what comes after it has to see it by itself."""
    monkeypatch.setattr(
        "lipaudit.certification.network_bound.capture", lambda _, *shape, **given: capture(Honest(), *shape, **given)
    )


def audited(model: nn.Module, **settings: Any) -> Audit:
    given = {"attacks": "none", "local": "off", "eps": (0.5,)} | settings
    return lipaudit.audit(model, IMAGES, Honest()(IMAGES).argmax(1), **given)


def finding(audit: Audit) -> Finding:
    return next(finding for finding in audit.findings if finding.id == "LA005")


def test_an_honest_audit_says_on_what_the_model_was_held() -> None:
    audit = audited(Honest(), attacks=("deepfool", "apgd-ce"))
    assert audit.verdict.integrity == "SOUND"
    assert audit.agreement.images == 20
    assert audit.agreement.examples >= 10
    assert finding(audit).state == "pass"
    assert finding(audit).value.startswith("20 images, ")
    assert from_json(audit.to_json()).agreement == audit.agreement


@pytest.mark.parametrize(
    ("model", "attacks"),
    [
        (lambda: Otherwise(WHEN["one image"], negated), "none"),
        # Right where an attack looks: nothing would be broken.
        (lambda: Otherwise(attacked, Fixed()), ("deepfool",)),
        (lambda: Otherwise(at_number(60), negated), ("pgd-at-radius", "deepfool")),
    ],
    ids=["images", "adversarial examples", "later calls"],
)
@pytest.mark.usefixtures("fooled")
def test_an_audit_of_another_function_is_invalid(model: Callable[[], nn.Module], attacks: Any) -> None:
    audit = audited(model(), attacks=attacks)
    assert (audit.verdict.integrity, audit.exit_code, audit.certified) == ("INVALID", 4, ())
    assert audit.verdict.headline == "Integrity failure: the model does not compute what was audited."
    assert finding(audit).state == "fail"
    assert "from the model" in finding(audit).value
    assert "from the graph" in finding(audit).value


@pytest.mark.usefixtures("fooled")
def test_certify_refuses_and_names_the_logit() -> None:
    with pytest.raises(CaptureError, match=r"but logit \d of image 0 is .* from the model in a batch and .* the graph"):
        lipaudit.certify(Otherwise(WHEN["one image"], negated), IMAGES, local="off")


class Doubled(Honest):
    def __init__(self, then: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.then = then

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.then(x))


DOUBLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "as it is": (lambda: Doubled(lambda x: x * 0.5), ""),
    "computed constant": (lambda: Doubled(lambda x: x * torch.full((1,), 0.3, dtype=x.dtype).exp()), ""),
    "parametrised": (lambda: Normed(), ""),
    "back to float32": (lambda: Doubled(lambda x: x.float().to(x.dtype)), "a cast to torch.float32"),
    "float32 throughout": (lambda: Doubled(lambda x: x.float()), "cannot be audited"),
    "machine epsilon": (lambda: Doubled(lambda x: x / (1 + torch.finfo(x.dtype).eps)), "another other in "),
    "its dtype": (lambda: Doubled(lambda x: x if x.dtype == torch.float32 else 1 - x), "another network"),
    "another constant": (
        lambda: Doubled(lambda x: x * torch.tensor([1.0 if x.dtype == torch.float32 else 1.1], dtype=x.dtype)),
        "another other in mul",
    ),
    "fewer operations": (lambda: Doubled(lambda x: x * 2 if x.dtype == torch.float32 else x), "another network"),
}


class Normed(Honest):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.body[3])


@pytest.mark.parametrize("what", DOUBLE)
def test_float64_is_promised_only_of_the_same_network(what: str) -> None:
    model, why = DOUBLE[what][0](), DOUBLE[what][1]
    found = lipaudit.certify(model, IMAGES[:4], local="off", arithmetic="float64")
    if why:
        assert why in found.why_not
        assert not found.radius.any()
    else:
        assert found.why_not == ""
        assert found.radius.all()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "layers",
    [
        lambda affine: (nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, affine=affine), nn.ReLU(), nn.Flatten()),
        lambda affine: (nn.Flatten(), nn.BatchNorm1d(36, affine=affine)),
        lambda _: (nn.Flatten(0, 1), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Flatten()),
        lambda _: (nn.Upsample(scale_factor=2, mode="nearest-exact"), nn.Flatten()),
        lambda _: (nn.GroupNorm(1, 1), nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.Flatten()),
    ],
    ids=["batch norm", "flat batch norm", "attention", "nearest-exact", "group norm"],
)
def test_many_are_judged_as_one_is_and_nothing_is_written_to_the_screen(layers, affine: bool, capfd) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(*layers(affine), nn.LazyLinear(3)).eval()
    model(IMAGES[:1])
    for norm in (part for part in model.modules() if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))):
        norm.running_mean.normal_(1e3, 1)
        norm.running_var.uniform_(0.5, 2)
    judge = ExactNetwork(replace(composed(False), graph=capture(model, (1, 6, 6))))
    x = IMAGES.double()
    with torch.no_grad():
        alone = torch.cat([judge(one[None]) for one in x])
        torch.testing.assert_close(judge(x), alone, rtol=1e-11, atol=1e-11)
    assert capfd.readouterr() == ("", "")
    assert judge.together > 1
