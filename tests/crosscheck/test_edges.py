"""At the edges of what attack libraries take: logits of any size, masked classes, no gradients, long images."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from crosscheck_nets import exact_distances, labelled, linear, samples
from torch import Tensor, nn

from lipaudit.crosscheck import ATTACKS, autoattack, cross_check, estimate_seconds, largest_slope
from lipaudit.crosscheck.art import _squares_fit
from lipaudit.crosscheck.isolation import sealed
from lipaudit.crosscheck.registry import Batch
from lipaudit.crosscheck.unit_box import UnitBox
from lipaudit.results.threat import NORMS


class After(nn.Module):
    """A linear classifier with something done to its logits."""

    def __init__(self, then: Callable[[Tensor], Tensor], classes: int = 4) -> None:
        super().__init__()
        self.inner, self.then = linear(classes), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.inner(x))


def masked(z: Tensor) -> Tensor:
    return torch.cat([z[:, :3], torch.full_like(z[:, 3:], -1e9)], 1)


@pytest.mark.parametrize(
    ("factor", "dtype"),
    [(factor, torch.float32) for factor in (1e-36, 1e-30, 1e-8, 1e6, 1e25)]
    + [(1e-200, torch.float64), (1e-3, torch.float16), (1e3, torch.float16), (1e30, torch.bfloat16)],
)
def test_the_size_of_logits_changes_nothing(factor: float, dtype: torch.dtype) -> None:
    inputs, plain = samples(4).to(dtype).float(), linear(4)
    plain = plain.to(dtype).float()  # the same function with the weights that the dtype has
    labels = labelled(plain, inputs)
    exact = exact_distances(plain, inputs, labels)
    for name in ("deepfool", "fab-t-quick", "pgd-at-radius", "apgd-ce"):
        given = {"attacks": [name], "eps": [1.3 * float(exact.max())], "radii": 1.3 * exact}
        evidence = cross_check(After(lambda z: z * factor).to(dtype), inputs.to(dtype), labels, **given)
        usual = cross_check(plain, inputs, labels, **given)
        assert evidence.records[0].broken >= usual.records[0].broken >= 3
    (flag,) = evidence.flags
    assert flag.startswith("attacks saw the logits times 2^")
    power = int(flag.partition("^")[2].partition(",")[0])
    assert abs(power + math.log2(factor)) < 6


def test_usual_logits_and_probabilities_are_attacked_as_they_are() -> None:
    inputs = samples(4)
    for then in (lambda z: z, lambda z: z * 8, lambda z: (z * 1e-4).softmax(1)):
        network = After(then)
        evidence = cross_check(network, inputs, labelled(network, inputs), attacks=[], eps=[], radii=None)
        assert evidence.flags == ()


def test_logits_that_are_too_far_apart_for_a_loss_are_counted() -> None:
    inputs = samples(5)
    inputs[3] = 1.0

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear(4)

        def forward(self, x: Tensor) -> Tensor:
            far = (x.flatten(1).mean(1, keepdim=True) - 0.9).relu()
            return self.inner(x) + 1e4 * far * torch.tensor([0.0, 0.0, 1.0, 0.0])

    network = Steep().eval()
    labels = labelled(network, inputs)
    assert float(network(inputs).detach().topk(2).values.diff().abs()[3]) > 100
    evidence = cross_check(network, inputs, labels, attacks=[], eps=[], radii=None)
    assert evidence.flags == ("1 samples have logits so far apart that cross-entropy has no gradient in float32",)


def test_a_masked_class_hides_no_witness_and_no_slope() -> None:
    """Its logit is -1e9: a thousandth of its rounding exceeds every margin."""
    inputs = samples(6)
    three, four = After(lambda z: z[:, :3]), After(masked)
    labels = labelled(three, inputs)
    given = {"attacks": ["deepfool"], "eps": [], "radii": None}
    expected = cross_check(three, inputs, labels, **given)
    evidence = cross_check(four, inputs, labels, **given)
    assert len(evidence.witnesses) == 6
    assert [w.distance for w in evidence.witnesses] == pytest.approx([w.distance for w in expected.witnesses], 1e-3)
    slope = largest_slope(four, inputs, labels, others=2)
    assert slope.value == pytest.approx(largest_slope(three, inputs, labels).value, rel=1e-6)


class Raises(torch.autograd.Function):
    """As users' own functions may be: attacks that need a gradient are "not run" then, and nothing ends in an error."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        del ctx
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        raise NotImplementedError("no backward pass was written")


class Within(nn.Module):
    def __init__(self, mode: Callable) -> None:
        super().__init__()
        self.inner, self.mode = linear(4), mode

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            return self.inner(x)


CUT = "no gradient: the forward pass cuts it off (detach, no_grad or inference_mode)"
WITHOUT = {
    "no_grad": (lambda: Within(torch.no_grad), CUT),
    "inference_mode": (lambda: Within(torch.inference_mode), CUT),
    "detach": (lambda: After(Tensor.detach), CUT),
    "raises": (lambda: After(Raises.apply), "no gradient: NotImplementedError: no backward pass was written"),
}


@pytest.mark.parametrize("how", WITHOUT)
def test_without_gradients_what_needs_none_still_runs(how: str) -> None:
    network, why = WITHOUT[how][0](), WITHOUT[how][1]
    inputs = samples(3)
    attacks = ["deepfool", "fab-t", "cw", "pgd-at-radius", "apgd-ce", "hopskipjump"]
    given = {"attacks": attacks, "eps": [2.0], "radii": np.full(3, 0.1)}
    evidence = cross_check(network, inputs, labelled(network, inputs), **given)
    assert evidence.no_gradient == why
    for record in evidence.records:
        if record.name == "hopskipjump":
            assert (record.status, record.broken) == ("done", 3)
        else:
            assert (record.status, record.why) == ("not run", why)
            assert not record.unfinished
    assert set(estimate_seconds(network, inputs, attacks=attacks, samples=3, eps=[2.0], classes=4)) == set(attacks)


LONG = [(3, 4, 64), (3, 64, 4), (1, 12, 128), (1, 128, 12), (1, 16, 128), (1, 128, 16), (1, 12, 12), (1, 1, 40)]


@pytest.mark.parametrize("shape", LONG)
@pytest.mark.parametrize("name", ["square", "art-square"])
def test_squares_that_do_not_fit_are_not_run(name: str, shape: tuple[int, ...], monkeypatch) -> None:
    monkeypatch.setattr(autoattack, "SQUARE_QUERIES", 60)
    monkeypatch.setattr("lipaudit.crosscheck.art.SQUARE_QUERIES", 60)
    network, inputs = linear(3, shape=shape), samples(2, shape=shape)
    (record,) = cross_check(network, inputs, labelled(network, inputs), attacks=[name], eps=[1e-3], radii=None).records
    fits = {"square": [(1, 128, 12), (1, 128, 16), (1, 16, 128), (3, 64, 4)], "art-square": [(1, 12, 12)]}[name]
    if shape in fits:
        assert (record.status, record.attacked, record.why) == ("done", 2, "")
    else:
        assert record.status == "not run"
        assert "pixels" in record.why
        assert not record.unfinished


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(6))
def test_whether_squares_fit_is_what_the_libraries_find_out(seed: int, norm: str, monkeypatch) -> None:
    monkeypatch.setattr(autoattack, "SQUARE_QUERIES", 20)
    monkeypatch.setattr("lipaudit.crosscheck.art.SQUARE_QUERIES", 20)
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(5, 34, (2,), generator=generator).tolist()
    network, inputs = linear(3, shape=(1, height, width)), samples(1, shape=(1, height, width))
    box = UnitBox(network, inputs, 0.0, 1.0, 3)
    batch = Batch(inputs, labelled(network, inputs), torch.full((1,), 1e-3, dtype=torch.float64), 0, norm)
    for name in ("square", "art-square"):
        entry = ATTACKS[name]
        if min(height, width) < entry.least_side or norm not in entry.norms:
            continue
        with sealed(0, [], inputs.device):
            if entry.fits(height, width, norm):
                list(entry(box, batch))
            else:
                with pytest.raises((RuntimeError, ValueError)):
                    list(entry(box, batch))


def test_gradients_are_said_to_be_there_only_where_a_library_looked() -> None:
    looked = {name for name in ATTACKS if "zero gradients" in ATTACKS[name].checks(10)}
    assert looked == {"apgd-dlr-5", "apgd-t"}


def test_usual_images_are_squares_that_fit() -> None:
    for side in (28, 32, 64, 224, 299):
        assert ATTACKS["square"].fits(side, side, "l2")
        assert _squares_fit(side, side, "l2")
