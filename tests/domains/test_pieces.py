"""Parts of a tensor that are processed apart: together they cost as much as the largest, if they are really apart."""

from __future__ import annotations

import pytest
import torch
from flat import Function, bounded, steepest

SHAPE = (4, 2, 2)


def apart(x: torch.Tensor) -> torch.Tensor:
    first, second = x.split([1, 3], 1)
    return torch.cat([2 * torch.relu(first), torch.tanh(second) * 3], 1)


def nested(x: torch.Tensor) -> torch.Tensor:
    first, rest = x.split([1, 3], 1)
    second, third = torch.tanh(rest).split([1, 2], 1)
    return torch.cat([3 * torch.relu(first), torch.cat([2 * torch.relu(second), torch.relu(third)], 1)], 1)


def nested_but_joined_at_once(x: torch.Tensor) -> torch.Tensor:
    first, rest = x.split([1, 3], 1)
    second, third = rest.split([1, 2], 1)
    return torch.cat([torch.relu(first), 3 * torch.relu(second), torch.relu(third)], 1)


def passes_one_half(x: torch.Tensor) -> torch.Tensor:
    half, rest = x.chunk(2, 1)
    out = torch.cat([half, 3 * torch.relu(rest)], 1)
    return out.view(len(x), 2, 2, 2, 2).transpose(1, 2).reshape(x.shape)


def written_into(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 1:3] = 3 * torch.relu(x[:, 1:3])
    return y


def one_index_written_into(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 2] = 3 * torch.relu(x[:, 2])
    return y


def swapped_into(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 1:3] = 3 * torch.relu(x[:, 2:4])
    return y


def two_uses(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([torch.relu(first), torch.relu(second), torch.relu(first + second)], 1)


MASK = torch.tensor([True, False, True, False])[:, None, None]

FREE: dict[str, tuple[Function, float]] = {
    "split and joined": (lambda x: torch.relu(torch.cat(x.split(1, 1), 1)), 1.0),
    "split, joined the other way round": (lambda x: torch.relu(torch.cat(x.split(1, 1)[::-1], 1)), 1.0),
    "slices": (lambda x: torch.cat([torch.relu(x[:, ::2]), 3 * torch.relu(x[:, 1::2])], 1), 3.0),
    "unbound and stacked": (lambda x: torch.stack([torch.relu(part) for part in x.unbind(1)], 1), 1.0),
    "selected and stacked": (lambda x: torch.stack([torch.relu(x[:, k]) for k in (2, 0, 1)], 1), 1.0),
    "indices": (lambda x: torch.cat([torch.relu(x[:, [3, 0]]), torch.relu(x[:, [1, 2]])], 1), 1.0),
    "processed apart": (apart, 3.0),
    "split of a split": (nested, 3.0),
    "split of a split, joined at once": (nested_but_joined_at_once, 3.0),
    "one half passes": (passes_one_half, 3.0),
    "after a view": (lambda x: torch.cat([part.relu() for part in x.flatten(1).split(5, 1)], 1), 1.0),
    "sums in a part": (
        lambda x: torch.cat([x[:, :2] + torch.relu(x[:, :2]), 2 * torch.relu(x[:, 2:])], 1),
        2.0,
    ),
    "maximum of two halves": (lambda x: torch.maximum(*x.chunk(2, 1)), 1.0),
    "written into a slice": (written_into, 3.0),
    "written into an index": (one_index_written_into, 3.0),
    "a part of what a part was written into": (
        lambda x: torch.cat([torch.relu(written_into(x)[:, :2]), torch.relu(written_into(x)[:, 2:])], 1),
        3.0,  # written twice: the same tensor
    ),
    "slices of slices": (lambda x: torch.cat([torch.relu(x[:, :3][:, 1:]), torch.relu(x[:, 3:])], 1), 1.0),
    "patches": (
        lambda x: torch.cat([torch.relu(x[:, :, i::2, j::2]) for i in (0, 1) for j in (0, 1)], 1),
        1.0,
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_parts_of_one_tensor_cost_no_more_than_the_largest(name: str) -> None:
    function, largest = FREE[name]
    bound = bounded(function, SHAPE).value

    assert steepest(function, SHAPE) <= bound
    assert largest <= bound <= largest * (1 + 1e-6)


def permuted(x: torch.Tensor) -> torch.Tensor:
    turned = x.permute(0, 2, 1, 3)
    return torch.cat([2 * x[:, :1].flatten(1), 2 * turned[:, 1:].flatten(1)], 1)


def patches_that_overlap(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:, ::2][:, :, :1], x[:, ::2][:, :, 1:], x[:, 1:3][:, :, :1]], 1)


SHARED: dict[str, tuple[Function, float]] = {
    "overlapping slices": (lambda x: torch.cat([x[:, :3], x[:, 2:]], 1), 2**0.5),
    "overlapping slices of slices": (patches_that_overlap, 2**0.5),
    "slice of a permuted view": (permuted, 8**0.5),
    "a branch that reads the whole": (lambda x: torch.cat([x[:, :1], x.flip(1)], 1), 2**0.5),
    "a branch to which the whole was added": (
        lambda x: torch.cat([x[:, :1], x[:, 1:] + x[:, :1]], 1),
        float(torch.linalg.svdvals(torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]))[0]),
    ),
    "one part twice": (lambda x: torch.cat([part for part in x.chunk(2, 1) for _ in (0, 1)], 1), 2**0.5),
    "halves and their sum": (two_uses, 3**0.5),
    "indices that repeat": (lambda x: torch.cat([x[:, [0, 0]], x[:, [1, 2]]], 1), 2**0.5),
    "written into the wrong slice": (swapped_into, 10**0.5),
    "parts of different tensors": (lambda x: torch.cat([x[:, :2], torch.relu(x)[:, 2:], x[:, 1:2]], 1), 2**0.5),
    "chosen by a mask": (lambda x: torch.where(MASK, x, x.flip(1)), 2**0.5),
}


@pytest.mark.parametrize("name", SHARED)
def test_what_is_not_apart_is_not_treated_so(name: str) -> None:
    function, truth = SHARED[name]
    bound = bounded(function, SHAPE).value
    seen = steepest(function, SHAPE)

    assert seen == pytest.approx(truth, rel=1e-6)
    assert bound >= seen
