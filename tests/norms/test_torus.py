"""The parity torus against the dense matrix, in float64, with zero slack."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from oracles import convolutions, layer, truth

from lipaudit import conv_norm
from lipaudit.norms.linear_maps import Conv, schur_test
from lipaudit.norms.power_iteration import lower_bound
from lipaudit.norms.torus import torus_bound


@settings(max_examples=180, deadline=None)
@given(convolutions())
def test_never_below_the_dense_norm(conv: Conv) -> None:
    exact = truth(conv)
    assert torus_bound(conv).value >= exact
    assert schur_test(conv) >= exact
    assert lower_bound(conv) <= exact


SOBEL = [[[[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]]]


@pytest.mark.parametrize(
    "conv",
    [
        pytest.param(layer([[[1.0, 0, -1]]], (6,), padding=1), id="circular of the same size is below the truth"),
        pytest.param(layer([[[1.0, -1]]], (3,), padding=1), id="zero padding above circular"),
        pytest.param(layer(SOBEL, (8, 8), padding=1), id="symbol zero at DC"),
        pytest.param(layer([[[[1.0]] * 7]], (5, 5), padding=3), id="7x1 kernel"),
        pytest.param(layer([[[[1.0] * 7]]], (5, 5), padding=3), id="1x7 kernel"),
        pytest.param(layer([[[[1.0] * 7] * 7]], (4, 4), padding=3), id="kernel larger than the map"),
        pytest.param(layer([[[[1.0] * 3] * 3]], (1, 1), padding=1), id="map of one pixel"),
        pytest.param(layer([[[[1.0, 2], [3, 4]]]], (6, 6), stride=(2, 2), dilation=(2, 2)), id="k = s, dilation 2"),
        pytest.param(layer([[[2.0]], [[0.25]]], (4,), groups=2), id="groups are a maximum, not a product"),
    ],
)
def test_layers_that_trap_others(conv: Conv) -> None:
    exact = truth(conv)

    assert exact <= torus_bound(conv).value <= 1.8 * exact


def test_circular_and_one_by_one_are_exact() -> None:
    torch.manual_seed(0)
    circular = Conv(torch.randn(4, 3, 3, 3).double(), (6, 8), (2, 2), ((1, 1), (1, 1)), (1, 1), 1, "circular")
    pointwise = Conv(torch.randn(4, 3, 1, 1).double(), (5, 5), (2, 2), ((0, 0), (0, 0)), (1, 1))
    for conv in (circular, pointwise):
        assert torus_bound(conv).value == pytest.approx(truth(conv), rel=1e-8)


def test_tight_where_the_map_is_large() -> None:
    torch.manual_seed(0)
    conv = Conv(torch.randn(8, 8, 3, 3).double(), (24, 24), (1, 1), ((1, 1), (1, 1)), (1, 1))
    assert torus_bound(conv).value <= 1.01 * lower_bound(conv, steps=200)


def test_dirac_kernel_is_an_isometry() -> None:
    weight = torch.zeros(3, 3, 3, 3)
    torch.nn.init.dirac_(weight)
    assert 1.0 <= conv_norm(weight, input_size=(7, 7), padding=1).value <= 1 + 1e-9


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1.0, 1e30, 1e200])
def test_scales(scale: float) -> None:
    torch.manual_seed(2)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    norm = conv_norm(weight * scale, input_size=(5, 5), padding=1).value

    assert norm == pytest.approx(scale * conv_norm(weight, input_size=(5, 5), padding=1).value, rel=1e-9)


def test_zero_and_denormal_kernels() -> None:
    zero = conv_norm(torch.zeros(2, 2, 3, 3), input_size=(4, 4))
    tiny = conv_norm(torch.full((1, 1, 3, 3), 5e-324, dtype=torch.float64), input_size=(4, 4))

    assert zero.value == 0.0
    assert tiny.value >= 9 * 5e-324


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite weights"):
        conv_norm(torch.full((1, 1, 3, 3), bad), input_size=(4, 4))


def test_there_is_no_default_input_size() -> None:
    with pytest.raises(TypeError, match="input_size"):
        conv_norm(torch.zeros(1, 1, 3, 3))
    with pytest.raises(ValueError, match="input_size"):
        conv_norm(torch.zeros(1, 1, 3, 3), input_size=(4,))
    with pytest.raises(ValueError, match="kernel's extent"):
        conv_norm(torch.zeros(1, 1, 5, 5), input_size=(3, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_weights_convert_exactly(dtype: torch.dtype) -> None:
    weight = torch.randn(2, 2, 3, 3).to(dtype)
    exact = conv_norm(weight.double(), input_size=(4, 4), padding=1).value
    assert conv_norm(weight, input_size=(4, 4), padding=1).value == exact
