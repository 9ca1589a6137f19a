"""GroupSort, MaxMin and SpaceToDepth only move values."""

from __future__ import annotations

import pytest
import torch

from lipaudit.nn import GroupSort, MaxMin, SpaceToDepth

SHAPES = [(3, 12), (2, 12, 5), (2, 12, 3, 4)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("shape", SHAPES)
def test_group_sort_sorts_each_group_and_nothing_else(shape: tuple[int, ...], size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    out = GroupSort(size)(x)
    assert out.shape == x.shape
    for start in range(0, shape[1], size):
        expected = x[:, start : start + size].sort(dim=1).values
        assert torch.equal(out[:, start : start + size], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_group_sort_keeps_norms_and_never_stretches(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = GroupSort(4)
    for scale in (1e-3, 1.0, 1e3):
        x = torch.randn(shape, dtype=torch.float64)
        y = x + scale * torch.randn(shape, dtype=torch.float64)
        assert torch.equal(layer(x).flatten().sort().values, x.flatten().sort().values)
        assert (layer(x) - layer(y)).norm() <= (x - y).norm() * (1 + 1e-14)


def test_the_gradient_is_a_permutation() -> None:
    x = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0, 6.0], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: GroupSort(3)(v[None])[0], x)
    assert torch.equal(jacobian @ jacobian.T, torch.eye(6, dtype=torch.float64))
    assert set(jacobian.unique().tolist()) == {0.0, 1.0}


def test_max_min_is_minimum_then_maximum_of_neighbours() -> None:
    x = torch.randn(2, 6, 3, 3)
    out = MaxMin()(x)
    assert torch.equal(out[:, 0::2], torch.minimum(x[:, 0::2], x[:, 1::2]))
    assert torch.equal(out[:, 1::2], torch.maximum(x[:, 0::2], x[:, 1::2]))


def test_channels_last_memory_makes_no_difference() -> None:
    x = torch.randn(2, 6, 3, 4)
    assert torch.equal(MaxMin()(x.contiguous(memory_format=torch.channels_last)), MaxMin()(x))


def test_group_sort_names_the_odd_channel_count() -> None:
    with pytest.raises(ValueError, match=r"multiples of 2, got 5 in an input of shape \(1, 5\)"):
        MaxMin()(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="group_size >= 1, got 0"):
        GroupSort(0)


def test_space_to_depth_moves_blocks_into_channels() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    out = SpaceToDepth(2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert out[0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert torch.equal(out.flatten().sort().values, x.flatten())
    with pytest.raises(RuntimeError):
        SpaceToDepth(3)(x)


def test_printing_tells_the_setting() -> None:
    assert str(GroupSort(4)) == "GroupSort(group_size=4)"
    assert str(MaxMin()) == "MaxMin()"
    assert str(SpaceToDepth()) == "SpaceToDepth(block=2)"
