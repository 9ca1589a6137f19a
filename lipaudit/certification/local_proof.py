"""Whether a radius around one sample can be proved: see Note [Local certificates] of local_search.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lipaudit.certification.network_bound import Composition
from lipaudit.domains.zonotope.backward import Banded, ancestors, lower_bounds
from lipaudit.domains.zonotope.logits import Logits, logits_over, margins, margins_together, room_in_memory
from lipaudit.domains.zonotope.propagator import TooWide
from lipaudit.results.threat import Norm
from lipaudit.rounding import gamma

ASCENT_STEPS = 20
_LEARNING_RATE = 0.2
MOST_TOGETHER = 4096
"""Rows that are taken together at most: what that takes grows with their third power."""
_STEPS_TOGETHER = 200
_HOPELESS = 3.0
"""Differences of logits whose lower bound is below minus this times their value are not tried backwards."""


@dataclass(frozen=True)
class Search:
    """How hard to look."""

    precision: float = 1.15
    """The last radius that passed and the first that failed are at most this factor apart."""
    backwards: bool = True
    """Whether, where forms alone fail, ranges inside the network are sharpened backwards: a few times slower."""
    ascent_steps: int = ASCENT_STEPS
    together: bool = False
    """Whether, at last, all symbols are taken together: for small networks, and many times slower. See
    quadratic_constraints.py."""


def proof(
    composition: Composition,
    x: torch.Tensor,
    label: int,
    radius: float,
    search: Search | None = None,
    patience: int = sys.maxsize,
    slack: Sequence[float] | None = None,
    *,
    norm: Norm = "l2",
) -> int:
    """The rows that a proof took that every input within `radius` of `x` has the top class `label`; 0 if it failed.

    In Linf, every such input in the domain of the audit. Not counting those that stand for roundings, of which
    `patience` is the most; `slack` is what the differences to the logits of all other classes, in their order, have to
    exceed, if not zero.
    """
    search, room = search or Search(), room_in_memory(composition.graph)
    if search.together:
        return _together(composition, x, label, radius, norm, min(room, MOST_TOGETHER), max(slack or [0.0]))
    for backwards in (False, True) if search.backwards else (False,):
        try:
            logits = logits_over(
                composition.ledger, x, radius, norm=norm, room_for=room, patience=patience, backwards=backwards
            )
        except TooWide:
            return 0
        bounds = torch.tensor(margins(logits, label), dtype=torch.float64)
        lost = torch.zeros_like(bounds) if slack is None else torch.tensor(slack, dtype=torch.float64)
        bounds = bounds - lost
        others = torch.tensor([j for j in range(logits.centre.shape[1]) if j != label])
        open_ones = others[~(bounds > 0)]
        if not len(open_ones):
            return len(logits.rows) - logits.roundings
        gaps = (logits.centre[0, label] - logits.centre[0]).cpu()
        gaps[others] -= lost
        if not bool((gaps[open_ones] > 0).all()):
            return 0
        if search.ascent_steps and _backwards(logits, label, open_ones.tolist(), lost[~(bounds > 0)], search):
            return len(logits.rows) - logits.roundings
        if not bool((bounds > -_HOPELESS * gaps[others]).all()):
            return 0
    return 0


def _together(
    composition: Composition, x: torch.Tensor, label: int, radius: float, norm: Norm, room: int, slack: float
) -> int:
    try:
        logits = logits_over(composition.ledger, x, radius, norm=norm, room_for=room, backwards=False, together=True)
    except TooWide:
        return 0
    bounds = margins_together(logits, label, _STEPS_TOGETHER, slack)
    return len(logits.rows) - logits.roundings if bool((bounds > slack).all()) else 0


def _backwards(logits: Logits, label: int, others: list[int], slack: torch.Tensor, search: Search) -> bool:
    """Whether lower lines can be found with which every difference to `others` exceeds its slack."""
    c = logits.centre.new_zeros(len(others), *logits.centre.shape)
    c[:, 0, label] = 1.0
    c[torch.arange(len(others)), 0, others] = -1.0
    gaps = (c * logits.centre).flatten(1).sum(1)
    slack = slack.to(gaps.device)
    gaps = gaps - slack - gamma(16) * (logits.centre.abs().max() + slack)
    bent = [step for step in ancestors(logits.step) if isinstance(step, Banded) and step.low is not None]
    slopes = [lines.expand(len(c), *lines.shape).clone() for lines in (step.least_area() for step in bent)]
    rates = [torch.zeros_like(slope) for slope in slopes]
    for step, slope in zip(bent, slopes, strict=True):
        step.chosen[:] = [slope]
    try:
        for _ in range(search.ascent_steps):
            for slope in slopes:
                slope.requires_grad_(True)
            with torch.enable_grad():
                bounds = gaps + lower_bounds(logits.step, c)
            if bool((bounds > 0).all()):
                return True
            if not slopes:
                return False
            gradients = torch.autograd.grad(bounds.sum(), slopes, allow_unused=True)
            for slope, gradient, rate in zip(slopes, gradients, rates, strict=True):
                slope.requires_grad_(False)
                if gradient is not None:
                    rate.mul_(0.9).add_(gradient.square(), alpha=0.1)
                    slope.add_(_LEARNING_RATE * gradient / (rate.sqrt() + 1e-30)).clamp_(0.0, 1.0)
        return False
    finally:
        for step in bent:
            step.chosen.clear()
