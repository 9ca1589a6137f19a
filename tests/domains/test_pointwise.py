"""The slopes of smooth activations, recomputed with 50 digits."""

from __future__ import annotations

import mpmath
import pytest
from mpmath import mpf

from lipaudit.domains.lipschitz.pointwise import GELU_SLOPES, SLOPES

C = mpmath.sqrt(2 / mpmath.pi)
FUNCTIONS = {
    "silu": (lambda x: x / (1 + mpmath.exp(-x)), 2.4, SLOPES["silu.default"][0]),
    "mish": (lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))), 1.5, SLOPES["mish.default"][0]),
    "gelu": (lambda x: x * (1 + mpmath.erf(x / mpmath.sqrt(2))) / 2, 1.4, GELU_SLOPES["none"]),
    "gelu tanh": (lambda x: x * (1 + mpmath.tanh(C * (x + mpf("0.044715") * x**3))) / 2, 1.4, GELU_SLOPES["tanh"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slope_is_the_rounded_up_maximum_of_the_derivative(name: str) -> None:
    function, near, slope = FUNCTIONS[name]
    with mpmath.workdps(50):
        peak = mpmath.findroot(lambda t: mpmath.diff(function, t, 2), near)
        largest = mpmath.diff(function, peak)
        grid = [abs(mpmath.diff(function, mpf(k) / 8)) for k in range(-80, 81)]

    assert max(grid) <= largest <= slope <= largest + mpf("1e-8")


def test_hardsigmoid_is_not_below_one_sixth() -> None:
    assert mpf(SLOPES["hardsigmoid.default"][0]) >= mpf(1) / 6
