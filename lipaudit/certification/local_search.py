"""Local radii: how far the affine forms of `domains/zonotope` carry around one sample.

Note [Local certificates]
    A radius is certified if, over the whole ball, every difference f_y - f_j has a positive lower bound: from the
    affine forms of the logits, backwards through the network with the lower lines of ReLU chosen by gradient ascent,
    or, where that is asked for, with all neurons taken together (quadratic_constraints.py). The search only
    chooses which radii are tried, by how much was missing at the ones before; each one that is returned was proved.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from lipaudit.certification.executed import Executed
from lipaudit.certification.local_proof import MOST_TOGETHER, Attempt, Search, attempted, proof
from lipaudit.certification.network_bound import Composition
from lipaudit.domains.graph import evaluate
from lipaudit.domains.zonotope.logits import products_of_a_pass, room_in_memory, seconds_of_a_pass
from lipaudit.domains.zonotope.propagator import TooWide
from lipaudit.errors import LipauditError
from lipaudit.files.journal import Journal, fingerprint
from lipaudit.progress import Progress, Silent
from lipaudit.results.formatting import duration
from lipaudit.results.threat import Norm
from lipaudit.rounding import up

BUDGET = 60.0
"""Seconds for all samples together, unless somebody asks for more."""
_ATTEMPTS = 40
_USUAL_ATTEMPTS = 6
_ENOUGH_WITHOUT_GAIN = 16
_STRIDE, _STEP = 8.0, 1.15
_EARLIER = 1.3
"""A search begins at the radius of the image before, divided by this: there attempts are cheap, and say enough."""
_HARDLY = 0.9
"""Forms alone are not tried close to where their margin seems to end, nor beyond: not much would be left of it."""
_SHARPER = 1.03
"""About how much farther one comes with ranges that are sharpened backwards."""
_POWER = 3.0
"""1 - margin grows about as this power of the radius, where only one is known."""
_SHARE, _CLOSEST = 1 / 32, 9
"""A search begins at this share of the distance that the gradients towards so many classes promise."""
_LEAST = 1e-12
"""Share of the radius that a search began with, below which it is given up."""
_FEW_ROWS = 4096
_MORE_ROWS = 5
"""Attempts that need more rows than this, and more than this many times those of the last proof (or coordinates), are
given up: such radii do not pass, and they take longest."""
_COARSE = 1.15
"""The precision of a search that takes all symbols together, at best."""
_FURTHER = 1.9
"""A search in which all symbols are taken together begins at so many times the radius found without."""


_DUAL: dict[Norm, float] = {"l2": 2.0, "linf": 1.0, "l1": math.inf}
"""The order of the dual norm: of what a change of at most 1 does to a straight function."""


EFFORTS = (
    (2.0, Search()),
    (30.0, Search(precision=1.3)),
    (math.inf, Search(precision=1.5, backwards=False)),
)
"""How hard to look where a pass takes at most so many seconds of `_SPEED`, whatever the clock says: backwards through a
large network takes many passes. So the same images get the same radii wherever there is no limit of time."""
_SPEED = 8e9
"""Products a second of a processor core, about."""


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
    norm: Norm = "l2",
    right: Sequence[bool] | None = None,
    budget: float | None = BUDGET,
    most: int | None = None,
    search: Search | None = None,
    together: bool = False,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> LocalRadii:
    """Local radii of the samples that are `right`, as many as fit into `budget` seconds, None for no limit.

    By default those whose `known` (global) radius is positive; of at most the first `most` of them. Where a pass takes
    long, the search is coarser (`EFFORTS`), unless it is given; `together` adds `Search.together` to either. An
    operation without a local rule or an input too large for memory are reasons, not errors. What `journal` holds is
    taken from there, and its time counts.
    """
    progress = progress or Silent()
    rows = [row for row, good in enumerate(right or [radius > 0 for radius in known]) if good]
    coordinates, room = points[0].numel(), room_in_memory(composition.graph)
    if coordinates >= room:
        why_not = f"a ball in {coordinates} dimensions needs more than {room} rows of memory"
        return LocalRadii((0.0,) * len(points), 0, why_not)
    wanted = rows[:most]
    progress.start("local radii", len(wanted))
    chosen = ((most, search or usual) for most, usual in EFFORTS)
    efforts = tuple((most, replace(each, together=together or each.together)) for most, each in chosen)
    hunt = _Hunt(composition, norm, len(rows), budget, efforts, progress, time.monotonic())
    name = "local" if norm == "l2" else f"local-{norm}"
    for row in wanted:
        about = fingerprint(points[row].cpu().numpy(), labels[row], known[row], budget, efforts, hunt.radii)
        kept = None if journal is None else journal.get(f"{name}-{row}", about)
        if kept is None:
            begun = time.perf_counter()
            radius = hunt.next(points[row], labels[row], known[row])
            if journal is not None:
                result = {"radius": radius, "why_not": hunt.why_not, "effort": hunt.effort}
                arrays = {name: np.array(value) for name, value in result.items()}
                journal.put(f"{name}-{row}", about, time.perf_counter() - begun, **arrays)
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
    norm: Norm
    images: int
    budget: float | None
    efforts: Sequence[tuple[float, Search]]
    progress: Progress
    began: float
    effort: int = 0
    """Which of the efforts: chosen by the work of a pass."""
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
            search = self.efforts[self.effort][1]
            last /= _EARLIER * (_FURTHER if search.together else 1.0)
            return local_radius(
                self.composition,
                x,
                label,
                start=max(last, 2 * known) if last else beginning(self.composition, x, label, known, self.norm),
                norm=self.norm,
                known=known,
                search=search,
                deadline=math.inf if self.budget is None else self.began + self.budget,
                say=None if self.radii else self.progress.say,
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
        """Times a pass at the first image, and chooses how hard to look."""
        if self.radii:
            return ""
        one_pass = seconds_of_a_pass(self.composition.ledger, x, self.norm)
        work = products_of_a_pass(self.composition.ledger) / _SPEED
        self.effort = next(k for k, (most, _) in enumerate(self.efforts) if work <= most)
        estimate = one_pass * _USUAL_ATTEMPTS
        if self.budget is not None and estimate > self.budget:
            return f"one image would take about {duration(estimate)}"
        about = "far more than" if self.efforts[self.effort][1].together else "about"
        self.progress.say(f"local radii: {about} {duration(estimate)} for an image")
        return ""


def beginning(composition: Composition, x: torch.Tensor, label: int, known: float, norm: Norm = "l2") -> float:
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
        found.append(float(gaps[other] / torch.linalg.vector_norm(slope, _DUAL[norm])))
    distance = min((each for each in found if 0.0 < each < math.inf), default=0.0)
    return max(_SHARE * distance, 2 * known)


def local_radius(
    composition: Composition,
    x: torch.Tensor,
    label: int,
    *,
    start: float,
    norm: Norm = "l2",
    known: float = 0.0,
    search: Search | None = None,
    deadline: float = math.inf,
    say: Callable[[str], None] | None = None,
) -> float:
    """A radius above `known` within which no input has another top class than `label`; 0 if none was found.

    `x` has no batch axis. `start` is where the search begins; it ends at the first attempt after the `deadline` of
    `time.monotonic`. `say` is told where a network is too large for `Search.together`. Raises `NotLipschitz` or
    `UnsupportedOp` where an operation has no local rule.
    """
    search = search or Search()
    alone, patience, rows = replace(search, together=False), max(_FEW_ROWS, _MORE_ROWS * x.numel()), 0
    forms = _Curve()

    def attempt(radius: float) -> Attempt:
        nonlocal patience, rows
        directly = len(forms.points) > 1 and radius > _HARDLY * forms.crossing()
        found = attempted(composition, x, label, radius, alone, patience, norm=norm, directly=directly)
        forms.add(radius, found.forwards)
        if found.rows:
            rows, patience = found.rows, max(_FEW_ROWS, _MORE_ROWS * found.rows)
        return found

    # A start close to what is known says nothing of where the boundary is: stride out. Another is a guess: go by steps.
    proved = _searched(attempt, start, known, _STRIDE if start < 4 * known else _STEP, search.precision, deadline)
    needed = max(rows, x.numel())
    if search.together and needed >= MOST_TOGETHER and say is not None:
        say(f"thorough: {needed} unknowns are more than the {MOST_TOGETHER} that are taken together; plain forms only")
    if search.together and needed < MOST_TOGETHER:

        def attempt_together(radius: float) -> Attempt:
            # Multipliers are only chosen until it passes: the margin says nothing of how far it is to the crossing.
            return Attempt(attempted(composition, x, label, radius, search, norm=norm).rows)

        start = _FURTHER * proved if proved > known else start
        precision = max(search.precision, _COARSE)
        proved = _searched(attempt_together, start, proved, _STEP, precision, deadline)
    return proved if proved > known else 0.0


@dataclass
class _Curve:
    """What margins at some radii say of where they cross zero: 1 - margin grows about as an exponential function."""

    points: list[tuple[float, float]] = field(default_factory=list)
    """(radius, log (1 - margin)); only of margins below 1."""

    def add(self, radius: float, margin: float) -> None:
        if math.isfinite(margin) and margin < 1.0:
            self.points.append((radius, math.log(1 - margin)))

    def crossing(self) -> float:
        """The radius at which the margin is about 0, from the two points that are closest to it; inf without any."""
        close = sorted(sorted(self.points, key=lambda point: abs(point[1]))[:2])
        if not close:
            return math.inf
        (first, low), (second, high) = close[0], close[-1]
        power = second * math.exp(-high / _POWER)
        if not (high > low and second > first):
            return power
        line = second - high * (second - first) / (high - low)
        return min(line, power) if high < 0 else max(line, 0.0)


def _searched(
    attempt: Callable[[float], Attempt], start: float, known: float, step: float, precision: float, deadline: float
) -> float:
    """The largest radius from `known` on at which an attempt succeeded.

    Begins at `start`, goes where margins seem to cross zero, and by `step` where they say nothing. It ends where the
    crossing seems to be as close as `precision` asks, on the safe side: guesses are only good for where to try.
    """
    proved, failed, radius, curve = known, math.inf, start, _Curve()
    close = 1 + (precision - 1) / 3
    for _ in range(_ATTEMPTS):
        if time.monotonic() > deadline:
            break
        found = attempt(radius)
        curve.add(radius, found.margin)
        if found.rows > 0:
            proved = radius
        else:
            failed = radius
        crossing = curve.crossing()
        if proved and (failed / proved <= close or (found.sharp and radius == proved < crossing <= close * proved)):
            break
        aim = crossing / math.sqrt(close)
        if not found.sharp and len(curve.points) > 1:
            aim = max(_SHARPER * crossing, close * proved)
        if math.isfinite(crossing) and proved * math.sqrt(close) <= aim < failed:
            radius = min(aim, _STRIDE * radius, failed / math.sqrt(close))
        elif failed == math.inf:
            radius, step = proved * step, step * step
        elif proved == known:
            radius, step = max(failed / step, math.sqrt(proved * failed)), step * step
        else:
            radius = math.sqrt(proved * failed)
        if not max(_LEAST * start, sys.float_info.min) < radius < sys.float_info.max:
            break
    return proved


def confirmed(
    composition: Composition,
    x: torch.Tensor,
    label: int,
    radius: float,
    executed: Executed,
    known: float,
    deadline: float,
    *,
    norm: Norm = "l2",
    together: bool = False,
) -> float:
    """A radius above `known` of the network as executed, from a local one of the exact function; 0 if none was found.

    `executed` is in units of the norm, as `Executed.measured` gives it.

    Tries that radius, and one that is a step smaller, `together` as `Search.together` says.
    """
    search, others = Search(together=together), [j for j in range(len(composition.network.pairwise)) if j != label]
    both = up(math.sqrt(2.0))
    for ball in (radius, radius / _STEP):
        reach = executed.uncast(ball)
        slack = up(both * executed.whole.at(ball))
        if not reach > known or not ball <= executed.limit or time.monotonic() > deadline:
            continue
        if math.isfinite(slack) and proof(composition, x, label, ball, search, slack=[slack] * len(others), norm=norm):
            return reach
    return 0.0
