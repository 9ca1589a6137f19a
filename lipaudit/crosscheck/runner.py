"""One attack from start to end: the samples it still gets, its batches, the judge's view of its claims."""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lipaudit.crosscheck.isolation import BLACK_BOX, sealed
from lipaudit.crosscheck.registry import Attack, Batch
from lipaudit.crosscheck.samples import Arena, Found, batches
from lipaudit.files.journal import Journal, fingerprint
from lipaudit.progress import Progress
from lipaudit.results.audit import TIME_LIMIT
from lipaudit.results.bounds import Disagreement
from lipaudit.results.threat import spoken, written

Hold = Callable[[Sequence[int], Tensor], Sequence[Disagreement]]
"""What the model and the judge do not say alike of raw points (float64) of some rows."""


@dataclass(frozen=True)
class Run:
    """What holds for all attacks of a run."""

    arena: Arena
    eps: tuple[float, ...]
    """Ascending."""
    radii: np.ndarray | None
    seed: int
    size: int
    """Samples per batch."""
    deadline: float | None
    progress: Progress
    journal: Journal | None = None
    hold: Hold | None = None

    def late(self) -> bool:
        """Whether no more work is to begin; what took its time before an interruption counts."""
        earlier = 0.0 if self.journal is None else self.journal.restored
        return self.deadline is not None and time.monotonic() + earlier >= self.deadline


@dataclass
class Tally:
    """One attack's own account, as its batches come in."""

    entry: Attack
    status: Literal["done", "failed", "not run"] = "done"
    notes: list[str] = field(default_factory=list)
    """Why it is not done, or not done on all samples."""
    seconds: float = 0.0
    """In its batches; also before an interruption."""
    attacked: set[int] = field(default_factory=set)
    distance: dict[int, float] = field(default_factory=dict)
    """Of its closest witness, per broken row."""
    rejected: int = 0
    flags: list[str] = field(default_factory=list)
    looked: int = 0
    differences: list[Disagreement] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """Rows to be attacked in one go."""

    title: str
    rows: np.ndarray
    budget: np.ndarray | None
    """Raw-input units, one entry per row of the arena; None if the attack takes no budget."""


def run_attack(run: Run, tally: Tally) -> None:
    """Runs one attack and fills its tally. No error of the attack gets out, only KeyboardInterrupt."""
    excuse = _excuse(run, tally.entry)
    earlier = set(run.arena.attacked)
    try:
        if excuse:
            tally.status, tally.notes = "not run", [excuse]
            return
        with sealed(run.seed, [], run.arena.clean.device):
            # ART configures logging as it is imported, which would undo the capture of its first warnings.
            importlib.import_module(tally.entry.library.module)
        for place, stage in enumerate(_stages(run, tally)):
            if len(stage.rows) and not _run_stage(run, tally, place, stage):
                break
        if not tally.attacked:
            tally.status = "not run" if tally.notes else "done"
            tally.notes = tally.notes or ["no sample was left to attack"]
        blind = not tally.entry.passes(run.arena.network.classes).backward
        if blind and earlier & set(tally.distance) and BLACK_BOX not in tally.flags:
            tally.flags.append(BLACK_BOX)
    except Exception as error:  # noqa: BLE001  third-party code may raise anything; the record says what
        first = str(error).strip().split("\n", 1)[0][:200]
        tally.status, tally.notes = "failed", [f"{type(error).__name__}: {first}"]


def _excuse(run: Run, entry: Attack) -> str:
    """Why an attack cannot run at all; empty if it can."""
    network = run.arena.network
    if run.arena.norm not in entry.norms:
        return f"{entry.name} has no {run.arena.norm} form"
    if run.journal is None and run.late():
        return TIME_LIMIT
    if network.classes < entry.least_classes:
        return f"needs at least {entry.least_classes} classes, the network has {network.classes}"
    if entry.least_side and (len(network.shape) != 3 or min(network.shape[1:]) < entry.least_side):
        sides = "" if entry.least_side == 1 else f" of at least {entry.least_side} × {entry.least_side} pixels"
        return f"needs inputs of shape (channels, height, width){sides}, got {network.raw_shape}"
    if network.no_gradient and entry.passes(network.classes).backward:
        return network.no_gradient
    if entry.fits is not None:
        height, width = network.raw_shape[1:]
        if not entry.fits(height, width, run.arena.norm):
            return f"its squares do not fit on images of {height} × {width} pixels"
    if entry.aim in ("eps", "largest") and not run.eps:
        return "no budget eps was given"
    if entry.aim == "radius" and run.radii is None:
        return "there are no certified radii"
    return ""


def _stages(run: Run, tally: Tally) -> Iterator[Stage]:
    """What is left to attack, looked up as late as possible: an attack gets only samples it can change."""
    ground, title = run.arena, f"attack {tally.entry.name}"
    if ground.norm != "l2":
        title += f" in {spoken(ground.norm)}"
    if tally.entry.aim == "closest":
        yield Stage(title, ground.correct.nonzero()[0], None)
    elif tally.entry.aim in ("eps", "largest"):
        for eps in run.eps if tally.entry.aim == "eps" else run.eps[-1:]:
            rows = (ground.correct & (ground.distance > eps)).nonzero()[0]
            yield Stage(f"{title} at {written(eps)}", rows, np.full(len(ground.distance), eps))
    elif run.radii is not None:
        visible = run.radii > ground.resolution()
        small = int((ground.correct & ~visible).sum())
        if small:
            share = f"{small} of {int(ground.correct.sum())} samples skipped"
            tally.notes.append(f"{share}: their radius is below the resolution of float32 inputs")
        yield Stage(title, (ground.correct & visible & (ground.distance > run.radii)).nonzero()[0], run.radii)


def _run_stage(run: Run, tally: Tally, place: int, stage: Stage) -> bool:
    """All batches of one stage, which is the attack's `place`-th; False if time ran out."""
    done, whole = 0, True
    run.progress.start(stage.title, total=len(stage.rows))
    try:
        for number, rows in enumerate(batches(stage.rows, run.size)):
            outcome = _outcome(run, tally.entry, rows, stage.budget, f"{_part(run, tally)}-{place}-{number}")
            whole = outcome is not None and outcome.whole
            if outcome is not None:
                _settle(run, tally, rows, outcome)
                done += len(rows)
                run.progress.advance(len(rows), note=_score(run, tally))
            if not whole:
                break
    finally:
        run.progress.finish(_score(run, tally))
    if not whole:
        tally.notes.append(f"{TIME_LIMIT} at {done} of {len(stage.rows)} samples")
    return whole


def _part(run: Run, tally: Tally) -> str:
    """What a journal calls the attack."""
    norm = run.arena.norm
    return f"attack-{tally.entry.name}" if norm == "l2" else f"attack-{norm}-{tally.entry.name}"


def _score(run: Run, tally: Tally) -> str:
    """How far one attack is, in a few words."""
    total = len(tally.attacked)
    if not run.eps:
        return f"broken: {len(tally.distance)} of {total}"
    hits = sum(distance <= run.eps[0] for distance in tally.distance.values())
    return f"broken at {written(run.eps[0])}: {hits} of {total}"


def _outcome(run: Run, entry: Attack, rows: np.ndarray, budget: np.ndarray | None, part: str) -> Outcome | None:
    """The outcome of a batch, from the journal if it was finished there; None if there is no time left to begin it."""
    ground, journal = run.arena, run.journal
    given = np.empty(0) if budget is None else budget[rows]
    about = fingerprint(
        entry.name, entry.settings(ground.network.classes, ground.norm), run.seed, rows, given, ground.distance[rows]
    )
    outcome = None if journal is None else recall(journal, part, about)
    if outcome is not None:
        return outcome
    if run.late():
        return None
    outcome = _run_batch(run, entry, rows, budget)
    if journal is not None and outcome.whole:
        remember(journal, part, about, outcome)
    return outcome


def _settle(run: Run, tally: Tally, rows: np.ndarray, outcome: Outcome) -> None:
    """Enters the outcome of a batch into the arena and the attack's account."""
    found = outcome.found
    run.arena.keep(found, tally.entry.name)
    for row, length in zip(found.rows.tolist(), found.distance.tolist(), strict=True):
        tally.distance[row] = min(length, tally.distance.get(row, math.inf))
    tally.rejected += outcome.rejected
    tally.flags += [flag for flag in outcome.flags if flag not in tally.flags]
    tally.looked += outcome.looked
    tally.differences += outcome.differences
    tally.seconds += outcome.seconds
    tally.attacked.update(rows.tolist())
    run.arena.attacked.update(rows.tolist())


def _run_batch(run: Run, entry: Attack, rows: np.ndarray, budget: np.ndarray | None) -> Outcome:
    """One batch, seeded by itself: the closest verified claim of each row, drawn in."""
    begun = time.perf_counter()
    ground, network = run.arena, run.arena.network
    index = torch.as_tensor(rows, device=ground.clean.device)
    unit = None
    if budget is not None:
        unit = torch.as_tensor(budget[rows], device=index.device) / (network.high - network.low)
    batch = Batch(network.to_unit(ground.clean[index]), ground.labels[index].clone(), unit, run.seed, ground.norm)
    flags: list[str] = []
    claims, whole = _claims(run, entry, batch, flags)
    edge = 0.0 if run.radii is None else run.radii[rows]
    within, allowed = math.inf if entry.aim == "radius" else edge, None if budget is None else budget[rows]
    found, rejected, doubtful = ground.verified(rows, claims, within, allowed)
    differences = () if run.hold is None else tuple(run.hold(doubtful[0].tolist(), doubtful[1]))
    looked = 0 if run.hold is None else len(doubtful[0])
    return Outcome(found, rejected, tuple(flags), time.perf_counter() - begun, looked, differences, whole)


def _claims(run: Run, entry: Attack, batch: Batch, flags: list[str]) -> tuple[list[Tensor], bool]:
    """What an attack claims, and whether it came to its end before the time did."""
    network, shape = run.arena.network, batch.inputs.shape
    asked = entry(network, batch)
    claims: list[Tensor] = []
    while True:
        with sealed(run.seed + len(claims), flags, batch.inputs.device):
            claim = next(asked, None)
        if claim is None:
            return claims, True
        if claim.shape != shape:
            raise ValueError(f"expected claims of shape {tuple(shape)}, got {tuple(claim.shape)}")
        claims.append(claim.detach().clone())
        if run.late() and len(claims) < entry.passes(network.classes).claims:
            return claims, False


@dataclass(frozen=True)
class Outcome:
    """All that a batch changes: what it found, what was rejected, of what its library warned."""

    found: Found
    rejected: int
    flags: tuple[str, ...]
    seconds: float
    looked: int = 0
    """At so many claims model and judge were compared."""
    differences: tuple[Disagreement, ...] = ()
    """Where the two do not say the same of a claim."""
    whole: bool = True
    """Whether the attack ran to its end, and was not cut short by the time limit."""


def remember(journal: Journal, part: str, fingerprint: str, outcome: Outcome) -> None:
    """Keeps the outcome of a batch."""
    found = outcome.found
    journal.put(
        part,
        fingerprint,
        outcome.seconds,
        rows=found.rows,
        distance=found.distance,
        prediction=found.prediction,
        closer=found.closer,
        points=found.points.numpy(),
        rejected=np.array(outcome.rejected),
        flags=np.array(outcome.flags, dtype=np.str_),
        looked=np.array(outcome.looked),
        differences=np.array([json.dumps(asdict(each)) for each in outcome.differences], dtype=np.str_),
    )


def recall(journal: Journal, part: str, fingerprint: str) -> Outcome | None:
    """The outcome of a batch that was finished earlier; None if it was not, or not of this batch."""
    kept = journal.get(part, fingerprint)
    if kept is None:
        return None
    points = torch.from_numpy(kept["points"])
    return Outcome(
        found=Found(kept["rows"], kept["distance"], kept["prediction"], kept["closer"], points),
        rejected=int(kept["rejected"]),
        flags=tuple(map(str, kept["flags"])),
        looked=int(kept["looked"]),
        differences=tuple(Disagreement(**json.loads(str(each))) for each in kept["differences"]),
        seconds=float(kept["seconds"]),
    )
