"""Every registered norm method on the layers that trap others, against the dense matrix, with zero slack."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from oracles import convolutions, layer, truth

from lipaudit import conv_norm, dense_norm
from lipaudit.errors import RuleError
from lipaudit.norms.linear_maps import Conv, Dense
from lipaudit.norms.methods import CONV_LIMITS, CONV_METHODS, DENSE_LIMITS, DENSE_METHODS, affords, norm_bound

SOBEL = [[[[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]]]
TRAPS = {
    "circular of the same size is below the truth": layer([[[1.0, 0, -1]]], (6,), padding=1),
    "zero padding above circular": layer([[[1.0, -1]]], (3,), padding=1),
    "symbol zero at DC": layer(SOBEL, (8, 8), padding=1),
    "7x1 kernel": layer([[[[1.0]] * 7]], (9, 5), padding=3),
    "1x7 kernel": layer([[[[1.0] * 7]]], (5, 9), padding=3),
    "5x3 kernel": layer([[[[1.0] * 3] * 5]], (9, 9), padding=2),
    "even kernel": layer([[[[1.0, 2], [3, 4]]]], (6, 6), padding=1),
    "kernel larger than the map": layer([[[[1.0] * 7] * 7]], (4, 4), padding=3),
    "map of one pixel": layer([[[[1.0] * 3] * 3]], (1, 1), padding=1),
    "k = s, dilation 2": layer([[[[1.0, 2], [3, 4]]]], (6, 6), stride=(2, 2), dilation=(2, 2)),
    "stride above the kernel": layer([[[1.0, 2]]], (9,), stride=(4,)),
    "stride and dilation without common divisor": layer([[[1.0, 2, 3]]], (13,), stride=(3,), dilation=(2,)),
    "groups are a maximum, not a product": layer([[[2.0]], [[0.25]]], (4,), groups=2),
    "depthwise with a pruned channel": layer([[[1.0, 2, 1]], [[0.0, 0, 0]]], (5,), groups=2, padding=1),
    "circular, padding other than same": layer([[[1.0, 2, 3]]], (5,), padding=2, padding_mode="circular"),
    "circular, stride that does not divide": layer([[[1.0, 2, 3]]], (5,), stride=(2,), padding_mode="circular"),
    "reflect": layer([[[1.0, 1, 1]]], (3,), padding=2, padding_mode="reflect"),
    "replicate": layer([[[1.0, 1, 1, 1, 1]]], (3,), padding=2, padding_mode="replicate"),
}


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_no_convolution_method_is_below_the_dense_norm(conv: Conv) -> None:
    exact = truth(conv)
    for name in CONV_METHODS:
        assert CONV_METHODS[name](conv).value >= exact, name


@pytest.mark.parametrize("name", CONV_METHODS)
@pytest.mark.parametrize("trap", TRAPS)
def test_layers_that_trap_others(name: str, trap: str) -> None:
    exact = truth(TRAPS[trap])
    assert exact <= CONV_METHODS[name](TRAPS[trap]).value <= 12 * exact


@pytest.mark.parametrize("name", CONV_METHODS)
def test_scales_zeros_and_denormals(name: str) -> None:
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def norm(kernel: torch.Tensor) -> float:
        return conv_norm(kernel, input_size=(5, 5), padding=1, method=name).value

    for exponent in (-660, -83, 63, 660):
        assert norm(weight * 2.0**exponent) == pytest.approx(2.0**exponent * norm(weight), rel=1e-9)
    assert norm(weight * 0) <= 1e-320
    assert norm(torch.full((1, 1, 3, 3), 5e-324, dtype=torch.float64)) >= 5 * 5e-324
    assert norm(weight * 1e-5) >= truth(Conv(weight * 1e-5, (5, 5), (1, 1), ((1, 1), (1, 1)), (1, 1)))


@pytest.mark.parametrize("name", DENSE_METHODS)
def test_dense_scales_zeros_and_denormals(name: str) -> None:
    weight = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for exponent in (-660, -83, 63, 660):
        scaled = dense_norm(weight * 2.0**exponent, method=name).value
        assert scaled == pytest.approx(2.0**exponent * dense_norm(weight, method=name).value, rel=1e-9)
    assert dense_norm(weight * 0, method=name).value <= 1e-320
    assert dense_norm(torch.full((1, 1), 5e-324, dtype=torch.float64), method=name).value >= 5e-324


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", [name for name in CONV_METHODS if name != "schur"])
def test_weights_that_are_no_numbers_are_refused(name: str, bad: float) -> None:
    """The Schur test gives inf for inf, and `Upper` refuses NaN."""
    conv = layer([[[1.0, bad]]], (4,))
    with pytest.raises(ValueError, match="finite"):
        CONV_METHODS[name](conv)


@pytest.mark.parametrize("name", CONV_METHODS)
def test_inexact_weights_widen_the_bound(name: str) -> None:
    weight = torch.rand(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    conv = Conv(weight, (6,), (1,), ((1, 1),), (1,), relative_error=0.01)
    worst = replace(conv, weight=weight * 1.01, relative_error=0.0)
    assert CONV_METHODS[name](conv).value >= truth(worst)


@pytest.mark.parametrize("name", DENSE_METHODS)
def test_inexact_dense_weights_widen_the_bound(name: str) -> None:
    dense = Dense(torch.eye(3, dtype=torch.float64), (3,), relative_error=0.01)
    assert DENSE_METHODS[name](dense).value >= 1.01


def test_best_is_the_smallest_and_keeps_what_is_cheap() -> None:
    small = Conv(torch.ones(2, 2, 3, 3).double(), (6, 6), (1, 1), ((1, 1), (1, 1)), (1, 1))
    wide = replace(small, weight=torch.ones(256, 256, 3, 3).double(), input_size=(32, 32))
    best, candidates = norm_bound(small, "all")

    assert best.value <= min(map(float, candidates)) * (1 + 1e-9)
    assert {
        "torus-parity",
        "tight",
        "gram",
        "gram-lattice",
        "riesz-grid",
        "lipgrid",
        "four-bounds",
        "aol",
        "schur",
    } == {upper.method for upper in candidates}
    for name in CONV_LIMITS:
        assert affords(wide, name) == (name in ("lipgrid", "four-bounds", "aol"))
    assert not any(flops(Dense(wide.weight.reshape(-1, 256), (256,))) <= -1 for flops, _ in DENSE_LIMITS.values())


def test_of_proofs_that_agree_the_main_one_gives_its_name() -> None:
    torch.manual_seed(0)
    dense = Dense(torch.randn(8, 8).double(), (8,))
    pointwise = Conv(torch.randn(4, 3, 1, 1).double(), (5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1))
    assert norm_bound(dense, "all")[0].method == "svd-verified"
    assert norm_bound(pointwise, "all")[0].method == "torus-parity"
    assert min(norm_bound(dense, "all")[1], key=float).method == "gram"


def test_unknown_methods_are_named() -> None:
    with pytest.raises(RuleError, match="four-bounds"):
        conv_norm(torch.ones(1, 1, 3), input_size=(4,), method="power")
