"""The judge: a float64 copy of the network decides which claims of an attack become witnesses.

Note [What is judged]
    Of the claims of an attack only the closest of a sample counts, so the closest is looked at first, and the next one
    only where it fails. The network as it runs, in float32, draws it in; that search decides nothing, it proposes a
    point. The judge evaluates that point, and the claim itself where the point fails. Claims that the network as it
    runs gets right are left out. Not so where a certificate might be contradicted: what lies within a radius, or was
    claimed by an attack that walks along its edge, the judge sees in any case, and draws in itself, as it does with
    what was drawn in to near a radius.

Note [Noise]: float64 logits of a network are wrong by its rounding, which grows with the values inside it.
A margin counts as negative only beyond `NOISE` times the larger of the two logits that it is the difference of, plus
four times the difference between the evaluation in a batch and alone (two different orders of summation). A third
logit, such as that of a class that is masked with -1e9, says nothing about these two.

Note [Rounded distances]: `math.dist` works from the exact values of the two tensors with an error below one
ulp behind differences that are each rounded once; a factor 1 + 2^-50 (8 ulp) covers both. So no distance is
below the true one, and a certificate cannot be refuted by rounding. In Linf and L1 the differences are taken with what
their rounding leaves over, so the distance is the smallest float64 that is not below the true one: an example at a
distance of at most eps lies within eps.

Note [Drawn into the ball]: libraries add eps to pixels in float32, clip, scale and average, which leaves the ball by
an ulp. So in Linf and L1 each claim of an attack with a budget that lies outside is looked at once more at the nearest
point of the ball (Linf), or on the way to the clean input (L1), in float64: what the judge sees there counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipaudit.results.threat import Norm

ORDER: dict[Norm, float] = {"l2": 2.0, "linf": math.inf, "l1": 1.0}
INSIDE = 1 - 1e-9
"""Share of an L1 ball that points are drawn into: far more than sums of float64 are wrong by."""
NOISE = 1e-10
INWARD_STEPS = 6
"""Steps, at most, by which a witness is moved towards its clean input. Each is a pass of the network as it runs."""
CANCELLED = 64.0
"""How many times larger than two logits what they are the rounded sums of is taken to be, at most."""
WORTHWHILE = 2e-7
"""Share of a distance that a further step has to promise."""


@dataclass(frozen=True)
class Opinion:
    """What the judge sees at some points: one entry per row, float64."""

    margin: Tensor
    """Logit of the label minus the largest other logit."""
    prediction: Tensor
    noise: Tensor
    """Size of margins that say nothing. See Note [Noise]."""


@torch.no_grad()
def weigh(judge: nn.Module, points: Tensor, labels: Tensor) -> Opinion:
    """Margins, predictions and noise of float64 points, all evaluated in one batch."""
    logits = judge(points).double()
    margin, size = _apart(logits, labels)
    return Opinion(margin, logits.argmax(1), NOISE * size)


def _apart(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of the label minus the largest other one, and the larger of their absolute values."""
    column = labels.unsqueeze(1)
    own, others = logits.gather(1, column).squeeze(1), logits.scatter(1, column, -math.inf).amax(1)
    return own - others, torch.maximum(own.abs(), others.abs())


def weigh_alone(judge: nn.Module, points: Tensor, labels: Tensor) -> Opinion:
    """As `weigh`, each point in a batch of its own."""
    each = [weigh(judge, points[row : row + 1], labels[row : row + 1]) for row in range(len(points))]
    margin, prediction, noise = zip(*((one.margin, one.prediction, one.noise) for one in each), strict=True)
    return Opinion(torch.cat(margin), torch.cat(prediction), torch.cat(noise))


def lengths(changes: Tensor, norm: Norm) -> Tensor:
    """The norm of each row of changes, with no word on rounding."""
    return torch.linalg.vector_norm(changes.flatten(1), ord=ORDER[norm], dim=1)


def distance_up(point: Tensor, other: Tensor, norm: Norm) -> float:
    """The distance of two float64 tensors, rounded up. See Note [Rounded distances]."""
    if norm == "l2":
        distance = math.dist(point.flatten().tolist(), other.flatten().tolist())
        return math.nextafter(distance * (1 + 2**-50), math.inf)
    change, rest = _exact_difference(point.flatten(), other.flatten())
    size, rest = change.abs(), rest * change.sign()
    if norm == "linf":
        largest = size.max()
        # Below the largest, no rest reaches beyond it: a rest is at most half the distance to the next number.
        above = bool(((size == largest) & (rest > 0)).any())
        return math.nextafter(float(largest), math.inf) if above else float(largest)
    terms = [*size.tolist(), *rest.tolist()]
    total = math.fsum(terms)
    return math.nextafter(total, math.inf) if math.fsum([*terms, -total]) > 0 else total


def _exact_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a - b as float64 rounds it, and what that leaves over: their sum is exact (Knuth's two-sum)."""
    change = a - b
    back = change - a
    return change, (a - (change - back)) - (b + back)


def drawn_into_ball(clean: Tensor, points: Tensor, budget: Tensor, norm: Norm) -> Tensor:
    """The points, each moved into the Linf or L1 ball around its clean input that its budget (n,) allows, if outside.

    All float64. See Note [Drawn into the ball].
    """
    size = budget.reshape(-1, *[1] * (points.ndim - 1))
    if norm != "linf":
        # Each entry of the point is rounded once more.
        rounding = 2.0**-52 * (lengths(clean, norm) + budget)
        share = ((INSIDE * budget - rounding).clamp_min(0.0) / lengths(points - clean, norm)).reshape(size.shape)
        return torch.where(share < 1, clean + share * (points - clean), points)
    return points.clamp(-_up_to(-clean, size), _up_to(clean, size))


def _up_to(clean: Tensor, size: Tensor) -> Tensor:
    """The largest float64 at most `size` above `clean`, or the one before it."""
    top = clean + size
    change, rest = _exact_difference(top, clean)
    over = (change > size) | ((change == size) & (rest > 0))
    return torch.where(over, torch.nextafter(top, clean), top)


def accepted(judge: nn.Module, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which float64 points are misclassified beyond doubt, and what they are taken for.

    A point is accepted if it is finite, and its prediction differs from the label with a margin beyond the
    noise both in a batch and alone. Returns a bool tensor and an int64 tensor (-1 where not accepted).
    """
    together = weigh(judge, points, labels)
    finite = points.flatten(1).isfinite().all(1) & together.noise.isfinite()
    good = finite & (together.prediction != labels) & (together.margin < -together.noise)
    prediction = torch.full_like(labels, -1)
    rows = good.nonzero().flatten()
    if len(rows):
        alone = weigh_alone(judge, points[rows], labels[rows])
        margin = torch.maximum(alone.margin, together.margin[rows])
        noise = alone.noise + 4 * (alone.margin - together.margin[rows]).abs()
        good[rows] = (alone.prediction != labels[rows]) & (margin < -noise)
        prediction[rows] = alone.prediction
    return good, prediction.where(good, torch.full_like(labels, -1))


@torch.no_grad()
def height(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Margins in float64, and twice the noise of the dtype of the logits."""
    margin, size = _apart(logits, labels)
    # Two logits near zero may be what is left of large terms: the others tell how large, but for one that is masked.
    size = torch.minimum(logits.abs().amax(1), CANCELLED * size)
    return margin.double(), max(16 * torch.finfo(logits.dtype).eps, 4 * NOISE) * size.double()


@torch.no_grad()
def drawn_in(
    logits: Callable[[Tensor], Tensor], clean: Tensor, points: Tensor, labels: Tensor, low: float, high: float
) -> Tensor:
    """Misclassified raw points moved towards their clean inputs, still misclassified by `logits`.

    Looks for the decision boundary on each segment by false position (the Illinois variant: an end that stays twice
    counts half), which takes fewer passes than bisection, as margins are nearly linear there. It aims beyond the
    boundary by the noise of the logits' dtype. A row whose next step promises less than `WORTHWHILE` is left alone.
    """
    best = points.clone()
    (above, _), (below, aim) = (height(logits(end), labels) for end in (clean, points))
    safe, wrong, last = torch.zeros_like(above), torch.ones_like(above), torch.zeros_like(above)
    rows = torch.arange(len(points), device=points.device)
    for _ in range(INWARD_STEPS):
        ratio = (safe + (wrong - safe) * (above + aim) / (above - below)).clamp(safe, wrong)
        going = (below < -aim) & (above > -aim) & (wrong - ratio > WORTHWHILE)
        rows, safe, wrong, above, below, aim, last, ratio = (
            column[going] for column in (rows, safe, wrong, above, below, aim, last, ratio)
        )
        if not len(rows):
            break
        share = ratio.reshape(-1, *[1] * (points.ndim - 1))
        tried = (clean[rows] + share * (points[rows] - clean[rows])).clamp(low, high)
        now, noise = height(logits(tried), labels[rows])
        hit = now < -noise / 2
        above = torch.where(hit, torch.where(last == 1, above / 2, above), now)
        below = torch.where(hit, now, torch.where(last == -1, below / 2, below))
        safe, wrong = torch.where(hit, safe, ratio), torch.where(hit, ratio, wrong)
        last = torch.where(hit, 1.0, -1.0)
        best[rows[hit]] = tried[hit]
    return best
