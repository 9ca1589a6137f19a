"""Attacks held against a network: runs the plan, hands over what was verified and what each attack did."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from lipaudit.crosscheck import art, autoattack  # noqa: F401  (importing them fills the table)
from lipaudit.crosscheck.isolation import random_state_kept
from lipaudit.crosscheck.registry import plan
from lipaudit.crosscheck.runner import Hold, Run, Tally, run_attack
from lipaudit.crosscheck.samples import Arena, arena
from lipaudit.crosscheck.verification import ORDER
from lipaudit.errors import BadThreat
from lipaudit.files.journal import Journal
from lipaudit.progress import Progress, Silent
from lipaudit.results.audit import AttackRecord
from lipaudit.results.bounds import Disagreement, Witness
from lipaudit.results.threat import Norm, norm_of, written


@dataclass(frozen=True)
class Evidence:
    """What attacks could and could not do to a set of samples. One entry per row of the inputs."""

    norm: Norm
    """That all distances are measured in."""
    witnesses: tuple[Witness, ...]
    """The closest one of each broken sample, in the order of the rows; `sample` is the row."""
    perturbed: Tensor
    """float64 on the CPU, shape of the inputs: the exact point of each witness, the clean input elsewhere."""
    attacked: tuple[bool, ...]
    """Rows that an attack worked on. Only correctly classified samples inside the box are attacked."""
    predictions: tuple[int, ...]
    """Of the clean inputs, evaluated in float64."""
    records: tuple[AttackRecord, ...]
    flags: tuple[str, ...]
    """Reliability warnings of all attacks, and samples that could not be attacked."""
    distances: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Of the witnesses of each attack, its closest per broken sample."""
    no_gradient: str = ""
    """Why nothing that follows gradients was run; empty if there are some."""
    looked: int = 0
    """At so many claims the network as it runs and the judge were compared."""
    differences: tuple[Disagreement, ...] = ()
    """Where the two do not say the same."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the cross-check. `evidence` holds everything verified before the batch that it hit."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__("interrupted during the cross-check")
        self.evidence = evidence


def cross_check(
    logits: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    attacks: str | Sequence[str],
    eps: Sequence[float],
    radii: np.ndarray | None,
    norm: Norm = "l2",
    judge: nn.Module | None = None,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
    batch_size: int = 16,
    deadline: float | None = None,
    journal: Journal | None = None,
    hold: Hold | None = None,
) -> Evidence:
    """Looks for inputs that change the prediction of correctly classified samples, as close as it can.

    `logits` maps raw inputs in [low, high] (normalisation inside) to logits; two copies of it in eval mode
    are worked on, so its mode, parameters and gradients stay as they are. `inputs` are (n, ...), `labels`
    (n,). `attacks` are names or presets. `eps` are the budgets for attacks that take one, `radii` (n,) the
    certified radii, or None; both in raw-input units and in `norm`, "l2", "linf" or "l1", as all distances are. An
    attack that has no form for the norm is not run, and its record says so. `judge` is the float64 function that the
    certificates are about, where that is not a float64 copy of `logits`; `hold` compares the two at claims
    that do not become witnesses. `deadline` is a `time.monotonic()` value: from then
    on no batch begins. On a CPU, the same seed gives the same evidence; batches that `journal` holds are taken
    from there, and each batch that is finished is put there.

    Witnesses are verified in float64 (`verification.py`); each distance is rounded up. An attack that raises is
    recorded as failed and the rest go on. Raises `BadThreat` for arguments that make no sense,
    `CaptureError` for a network that cannot be copied or judged, `Interrupted` on Ctrl-C.
    """
    measured = norm_of(norm)
    planned = plan(attacks, measured)
    budgets = _checked_eps(eps)
    with torch.inference_mode(False), random_state_kept(seed):
        ground = arena(logits, judge, inputs, labels, measured, low, high, batch_size)
        certified = _checked_radii(radii, ground)
        run = Run(ground, budgets, certified, seed, batch_size, deadline, progress or Silent(), journal, hold)
        tallies = [Tally(entry) for entry in planned]
        for place, tally in enumerate(tallies):
            try:
                run_attack(run, tally)
            except KeyboardInterrupt:
                for rest in tallies[place:]:
                    rest.status = "done" if rest.attacked else "not run"
                    rest.notes.append("interrupted")
                raise Interrupted(_evidence(run, tallies)) from None
    return _evidence(run, tallies)


def _checked_eps(eps: Sequence[float]) -> tuple[float, ...]:
    for value in eps:
        if not (math.isfinite(value) and value > 0):
            raise BadThreat(f"expected budgets eps that are finite and above 0, got {value}")
    return tuple(sorted(set(map(float, eps))))


def _checked_radii(radii: np.ndarray | None, ground: Arena) -> np.ndarray | None:
    if radii is None:
        return None
    values = np.asarray(radii, dtype=np.float64)
    if values.shape != ground.distance.shape or not (values >= 0).all():
        got = f"shape {values.shape}, smallest {values.min(initial=math.inf)}"
        raise BadThreat(f"expected {len(ground.distance)} radii, one per input, none negative or NaN, got {got}")
    # An infinite radius (a constant network) is as good as the diagonal of the box.
    width, entries = ground.network.high - ground.network.low, ground.clean[0].numel()
    return np.minimum(values, width * entries ** (1 / ORDER[ground.norm]))


def _evidence(run: Run, tallies: Sequence[Tally]) -> Evidence:
    ground = run.arena
    witnesses = tuple(
        Witness(row, name, float(ground.distance[row]), ground.found_as[row])
        for row, name in enumerate(ground.found_by)
        if name is not None
    )
    flags = list(dict.fromkeys(flag for tally in tallies for flag in tally.flags))
    if ground.outside:
        flags.append(f"{ground.outside} samples lie outside the box and were not attacked")
    if ground.network.scale != 1:
        flags.append(f"attacks saw the logits times 2^{round(math.log2(ground.network.scale))}, a size they work with")
    if ground.apart:
        flags.append(f"{ground.apart} samples have logits so far apart that cross-entropy has no gradient in float32")
    return Evidence(
        norm=ground.norm,
        witnesses=witnesses,
        perturbed=ground.points,
        attacked=tuple(row in ground.attacked for row in range(len(ground.distance))),
        predictions=tuple(ground.predictions.tolist()),
        records=tuple(_record(run, tally) for tally in tallies),
        flags=tuple(flags),
        distances={tally.entry.name: tuple(map(float, tally.distance.values())) for tally in tallies},
        no_gradient=ground.network.no_gradient,
        looked=sum(tally.looked for tally in tallies),
        differences=tuple(each for tally in tallies for each in tally.differences),
    )


def _record(run: Run, tally: Tally) -> AttackRecord:
    entry, ground = tally.entry, run.arena
    settings = entry.settings(ground.network.classes, ground.norm)
    if entry.aim in ("eps", "largest") and run.eps:
        settings += f", at eps {', '.join(map(written, run.eps if entry.aim == 'eps' else run.eps[-1:]))}"
    return AttackRecord(
        name=entry.name,
        library=str(entry.library),
        settings=settings,
        attacked=len(tally.attacked),
        broken=len(tally.distance),
        closest=ground.found_by.count(entry.name),
        median_distance=statistics.median(tally.distance.values()) if tally.distance else None,
        rejected=tally.rejected,
        seconds=tally.seconds,
        status=tally.status,
        why="; ".join(tally.notes),
        flags=tuple(tally.flags),
        checked=entry.checks(ground.network.classes) if tally.attacked else (),
    )
