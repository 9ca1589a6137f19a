"""Last digits, by exact rational arithmetic: what no other test is sharp enough to see (mutants.py)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from torch import nn

from lipaudit.api import bound
from lipaudit.certification.certificates import _certificate
from lipaudit.certification.margins import ErrorRecursion
from lipaudit.certification.network_bound import compose
from lipaudit.crosscheck.unit_box import UnitBox
from lipaudit.crosscheck.verification import accepted, distance_up, drawn_into_ball
from lipaudit.domains.rounding.float64 import LAWS
from lipaudit.domains.zonotope.affine_form import Form, Shared
from lipaudit.graph.wrappers import Normalised
from lipaudit.norms.aol import aol_plain_bound
from lipaudit.norms.gram import gram_lattice_bound
from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.methods import conv_norm
from lipaudit.rounding import UNIT, WIDE, down, gamma, narrow_up, norm_up, norms_up, up, wide, wide_sqrt

NUMBERS = [0.1, 0.2, 0.3, 0.7, 1.1, 1.3, 1e-3, 3.3e5]


def test_the_unit_roundoff_is_that_of_float64() -> None:
    assert sys.float_info.epsilon == 2 * UNIT


def test_one_step_up_and_down() -> None:
    for x in [*NUMBERS, 0.0, 5e-324, 1.0, sys.float_info.max]:
        assert up(x) > x
        assert 0.0 <= down(x) < x or x == down(x) == 0.0


def test_wide_products_sums_and_roots_are_rounded_up() -> None:
    for x in NUMBERS:
        for y in NUMBERS:
            assert Fraction(WIDE.multiply(wide(x), wide(y))) >= Fraction(x) * Fraction(y)
            assert Fraction(WIDE.add(wide(x), wide(y))) >= Fraction(x) + Fraction(y)
    for n in range(2, 60):
        assert Fraction(wide_sqrt(Decimal(n))) ** 2 >= n
        third = WIDE.divide(Decimal(n), Decimal(3))
        assert Fraction(narrow_up(third)) >= Fraction(third) >= Fraction(n, 3)


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 10**6, 10**9])
def test_gamma_is_what_higham_says(n: int) -> None:
    exact = n * Fraction(1, 2**53) / (1 - n * Fraction(1, 2**53))
    assert exact <= Fraction(gamma(n)) <= exact * Fraction(11, 10)


@pytest.mark.parametrize("exponent", [-600, -1, 0, 1, 600])
def test_a_norm_of_any_size(exponent: int) -> None:
    found = norm_up(torch.tensor([3.0, 4.0], dtype=torch.float64) * 2.0**exponent)
    assert 5 * 2.0**exponent <= found <= 5 * 2.0**exponent * (1 + 1e-12)


@pytest.mark.parametrize("exponent", [-600, -1, 0, 1, 600])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (5, 4, 4), (3, 1000)], ids=str)
def test_norms_of_any_size_at_once(exponent: int, shape: tuple[int, ...]) -> None:
    many = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2.0**exponent
    many[0] *= 1e-3
    for found, block in zip(norms_up(many).tolist(), many, strict=True):
        exact = sum(Fraction(entry) ** 2 for entry in block.flatten().tolist())
        assert exact <= Fraction(found) ** 2 <= exact * (1 + Fraction(1, 10**9))
    assert norms_up(many * 0).tolist() == [0.0] * len(many)


def test_a_pair_of_unlinked_logits_costs_root_two() -> None:
    pairwise = bound(nn.Sequential(nn.ReLU()).eval(), (2,)).pairwise
    assert Fraction(pairwise[0][1]) ** 2 >= 2


@pytest.mark.parametrize("error", [0.0, 1e-3, 0.25])
def test_a_radius_is_below_the_exact_quotient(error: float) -> None:
    for margin in NUMBERS:
        for pair in NUMBERS:
            radius = _certificate(0, [margin, 0.0], error, ((0.0, pair), (pair, 0.0)), None).radius
            # radius pair + sqrt(2) error < margin, squared
            rest = Fraction(margin) - Fraction(radius) * Fraction(pair)
            if radius > 0:
                assert rest > 0
                assert rest**2 > 2 * Fraction(error) ** 2
                assert radius >= (margin - math.sqrt(2) * error) / pair * (1 - 1e-9)


def test_a_margin_that_is_all_error_has_no_radius() -> None:
    assert _certificate(0, [1.0, 0.0], 1.0, ((0.0, 1.0), (1.0, 0.0)), None).radius == 0.0


def error_of(model: nn.Module, x: list[float]) -> tuple[float, float]:
    """The error bound, and the exact error by rational arithmetic, of the first logit of dense layers and factors."""
    exact = [Fraction(value) for value in x]
    for part in model:
        if isinstance(part, nn.Linear):
            rows = part.weight.tolist()
            exact = [sum((Fraction(w) * v for w, v in zip(row, exact, strict=True)), Fraction(0)) for row in rows]
        else:
            exact = [Fraction(part.factor) * value for value in exact]
    composition = compose(model.eval(), (len(x),))
    with torch.no_grad():
        logits, error = ErrorRecursion(composition)(torch.tensor(x, dtype=torch.float64))
    return error, float(max(abs(Fraction(got) - value) for got, value in zip(logits, exact, strict=True)))


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def dense(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False).double()
    layer.weight.data = torch.tensor(rows, dtype=torch.float64)
    return layer


CANCELLING = [[1e8 / 3, -1e8 / 3, 0.1], [1e8 / 7, -1e8 / 7, 0.3]]
CLOSE = [0.7, 0.7 + 1e-9, 0.3]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(dense(CANCELLING)),
        nn.Sequential(dense(CANCELLING), dense([[1.0, 0.0], [0.0, 1.0]])),
        nn.Sequential(dense(CANCELLING), Times(1e6)),
        nn.Sequential(dense(CANCELLING), Times(1e6), dense([[0.5, 0.25], [0.25, 0.125]])),
    ],
    ids=["one layer", "two layers", "a factor behind", "a factor between"],
)
def test_the_error_is_below_its_bound(model: nn.Module) -> None:
    error, exact = error_of(model, CLOSE)
    assert 0 < exact <= error


def test_errors_of_branches_add_up() -> None:
    assert LAWS["sum"]([1.0, 2.0]) == 3.0
    assert LAWS["max"]([3.0, 4.0]) >= 4.0
    assert LAWS["root_sum_squares"]([3.0, 4.0]) >= 5.0
    assert LAWS["scale"]([3.0]) == 3.0


def test_an_error_beyond_the_room_of_ranges_proves_nothing() -> None:
    composition = compose(nn.Linear(3, 2).eval(), (3,))
    composition.ledger.room = 0.0
    with torch.no_grad():
        assert ErrorRecursion(composition)(torch.rand(3, dtype=torch.float64))[1] == math.inf


def test_the_remainder_is_part_of_the_range() -> None:
    form = Form(
        torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 1, 2, dtype=torch.float64), Shared(1), remainder=0.5
    )
    low, high = form.range()
    assert bool((low <= -0.5).all() & (high >= 0.5).all())


def test_distances_are_above_the_exact_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        x, y = torch.rand(2, 5, generator=generator, dtype=torch.float64)
        pairs = zip(x.tolist(), y.tolist(), strict=True)
        exact = [abs(Fraction(a) - Fraction(b)) for a, b in pairs]
        assert Fraction(distance_up(x, y, "l2")) ** 2 >= sum(gap**2 for gap in exact)
        for norm, truth in (("linf", max(exact)), ("l1", sum(exact))):
            found = distance_up(x, y, norm)
            assert math.nextafter(found, 0.0) < truth <= found  # and no float64 between the two


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_drawn_into_a_ball_are_in_it_exactly(norm: str, dtype: torch.dtype) -> None:
    """As attacks make them: eps added and clipped in some dtype, which leaves the ball by an ulp."""
    generator = torch.Generator().manual_seed(1)
    left = 0
    for _ in range(100):
        clean = torch.rand(3, 7, generator=generator, dtype=dtype)
        budget = torch.rand(3, generator=generator, dtype=torch.float64) ** 3
        if norm == "l1":
            change = torch.rand(3, 7, generator=generator, dtype=dtype) - 0.5
            change *= budget.to(dtype)[:, None] / change.abs().sum(1, keepdim=True)
        else:
            change = budget.to(dtype)[:, None] * torch.randint(-1, 2, (3, 7), generator=generator)
        claim = (clean + change).clamp(0, 1).double()
        points = drawn_into_ball(clean.double(), claim, budget, norm)
        assert bool(((points >= 0) & (points <= 1)).all())
        for point, was, origin, most in zip(points, claim, clean.double(), budget.tolist(), strict=True):
            assert distance_up(point, origin, norm) <= most
            outside = distance_up(was, origin, norm) > most
            left += outside
            assert torch.equal(point, was) or outside or norm == "l1"
            assert torch.allclose(point, was, atol=1e-6)
    assert left > 20  # of 300


def test_a_point_that_is_not_finite_is_no_witness() -> None:
    judge = nn.Sequential(nn.Hardtanh(), dense([[1.0], [-1.0]]))  # of infinity it makes finite logits
    points = torch.tensor([[math.inf], [0.5]], dtype=torch.float64)
    good, _ = accepted(judge, points, torch.tensor([1, 1]))
    assert good.tolist() == [False, True]


def test_points_of_an_attack_stay_in_the_box() -> None:
    for low, high in ((-1.7, 0.1), (0.3, 0.7), (-0.1, 1.1), (1e-3, 0.1)):
        inputs = torch.full((1, 3), low)
        box = UnitBox(nn.Linear(3, 2), inputs, low, high, 2)
        for unit in (torch.zeros(1, 3), torch.ones(1, 3), torch.full((1, 3), 1.1), torch.full((1, 3), -0.1)):
            raw = box.to_raw(unit)
            assert bool(((raw >= low) & (raw <= high)).all())


def test_every_autocorrelation_sharpens_the_bound() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    conv = Conv(weight, (8, 8), (1, 1), ((1, 1), (1, 1)), (1, 1))
    plain = aol_plain_bound(conv).value
    first, second, third = (gram_lattice_bound(conv, steps).value for steps in (1, 2, 3))
    assert third < second < first <= plain
    assert conv_norm(weight, input_size=(8, 8), padding=1).value <= third


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def batch_norm() -> nn.Module:
    layer = nn.BatchNorm1d(3, eps=1e-3)
    layer.running_var.copy_(torch.tensor([0.0, 1.0, 4.0]))
    layer.weight.data = torch.tensor([1.0, -2.0, 3.0])
    return layer


KNOWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float, float]] = {
    "batch norm": (batch_norm, (3,), 1e-3**-0.5, 1e-6),
    "a diagonal": (lambda: Function(lambda x: x * torch.tensor([1.0, 2.0, -5.0])), (3,), 5.0, 1e-9),
    "standardised": (lambda: Normalised(nn.Flatten(), (0.5,), (0.25,)), (1, 1, 3), 4.0, 1e-6),
    "overlapping maxima": (lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten()), (1, 8, 8), 2.0, 1e-9),
    "a mean of nine": (lambda: Function(lambda x: x.mean(2)), (4, 9), 1 / 3, 1e-9),
    "running sums of two": (lambda: Function(lambda x: x.cumsum(1)), (2,), (1 + 5**0.5) / 2, 1e-9),
    "steep below": (lambda: nn.LeakyReLU(3.0), (4,), 3.0, 1e-9),
    "a residual": (lambda: Function(lambda x: x + 2 * x.relu()), (4,), 3.0, 1e-9),
    "a residual with alpha": (lambda: Function(lambda x: torch.add(x.tanh(), x.relu(), alpha=3)), (4,), 4.0, 1e-9),
    "joined": (lambda: Function(lambda x: torch.cat([x.relu(), 2 * x.relu()], 1)), (4,), 5**0.5, 1e-9),
    "three layers": (lambda: nn.Sequential(tripled(), nn.ReLU(), tripled(), nn.ReLU(), tripled()), (2,), 27.0, 1e-6),
    "maps in a row": (lambda: nn.Sequential(tripled(), nn.Flatten(), tripled()), (2,), 9.0, 1e-6),
}  # fmt: skip


def tripled() -> nn.Linear:
    return dense([[3.0, 0.0], [0.0, 3.0]]).float()


@pytest.mark.parametrize("name", KNOWN)
def test_bounds_that_are_known(name: str) -> None:
    make, shape, value, slack = KNOWN[name]
    found = bound(make().eval(), shape).value
    assert value * (1 - 1e-12) <= found * (1 + (1e-7 if slack > 1e-9 else 0)) <= value * (1 + 2 * slack)


def test_overlapping_averages_are_not_disjoint() -> None:
    model = nn.Sequential(nn.AvgPool2d(3, 1), nn.Flatten()).eval()
    assert bound(model, (1, 8, 8)).value > 0.6  # 1/3 without overlap


def test_the_hidden_layer_is_part_of_every_pair() -> None:
    model = nn.Sequential(tripled(), nn.ReLU(), tripled()).eval()
    assert bound(model, (2,)).pairwise[0][1] >= 9 * math.sqrt(2) * (1 - 1e-7)
