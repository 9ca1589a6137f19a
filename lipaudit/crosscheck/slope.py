"""How steep the network was seen to be: a lower bound of its Lipschitz constant, to hold against the bound.

Note [Slopes are secants]: autograd finds the steep direction, but its gradient is not evidence. At a kink (a
ReLU at exactly zero, a tie in max-pooling: black borders are full of both) it may be steeper than the network
is anywhere. So each slope is measured between two inputs of the box: the change of a logit difference in
float64, less its noise, over their distance rounded up. Whatever the direction, that is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lipaudit.crosscheck.isolation import random_state_kept
from lipaudit.crosscheck.unit_box import private_copy, probe
from lipaudit.crosscheck.verification import NOISE, distance_up, lengths
from lipaudit.results.threat import Norm, circumradius, norm_of

STEP = 1e-3
"""L2 distance of the two inputs, at most, as a share of the width of the box."""
DUAL: dict[Norm, Norm] = {"l2": "l2", "linf": "l1", "l1": "linf"}
"""The norm of a gradient that says how steep it is, for inputs measured in some norm."""
POINTS, PAIRS = 32, 16
"""Points that gradients are taken at, and pairs of classes whose slopes are then measured, at most."""
CLIMBED, STEPS = 8, 20
"""Points from which the steepest direction of all logits is looked for, and steps of power iteration."""
STRIDE = 1e-2
LENGTHS = (1e-3, 1e-2, 1e-1)
"""Distances of two inputs in that direction, as shares of the width of the box: on the way, and in the end."""


@dataclass(frozen=True)
class Slope:
    """Largest slope seen of a difference of two logits, rounded down."""

    value: float
    sample: int
    """Row of the points at which it was seen."""
    label: int
    other: int
    """It is the slope of logit `label` minus logit `other`."""
    pairs: dict[tuple[int, int], float]
    """Largest slope seen per (label, other), to be held against the pairwise bounds."""


def largest_slope(
    logits: nn.Module,
    points: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "l2",
    judge: nn.Module | None = None,
    low: float = 0.0,
    high: float = 1.0,
    others: int = 9,
    batch_size: int = 16,
    against: Sequence[Sequence[float]] | None = None,
    most: tuple[int, int] = (POINTS, PAIRS),
) -> Slope:
    """The largest slope of f_label - f_other seen at some points: at most the Lipschitz constant, always.

    Inputs are measured in `norm`: a slope is a change of the difference over a distance in it. `logits` and `judge` as
    in `cross_check`; `points` (n, ...) are any inputs, clean ones and witnesses. Each point is tried with its `others`
    strongest other classes: all of them up to ten classes. Gradients choose, per pair of classes, the steepest point;
    there the slope is measured, in float64. See the note above. Of more points than `most[0]`, as many at even
    distances are tried; of more pairs than `most[1]`, those are measured that are steepest for what they will be held
    against, the bound in row `label`, column `other` of `against`.
    Raises `BadThreat` and `CaptureError` as `cross_check` does.
    """
    with torch.inference_mode(False), torch.enable_grad(), random_state_kept(0):
        fast = private_copy(logits)
        judge = private_copy(logits, torch.float64) if judge is None else judge
        probe(judge, points)
        like = next((p for p in fast.parameters() if p.is_floating_point()), points)
        tried = np.unique(np.linspace(0, len(points) - 1, min(len(points), most[0])).round().astype(int)).tolist()
        points, labels = points[tried], labels[tried]
        measured = norm_of(norm)
        # As long in L2 whatever the norm, so that the network is about as linear between the two ends.
        step = STEP * (high - low) / circumradius(measured, points[0].numel())
        # Both ends of a step of this length stay in the box.
        centres = points.detach().double().clamp(low + step / 2, high - step / 2)
        labels = labels.to(points.device, torch.int64)
        steepest: dict[tuple[int, int], tuple[float, int]] = {}
        for rows in torch.arange(len(points)).split(batch_size):
            for other, gradient in _gradients(fast, centres[rows].to(like.dtype), labels[rows], others):
                steep = lengths(gradient.double(), DUAL[measured]).tolist()
                pairs = zip(labels[rows].tolist(), other.tolist(), strict=True)
                for row, pair, slope in zip(rows.tolist(), pairs, steep, strict=True):
                    if pair not in steepest or slope > steepest[pair][0]:
                        steepest[pair] = (slope, row)
        seen = {}
        for pair in _chosen(steepest, against, most[1]):
            at = steepest[pair][1]
            direction = _direction(fast, centres[at : at + 1].to(like.dtype), pair, measured)
            seen[pair] = _secant(judge, centres[at : at + 1], direction * step / 2, pair, measured, low, high)
    pair, value = max(seen.items(), key=lambda entry: entry[1])
    return Slope(value, tried[steepest[pair][1]], *pair, seen)


@torch.no_grad()
def steepest_pair(
    logits: nn.Module, points: Tensor, *, judge: nn.Module, low: float, high: float, seed: int = 0
) -> tuple[int, Tensor, Tensor]:
    """Two inputs of the box between which all logits together change as much as was found, and near which point.

    The direction is found by power iteration on the Jacobian at some points (n, ...): forwards by differences of the
    network as it runs, backwards by autograd. Its entries are exact in float32, so that they can be handed on. It
    is a proposal: nothing is said of how steep the network is there.
    """
    with torch.inference_mode(False), random_state_kept(0):
        fast, width = private_copy(logits), high - low
        like = next((p for p in fast.parameters() if p.is_floating_point()), points)
        tried = np.unique(np.linspace(0, len(points) - 1, min(len(points), CLIMBED)).round().astype(int)).tolist()
        margin = LENGTHS[0] * width / 2
        centres = points[tried].detach().double().clamp(low + margin, high - margin)
        draw = torch.Generator().manual_seed(seed)
        at = centres.to(like.dtype)
        first = torch.randn(fast(at).shape, generator=draw).to(at)
        direction = _units(_pulled_back(fast, at, first))
        for _ in range(STEPS):
            half = (direction * (STRIDE * width / 2)).to(like.dtype)
            turned = _units(_pulled_back(fast, at, fast(at + half) - fast(at - half)))
            # Where rounding hides what the logits do, the last direction stays.
            moved = turned.flatten(1).any(1).reshape(-1, *[1] * (turned.ndim - 1))
            direction = torch.where(moved, turned, direction)
        best: tuple[float, int, Tensor, Tensor] | None = None
        for length in LENGTHS:
            ends = [_held_by_float32(centres + sign * direction * (length * width / 2), low, high) for sign in (1, -1)]
            risen = (judge(ends[0]).double() - judge(ends[1]).double()).flatten(1).norm(dim=1)
            slopes = (risen / (ends[0] - ends[1]).flatten(1).norm(dim=1)).nan_to_num(0.0, 0.0, 0.0)
            row = int(slopes.argmax())
            if best is None or float(slopes[row]) > best[0]:
                best = float(slopes[row]), tried[row], ends[0][row], ends[1][row]
    assert best is not None
    return best[1:]


def _pulled_back(fast: nn.Module, at: Tensor, rise: Tensor) -> Tensor:
    """The transposed Jacobian times `rise`, row by row."""
    with torch.enable_grad():
        at = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((fast(at) * rise).sum(), at)
    return gradient.double().nan_to_num(0.0, 0.0, 0.0)


def _units(direction: Tensor) -> Tensor:
    """Each row divided by its length; a zero row stays zero."""
    length = direction.flatten(1).norm(dim=1).clamp_min(1e-300)
    return direction / length.reshape(-1, *[1] * (direction.ndim - 1))


def _held_by_float32(points: Tensor, low: float, high: float) -> Tensor:
    """The points, in float64, with entries that float32 has, inside the box."""
    single = points.clamp(low, high).float()
    single = torch.where(single.double() > high, single.nextafter(torch.full_like(single, -math.inf)), single)
    single = torch.where(single.double() < low, single.nextafter(torch.full_like(single, math.inf)), single)
    return single.double()


def _chosen(
    steepest: Mapping[tuple[int, int], tuple[float, int]], against: Sequence[Sequence[float]] | None, most: int
) -> list[tuple[int, int]]:
    """The pairs to be measured, as they were found: the steepest of all, and the steepest for their bounds."""

    def share(pair: tuple[int, int]) -> float:
        bound = 1.0 if against is None else against[pair[0]][pair[1]]
        return steepest[pair][0] / bound if bound > 0 else math.inf

    kept = {max(steepest, key=lambda pair: steepest[pair][0])}
    kept |= set(sorted(steepest, key=share, reverse=True)[: max(1, most - 1)])
    return [pair for pair in steepest if pair in kept]


def _gradients(fast: nn.Module, points: Tensor, labels: Tensor, others: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Per rank of the other classes: which class it is for each point, and the gradient of f_label - f_it."""
    points = points.clone().requires_grad_()
    output = fast(points)
    ranked = output.detach().scatter(1, labels.unsqueeze(1), -math.inf).argsort(1, descending=True)
    for rank in range(min(others, output.shape[1] - 1)):
        other = ranked[:, rank]
        difference = output.gather(1, labels.unsqueeze(1)) - output.gather(1, other.unsqueeze(1))
        (gradient,) = torch.autograd.grad(difference.sum(), points, retain_graph=True)
        yield other, gradient.nan_to_num(0.0, 0.0, 0.0)


def _direction(fast: nn.Module, point: Tensor, pair: tuple[int, int], norm: Norm) -> Tensor:
    """The float64 vector of length 1 in the norm along which the logit difference grows fastest; zero if none does."""
    point = point.clone().requires_grad_()
    output = fast(point)
    (gradient,) = torch.autograd.grad((output[:, pair[0]] - output[:, pair[1]]).sum(), point)
    gradient = gradient.double().nan_to_num(0.0, 0.0, 0.0)
    if norm == "linf":
        return gradient.sign()
    if norm == "l1":
        steepest = torch.zeros_like(gradient)
        place = gradient.abs().argmax()
        steepest.view(-1)[place] = gradient.view(-1)[place].sign()
        return steepest
    return gradient / gradient.norm().clamp_min(1e-300)


@torch.no_grad()
def _secant(
    judge: nn.Module, centre: Tensor, half: Tensor, pair: tuple[int, int], norm: Norm, low: float, high: float
) -> float:
    """Slope of the logit difference between centre - half and centre + half, rounded down."""
    ends = torch.cat([centre + half, centre - half]).clamp(low, high)
    output = judge(ends).double()
    first, second = (output[:, pair[0]] - output[:, pair[1]]).tolist()
    noise = NOISE * output[:, list(pair)].abs().sum().item()
    rise = abs(first - second) - noise
    if not rise > 0:
        return 0.0
    return math.nextafter(rise / distance_up(ends[0], ends[1], norm) * (1 - 2**-50), 0.0)
