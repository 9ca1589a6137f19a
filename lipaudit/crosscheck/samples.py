"""What all attacks of a run share: the samples, two copies of the network, the closest points so far."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from lipaudit.crosscheck.unit_box import UnitBox, private_copy, probe, why_no_gradient
from lipaudit.crosscheck.verification import Opinion, accepted, distance_up, drawn_in, drawn_into_ball, lengths, weigh
from lipaudit.errors import BadThreat
from lipaudit.results.threat import Norm, box_of

USUAL, MIDDLE = (2.0**-6, 2.0**6), 4.0
"""Sizes of margins that attacks work with in float32 as they are; what others are scaled to."""
POWERS = {torch.float32: 126, torch.float64: 1000}
"""By which powers of two logits can be multiplied, and gradients with them, in the dtypes that attacks run in."""
FLAT = 100.0
"""Margins beyond which the float32 gradient of cross-entropy is zero."""
CLOSE = 1.01
"""The judge draws in a witness that the network as it runs drew in to within this factor of a certified radius."""


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
    norm: Norm
    """That all distances are measured in."""
    predictions: np.ndarray
    """Of the clean inputs, in float64."""
    correct: np.ndarray
    """Rows that may be attacked: correctly classified (in float64, not tied) and inside the box."""
    outside: int
    """Correctly classified rows that lie outside the box."""
    apart: int
    """Rows that may be attacked, the logits of which are too far apart for a loss, also as `network` scales them."""
    points: Tensor
    """float64 on the CPU: the closest witness of each sample, or its clean input."""
    distance: np.ndarray
    """Rounded up; inf where nothing was found."""
    found_by: list[str | None]
    found_as: list[int]
    attacked: set[int] = field(default_factory=set)

    def resolution(self) -> np.ndarray:
        """Distances (n,), raw units, below which float32 inputs hardly change: 2^-23 of their norm."""
        return (lengths(self.clean - self.network.low, self.norm) * 2.0**-23).cpu().numpy()

    def verified(
        self,
        rows: np.ndarray,
        claims: Sequence[Tensor],
        within: np.ndarray | float = 0.0,
        budget: np.ndarray | None = None,
    ) -> tuple[Found, int, tuple[np.ndarray, Tensor]]:
        """What the judge keeps of claims about some rows, drawn in, and how many it looked at and did not believe.

        And rows and points at which model and judge may not be the same: all claims that the judge did not believe,
        and the closest one of each row that the model itself gets right.

        `claims` are unit-box tensors, one entry per row each; `within` says at which distance from its clean input a
        claim is the judge's alone: a number for each row, or one. `budget` is how far the attack was to go, a number
        for each row, if it was told. See Notes [What is judged] and [Drawn into the ball] in `verification.py`.
        """
        index = torch.as_tensor(rows, device=self.clean.device)
        clean, labels = self.clean[index], self.labels[index]
        points, seen = clean.clone(), torch.full_like(labels, -1)
        if not claims:
            return self._measured(rows, clean, points, seen), 0, (rows[:0], clean[:0])
        start, raw = self.network.to_unit(clean), torch.stack([self.network.to_raw(claim) for claim in claims])
        far, rejected = clean.new_empty(len(raw), len(rows)), 0
        for place, claim in enumerate(claims):
            untouched, finite = (claim == start).flatten(1).all(1), claim.flatten(1).isfinite().all(1)
            far[place] = lengths(raw[place] - clean, self.norm).where(finite & ~untouched, math.inf)
            rejected += int((~finite).sum())
        if budget is not None and self.norm != "l2":
            raw, far = self._with_drawn_in(clean, raw, far, torch.as_tensor(budget, device=clean.device))
        edge = torch.as_tensor(within, dtype=torch.float64, device=clean.device).expand(len(rows))
        odd, first = [], True
        while True:
            least, which = far.min(0)
            trying = ((seen < 0) & least.isfinite()).nonzero().flatten()
            if not len(trying):
                break
            chosen = raw[which[trying], trying]
            inside = least[trying] <= edge[trying]
            far[which[trying], trying] = math.inf
            asserted, better, taken_for = self._judged(clean[trying], chosen, labels[trying], inside, edge[trying])
            points[trying], seen[trying] = better, taken_for
            rejected += int((asserted & (taken_for < 0)).sum())
            aside = (taken_for < 0) & (asserted | first)
            odd.append((rows[trying[aside].cpu().numpy()], chosen[aside]))
            first = False
        doubtful = (np.concatenate([rows[:0], *(row for row, _ in odd)]), torch.cat([clean[:0], *(p for _, p in odd)]))
        return self._measured(rows, clean, points, seen), rejected, doubtful

    def _with_drawn_in(self, clean: Tensor, raw: Tensor, far: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
        """Claims with their distances, and those that lie outside their budgets once more, drawn in."""
        inner = torch.stack([drawn_into_ball(clean, points, budget, self.norm) for points in raw])
        moved = (inner != raw).flatten(2).any(2) & far.isfinite()
        if not bool(moved.any()):
            return raw, far
        distances = torch.stack([lengths(points - clean, self.norm) for points in inner])
        return torch.cat([raw, inner]), torch.cat([far, distances.where(moved, math.inf)])

    def _judged(
        self, clean: Tensor, claim: Tensor, labels: Tensor, inside: Tensor, edge: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows of a claim the network as it runs misclassifies; the points that the judge accepts; as what."""

        def as_it_runs(raw: Tensor) -> Tensor:
            return self.network(self.network.to_unit(raw))

        def draw(logits: Callable[[Tensor], Tensor], rows: Tensor) -> None:
            if len(rows):
                low, high = self.network.low, self.network.high
                points[rows] = drawn_in(logits, clean[rows], points[rows], labels[rows], low, high)

        points, seen = claim.clone(), torch.full_like(labels, -1)
        with torch.no_grad():
            asserted = as_it_runs(claim).argmax(1) != labels
        wrong, unsure = asserted.clone(), (inside & ~asserted).nonzero().flatten()
        if len(unsure):
            wrong[unsure] = accepted(self.judge, claim[unsure], labels[unsure])[0]
        draw(as_it_runs, (wrong & ~inside).nonzero().flatten())
        near = lengths(points - clean, self.norm) <= CLOSE * edge
        draw(self.judge, (wrong & (inside | near)).nonzero().flatten())
        rows = wrong.nonzero().flatten()
        if not len(rows):
            return asserted, points, seen
        good, seen[rows] = accepted(self.judge, points[rows], labels[rows])
        doubtful = rows[~good]
        if len(doubtful):
            points[doubtful] = claim[doubtful]
            seen[doubtful] = accepted(self.judge, claim[doubtful], labels[doubtful])[1]
        return asserted, points, seen

    def _measured(self, rows: np.ndarray, clean: Tensor, points: Tensor, seen: Tensor) -> Found:
        """Those rows whose points were accepted, with their distances."""
        kept = (seen >= 0).nonzero().flatten().tolist()
        distance = np.array([distance_up(points[place], clean[place], self.norm) for place in kept], dtype=np.float64)
        closer = distance < self.distance[rows[kept]]
        return Found(
            rows=rows[kept],
            distance=distance,
            prediction=seen[kept].cpu().numpy(),
            closer=closer,
            points=points[kept][torch.as_tensor(closer, device=points.device)].cpu(),
        )

    def keep(self, found: Found, name: str) -> None:
        """Takes over the points that are the closest of their rows so far, as found by the attack of that name."""
        for place, point in zip(found.closer.nonzero()[0].tolist(), found.points, strict=True):
            row = int(found.rows[place])
            self.distance[row], self.found_by[row] = found.distance[place], name
            self.found_as[row] = int(found.prediction[place])
            self.points[row] = point


def arena(
    logits: nn.Module,
    judge: nn.Module | None,
    inputs: Tensor,
    labels: Tensor,
    norm: Norm,
    low: float,
    high: float,
    size: int,
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
    attacked, like = _attacked(logits, inputs)
    network = UnitBox(attacked, like, low, high, classes)
    most = POWERS.get(network.dtype, POWERS[torch.float32])
    network.scale = _scale(judge, clean, opinion.margin[right & inside], most)
    network.eval()
    network.no_gradient = why_no_gradient(network, network.to_unit(inputs[:1]))
    return Arena(
        network=network,
        judge=judge,
        clean=clean,
        labels=labels,
        norm=norm,
        predictions=opinion.prediction.cpu().numpy(),
        correct=(right & inside).cpu().numpy(),
        outside=int((right & ~inside).sum()),
        apart=int((opinion.margin[right & inside] * network.scale > FLAT).sum()),
        points=clean.cpu().clone(),
        distance=np.full(len(inputs), math.inf),
        found_by=[None] * len(inputs),
        found_as=[-1] * len(inputs),
    )


def _attacked(logits: nn.Module, inputs: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of the network to attack, and inputs of its dtype: float32 for a network of less, if it runs in that.

    What decides is the exact function. The roundings of half precision would hide what lies closest to an input.
    """
    dtype = next((p.dtype for p in logits.parameters() if p.is_floating_point()), inputs.dtype)
    if dtype not in POWERS:
        with contextlib.suppress(RuntimeError, TypeError, ValueError), torch.no_grad():
            wide = private_copy(logits, torch.float32)
            wide(inputs[:1].float())
            return wide, inputs.float()
    return private_copy(logits), inputs


def _scale(judge: nn.Module, clean: Tensor, margins: Tensor, most: int) -> float:
    """A power of two, up to 2^most, that brings margins to a usual size; 1 where they have it, and for probabilities.

    Attacks compute in float32, some with constants that are made for logits of the usual size: on others they fail
    without a word. What is a probability distribution is to be seen as one.
    """
    usual = float(margins.median()) if len(margins) else 1.0
    if USUAL[0] <= usual <= USUAL[1] or not 0 < usual < math.inf:
        return 1.0
    with torch.no_grad():
        first = judge(clean[:1])
    if bool((first >= 0).all()) and abs(float(first.sum()) - 1) < 1e-5:
        return 1.0
    return 2.0 ** min(most, max(-most, round(math.log2(MIDDLE / usual))))


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
    box_of((low, high))
    if inputs.ndim < 2 or len(inputs) == 0 or not inputs.is_floating_point():
        got = f"{inputs.dtype} of shape {tuple(inputs.shape)}"
        raise BadThreat(f"expected a batch of at least one floating-point input, got {got}")
    if not bool(inputs.isfinite().all()):
        raise BadThreat("expected finite inputs, got NaN or infinity; look for a wrong normalisation or data type")
    if labels.shape != inputs.shape[:1] or labels.is_floating_point():
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise BadThreat(f"expected {len(inputs)} integer labels, one per input, got {got}")
