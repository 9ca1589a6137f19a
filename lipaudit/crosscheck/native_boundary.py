"""Where the network as executed, in its own dtype, changes its answer: what native arithmetic is held against.

Witnesses are judged by the exact function in float64. Rounding moves the decision boundary of the network that runs, so
from each witness the boundary in its own dtype is looked for, on the segment to the clean input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipaudit.crosscheck.harness import Evidence
from lipaudit.crosscheck.unit_box import private_copy
from lipaudit.crosscheck.verification import distance_up
from lipaudit.rounding import plain_sums

STEPS = 32
"""Halvings: the ends are then closer to each other than neighbouring float32 numbers of the size of the inputs."""
BEYOND = (1.0, 1 + 1e-6, 1 + 1e-4, 1 + 1e-2)
"""Witnesses were drawn in to the boundary of the exact function: that of the executed one may lie a little behind."""
_BATCH = 64


def executed_distances(
    logits: nn.Module, inputs: Tensor, labels: Sequence[int], evidence: Evidence, worth: Sequence[bool] | None = None
) -> tuple[float | None, ...]:
    """For each row of `inputs` (n, ...), how far the closest point found lies at which `logits` as executed answer
    something else than `labels`, in the norm of the evidence and rounded up; None where there is no witness, or it is
    none in that dtype, or a look is not `worth` while: by default it is everywhere.

    A tie counts as another answer. Points are in float64, rounded to the network's dtype when it reads them: a distance
    is the one before that, as native arithmetic counts it.
    """
    found: list[float | None] = [None] * len(inputs)
    rows = sorted(w.sample for w in evidence.witnesses if worth is None or worth[w.sample])
    network = private_copy(logits)
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        for beyond in BEYOND:
            clean = inputs[some].double()
            answers = torch.tensor([labels[row] for row in some], device=clean.device)
            wrong = clean + beyond * (evidence.perturbed[some].to(clean) - clean)
            points = first_flips(network, clean, wrong, answers)
            for row, point, origin in zip(some, points, clean, strict=True):
                found[row] = None if point is None else distance_up(point, origin, evidence.norm)
            some = [row for row in some if found[row] is None]
            if not some:
                break
    return tuple(found)


def first_flips(network: nn.Module, clean: Tensor, wrong: Tensor, labels: Tensor) -> list[Tensor | None]:
    """On each segment from `clean` to `wrong` (float64, with a batch axis), a point close to the first one at which the
    executed network does not answer `labels`; None where it does so at both ends."""
    shape = (-1, *[1] * (clean.ndim - 1))
    low, high = torch.zeros_like(labels, dtype=torch.float64), torch.ones_like(labels, dtype=torch.float64)
    begun = changed(network, clean, labels)
    high[begun] = 0.0
    flipped = begun | changed(network, wrong, labels)
    for _ in range(STEPS):
        middle = (low + high) / 2
        there = changed(network, clean + middle.reshape(shape) * (wrong - clean), labels)
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
    points = torch.where((high == 1).reshape(shape), wrong, clean + high.reshape(shape) * (wrong - clean))
    # The last one that was seen to be wrong; where rounding changes the segment's end, the end itself.
    return [point if bool(yes) else None for point, yes in zip(points, flipped, strict=True)]


def changed(network: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    """Whether the network, run in its own dtype on float64 points that are rounded to it, answers something else."""
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad(), plain_sums():
        answer = network(points.to(dtype))
    column = labels.unsqueeze(1)
    others = answer.scatter(1, column, -math.inf).amax(1)
    return ~(answer.gather(1, column).squeeze(1) > others)
