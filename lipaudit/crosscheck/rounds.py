"""One attack from start to end: the samples it still gets, its batches, the judge's view of its claims."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lipaudit.crosscheck.arena import Arena, batches
from lipaudit.crosscheck.attacks import ART, AUTOATTACK, Attack, Batch
from lipaudit.crosscheck.hygiene import BLACK_BOX, sealed
from lipaudit.crosscheck.witness import accepted
from lipaudit.progress import Progress
from lipaudit.results import TIME_LIMIT

MODULES = {AUTOATTACK: "pyautoattack", ART: "art.attacks.evasion"}


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

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass
class Tally:
    """One attack's own account, as its batches come in."""

    entry: Attack
    status: Literal["done", "failed", "not run"] = "done"
    notes: list[str] = field(default_factory=list)
    """Why it is not done, or not done on all samples."""
    seconds: float = 0.0
    attacked: set[int] = field(default_factory=set)
    distance: dict[int, float] = field(default_factory=dict)
    """Of its closest witness, per broken row."""
    rejected: int = 0
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """Rows to be attacked in one go."""

    title: str
    rows: np.ndarray
    budget: np.ndarray | None
    """L2, raw-input units, one entry per row of the arena; None if the attack takes no budget."""


def eps_text(eps: float) -> str:
    """A budget as people write it: "36/255" if it is below 1 and a multiple of 1/255, else a decimal."""
    levels = round(eps * 255)
    grid = 0 < levels < 255 and math.isclose(levels, eps * 255, rel_tol=1e-9)
    return f"{levels}/255" if grid else f"{eps:.4g}"


def run_attack(run: Run, tally: Tally) -> None:
    """Runs one attack and fills its tally. No error of the attack gets out, only KeyboardInterrupt."""
    begun = time.perf_counter()
    excuse = _excuse(run, tally.entry)
    earlier = set(run.arena.attacked)
    try:
        if excuse:
            tally.status, tally.notes = "not run", [excuse]
            return
        with sealed(run.seed, [], run.arena.clean.device):
            # ART configures logging as it is imported, which would undo the capture of its first warnings.
            importlib.import_module(MODULES[tally.entry.library])
        for stage in _stages(run, tally):
            if len(stage.rows) and not _run_stage(run, tally, stage):
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
    finally:
        tally.seconds = time.perf_counter() - begun


def _excuse(run: Run, entry: Attack) -> str:
    """Why an attack cannot run at all; empty if it can."""
    network = run.arena.network
    if run.late():
        return TIME_LIMIT
    if network.classes < entry.least_classes:
        return f"needs at least {entry.least_classes} classes, the network has {network.classes}"
    if entry.images_only and len(network.shape) != 3:
        return f"needs inputs of shape (channels, height, width), got {network.raw_shape}"
    if entry.aim == "eps" and not run.eps:
        return "no budget eps was given"
    if entry.aim == "radius" and run.radii is None:
        return "there are no certified radii"
    return ""


def _stages(run: Run, tally: Tally) -> Iterator[Stage]:
    """What is left to attack, looked up as late as possible: an attack gets only samples it can change."""
    ground, title = run.arena, f"attack {tally.entry.name}"
    if tally.entry.aim == "closest":
        yield Stage(title, ground.correct.nonzero()[0], None)
    elif tally.entry.aim == "eps":
        for eps in run.eps:
            rows = (ground.correct & (ground.distance > eps)).nonzero()[0]
            yield Stage(f"{title} at {eps_text(eps)}", rows, np.full(len(ground.distance), eps))
    elif run.radii is not None:
        visible = run.radii > ground.resolution()
        small = int((ground.correct & ~visible).sum())
        if small:
            share = f"{small} of {int(ground.correct.sum())} samples skipped"
            tally.notes.append(f"{share}: their radius is below the resolution of float32 inputs")
        yield Stage(title, (ground.correct & visible & (ground.distance > run.radii)).nonzero()[0], run.radii)


def _run_stage(run: Run, tally: Tally, stage: Stage) -> bool:
    """All batches of one stage; False if time ran out."""
    done, whole = 0, True
    run.progress.start(stage.title, total=len(stage.rows))
    try:
        for rows in batches(stage.rows, run.size):
            if run.late():
                whole = False
            if not whole:
                break
            whole = _run_batch(run, tally, rows, stage.budget)
            done += len(rows)
            run.progress.advance(len(rows), note=_score(run, tally))
    finally:
        run.progress.finish(_score(run, tally))
    if not whole:
        tally.notes.append(f"{TIME_LIMIT} at {done} of {len(stage.rows)} samples")
    return whole


def _score(run: Run, tally: Tally) -> str:
    """How far one attack is, in a few words."""
    total = len(tally.attacked)
    if not run.eps:
        return f"broken: {len(tally.distance)} of {total}"
    hits = sum(distance <= run.eps[0] for distance in tally.distance.values())
    return f"broken at {eps_text(run.eps[0])}: {hits} of {total}"


def _run_batch(run: Run, tally: Tally, rows: np.ndarray, budget: np.ndarray | None) -> bool:
    """One batch: the closest verified claim of each row goes to the arena. False if time ran out in it."""
    ground, network = run.arena, run.arena.network
    index = torch.as_tensor(rows, device=ground.clean.device)
    clean, labels = ground.clean[index], ground.labels[index]
    unit = None
    if budget is not None:
        unit = torch.as_tensor(budget[rows], device=clean.device) / (network.high - network.low)
    batch = Batch(network.to_unit(clean), labels, unit, run.seed)
    claims = tally.entry(network, Batch(batch.inputs.clone(), labels.clone(), unit, run.seed))
    nearest = torch.full((len(rows),), math.inf, dtype=torch.float64, device=clean.device)
    points, step, whole = clean.clone(), 0, True
    while True:
        with sealed(run.seed + step, tally.flags, clean.device):
            claim = next(claims, None)
        if claim is None:
            break
        step += 1
        if claim.shape != batch.inputs.shape:
            raise ValueError(f"expected claims of shape {tuple(batch.inputs.shape)}, got {tuple(claim.shape)}")
        raw = network.to_raw(claim.detach())
        distance = (raw - clean).flatten(1).norm(dim=1)
        better = _judge(run, tally, batch, claim.detach(), ~(distance >= nearest))
        nearest[better], points[better] = distance[better], raw[better]
        if run.late() and step < tally.entry.passes(network.classes).claims:
            whole = False
            break
    hits = nearest.isfinite()
    found = ground.offer(rows[hits.cpu().numpy()], points[hits], tally.entry.name) if bool(hits.any()) else {}
    for row, length in found.items():
        tally.distance[row] = min(length, tally.distance.get(row, math.inf))
    tally.attacked.update(rows.tolist())
    ground.attacked.update(rows.tolist())
    return whole


def _judge(run: Run, tally: Tally, batch: Batch, claim: Tensor, wanted: Tensor) -> Tensor:
    """Which of the wanted rows of a claim are verified; counts those that claim and are not.

    A claim that is no closer than a verified one is not wanted: it would cost passes and change nothing.
    """
    network = run.arena.network
    finite = claim.flatten(1).isfinite().all(1)
    tried = (wanted & (claim != batch.inputs).flatten(1).any(1)).nonzero().flatten()
    good = torch.zeros_like(wanted)
    if len(tried):
        labels = batch.labels[tried]
        with torch.no_grad():
            asserted = ~finite[tried] | (network(claim[tried]).argmax(1) != labels)
        good[tried] = finite[tried] & accepted(run.arena.judge, network.to_raw(claim[tried]), labels)[0]
        tally.rejected += int((asserted & ~good[tried]).sum())
    return good
