"""The judge: a float64 copy of the network decides which claims of an attack become witnesses.

Note [Noise]: float64 logits of a network are wrong by its rounding, which grows with the values inside it.
A margin counts as negative only beyond `NOISE` times the largest logit, plus four times the difference
between the evaluation in a batch and alone (two different orders of summation).

Note [Rounded distances]: `math.dist` works from the exact values of the two tensors with an error below one
ulp behind differences that are each rounded once; a factor 1 + 2^-50 (8 ulp) covers both. So no distance is
below the true one, and a certificate cannot be refuted by rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NOISE = 1e-10
INWARD_STEPS = 6
"""Steps by which a witness is moved towards its clean input. Each is a float64 pass."""


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
    column = labels.unsqueeze(1)
    others = logits.scatter(1, column, -math.inf).amax(1)
    margin = logits.gather(1, column).squeeze(1) - others
    return Opinion(margin, logits.argmax(1), NOISE * logits.abs().amax(1))


def weigh_alone(judge: nn.Module, points: Tensor, labels: Tensor) -> Opinion:
    """As `weigh`, each point in a batch of its own."""
    each = [weigh(judge, points[row : row + 1], labels[row : row + 1]) for row in range(len(points))]
    margin, prediction, noise = zip(*((one.margin, one.prediction, one.noise) for one in each), strict=True)
    return Opinion(torch.cat(margin), torch.cat(prediction), torch.cat(noise))


def distance_up(point: Tensor, other: Tensor) -> float:
    """The L2 distance of two float64 tensors, rounded up. See Note [Rounded distances]."""
    distance = math.dist(point.flatten().tolist(), other.flatten().tolist())
    return math.nextafter(distance * (1 + 2**-50), math.inf)


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


def drawn_in(judge: nn.Module, clean: Tensor, points: Tensor, labels: Tensor, low: float, high: float) -> Tensor:
    """Misclassified points moved towards their clean inputs, still misclassified in a batch.

    Looks for the decision boundary on each segment by false position (the Illinois variant: an end that
    stays twice counts half), which takes fewer float64 passes than bisection, as margins are nearly linear there.
    """

    def height(tried: Tensor) -> Tensor:
        opinion = weigh(judge, tried, labels)
        return opinion.margin + 2 * opinion.noise

    wide = (-1, *[1] * (points.ndim - 1))
    safe, wrong = torch.zeros_like(labels, dtype=torch.float64), torch.ones_like(labels, dtype=torch.float64)
    above, below = height(clean), height(points)
    last, best = torch.zeros_like(labels), points
    for _ in range(INWARD_STEPS):
        ratio = (safe + (wrong - safe) * above / (above - below)).clamp(safe, wrong)
        tried = (clean + ratio.reshape(wide) * (points - clean)).clamp(low, high)
        now = height(tried)
        hit = now < 0
        above = torch.where(hit, torch.where(last == 1, above / 2, above), now)
        below = torch.where(hit, now, torch.where(last == -1, below / 2, below))
        safe, wrong = torch.where(hit, safe, ratio), torch.where(hit, ratio, wrong)
        last = torch.where(hit, 1, -1)
        best = torch.where(hit.reshape(wide), tried, best)
    return best
