"""Affine forms against what they stand for: no input of the ball leaves them, whatever the operation, without slack."""

from __future__ import annotations

import functools
from dataclasses import replace
from fractions import Fraction

import mpmath
import pytest
import torch
from balls import inside, lowest
from samples import NETWORKS, composed
from torch import nn
from torch.nn import functional

from lipaudit.certification.margins import ErrorRecursion
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import evaluate
from lipaudit.domains.zonotope import logits as zonotope
from lipaudit.domains.zonotope import propagator
from lipaudit.domains.zonotope.backward import lower_bounds
from lipaudit.domains.zonotope.linear_images import applied, transposed
from lipaudit.domains.zonotope.max_pooling import POOLS
from lipaudit.domains.zonotope.propagator import TooWide
from lipaudit.domains.zonotope.relaxations import BANDS, CURVES
from lipaudit.domains.zonotope.sums_and_concats import JOINS
from lipaudit.errors import LipauditError, NotLipschitz, UnsupportedOp
from lipaudit.norms.linear_maps import Conv, adjoint

ROOM = 100_000
RADII = (0.0, 1e-3, 0.3, 3.0)


@functools.cache
def local(op: str) -> bool:
    """Whether the sample network of an operation has local rules for everything."""
    network, composition = composed(op)
    try:
        zonotope.logits_over(composition.ledger, torch.rand(network.shape), 0.1, room_for=ROOM)
    except (NotLipschitz, UnsupportedOp):
        return False
    return True


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("radii", [(0.3,), pytest.param(RADII, marks=pytest.mark.slow)], ids=["one", "all"])
@pytest.mark.parametrize("op", NETWORKS)
def test_no_input_of_the_ball_leaves_the_form(op: str, radii: tuple[float, ...]) -> None:
    if not local(op):
        pytest.skip("has no local rule, by name")
    network, composition = composed(op)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(network.shape, generator=generator, dtype=torch.float64)
    evaluated = ErrorRecursion(composition)  # forms are tighter than float64 evaluation is
    for radius in radii:
        logits = zonotope.logits_over(composition.ledger, x, radius, room_for=ROOM)
        low, high = (end[0] for end in logits.range())
        for d in inside(network.shape, 16, generator):
            value, error = (torch.tensor(found, dtype=torch.float64) for found in evaluated(x + radius * d))
            assert bool(((low - error <= value) & (value <= high + error)).all())
        identity = torch.eye(4, dtype=torch.float64)
        c = (identity - identity.roll(1, 0))[:, None]  # f_i - f_(i-1)
        backwards = lower_bounds(logits.step, c) + (c * logits.centre).flatten(1).sum(1)
        noise = 1e-13 * (1 + float(logits.centre.abs().max()))
        for label in range(4):
            least = float(lowest(lambda x: evaluate(composition.graph, x[0])[None], x, radius, c[label, 0])) + noise
            others = [j for j in range(4) if j != label]
            assert float(backwards[label]) <= least
            assert zonotope.margins(logits, label)[others.index((label - 1) % 4)] <= least


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_what_has_a_local_rule() -> None:
    """Every operation that is linear, of one entry, a maximum over windows or a sum: none is lost by accident."""
    without = {op for op in NETWORKS if not local(op)}
    assert without.isdisjoint({"conv2d.default", "linear.default", "avg_pool2d.default", "mean.dim", "add.Tensor"})
    assert without.isdisjoint({"cat.default", "stack.default", "sub.Tensor", "rsub.Tensor", "max_pool2d.default"})
    assert without.isdisjoint({"_native_batch_norm_legit_no_training.default", "conv_transpose2d.input"})
    assert without.isdisjoint(op for op in BANDS if op in NETWORKS and op != "elu.default")
    assert {*JOINS, *POOLS} <= set(NETWORKS)


@pytest.mark.parametrize("op", BANDS)
def test_the_band_holds_the_function(op: str) -> None:
    nodes = [node for node in composed(op)[1].graph.nodes if node.op == op] if op in NETWORKS else []
    if not nodes:
        pytest.skip("exported under another name")
    settings = {"alpha": 1.0} if op == "elu.default" else {}
    generator = torch.Generator().manual_seed(0)
    for node in nodes:
        arguments = {name: value for name, value in node.args.items() if name != "self"} | settings
        arguments = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
        middle = torch.randn(400, 12, generator=generator, dtype=torch.float64) * 4
        width = torch.rand(400, 12, generator=generator, dtype=torch.float64) ** 8 * 6
        width[:20] = 0.0
        low, high = middle - width, middle + width
        band = BANDS[op](node, arguments, low, high, 2.0)
        for share in torch.linspace(0, 1, 41, dtype=torch.float64):
            z = low + share * (high - low)
            z = z.clamp(min=low, max=high)
            value = node.target(**{"self": z, **arguments}) if op != "_prelu_kernel.default" else None
            if value is not None:
                off = (value - (band.slope * z + band.shift)).abs()
                assert bool((off <= band.error + 1e-15 * (1 + value.abs())).all())


FUNCTIONS = {
    "sigmoid.default": lambda x: 1 / (1 + mpmath.exp(-x)),
    "tanh.default": mpmath.tanh,
    "silu.default": lambda x: x / (1 + mpmath.exp(-x)),
    "mish.default": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    "gelu.default none": lambda x: x * (1 + mpmath.erf(x / mpmath.sqrt(2))) / 2,
    "gelu.default tanh": lambda x: (
        x * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3))) / 2
    ),
    "erf.default": mpmath.erf,
    "erfc.default": lambda x: 1 - mpmath.erf(x),
    "atan.default": mpmath.atan,
    "asinh.default": mpmath.asinh,
    "sin.default": mpmath.sin,
    "cos.default": mpmath.cos,
    "log_sigmoid.default": lambda x: -mpmath.log1p(mpmath.exp(-x)),
}


@pytest.mark.parametrize("name", CURVES)
def test_curvatures_and_slopes_are_the_extremes(name: str) -> None:
    function, (curvature, (low, high)) = FUNCTIONS[name], CURVES[name]
    with mpmath.workdps(30):
        places = [mpmath.mpf(k) / 16 for k in range(-160, 161)]
        seconds = [mpmath.diff(function, x, 2) for x in places]
        steepest = max(range(len(places)), key=lambda k: abs(seconds[k]))
        slopes = [mpmath.diff(function, x) for x in places]
        assert max(map(abs, seconds)) <= curvature
        # Around the highest place of the grid there is nothing higher than a parabola through it allows.
        near = [places[steepest] + mpmath.mpf(k) / 4096 for k in range(-256, 257)]
        highest = max(abs(mpmath.diff(function, x, 2)) for x in near)
        assert highest <= curvature <= highest + mpmath.mpf("1e-6")
        assert low <= min(slopes)
        assert max(slopes) <= high


class Residual(nn.Module):
    """A small ResNet-like network with everything that forms can do."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.2, 2.0)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.short = nn.Conv2d(4, 4, 1)
        self.activation = activation
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.norm(self.first(x)))
        x = self.activation(self.second(x)) + self.short(x)
        x = torch.cat([functional.max_pool2d(x, 2), functional.avg_pool2d(x, 2)], 1)
        return self.head(self.activation(x).mean((2, 3)))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.Hardswish()])
def test_margins_hold_and_backwards_is_never_wrong(activation: nn.Module) -> None:
    network = Residual(activation).eval()
    composition = compose(network, (1, 6, 6))
    network.double().requires_grad_(False)
    x = torch.rand(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    label = int(network(x[None])[0].argmax())
    c = -torch.eye(3, dtype=torch.float64)
    c[:, label] += 1
    for radius in (0.01, 0.1, 0.4):
        plain = zonotope.logits_over(composition.ledger, x, radius, room_for=ROOM, backwards=False)
        sharp = zonotope.logits_over(composition.ledger, x, radius, room_for=ROOM)
        others = [j for j in range(3) if j != label]
        for found in (zonotope.margins(plain, label), zonotope.margins(sharp, label)):
            for other, bound in zip(others, found, strict=True):
                assert bound <= float(lowest(network, x, radius, c[other])) + 1e-12


@pytest.mark.parametrize("descending", [False, True])
def test_a_sort_of_pairs_is_as_tight_as_can_be(descending: bool) -> None:
    class Pairs(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sort(x.view(len(x), 2, 2), dim=1, descending=descending).values.flatten(1)

    composition = compose(Pairs().eval(), (4,))
    x = torch.tensor([0.5, 2.0, 0.4, -3.0], dtype=torch.float64)  # pairs: (0.5, 0.4) may swap, (2, -3) may not
    logits = zonotope.logits_over(composition.ledger, x, 0.2, room_for=ROOM)
    smaller, larger = (2, 0) if descending else (0, 2)
    swap = 0.2 * 2**0.5 - 0.1  # the largest difference of two entries in the ball, less their distance
    width = logits.range()[1] - logits.range()[0]
    assert float(width[0, larger]) == pytest.approx(0.4 + swap)
    assert float(width[0, larger + 1]) == pytest.approx(0.4)
    assert float(logits.range()[1][0, larger]) == pytest.approx(0.7 + swap)
    assert float(logits.range()[0][0, smaller]) == pytest.approx(0.2 - swap)
    assert float(logits.range()[1][0, smaller]) == pytest.approx(0.6)


def test_symbols_that_cancel_cancel() -> None:
    """relu(x) - relu(x) is zero, and forms know it."""

    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.relu(x) - torch.relu(x), x], 1)

    composition = compose(Same().eval(), (2,))
    logits = zonotope.logits_over(composition.ledger, torch.tensor([0.1, -0.1]), 1.0, room_for=ROOM)
    one_relu = compose(nn.ReLU().eval(), (2,))
    assert zonotope.logits_over(one_relu.ledger, torch.zeros(2), 1.0, room_for=ROOM).reach.min() > 0.4
    assert logits.reach[0, 2:].min() >= 1.0
    assert len(logits.rows) >= 4


def test_too_many_rows_are_refused_before_they_are_made() -> None:
    composition = compose(nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 2)).eval(), (4,))
    with pytest.raises(TooWide, match=r"expected at most 10 rows, got \d+"):
        zonotope.logits_over(composition.ledger, torch.zeros(4), 10.0, room_for=10)


def test_an_operation_without_a_local_rule_is_named() -> None:
    _, composition = composed("softmax.int")
    with pytest.raises(NotLipschitz, match=r"local rule, got (_softmax|softmax)"):
        zonotope.logits_over(composition.ledger, torch.zeros(6), 0.1, room_for=ROOM)


def test_inexact_weights_widen_the_form() -> None:
    """The rows of a map that is only known up to a relative error are charged with it."""
    composition = compose(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), (3,))
    exact = zonotope.logits_over(composition.ledger, torch.ones(3), 0.5, room_for=ROOM)
    assert 0 < exact.remainder < 1e-12
    assert replace(exact, remainder=1.0).range()[1].min() > exact.range()[1].min()


def test_a_map_that_is_not_the_operation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign makes no difference to a norm, so the Lipschitz domain would never notice."""
    composition = compose(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), (3,))
    right = propagator.applied
    monkeypatch.setattr(propagator, "applied", lambda linear, rows: -right(linear, rows))
    with pytest.raises(LipauditError, match=r"linear.default hands on a map that is not what the operation does"):
        zonotope.logits_over(composition.ledger, torch.ones(3), 0.1, room_for=ROOM)


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((2, 1), (0, 3))])
@pytest.mark.parametrize(
    ("kernel", "dilation"), [((3, 2), (1, 1)), ((1, 1), (1, 1)), ((2, 3), (2, 1)), ((2, 2), (1, 2))]
)
def test_many_rows_at_once_are_the_same_as_one(stride, padding, kernel, dilation) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, *kernel, generator=generator, dtype=torch.float64)
    conv = Conv(weight, (7, 8), stride, padding, dilation)
    rows = torch.randn(150, 1, 3, 7, 8, generator=generator, dtype=torch.float64)
    one_by_one = torch.stack([conv.apply(row) for row in rows])
    assert float((applied(conv, rows) - one_by_one).abs().max()) < 1e-13
    c = torch.randn(150, *one_by_one.shape[1:], generator=generator, dtype=torch.float64)
    back = torch.stack([adjoint(conv, row) for row in c])
    assert float((transposed(conv, c) - back).abs().max()) < 1e-13


def test_the_centre_is_known_to_more_digits_than_float64_has() -> None:
    """Through a product with a constant and a dense layer, against exact rationals."""
    generator = torch.Generator().manual_seed(0)
    factor, matrix = (torch.randn(shape, generator=generator) for shape in ((12,), (2, 12)))

    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(x * factor.to(x.dtype), matrix.to(x.dtype))

    x = torch.rand(12, generator=generator, dtype=torch.float64)
    logits = zonotope.logits_over(compose(Scaled().eval(), (12,)).ledger, x, 0.0, room_for=ROOM)
    assert logits.remainder < 1e-24
    products = [Fraction(float(a)) * Fraction(float(v)) for a, v in zip(factor, x, strict=True)]
    for k in range(2):
        true = sum(Fraction(float(w)) * p for w, p in zip(matrix[k], products, strict=True))
        known = Fraction(float(logits.centre[0, k])) + Fraction(float(logits.rows[logits.inputs, 0, k]))
        assert abs(known - true) <= Fraction(logits.remainder)
        assert float(logits.rows[logits.inputs, 0, k]) != 0.0


def test_padding_with_infinity_is_refused_by_name() -> None:
    _, composition = composed("max_pool2d_with_indices.default")
    with pytest.raises(NotLipschitz, match="expected finite activations for a local certificate, got others from pad"):
        zonotope.logits_over(composition.ledger, torch.ones(2, 6, 6), 0.1, room_for=ROOM)


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 2, 3, padding=2, padding_mode="circular"), nn.ConvTranspose2d(1, 2, 3)])
def test_parts_of_a_sample_in_the_place_of_a_batch(layer: nn.Module) -> None:
    """Two halves of every image through one convolution: backwards, too."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(layer(torch.zeros(2, 1, 4, 4)).numel(), 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.layer(x.reshape(-1, 1, 4, 4))).reshape(len(x), -1))

    torch.manual_seed(0)
    composition = compose(Halves().eval(), (2, 4, 4))
    x = torch.rand(2, 4, 4, dtype=torch.float64)
    logits = zonotope.logits_over(composition.ledger, x, 0.3, room_for=ROOM)
    c = (torch.eye(3, dtype=torch.float64) - torch.eye(3, dtype=torch.float64).roll(1, 0))[:, None]
    backwards = lower_bounds(logits.step, c) + (c * logits.centre).flatten(1).sum(1)
    for row in range(3):
        least = float(lowest(lambda x: evaluate(composition.graph, x[0])[None], x, 0.3, c[row, 0]))
        assert least - 2.0 < float(backwards[row]) <= least + 1e-12
