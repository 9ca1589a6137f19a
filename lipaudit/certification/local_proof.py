"""Whether a radius around one sample can be proved: see Note [Local certificates] of local_search.py."""

from __future__ import annotations

import math
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
_NEAR = 0.3
"""Differences of logits are bounded backwards below this share of their value: how much is missing, or left, guides."""
_STANDSTILL = 2e-3
"""A step of choosing lower lines that raises no bound by this share of its difference is the last."""
MOST_TOGETHER = 4096
"""Rows that are taken together at most: what that takes grows with their third power."""
_STEPS_TOGETHER = 200
_HOPELESS = 3.0
"""Differences of logits whose lower bound is below minus this times their value are not tried backwards."""


@dataclass(frozen=True)
class Search:
    """How hard to look."""

    precision: float = 1.05
    """The last radius that passed and the first that fails are at most about this factor apart."""
    backwards: bool = True
    """Whether, where forms alone fail, ranges inside the network are sharpened backwards: a few times slower."""
    ascent_steps: int = ASCENT_STEPS
    together: bool = False
    """Whether, at last, all symbols are taken together: for small networks, and many times slower. See
    quadratic_constraints.py."""


@dataclass(frozen=True)
class Attempt:
    """What came of one radius."""

    rows: int = 0
    """That the proof took, those that stand for roundings aside; 0 if there is no proof."""
    margin: float = -math.inf
    """The least bound of a difference of logits, as a share of what it is at the centre: positive if there is a proof.
    A guide for choosing radii, -inf where nothing is known."""
    forwards: float = -math.inf
    """The same of the forms alone."""
    sharp: bool = True
    """Whether all that the search allows was tried, so that the margin is the best that is to be had."""


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

    See `attempted`.
    """
    return attempted(composition, x, label, radius, search, patience, slack, norm=norm).rows


def attempted(
    composition: Composition,
    x: torch.Tensor,
    label: int,
    radius: float,
    search: Search | None = None,
    patience: int = sys.maxsize,
    slack: Sequence[float] | None = None,
    *,
    norm: Norm = "l2",
    directly: bool = False,
) -> Attempt:
    """Whether there is a proof that every input within `radius` of `x` has the top class `label`, and how close it was.

    In Linf, every such input in the domain of the audit. Of the rows, not counting those that stand for roundings,
    `patience` is the most; `slack` is what the differences to the logits of all other classes, in their order, have to
    exceed, if not zero. Forms alone are tried first, and then with ranges that are sharpened backwards; `directly`
    leaves out the first.
    """
    search, room = search or Search(), room_in_memory(composition.graph)
    if search.together:
        room = min(room, MOST_TOGETHER)
        return _together(composition, x, label, radius, norm, room, max(slack or [0.0]))
    forwards = margin = -math.inf
    for backwards in (False, True)[directly and search.backwards : 1 + search.backwards]:
        try:
            logits = logits_over(
                composition.ledger, x, radius, norm=norm, room_for=room, patience=patience, backwards=backwards
            )
        except TooWide:
            break
        bounds = torch.tensor(margins(logits, label), dtype=torch.float64)
        lost = torch.zeros_like(bounds) if slack is None else torch.tensor(slack, dtype=torch.float64)
        bounds = bounds - lost
        others = torch.tensor([j for j in range(logits.centre.shape[1]) if j != label])
        gaps = (logits.centre[0, label] - logits.centre[0]).cpu()[others] - lost
        if not bool((gaps[~(bounds > 0)] > 0).all()):
            break
        margin = _least(bounds, gaps)
        forwards = forwards if backwards else margin
        near = ~(bounds > _NEAR * gaps)
        if search.ascent_steps and backwards == search.backwards and bool(near.any()):
            sharper = _backwards(logits, label, others[near].tolist(), lost[near], search.ascent_steps)
            bounds[near] = torch.fmax(bounds[near], sharper)
            margin = _least(bounds, gaps)
        if bool((bounds > 0).all()):
            return Attempt(len(logits.rows) - logits.roundings, margin, forwards, sharp=backwards == search.backwards)
        if not bool((bounds > -_HOPELESS * gaps).all()):
            break
    return Attempt(0, margin, forwards)


def _least(bounds: torch.Tensor, gaps: torch.Tensor) -> float:
    """The least of these bounds, as a share of what the differences are at the centre."""
    shares = bounds / gaps
    return float(shares.min()) if bool((gaps > 0).all()) and bool(torch.isfinite(shares).all()) else -math.inf


def _together(
    composition: Composition, x: torch.Tensor, label: int, radius: float, norm: Norm, room: int, slack: float
) -> Attempt:
    try:
        logits = logits_over(composition.ledger, x, radius, norm=norm, room_for=room, backwards=False, together=True)
    except TooWide:
        return Attempt()
    bounds = margins_together(logits, label, _STEPS_TOGETHER, slack)
    gaps = (logits.centre[0, label] - logits.centre[0]).cpu()
    gaps = torch.cat([gaps[:label], gaps[label + 1 :]]) - slack
    proved = bool((bounds > slack).all())
    return Attempt((len(logits.rows) - logits.roundings) * proved, _least(bounds.cpu() - slack, gaps))


def _backwards(logits: Logits, label: int, others: list[int], slack: torch.Tensor, steps: int) -> torch.Tensor:
    """The best lower bounds of the differences to `others`, less their slack, that choosing lower lines has led to.

    Ends where a step brings next to nothing.
    """
    c = logits.centre.new_zeros(len(others), *logits.centre.shape)
    c[:, 0, label] = 1.0
    c[torch.arange(len(others)), 0, others] = -1.0
    gaps = (c * logits.centre).flatten(1).sum(1)
    slack = slack.to(gaps.device)
    gaps = gaps - slack - gamma(16) * (logits.centre.abs().max() + slack)
    bent = [step for step in ancestors(logits.step) if isinstance(step, Banded) and step.low is not None]
    slopes = [lines.expand(len(c), *lines.shape).clone() for lines in (step.least_area() for step in bent)]
    rates = [torch.zeros_like(slope) for slope in slopes]
    best = torch.full_like(gaps, -math.inf)
    for step, slope in zip(bent, slopes, strict=True):
        step.chosen[:] = [slope]
    try:
        for _ in range(steps):
            for slope in slopes:
                slope.requires_grad_(True)
            with torch.enable_grad():
                bounds = gaps + lower_bounds(logits.step, c)
            before, best = best, torch.fmax(best, bounds.detach())
            gained = ((best - before) / gaps).max()
            if not slopes or bool(gained < _STANDSTILL):
                break
            gradients = torch.autograd.grad(bounds.sum(), slopes, allow_unused=True)
            for slope, gradient, rate in zip(slopes, gradients, rates, strict=True):
                slope.requires_grad_(False)
                if gradient is not None:
                    rate.mul_(0.9).add_(gradient.square(), alpha=0.1)
                    slope.add_(_LEARNING_RATE * gradient / (rate.sqrt() + 1e-30)).clamp_(0.0, 1.0)
        return best.detach().cpu()
    finally:
        for step in bent:
            step.chosen.clear()
