"""The four bounds: their formula, and how far above the norm they can be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from oracles import convolutions, lattice_norm

from lipaudit.norms.four_bounds import four_bounds, reshapings
from lipaudit.norms.linear_maps import Conv


def conv(*shape: int, stride: int = 1, size: int = 8) -> Conv:
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axes = len(shape) - 2
    return Conv(weight, (size,) * axes, (stride,) * axes, ((1, 1),) * axes, (1,) * axes)


@settings(max_examples=60, deadline=None)
@given(convolutions(modes=("zeros",)))
def test_between_the_norm_on_the_lattice_and_root_taps_times_it(conv: Conv) -> None:
    exact = lattice_norm(conv, 8)
    bound = four_bounds(conv).value
    assert bound >= exact
    # ||K as out x (in taps)||^2 is the norm of the mean of F F^H over all frequencies.
    assert bound <= math.sqrt(math.prod(conv.kernel_size)) * exact * 1.5


def test_the_four_matrices_of_the_paper() -> None:
    kernel = conv(5, 3, 2, 4)
    k = kernel.weight
    matrices = [
        k.permute(0, 2, 1, 3).reshape(10, 12),
        k.permute(0, 3, 1, 2).reshape(20, 6),
        k.reshape(5, 24),
        k.permute(0, 2, 3, 1).reshape(40, 3),
    ]
    smallest = min(float(torch.linalg.svdvals(m)[0]) for m in matrices)
    assert four_bounds(kernel).value == pytest.approx(math.sqrt(8) * smallest, rel=1e-8)


@pytest.mark.parametrize(
    ("shape", "count"), [((2, 3, 3), 2), ((2, 3, 3, 3), 4), ((2, 3, 3, 1), 2), ((2, 3, 2, 2, 2), 8)]
)
def test_one_matrix_for_each_way_to_split_the_axes(shape: tuple[int, ...], count: int) -> None:
    matrices = list(reshapings(conv(*shape).weight[None]))
    assert len({tuple(m.flatten().tolist()) + tuple(m.shape) for m in matrices}) == count


def test_one_tap_is_exact_and_a_stride_is_made_polyphase() -> None:
    pointwise, strided, plain = conv(6, 4, 1, 1), conv(6, 4, 3, 3, stride=2), conv(6, 4, 3, 3)
    assert four_bounds(pointwise).value == pytest.approx(lattice_norm(pointwise), rel=1e-8)
    assert four_bounds(strided).value < 0.95 * four_bounds(plain).value
