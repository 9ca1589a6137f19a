"""Entries at constant places, order statistics and functions of two operands: exact norms, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from flat import Function, bounded, norm_of
from torch.nn import functional

from lipaudit.errors import LipauditError, NotLipschitz, UnsupportedOp

ATEN, F = torch.ops.aten, functional


def places(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def grid(x: torch.Tensor, *points: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([[points]]).to(x).expand(len(x), 1, len(points), 2)


LINEAR: dict[str, tuple[Function, tuple[int, ...]]] = {
    "two of three replaced": (lambda x: x.scatter(1, places(0, 2).expand(len(x), 2), 2 * x[:, :2]), (3,)),
    "scattered number": (lambda x: x.scatter(1, places(0, 2).expand(len(x), 2), 0.5), (3,)),
    "three added in one place": (
        lambda x: torch.zeros_like(x).scatter_add(1, places(1, 1, 1).expand(len(x), 3), x[:, :3]), (4,),
    ),
    "slices added": (lambda x: x.index_add(1, places(0, 0), x[:, 1:3], alpha=-3), (4,)),
    "slices added to zeros": (lambda x: torch.zeros_like(x).index_add(1, places(0, 0), x[:, 1:3], alpha=-3), (4,)),
    "slice copied": (lambda x: x.index_copy(1, places(3), 5 * x[:, :1]), (4,)),
    "stretched values added": (
        lambda x: ATEN.index_put(torch.zeros_like(x), [None, places(0, 0, 1)], x[:, :1].expand(-1, 3), True), (4,),
    ),
    "one value in three places": (lambda x: ATEN.index_put(x, [None, places(0, 2, 3)], x[:, 1:2]), (4,)),
    "bilinear": (
        lambda x: F.grid_sample(x, grid(x, (0.1, 0.3), (0.1, 0.3), (-0.9, 0.7)), align_corners=True), (2, 3, 4),
    ),
    "nearest": (
        lambda x: F.grid_sample(x, grid(x, (0.1, 0.3), (0.15, 0.3)), "nearest", "border", align_corners=False),
        (1, 3, 4),
    ),
    "lerp of one": (lambda x: torch.lerp(x, x.flip(1), 0.25), (2,)),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_bounds_of_linear_maps_are_close_to_their_norms(name: str) -> None:
    function, shape = LINEAR[name]
    exact = norm_of(function, shape)
    assert exact <= bounded(function, shape).value <= exact * 1.8


TIGHT: dict[str, tuple[Function, float]] = {
    "median": (lambda x: x.median(1, keepdim=True).values, 1.0),
    "third of four": (lambda x: x.kthvalue(3, 1).values[:, None], 1.0),
    "running maximum": (lambda x: x.cummax(1).values, 2.0),
    "distances to two points": (lambda x: torch.cdist(x[:, None], torch.eye(4)[:2]), math.sqrt(2)),
    "city blocks": (lambda x: torch.cdist(x[:, None], torch.eye(4)[:1], p=1.0), 2.0),
    "hypotenuse of two halves": (lambda x: torch.hypot(x[:, :2], x[:, 2:]), 1.0),
    "soft maximum of two halves": (lambda x: torch.logaddexp(x[:, :2], x[:, 2:]), 1.0),
}
"""Functions of four entries, and their steepest slope."""


@pytest.mark.parametrize("name", TIGHT)
def test_bounds_are_the_steepest_slopes(name: str) -> None:
    function, slope = TIGHT[name]
    bound = bounded(function, (4,)).value
    assert slope * (1 - 1e-9) <= bound <= slope * (1 + 1e-9)


OVER_RANGES: dict[str, tuple[Function, float]] = {
    "log1p": (lambda x: torch.log1p(x - 0.5), 2.0),
    "log2": (lambda x: torch.log2(x + 0.5), 2 / math.log(2)),
    "exp2": (lambda x: torch.exp2(3 * x), 24 * math.log(2)),
    "expm1": (torch.expm1, math.e),
    "logit": (lambda x: torch.logit(x, 0.1), 10 / 0.9),
    "angle": (lambda x: torch.atan2(x + 1, torch.tensor(0.0)), 0.0),
    "angle of both": (lambda x: torch.atan2(x[:, :1] - 0.5, x[:, 1:] + 0.25), 4.0),
}


@pytest.mark.parametrize("name", OVER_RANGES)
def test_bounds_over_ranges_hold_and_are_close(name: str) -> None:
    function, slope = OVER_RANGES[name]
    assert slope <= bounded(function, (2,), domain=(0.0, 1.0)).value <= max(1.2, slope * 1.2)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: torch.atan2(x - 0.5, x.flip(1) - 0.1), "jumps across the negative x-axis"),
        (lambda x: torch.atan2(x, x.flip(1)), "jumps"),
        (lambda x: torch.logit(x), "unbounded at 0"),
        (lambda x: torch.log1p(-x), "unbounded at 0"),
        (lambda x: ATEN.index_put(x, [None, places(1, 1)], x[:, :2]), "once each"),
        (lambda x: torch.cdist(x[:, None], x[:, None] + 1), "constant points"),
        (lambda x: torch.cdist(x[:, None], torch.eye(4), p=torch.inf), "order 1 or 2"),
        (lambda x: x.median(1).indices[:, None] + x, "jumps|int64"),
        (
            lambda x: F.grid_sample(x.view(-1, 1, 2, 2), grid(x, (0.1, 0.2)), "bicubic", align_corners=True),
            "got bicubic|grid_sampler_2d",
        ),
        (
            lambda x: F.grid_sample(x.view(-1, 1, 2, 2), x.view(-1, 1, 2, 2), align_corners=True),
            "grid of grid_sampler_2d",
        ),
    ],
)
def test_what_has_no_bound_is_refused_with_its_reason(function: Function, reason: str) -> None:
    with pytest.raises((UnsupportedOp, NotLipschitz, LipauditError), match=reason):
        bounded(function, (4,), domain=(0.0, 1.0))
