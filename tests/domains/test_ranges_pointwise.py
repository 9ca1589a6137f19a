"""Interval arithmetic against its definition, and the valleys of the activations with 50 digits."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mpmath import mpf

from lipaudit.domains.intervals.arithmetic import over, plus, square, times
from lipaudit.domains.intervals.normalisation import standardised
from lipaudit.domains.intervals.pointwise import GROWING, VALLEYS
from lipaudit.domains.intervals.value import Range

C = mpmath.sqrt(2 / mpmath.pi)
VALLEY_FUNCTIONS = {
    "silu.default": lambda x: x / (1 + mpmath.exp(-x)),
    "mish.default": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    "hardswish.default": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "gelu.default none": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    "gelu.default tanh": lambda x: x * (1 + mpmath.tanh(C * (x + mpf("0.044715") * x**3))) / 2,
}


@pytest.mark.parametrize("name", VALLEYS)
def test_valleys_are_where_the_table_says(name: str) -> None:
    left, right, bottom = VALLEYS[name]
    function = VALLEY_FUNCTIONS[name]
    with mpmath.workdps(50):
        outside = [function(mpf(k) / 16) for k in range(-160, 160)]
        falling = [function(mpf(left) - mpf(k) / 16) for k in range(200)]
        growing = [function(mpf(right) + mpf(k) / 16) for k in range(200)]
        least = min(function(mpf(left) + (mpf(right) - mpf(left)) * k / 1000) for k in range(1001))

    assert bottom <= least <= bottom + 2e-7
    assert bottom <= min(outside)
    assert falling == sorted(falling)
    assert falling[-1] <= 0
    assert growing == sorted(growing)


def test_what_growing_functions_can_reach_is_not_inside_the_truth() -> None:
    alpha, scale = mpf("1.6732632423543772848170429916717"), mpf("1.0507009873554804934193349852946")
    assert mpf(GROWING["selu.default"][0]) <= -alpha * scale
    assert mpf(GROWING["atan.default"][1]) == -mpf(GROWING["atan.default"][0]) >= mpmath.pi / 2


ENDS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-320, -1e-320, 1e-200, 1e200, -1e200, 1e308, -1e308, math.inf, -math.inf]),
    st.floats(allow_nan=False, width=32),
    st.floats(-3, 3),
)
INTERVALS = st.tuples(ENDS, ENDS).map(sorted).filter(lambda ends: ends[0] < math.inf and ends[1] > -math.inf)
SHARES = st.floats(0, 1)


def interval(ends: list[float]) -> Range:
    low, high = (torch.tensor([[end]], dtype=torch.float64) for end in ends)
    return Range(low, high)


def inside(ends: list[float], share: float) -> mpf:
    low, high = max(ends[0], -1.7e308), min(ends[1], 1.7e308)
    return mpf(low) * (1 - mpf(share)) + mpf(high) * mpf(share)


def holds(z: Range, value: mpf) -> bool:
    assert not bool(z.low.isnan().any() or z.high.isnan().any())
    return mpf(float(z.low)) <= value <= mpf(float(z.high))


@settings(deadline=None)
@given(INTERVALS, INTERVALS, SHARES, SHARES)
@example([0.0, 0.0], [-math.inf, math.inf], 0.5, 0.5)
@example([-1e-200, 1e-200], [1e-200, 1e-200], 0.0, 0.0)
@example([1e308, 1e308], [1e308, 1e308], 0.0, 0.0)
@example([-1e-320, 0.0], [0.0, 1.0], 0.0, 1.0)
def test_sums_and_products_hold_for_all_members(a: list[float], b: list[float], s: float, t: float) -> None:
    with mpmath.workdps(700):
        x, y = inside(a, s), inside(b, t)
        assert holds(plus(interval(a), interval(b)), x + y)
        assert holds(times(interval(a), interval(b)), x * y)
        assert holds(square(interval(a)), x * x)


@settings(deadline=None)
@given(INTERVALS, INTERVALS, SHARES, SHARES)
@example([1.0, 1.0], [0.0, 1.0], 0.5, 0.5)
@example([-1.0, 2.0], [-1.0, 0.0], 0.0, 0.5)
@example([-1.0, 2.0], [-1.0, 1.0], 0.0, 0.25)
@example([-1.0, 2.0], [1.0, math.inf], 0.0, 0.25)
@example([0.0, 2.0], [-2.0, -1.0], 0.5, 0.25)
def test_quotients_hold_for_all_members(a: list[float], b: list[float], s: float, t: float) -> None:
    z = over(interval(a), interval(b))
    if b[0] <= 0 <= b[1]:
        assert (float(z.low), float(z.high)) == (-math.inf, math.inf)
    else:
        with mpmath.workdps(700):
            assert holds(z, inside(a, s) / inside(b, t))


def test_a_tensor_times_itself_is_a_square() -> None:
    x = interval([-2.0, 3.0])
    assert float(times(x, x).low) == 0.0
    assert float(times(x, interval([-2.0, 3.0])).low) <= -6.0


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("scale", [1e160, 1e308, 1e-170])
def test_normalisation_survives_squares_that_overflow_or_underflow(scale: float, centred: bool) -> None:
    x = torch.tensor([[0.5, -0.2, 0.1, 1.0]], dtype=torch.float64)
    exact = x - x.mean() if centred else x
    exact = exact / exact.square().mean().sqrt()
    z = standardised(Range(x * scale - 0.01 * scale, x * scale + 0.01 * scale), 0.0, centred)
    assert bool(((z.low <= exact) & (exact <= z.high)).all())
    assert float(z.length) >= 2.0 - 1e-9
