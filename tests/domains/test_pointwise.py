"""The slopes of smooth activations, recomputed with 50 digits."""

from __future__ import annotations

import mpmath
import pytest
import torch
from flat import Function, bounded
from mpmath import mpf
from torch.nn import functional

from lipaudit.domains.lipschitz.pointwise import GELU_SLOPES, SLOPES
from lipaudit.errors import LipauditError

C = mpmath.sqrt(2 / mpmath.pi)
FUNCTIONS = {
    "silu": (lambda x: x / (1 + mpmath.exp(-x)), 2.4, SLOPES["silu.default"][0]),
    "mish": (lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))), 1.5, SLOPES["mish.default"][0]),
    "erf": (mpmath.erf, 0.0, SLOPES["erf.default"][0]),
    "erfc": (lambda x: -mpmath.erfc(x), 0.0, SLOPES["erfc.default"][0]),
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


FALLING_FROM_ONE = {
    "tanh": lambda x: 1 - mpmath.tanh(x) ** 2,
    "atan": lambda x: 1 / (1 + x**2),
    "asinh": lambda x: 1 / mpmath.sqrt(1 + x**2),
    "sin": mpmath.cos,
    "cos": lambda x: -mpmath.sin(x),
    "log_sigmoid": lambda x: 1 / (1 + mpmath.exp(x)),
}


@pytest.mark.parametrize("name", FALLING_FROM_ONE)
def test_slopes_of_at_most_one(name: str) -> None:
    with mpmath.workdps(50):
        assert all(abs(FALLING_FROM_ONE[name](mpf(k) / 8)) <= 1 for k in range(-400, 401))
    assert SLOPES[f"{name}.default"][0] == 1.0


def test_sigmoid_is_steepest_at_zero() -> None:
    with mpmath.workdps(50):
        values = [1 / (1 + mpmath.exp(-mpf(k) / 8)) for k in range(-400, 401)]
        assert max(value * (1 - value) for value in values) == mpf(1) / 4 == SLOPES["sigmoid.default"][0]


def test_selu_is_steepest_just_below_zero() -> None:
    with mpmath.workdps(50):
        product = mpf("1.6732632423543772848170429916717") * mpf("1.0507009873554804934193349852946")
        assert product <= SLOPES["selu.default"][0] <= product + mpf("1e-8")
    at_zero = torch.tensor(0.0, dtype=torch.float64)
    one_less = torch.tensor(-1e-6, dtype=torch.float64)
    quotient = float((torch.selu(at_zero) - torch.selu(one_less)) / 1e-6)
    assert quotient == pytest.approx(SLOPES["selu.default"][0], rel=1e-6)


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (lambda x: functional.leaky_relu(x, -1.5), 1.5),
        (lambda x: functional.prelu(x, torch.tensor([0.2, -3.0, 1.0])), 3.0),
        (lambda x: functional.rrelu(x, 2.5, 3.5), 3.0),
        (lambda x: functional.elu(x, 1.7), 1.7),
        (lambda x: functional.celu(x, 0.3), 1.0),
        (lambda x: functional.threshold(x, -0.2, -0.2), 1.0),
        (lambda x: x.clamp(-0.3, 0.4), 1.0),
        (torch.selu, 1.758099341),
        (functional.softshrink, 1.0),
        (functional.hardswish, 1.5),
    ],
)
def test_settings_count(function: Function, slope: float) -> None:
    bound = bounded(function, (3,)).value
    assert slope <= bound <= slope * (1 + 1e-9)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.celu(x, -0.3),
        lambda x: functional.elu(x, -0.3),
        lambda x: functional.softplus(x, -1.0),
        lambda x: functional.threshold(x, 0.1, 0.2),
        lambda x: functional.hardshrink(x),
    ],
)
def test_settings_that_the_rules_do_not_read_are_refused(function: Function) -> None:
    with pytest.raises(LipauditError, match=r"expected|jumps"):
        bounded(function, (3,))


def test_hardsigmoid_is_not_below_one_sixth() -> None:
    assert mpf(SLOPES["hardsigmoid.default"][0]) >= mpf(1) / 6
