"""Arithmetics F and D: no execution in that format leaves the proved error, no radius is contradicted by one."""

from __future__ import annotations

import functools
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from executions import SUMMINGS, executed, perceptron, residual, with_cancelling_biases
from torch import nn

import lipaudit
from lipaudit.certification.certificates import certify_with, with_local_radii
from lipaudit.certification.executed import Arithmetic, Execution
from lipaudit.certification.network_bound import Composition, compose
from lipaudit.crosscheck.native_boundary import changed, first_flips
from lipaudit.domains.graph import evaluate
from lipaudit.report.terminal import to_text
from lipaudit.results.json import from_json

NETWORKS = {
    "residual": lambda: (residual(0), (2, 8, 8)),
    "circular": lambda: (residual(1, padding_mode="circular"), (2, 8, 8)),
    "perceptron": lambda: (perceptron(2, 30, 40, 20, 5), (30,)),
    "deep": lambda: (perceptron(3, 8, 16, 16, 16, 16, 16, 16, 4), (8,)),
    "cancelling": lambda: (with_cancelling_biases(perceptron(4, 12, 20, 16, 4), 1e6), (12,)),
    "huge": lambda: (scaled(perceptron(5, 12, 20, 4), 1e15), (12,)),
    "small": lambda: (scaled(perceptron(6, 12, 20, 4), 1e-15), (12,)),
    "subnormal": lambda: (scaled(perceptron(7, 12, 20, 4), 2.0**-68), (12,)),
}


def scaled(network: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(factor)
    return network


def exact(composition: Composition, x: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The logits in float64, and how far they may be from the exact ones."""
    own = Execution(composition, ("float64",)).around(x)["float64"].whole.a
    return evaluate(composition.graph, x.double()), own


def of(composition: Composition, x: torch.Tensor, arithmetic: Arithmetic = "native"):
    return Execution(composition, (arithmetic,)).around(x)[arithmetic]


@functools.cache
def composed(name: str) -> tuple[nn.Module, tuple[int, ...], Composition]:
    network, shape = NETWORKS[name]()
    return network, shape, compose(network, shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_execution_leaves_the_error_at_the_centre_or_around_it(name: str) -> None:
    network, shape, composition = composed(name)
    torch.manual_seed(10)
    largest = 0.0
    for x in torch.rand(2, *shape):
        bound = of(composition, x)
        for radius in (0.0, 30.0):
            step = torch.randn(shape, dtype=torch.float64)
            # What is executed is what it becomes in float32, which is what the ball has to contain.
            moved = (x.double() + radius * step / step.norm()).float()
            reach = float((moved.double() - x.double()).norm()) * (1 + 1e-12)
            logits, own = exact(composition, moved)
            for summing in SUMMINGS.values():
                off = float((executed(composition, moved, summing).double() - logits).norm()) + own
                largest = max(largest, off / bound.whole.at(reach))
            off = float((network(moved[None])[0].double() - logits).norm()) + own
            largest = max(largest, off / bound.whole.at(reach))
    assert 1e-9 < largest <= 1


def test_the_order_of_torch_does_not_matter_either() -> None:
    """Batches, threads, memory formats, permuted channels: other kernels, other orders of the same sums."""
    network = residual(20, channels=8)
    composition = compose(network, (2, 8, 8))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    permuted = residual(20, channels=8)
    with torch.no_grad():
        for norm in permuted.norms:
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                tensor.copy_(tensor[order])
        permuted.first.weight.copy_(permuted.first.weight[order])
        permuted.first.bias.copy_(permuted.first.bias[order])
        for conv in permuted.convs:
            conv.weight.copy_(conv.weight[order][:, order])
        permuted.dense.weight.copy_(permuted.dense.weight.reshape(8, 8, 4)[:, order].reshape(8, 32))
    images = torch.rand(33, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        runs = [network(images), network.to(memory_format=torch.channels_last)(images), permuted(images)]
        torch.set_num_threads(1)
        runs += [torch.cat([network(image[None]) for image in images]), network(images.repeat(3, 1, 1, 1))[33:66]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TF32 on other hardware
            with torch.backends.mkldnn.flags(enabled=False):
                runs.append(torch.cat([network(some) for some in images.split(8)]))
    finally:
        torch.set_num_threads(threads)
    seen = 0.0
    for row, image in enumerate(images[:8]):
        bound, (logits, own) = of(composition, image), exact(composition, image)
        for run in runs:
            off = float((run[row].double() - logits).norm()) + own
            seen = max(seen, off / bound.whole.a)
    assert 1e-9 < seen <= 1
    assert len({tuple(run[0].tolist()) for run in runs}) > 1, "the runs do not differ: nothing is tested"


def test_against_fractions() -> None:
    """One layer, and the exact sum of products: no float64 in the reference."""
    torch.manual_seed(30)
    layer = nn.Linear(200, 6).eval().requires_grad_(False)
    layer.weight *= torch.logspace(-6, 6, 200)
    composition = compose(layer, (200,))
    for x in torch.randn(4, 200):
        bound = of(composition, x).whole.a
        reference = [
            sum((Fraction(w) * Fraction(v) for w, v in zip(row.tolist(), x.tolist(), strict=True)), Fraction(b))
            for row, b in zip(layer.weight, layer.bias.tolist(), strict=True)
        ]
        for summing in SUMMINGS.values():
            logits = executed(composition, x, summing).tolist()
            squares = sum((Fraction(y) - z) ** 2 for y, z in zip(logits, reference, strict=True))
            assert squares <= Fraction(bound) ** 2


def test_a_radius_computed_by_hand() -> None:
    """f(x) = x in two dimensions: two products, a sum and a bias are charged with five roundings each."""
    layer = nn.Linear(2, 2, bias=False).eval().requires_grad_(False)
    layer.weight.copy_(torch.eye(2))
    x = torch.tensor([[3.0, 1.0]])
    unit = 2.0**-24
    gamma = 5 * unit / (1 - 5 * unit)
    lost = math.sqrt(2) * gamma * math.sqrt(10)
    inside = (2 - lost) / (math.sqrt(2) * (1 + gamma))
    by_hand = (inside - unit * math.sqrt(10)) / (1 + unit)
    found = lipaudit.certify(layer, x, arithmetic="native").radius[0]
    assert by_hand * (1 - 1e-7) <= found <= by_hand
    exact_distance = math.sqrt(2)
    assert 2e-7 < 1 - found / exact_distance < 2e-6
    assert 0 < 1 - lipaudit.certify(layer, x, arithmetic="float64").radius[0] / exact_distance < 1e-8


def test_the_three_promises_are_ordered() -> None:
    for _, shape, composition in map(composed, NETWORKS):
        images = torch.rand(5, *shape, generator=torch.Generator().manual_seed(3))
        found = certify_with(composition, images, arithmetics=("native", "float64"))
        as_executed, in_float64 = found.others["native"].radius, found.others["float64"].radius
        assert (found.radius >= in_float64).all()
        assert (in_float64 >= as_executed).all()
        # Where float64 itself has nothing to lose, neither do its certificates.
        assert in_float64.max() == 0 or np.median(in_float64 / found.radius) > 0.99


def test_local_radii_hold_as_executed_where_the_margins_allow_it() -> None:
    network = perceptron(8, 6, 12, 12, 3)
    composition = compose(network, (6,))
    images = torch.rand(6, 6, generator=torch.Generator().manual_seed(3))
    found, local = with_local_radii(
        certify_with(composition, images, arithmetics=("native", "float64")), composition, images, budget=None
    )
    assert local.tried > 0
    assert "local" in found.others["native"].method
    as_executed, in_float64 = found.others["native"].radius, found.others["float64"].radius
    assert (found.radius > in_float64).all()
    assert (in_float64 > as_executed).all()
    assert (as_executed > 0.5 * found.radius).all()


@pytest.mark.parametrize("biases", [0.0, 1e6])
def test_no_float32_boundary_lies_within_a_radius_as_executed(biases: float) -> None:
    """Bisection between images; with biases that cancel, rounding moves the boundary far into the exact radii."""
    network = perceptron(40, 10, 24, 16, 3)
    images = torch.rand(60, 10, generator=torch.Generator().manual_seed(4))
    network[-1].bias -= network(images).mean(0)
    with_cancelling_biases(network, biases)
    composition = compose(network, (10,))
    points = _close_to_the_boundary(network, images)
    found = certify_with(composition, points, arithmetics=("native",))
    beaten, excess = {"real": 0, "native": 0}, 0.0
    for start, point in enumerate(points):
        label = torch.full((len(images),), int(found.prediction[start]))
        clean = point.double().expand(len(images), -1)
        for flip in first_flips(network, clean, images.double(), label):
            if flip is not None:
                distance = math.dist(flip.tolist(), point.double().tolist())
                beaten["real"] += distance < found.radius[start]
                beaten["native"] += distance < found.others["native"].radius[start]
                excess = max(excess, found.radius[start] - distance)
    assert beaten["native"] == 0
    # The exact function has its boundary elsewhere: by the resolution of the input, or by what cancels.
    assert beaten["real"] > 0
    assert (excess > 1e-3) == (biases > 0)
    assert excess < 1e-5 or biases > 0


def _close_to_the_boundary(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Points on the way from an image to the next class, at which margins are small."""
    labels = network(images).argmax(1)
    rolled = images.roll(1, 0)
    flips = first_flips(network, images.double(), rolled.double(), labels)
    found = [
        image + share * (flip.float() - image)
        for image, flip in zip(images, flips, strict=True)
        if flip is not None
        for share in (0.5, 0.99, 0.99999)
    ]
    return torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Small networks have radii there, too; sums of too many terms have none."""
    network = perceptron(9, 4, 6, 3).to(dtype)
    composition = compose(network, (4,))
    images = torch.rand(20, 4, generator=torch.Generator().manual_seed(5)).to(dtype).float()
    found = certify_with(composition, images, arithmetics=("native", "float64"))
    radius = found.others["native"].radius
    assert (radius <= found.others["float64"].radius).all()
    assert (radius > 0).any()
    assert str(dtype).removeprefix("torch.") not in found.others["native"].why_not
    for row, x in enumerate(images):
        bound, (logits, own) = of(composition, x), exact(composition, x)
        for summing in SUMMINGS.values():
            off = float((executed(composition, x, summing, dtype).double() - logits).norm()) + own
            assert off <= bound.whole.a
        assert not bool(changed(network, x[None].double(), torch.tensor([found.prediction[row]]))) or radius[row] == 0
    wide = compose(perceptron(9, 1500, 3).to(dtype), (1500,))
    assert of(wide, torch.rand(1500)).whole.a == math.inf
    assert (
        "may change the logits"
        in certify_with(wide, torch.rand(2, 1500), arithmetics=("native",)).others["native"].why_not
    )


def test_overflow_is_refused() -> None:
    # The sum is far from the largest number, but in another order it could get beyond it on the way.
    network = nn.Linear(6, 2, bias=False).eval().requires_grad_(False)
    network.weight.copy_(1e38 * torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -0.5], [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]]))
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) + 1
    found = certify_with(compose(network, (6,)), x, arithmetics=("native", "float64"))
    assert not found.others["native"].radius.any()
    assert "overflow in float32" in found.others["native"].why_not
    assert found.others["float64"].radius.any()
    # Near the largest number a radius ends where overflow cannot be ruled out.
    tall = nn.Linear(1, 2, bias=False).eval().requires_grad_(False)
    tall.weight.copy_(torch.tensor([[1e38], [-1e38]]))
    limit = of(compose(tall, (1,)), torch.tensor([1.0])).limit
    assert 0 < limit < 1
    assert lipaudit.certify(tall, torch.tensor([[1.0]]), arithmetic="native").radius[0] <= limit


class Casting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense((x.double() * 0.1).float())


REFUSED = {
    "gelu in float32 has no proved error": lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3)),
    "softmax in float32 has no proved error": lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)),
    "leaves its own dtype": Casting,
    "0.1 in hardtanh is rounded in float32": lambda: nn.Sequential(nn.Linear(4, 4), nn.Hardtanh(-1, 0.1)),
    "mul of activations": lambda: Gate(),
}


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x) * torch.relu(x[:, :3])


@pytest.mark.parametrize("why", REFUSED)
def test_what_has_no_proved_error_is_refused_by_name(why: str) -> None:
    torch.manual_seed(0)
    network = REFUSED[why]().eval().requires_grad_(False)
    found = lipaudit.certify(network, torch.rand(3, 4), domain=(0, 1), arithmetic="native", local="off")
    assert why in found.why_not
    assert not found.radius.any()
    assert found.others["real"].radius.any()


@pytest.mark.parametrize("through", ["all products", "one backend"])
def test_products_in_a_shorter_format_are_another_arithmetic(through: str) -> None:
    net, x = perceptron(7, 6, 12, 3), torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    expected = lipaudit.certify(net, x, arithmetic="native")
    try:
        if through == "all products":
            torch.set_float32_matmul_precision("medium")
        else:
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        got, real = lipaudit.certify(net, x, arithmetic="native"), lipaudit.certify(net, x)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert got.why_not.startswith("torch may multiply in bf16 where the network runs")
    assert not got.radius.any()
    assert expected.radius.all()
    assert (real.radius == expected.others["real"].radius).all()


def test_an_audit_has_all_three_and_the_headline_that_was_asked_for() -> None:
    network = perceptron(12, 6, 12, 3)
    images = torch.rand(40, 6, generator=torch.Generator().manual_seed(6))
    labels = network(images).argmax(1)
    given = {"attacks": "deepfool", "local": "off"}
    both = {name: lipaudit.audit(network, images, labels, **given, arithmetic=name) for name in ("real", "native")}
    for headline, audit in both.items():
        assert [found.arithmetic for found in audit.arithmetics] == ["real", "native", "float64"]
        assert [found.arithmetic for found in audit.arithmetics if found.headline] == [headline]
        mine = next(found for found in audit.arithmetics if found.headline)
        assert mine.radius == audit.samples.radius
        assert mine.certified == audit.certified
        assert audit.arithmetic == mine.sentence
        assert mine.sentence.startswith(f"{headline.capitalize()} arithmetic: ")
        assert {finding.id: finding.state for finding in audit.findings}["LA008"] == "pass"
        assert from_json(audit.to_json()) == audit
        assert "Certified accuracy for each arithmetic" in audit.to_html()
    assert sum(both["native"].samples.radius) < sum(both["real"].samples.radius)
    executed_at = both["real"].samples.native_distance
    assert any(executed_at)
    assert all(
        (d is None) == (e is None) or abs(d - e) < 1e-5
        for d, e in zip(both["real"].samples.distance, executed_at, strict=True)
    )


def test_a_headline_that_cannot_be_certified_says_so_and_certifies_nothing() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 3)).eval().requires_grad_(False)
    images = torch.rand(20, 6)
    audit = lipaudit.audit(network, images, network(images).argmax(1), attacks="none", local="off", arithmetic="native")
    assert audit.verdict.headline == "Nothing is certified for native arithmetic."
    assert (audit.verdict.integrity, audit.verdict.strength) == ("SOUND", "vacuous")
    assert "gelu in float32 has no proved error" in audit.verdict.sentences[0]
    assert not any(audit.samples.radius)
    assert any(audit.arithmetics[0].radius)
    assert audit.arithmetics[1].radius == ()
    assert "native: not certified: gelu in float32 has no proved error" in to_text(audit)
