"""What all attacks of a run share: the samples, two copies of the network, the closest points so far."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from lipaudit.crosscheck.network import UnitBox, private_copy, probe
from lipaudit.crosscheck.witness import Opinion, accepted, distance_up, drawn_in, weigh
from lipaudit.errors import BadThreat


@dataclass(frozen=True)
class Found:
    """Verified points of some rows of the arena."""

    rows: np.ndarray
    distance: np.ndarray
    """float64, rounded up."""
    prediction: np.ndarray
    closer: np.ndarray
    """bool: which of them are the closest of their rows so far."""
    points: Tensor
    """float64 on the CPU: of those only."""


@dataclass
class Arena:
    """Samples under attack and the closest verified point of each; only `keep` changes them."""

    network: UnitBox
    judge: nn.Module
    clean: Tensor
    """float64 inputs on the network's device."""
    labels: Tensor
    predictions: np.ndarray
    """Of the clean inputs, in float64."""
    correct: np.ndarray
    """Rows that may be attacked: correctly classified (in float64, not tied) and inside the box."""
    outside: int
    """Correctly classified rows that lie outside the box."""
    points: Tensor
    """float64 on the CPU: the closest witness of each sample, or its clean input."""
    distance: np.ndarray
    """Rounded up; inf where nothing was found."""
    found_by: list[str | None]
    found_as: list[int]
    attacked: set[int] = field(default_factory=set)

    def resolution(self) -> np.ndarray:
        """L2 distances (n,), raw units, below which float32 inputs hardly change: 2^-23 of their norm."""
        return ((self.clean - self.network.low).flatten(1).norm(dim=1) * 2.0**-23).cpu().numpy()

    def measured(self, rows: np.ndarray, points: Tensor) -> Found:
        """Verified points of some rows, drawn in and verified again."""
        if not len(rows):
            nothing = np.empty(0)
            return Found(rows, nothing, rows, nothing.astype(bool), points.cpu())
        index = torch.as_tensor(rows, device=self.clean.device)
        clean, labels = self.clean[index], self.labels[index]
        nearer = drawn_in(self.judge, clean, points, labels, self.network.low, self.network.high)
        good, seen = accepted(self.judge, nearer, labels)
        if not bool(good.all()):
            # Misclassified in a batch but not alone, or in doubt: fall back to the point as it was claimed.
            nearer = torch.where(good.reshape(-1, *[1] * (points.ndim - 1)), nearer, points)
            seen = torch.where(good, seen, accepted(self.judge, nearer, labels)[1])
        kept = (seen >= 0).nonzero().flatten().tolist()
        distance = np.array([distance_up(nearer[place], clean[place]) for place in kept], dtype=np.float64)
        closer = distance < self.distance[rows[kept]]
        return Found(
            rows=rows[kept],
            distance=distance,
            prediction=seen[kept].cpu().numpy(),
            closer=closer,
            points=nearer[kept][torch.as_tensor(closer, device=nearer.device)].cpu(),
        )

    def keep(self, found: Found, name: str) -> None:
        """Takes over the points that are the closest of their rows so far, as found by the attack of that name."""
        for place, point in zip(found.closer.nonzero()[0].tolist(), found.points, strict=True):
            row = int(found.rows[place])
            self.distance[row], self.found_by[row] = found.distance[place], name
            self.found_as[row] = int(found.prediction[place])
            self.points[row] = point


def arena(
    logits: nn.Module, judge: nn.Module | None, inputs: Tensor, labels: Tensor, low: float, high: float, size: int
) -> Arena:
    """Checks what was given, copies the network twice and judges the clean inputs in batches of `size`.

    `judge` is the float64 function that decides what counts, None for a float64 copy of `logits`.

    Raises `BadThreat` for inputs, labels or a box that do not fit, `CaptureError` if the network cannot be
    copied or does not run in float64.
    """
    _check(inputs, labels, low, high)
    judge = private_copy(logits, torch.float64) if judge is None else judge
    classes = probe(judge, inputs)
    labels = labels.to(inputs.device, torch.int64)
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        seen = f"{int(labels.min())} to {int(labels.max())}"
        raise BadThreat(f"expected labels from 0 to {classes - 1}, as the network has {classes} logits, got {seen}")
    clean = inputs.detach().double().clone()
    opinion = _judged(judge, clean, labels, size)
    inside = ((clean >= low) & (clean <= high)).flatten(1).all(1)
    right = (opinion.prediction == labels) & (opinion.margin > 0)
    return Arena(
        network=UnitBox(private_copy(logits), inputs, low, high, classes).eval(),
        judge=judge,
        clean=clean,
        labels=labels,
        predictions=opinion.prediction.cpu().numpy(),
        correct=(right & inside).cpu().numpy(),
        outside=int((right & ~inside).sum()),
        points=clean.cpu().clone(),
        distance=np.full(len(inputs), math.inf),
        found_by=[None] * len(inputs),
        found_as=[-1] * len(inputs),
    )


def batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows in consecutive pieces of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _judged(judge: nn.Module, points: Tensor, labels: Tensor, size: int) -> Opinion:
    pieces = zip(points.split(size), labels.split(size), strict=True)
    opinions = [weigh(judge, some, theirs) for some, theirs in pieces]
    margin, prediction, noise = zip(*((one.margin, one.prediction, one.noise) for one in opinions), strict=True)
    return Opinion(torch.cat(margin), torch.cat(prediction), torch.cat(noise))


def _check(inputs: Tensor, labels: Tensor, low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadThreat(f"expected a box with finite low < high, got low {low} and high {high}")
    if inputs.ndim < 2 or len(inputs) == 0 or not inputs.is_floating_point():
        got = f"{inputs.dtype} of shape {tuple(inputs.shape)}"
        raise BadThreat(f"expected a batch of at least one floating-point input, got {got}")
    if not bool(inputs.isfinite().all()):
        raise BadThreat("expected finite inputs, got NaN or infinity; look for a wrong normalisation or data type")
    if labels.shape != inputs.shape[:1] or labels.is_floating_point():
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise BadThreat(f"expected {len(inputs)} integer labels, one per input, got {got}")
