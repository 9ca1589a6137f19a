"""Local radii: how far the affine forms of `domains/zonotope` carry around one sample.

Note [Local certificates]
    A radius is certified if, over the whole ball, every difference f_y - f_j has a positive lower bound: from the
    affine forms of the logits, or backwards through the network with the lower lines of ReLU chosen by gradient
    ascent. Bisection only chooses which radii are tried; each one that is returned was proved.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lipaudit.composition import Composition
from lipaudit.domains.zonotope import Form, TooWide, logits_over, margins, room_in_memory, seconds_of_a_pass
from lipaudit.domains.zonotope.steps import Banded, ancestors, lower_bounds
from lipaudit.errors import LipauditError
from lipaudit.formatting import duration
from lipaudit.graph import evaluate
from lipaudit.journal import Journal, fingerprint
from lipaudit.progress import Progress, Silent
from lipaudit.promises import Executed
from lipaudit.rounding import gamma, up

BUDGET = 60.0
"""Seconds for all samples together, unless somebody asks for more."""
ASCENT_STEPS = 20
_LEARNING_RATE = 0.2
_ATTEMPTS = 40
_USUAL_ATTEMPTS = 6
_ENOUGH_WITHOUT_GAIN = 16
_STRIDE = 8.0
_SHARE, _CLOSEST = 1 / 32, 9
"""A search begins at this share of the distance that the gradients towards so many classes promise."""
_LEAST = 1e-12
"""Share of the radius that a search began with, below which it is given up."""
_FEW_ROWS = 4096
_MORE_ROWS = 5
"""Attempts that need more rows than this, and more than this many times those of the last proof (or coordinates), are
given up: such radii do not pass, and they take longest."""
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


EFFORTS = (
    (2.0, Search()),
    (30.0, Search(precision=1.3)),
    (math.inf, Search(precision=1.5, backwards=False)),
)
"""How hard to look where a pass takes at most so many seconds: backwards through a large network takes many passes."""


@dataclass(frozen=True)
class LocalRadii:
    """Radii of samples, 0 where none was looked for or found, and why not all samples have one."""

    radius: tuple[float, ...]
    tried: int
    why_not: str = ""


def local_radii(
    composition: Composition,
    points: torch.Tensor,
    labels: Sequence[int],
    known: Sequence[float],
    *,
    right: Sequence[bool] | None = None,
    budget: float | None = BUDGET,
    most: int | None = None,
    search: Search | None = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> LocalRadii:
    """Local radii of the samples that are `right`, as many as fit into `budget` seconds, None for no limit.

    By default those whose `known` (global) radius is positive; of at most the first `most` of them. Where a pass takes
    long, the search is coarser (`EFFORTS`), unless it is given. An operation without a local rule or an input too large
    for memory are reasons, not errors. What `journal` holds is taken from there, and its time counts.
    """
    progress = progress or Silent()
    rows = [row for row, good in enumerate(right or [radius > 0 for radius in known]) if good]
    coordinates, room = points[0].numel(), room_in_memory(composition.graph)
    if coordinates >= room:
        why_not = f"a ball in {coordinates} dimensions needs more than {room} rows of memory"
        return LocalRadii((0.0,) * len(points), 0, why_not)
    wanted = rows[:most]
    progress.start("local radii", len(wanted))
    hunt = _Hunt(composition, len(rows), budget, search, progress, time.monotonic())
    for row in wanted:
        about = fingerprint(points[row].cpu().numpy(), labels[row], known[row], budget, search or EFFORTS, hunt.radii)
        kept = None if journal is None else journal.get(f"local-{row}", about)
        if kept is None:
            begun = time.perf_counter()
            radius = hunt.next(points[row], labels[row], known[row])
            if journal is not None:
                result = {"radius": radius, "why_not": hunt.why_not, "effort": hunt.effort}
                arrays = {name: np.array(value) for name, value in result.items()}
                journal.put(f"local-{row}", about, time.perf_counter() - begun, **arrays)
        else:
            radius, hunt.why_not = float(kept["radius"]), str(kept["why_not"])
            hunt.effort = int(kept["effort"])
            hunt.began -= float(kept["seconds"])
        if hunt.why_not:
            break
        hunt.radii[row] = radius
        progress.advance(note=f"{radius:.3g}")
    tried, why_not = len(hunt.radii), hunt.why_not
    progress.finish(f"{tried} of {len(rows)} images")
    if not why_not and len(wanted) < len(rows):
        why_not = f"asked for {len(wanted)} of {len(rows)} images"
    return LocalRadii(tuple(hunt.radii.get(row, 0.0) for row in range(len(points))), tried, why_not)


@dataclass
class _Hunt:
    """Where the search stands: image after image, each beginning at the radius that the one before it got."""

    composition: Composition
    images: int
    budget: float | None
    search: Search | None
    progress: Progress
    began: float
    effort: int = 0
    """Which of `EFFORTS`, where no search was given: chosen by the time of a pass at the first image."""
    radii: dict[int, float] = field(default_factory=dict)
    why_not: str = ""
    """Why the search ends here."""

    def next(self, x: torch.Tensor, label: int, known: float) -> float:
        """The radius of one image, 0 if none was found; `why_not` if there is none because the search ends."""
        try:
            self.why_not = self._enough() or self._too_slow(x)
            if self.why_not:
                return 0.0
            last = next((radius for radius in reversed(self.radii.values()) if radius), 0.0)
            return local_radius(
                self.composition,
                x,
                label,
                start=max(last, 2 * known) if last else beginning(self.composition, x, label, known),
                known=known,
                search=self.search or EFFORTS[self.effort][1],
                deadline=math.inf if self.budget is None else self.began + self.budget,
            )
        except TooWide:
            self.why_not = "the bound of the rounding errors leaves too many signs open, whatever the radius"
        except LipauditError as error:
            self.why_not = str(error)
        return 0.0

    def _enough(self) -> str:
        tried, seconds = len(self.radii), time.monotonic() - self.began
        if self.budget is not None and tried and seconds * (tried + 1) / tried > self.budget:
            return f"{tried} of {self.images} images took {duration(seconds)}"
        if self.budget is not None and tried == _ENOUGH_WITHOUT_GAIN and not any(self.radii.values()):
            return f"the first {tried} of {self.images} images gained nothing over the global radius"
        return ""

    def _too_slow(self, x: torch.Tensor) -> str:
        """Times a pass at the first image, and chooses the search by it."""
        if self.radii:
            return ""
        one_pass = seconds_of_a_pass(self.composition.ledger, x)
        self.effort = next(k for k, (most, _) in enumerate(EFFORTS) if one_pass <= most)
        estimate = one_pass * _USUAL_ATTEMPTS
        if self.budget is not None and estimate > self.budget:
            return f"one image would take about {duration(estimate)}"
        self.progress.say(f"local radii: about {duration(estimate)} for an image")
        return ""


def beginning(composition: Composition, x: torch.Tensor, label: int, known: float) -> float:
    """A radius to begin a search with, above `known`: a share of how far the closest decision boundary would be, if the
    network were as straight everywhere as it is at `x`."""
    x = x.detach().to(composition.ledger.device).double().requires_grad_(True)
    with torch.enable_grad():
        logits = evaluate(composition.graph, x)
    gaps = (logits[label] - logits).detach()
    gaps[label] = math.inf
    found: list[float] = []
    for other in gaps.argsort()[: min(_CLOSEST, len(gaps) - 1)].tolist():
        gap = logits[label] - logits[other]
        (slope,) = torch.autograd.grad(gap, x, retain_graph=True, materialize_grads=True)
        found.append(float(gaps[other] / slope.norm()))
    distance = min((each for each in found if 0.0 < each < math.inf), default=0.0)
    return max(_SHARE * distance, 2 * known)


def local_radius(
    composition: Composition,
    x: torch.Tensor,
    label: int,
    *,
    start: float,
    known: float = 0.0,
    search: Search | None = None,
    deadline: float = math.inf,
) -> float:
    """A radius above `known` within which no input has another top class than `label`; 0 if none was found.

    `x` has no batch axis. `start` is where the search begins; it ends at the first attempt after the `deadline` of
    `time.monotonic`. Raises `NotLipschitz` or `UnsupportedOp` where an operation has no local rule.
    """
    search = search or Search()
    proved, failed, patience = known, math.inf, max(_FEW_ROWS, _MORE_ROWS * x.numel())
    # A start close to what is known says nothing of where the boundary is: stride out. Another is a guess: go by steps.
    radius, step = start, (_STRIDE if start < 4 * known else search.precision)
    for _ in range(_ATTEMPTS):
        if time.monotonic() > deadline:
            break
        rows = proof(composition, x, label, radius, search, patience)
        if rows:
            proved, patience = radius, max(_FEW_ROWS, _MORE_ROWS * rows)
        else:
            failed = radius
        if proved and failed / proved <= search.precision:
            break
        if failed == math.inf:
            radius = proved * step
        elif proved == known:
            radius = max(failed / step, math.sqrt(proved * failed))
        else:
            radius = math.sqrt(proved * failed)
        step *= step
        if not max(_LEAST * start, sys.float_info.min) < radius < sys.float_info.max:
            break
    return proved if proved > known else 0.0


def confirmed(
    composition: Composition,
    x: torch.Tensor,
    label: int,
    radius: float,
    executed: Executed,
    known: float,
    deadline: float,
) -> float:
    """A radius above `known` of the network as executed, from a local one of the exact function; 0 if none was found.

    Tries that radius, and one that is smaller by the precision of the search.
    """
    search, others = Search(), [j for j in range(len(composition.network.pairwise)) if j != label]
    both = up(math.sqrt(2.0))
    for ball in (radius, radius / search.precision):
        reach = executed.uncast(ball)
        slack = up(both * executed.whole.at(ball))
        if not reach > known or not ball <= executed.limit or time.monotonic() > deadline:
            continue
        if math.isfinite(slack) and proof(composition, x, label, ball, search, slack=[slack] * len(others)):
            return reach
    return 0.0


def proof(
    composition: Composition,
    x: torch.Tensor,
    label: int,
    radius: float,
    search: Search | None = None,
    patience: int = sys.maxsize,
    slack: Sequence[float] | None = None,
) -> int:
    """The rows that a proof took that every input within `radius` of `x` has the top class `label`; 0 if it failed.

    Not counting those that stand for roundings, of which `patience` is the most; `slack` is what the differences to the
    logits of all other classes, in their order, have to exceed, if not zero.
    """
    search, room = search or Search(), room_in_memory(composition.graph)
    for backwards in (False, True) if search.backwards else (False,):
        try:
            logits = logits_over(composition.ledger, x, radius, room_for=room, patience=patience, backwards=backwards)
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


def _backwards(logits: Form, label: int, others: list[int], slack: torch.Tensor, search: Search) -> bool:
    """Whether lower lines can be found with which every difference to `others` exceeds its slack."""
    c = logits.centre.new_zeros(len(others), *logits.centre.shape)
    c[:, 0, label] = 1.0
    c[torch.arange(len(others)), 0, others] = -1.0
    gaps = (c * logits.centre).flatten(1).sum(1)
    slack = slack.to(gaps.device)
    gaps = gaps - slack - gamma(16) * (logits.centre.abs().max() + slack)
    bent = [step for step in ancestors(logits.step) if isinstance(step, Banded) and step.low is not None]
    slopes = [step.least_area().expand(len(c), *step.low.shape).clone() for step in bent]
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
