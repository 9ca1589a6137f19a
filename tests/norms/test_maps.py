"""Merged maps are the composition; the Schur test holds for every kind of map."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from oracles import convolutions
from torch.nn import functional

from lipaudit.norms.linear_maps import (
    Conv,
    Dense,
    Gather,
    Identity,
    LinearMap,
    Pad,
    Scale,
    adjoint,
    dense,
    schur_test,
)
from lipaudit.norms.merging import merge
from lipaudit.norms.methods import norm_bound


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def _averages(conv: Conv, window: tuple[int, int], stride: tuple[int, int]) -> Gather:
    shape = (1, conv.weight.shape[0], *conv.output_size)
    return Gather(lambda x: functional.avg_pool2d(x, window, stride), shape, 9, windows=(window, stride))


IMAGE = (1, 4, 5, 6)
CONV = Conv(rand(6, 2, 3, 3), (5, 6), (2, 1), ((1, 0), (2, 2)), (1, 1), groups=2)
CHANNELS_IN, CHANNELS_OUT = Scale(rand(4, 1, 1), IMAGE), Scale(rand(1, 6, 1, 1), (1, 6, *CONV.output_size))
PAIRS: dict[str, tuple[LinearMap, LinearMap]] = {
    "scale, conv": (CHANNELS_IN, CONV),
    "conv, scale": (CONV, CHANNELS_OUT),
    "scale, scale": (CHANNELS_IN, Scale(rand(1, 4, 5, 6), IMAGE)),
    "identity, conv": (Identity(IMAGE), CONV),
    "conv, identity": (CONV, Identity((1, 6, *CONV.output_size))),
    "pad, conv": (Pad(((1, 2), (0, 1)), "zeros", (1, 4, 2, 5)), CONV),
    "circular pad, conv": (
        Pad(((1, 1), (1, 1)), "circular", (1, 4, 4, 4)),
        Conv(rand(3, 4, 3, 3), (6, 6), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    ),
    "scale, dense": (Scale(rand(7), (1, 7)), Dense(rand(3, 7), (1, 7))),
    "conv, averages": (CONV, _averages(CONV, (2, 2), (2, 2))),
    "conv, averages that overlap": (CONV, _averages(CONV, (2, 3), (1, 2))),
    "dilated conv, averages": (
        replace(CONV, padding=((2, 1), (0, 3)), dilation=(2, 1), stride=(1, 2)),
        _averages(replace(CONV, padding=((2, 1), (0, 3)), dilation=(2, 1), stride=(1, 2)), (3, 2), (2, 1)),
    ),
    "dense, scale": (Dense(rand(3, 7), (1, 7)), Scale(rand(1, 3), (1, 3))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_merged_maps_are_the_composition(name: str) -> None:
    first, then = PAIRS[name]
    together = merge(first, then)
    assert together is not None
    product = dense(then) @ dense(first)

    torch.testing.assert_close(dense(together), product, rtol=1e-14, atol=1e-13)
    assert norm_bound(together)[0].value >= float(torch.linalg.svdvals(product)[0])


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_averages_of_a_convolution_are_at_most_the_product(mode: str) -> None:
    draw = random.Random(len(mode))
    for _ in range(8):
        n, k, stride, window, apart = (draw.choice(some) for some in ((7, 8, 9), (1, 3), (1, 2), (2, 3), (True, False)))
        pads = (draw.choice((0, k // 2)),) * 2
        conv = Conv(rand(2, 3, k, k), (n, n), (stride, stride), (pads, pads), (1, 1), padding_mode=mode)
        then = _averages(conv, (window, window), (window, window) if apart else (1, 1))
        together = merge(conv, then)
        if together is None:  # windows that do not fit around
            assert mode == "circular"
            continue
        bound = norm_bound(together)[0].value
        assert bound >= float(torch.linalg.svdvals(dense(then) @ dense(conv))[0])
        assert bound <= norm_bound(conv)[0].value * schur_test(then) * (1 + 1e-9)


def test_what_cannot_be_merged_is_left_alone() -> None:
    per_pixel = Scale(rand(1, 1, 5, 6), IMAGE)
    crop = Pad(((-1, 0), (0, 0)), "zeros", (1, 4, 6, 6))
    assert merge(per_pixel, CONV) is None
    assert merge(crop, CONV) is None
    assert merge(CONV, Conv(rand(2, 6, 1, 1), CONV.output_size, (1, 1), ((0, 0),) * 2, (1, 1))) is None


@pytest.mark.parametrize(
    "linear",
    [CONV, CHANNELS_IN, Dense(rand(3, 7), (2, 7)), Pad(((2, 2), (1, 3)), "reflect", IMAGE)],
    ids=["conv", "scale", "dense", "pad"],
)
def test_adjoint_and_schur(linear: LinearMap) -> None:
    matrix = dense(linear)
    x, y = rand(matrix.shape[1]), rand(matrix.shape[0])
    image = linear.apply(x.reshape(linear.input_shape))

    torch.testing.assert_close(adjoint(linear, y.reshape(image.shape)).reshape(-1), matrix.T @ y)
    assert schur_test(linear) >= float(torch.linalg.svdvals(matrix)[0])


def test_gather_counts_copies() -> None:
    copies = Gather(lambda x: x.expand(1, 4, 3), (1, 1, 3), 1)
    assert norm_bound(copies)[0].value == pytest.approx(2.0, rel=1e-9)
    assert norm_bound(copies)[0].value >= 2.0


@settings(max_examples=100, deadline=None)
@given(convolutions(modes=("zeros",)))
def test_schur_of_a_convolution_is_that_of_its_matrix(conv: Conv) -> None:
    matrix = dense(conv).abs()
    exact = math.sqrt(float(matrix.sum(0).max()) * float(matrix.sum(1).max()))
    assert float(torch.linalg.svdvals(dense(conv))[0]) <= schur_test(conv) <= exact * (1 + 1e-9) + 1e-300
