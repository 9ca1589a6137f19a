"""Losses that ask a network for margin, in the logits or in the certified radius."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

SMALLEST = 1e-12
"""Pairwise bounds count as at least this, so that two equal rows give a large radius and not an infinite one."""


def offset_cross_entropy(
    logits: Tensor, labels: Tensor, offset: float = math.sqrt(2), temperature: float = 0.25
) -> Tensor:
    """Mean cross entropy of (logits - offset·[true class]) / temperature, times temperature.

    Zero loss needs the true logit to lead by clearly more than `offset`, in the units of the logits, so the
    network goes on widening margins that a plain cross entropy calls good enough. A larger offset buys larger
    certified radii with clean accuracy. For an L2 radius r in a network of Lipschitz constant 1, the offset
    of interest is about sqrt(2)·r. `logits` (n, classes), `labels` (n,) of integers, result a scalar.
    Source: Prach and Lampert, ECCV 2022, arXiv 2208.03160, whose defaults these are.
    """
    target = one_hot(labels, logits.shape[1]).to(logits.dtype)
    return cross_entropy((logits - offset * target) / temperature, labels) * temperature


def pairwise_lipschitz(rows: Tensor, body: Tensor | float = 1.0) -> Tensor:
    """Lipschitz bounds of the differences of two logits: (classes, classes), body · ||w_i - w_j||, 0 on the diagonal.

    `rows` (classes, features) is the weight of the last, linear layer, `body` a Lipschitz bound of all before it: 1
    for layers of this package. Differentiable; exact arithmetic, so it is for training: proofs go through
    `lipaudit.bound`.
    """
    # Differences and not 2 - 2 w_i·w_j: the root of what cancels to zero has an infinite gradient.
    squares = (rows[:, None] - rows[None]).square().sum(2)
    return body * squares.clamp_min(SMALLEST**2).sqrt() * (1 - torch.eye(len(rows), device=rows.device))


def radii(logits: Tensor, labels: Tensor, pairwise: Tensor) -> Tensor:
    """For each other class the radius within which it cannot overtake the true one: margin / pairwise bound.

    `logits` (n, classes), `labels` (n,), `pairwise` (classes, classes); result (n, classes), +inf at the true class.
    The smallest entry of a row is the certified radius of that image, negative where it is misclassified.
    """
    margins = logits.gather(1, labels[:, None]) - logits
    bounds = pairwise[labels].clamp_min(SMALLEST)
    return (margins / bounds).masked_fill(one_hot(labels, logits.shape[1]).bool(), math.inf)


def radius_hinge(
    logits: Tensor, labels: Tensor, pairwise: Tensor, radius: float = 1.0, temperature: float = 0.0
) -> Tensor:
    """Mean of max(0, radius - certified radius): zero once every image is certified at `radius`.

    A `temperature` t > 0, in the units of the radius, takes the soft maximum t·log(1 + sum_j exp((radius - r_j) / t))
    instead, over the radii r_j of all other classes: a cross entropy of radii, which every class trains and which goes
    on falling beyond `radius`. `pairwise` is `pairwise_lipschitz` or any other matrix of bounds. Raises `ValueError`
    for a negative temperature.
    Source: our own; margins over pairwise bounds as in K. Leino, Z. Wang and M. Fredrikson, Globally-Robust Neural
    Networks, ICML 2021, arXiv 2102.08452, the hinge as in Tsuzuku, Sato and Sugiyama, NeurIPS 2018, arXiv 1802.04034.
    """
    if temperature < 0:
        raise ValueError(f"radius_hinge: expected a temperature of at least 0, got {temperature}")
    missing = radius - radii(logits, labels, pairwise)
    if temperature == 0:
        return missing.amax(1).clamp_min(0.0).mean()
    # The true class is at -inf; in its place stands the 1 of log(1 + ...).
    above = (missing / temperature).masked_fill(missing == -math.inf, 0.0)
    return above.logsumexp(1).mean() * temperature
