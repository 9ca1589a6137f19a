"""Margins and certified radii.

Note [Real arithmetic]
    A certificate is about the real function of the stored weights: the network evaluated without rounding, with
    exactly the tensors that run (parametrised weights as computed in the model's own dtype). Its margins are
    computed in float64, with a proved bound E of the error (`domains/rounding/float64.py`), and the radius is
        min over j of (margin_j - E_j) / L_yj,
    rounded down; L_yj is the pairwise bound in the norm of the radius. Strictly inside it no input has another top
    class. A margin that E swallows, a tie and a wrong prediction give radius 0.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from lipaudit.certification.executed import (
    Executed,
    Execution,
    InArithmetic,
    executed_radius,
    in_arithmetic,
    lost,
)
from lipaudit.certification.held import Held, differs_in_double, refuse
from lipaudit.certification.local_search import BUDGET, LocalRadii, confirmed, local_radii
from lipaudit.certification.margins import ErrorRecursion, _spared, sure_margins
from lipaudit.certification.network_bound import Composition
from lipaudit.certification.norm_bounds import bound_in
from lipaudit.errors import CaptureError
from lipaudit.files.journal import Journal
from lipaudit.progress import Progress, Silent
from lipaudit.results.bounds import Arithmetic, Certificate
from lipaudit.results.threat import Norm
from lipaudit.rounding import down, plain_sums
from lipaudit.settings import Settings


@dataclass(frozen=True, repr=False)
class Certificates:
    """One row per sample. Without labels, the radius is about keeping the predicted class."""

    rows: tuple[Certificate, ...]
    rounding: float = 0.0
    """Largest bound of the rounding error of a sample's logits, L2; every radius is already reduced by it."""
    arithmetic: Arithmetic = "real"
    """What the radii are about (lipaudit/certification/executed.py)."""
    why_not: str = ""
    """Why no radius is certified for this arithmetic, or why local ones that were asked for are missing; empty if all
    are there, or could be."""
    others: Mapping[Arithmetic, InArithmetic] = field(default_factory=dict)
    """The radii under other arithmetics that were asked for."""
    norm: Norm = "l2"
    """In which the radii are measured."""

    @functools.cached_property
    def radius(self) -> np.ndarray:
        """Of each row."""
        return np.array([row.radius for row in self.rows])

    @functools.cached_property
    def prediction(self) -> np.ndarray:
        """Of each row."""
        return np.array([row.prediction for row in self.rows], dtype=np.int64)

    @functools.cached_property
    def margin(self) -> np.ndarray:
        """Of each row."""
        return np.array([row.margin for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        norm = "" if self.norm == "l2" else f"{self.norm} "
        return (
            f"Certificates({(self.radius > 0).sum()} of {len(self)} {norm}radii above 0, {self.arithmetic} arithmetic)"
        )


def certify_with(
    composition: Composition,
    inputs: torch.Tensor,
    labels: Sequence[int] | None = None,
    *,
    norm: Norm = "l2",
    arithmetics: Sequence[Arithmetic] = (),
    progress: Progress | None = None,
    held: Held | None = None,
) -> Certificates:
    """`certify` for a network that is already bounded: radii of real arithmetic, those of `arithmetics` beside them.

    Raises what `certify_in` raises.
    """
    return certify_in(composition, inputs, labels, (norm,), arithmetics=arithmetics, progress=progress, held=held)[norm]


def certify_in(
    composition: Composition,
    inputs: torch.Tensor,
    labels: Sequence[int] | None,
    norms: Sequence[Norm],
    *,
    arithmetics: Sequence[Arithmetic] = (),
    progress: Progress | None = None,
    held: Held | None = None,
) -> dict[Norm, Certificates]:
    """Certificates in several norms, for which each image is evaluated once.

    The model is held against the graph on every image. What differs is kept in `held`, or a `CaptureError`.
    """
    progress = progress or Silent()
    pairwise = composition.network.pairwise
    if len(pairwise) < 2:
        raise CaptureError(
            "expected at least two logits, of which the largest is the answer, got one; wrap a network of one output z "
            "to return the logits (0, z)"
        )
    progress.start("certificates", len(inputs))
    error_of, execution = ErrorRecursion(composition), Execution(composition, arithmetics)
    if "float64" in arithmetics and not execution.why["float64"]:
        execution.refuse("float64", differs_in_double(composition, inputs))
    seen: list[tuple[list[float], float, dict[Arithmetic, Executed]]] = []
    with torch.no_grad(), plain_sums():
        for x in inputs:
            point = x.to(composition.ledger.device, torch.float64)
            logits, error = error_of(point)
            if error > _spared(logits, pairwise, point):
                logits, error = error_of(point, careful=True)
            seen.append((logits, error, execution.around(point)))
            progress.advance()
    answers = None if labels is None else [int(label) for label in labels]
    entries = math.prod(inputs.shape[1:])
    found = {norm: _in_norm(composition, execution, arithmetics, seen, answers, entries, norm) for norm in norms}
    correct = [sum(row.radius > 0 for row in each.rows) for each in found.values()]
    progress.finish(f"{', '.join(map(str, correct))} of {len(inputs)} have a positive radius")
    looked = held or Held(composition)
    looked.at_images(inputs, lost(next(iter(found.values())).others))
    if held is None:
        refuse(looked.differences)
    return found


def _in_norm(
    composition: Composition,
    execution: Execution,
    arithmetics: Sequence[Arithmetic],
    seen: Sequence[tuple[list[float], float, dict[Arithmetic, Executed]]],
    labels: Sequence[int] | None,
    entries: int,
    norm: Norm,
) -> Certificates:
    """Certificates of images whose logits are known up to an error."""
    pairwise, rows = bound_in(composition, norm).pairwise, list[Certificate]()
    beside: dict[Arithmetic, list[tuple[float, Executed]]] = {arithmetic: [] for arithmetic in arithmetics}
    for sample, (logits, error, around) in enumerate(seen):
        rows.append(_certificate(sample, logits, error, pairwise, None if labels is None else labels[sample]))
        target, sure = rows[-1].label, sure_margins(logits, error, rows[-1].label)
        for arithmetic, executed in around.items():
            measured = executed.measured(norm, entries)
            radius = executed_radius(measured, sure, pairwise[target], execution.ratios[target])
            beside[arithmetic].append((min(radius, rows[-1].radius), executed))
    correct = sum(row.radius > 0 for row in rows)
    return Certificates(
        rows=tuple(rows),
        rounding=max((error for _, error, _ in seen), default=0.0),
        others={arithmetic: in_arithmetic(execution, arithmetic, each, correct) for arithmetic, each in beside.items()},
        norm=norm,
    )


def under(certificates: Certificates, arithmetic: Arithmetic) -> Certificates:
    """The certificates with the radii of another arithmetic in their rows, those of real arithmetic beside them."""
    if arithmetic == certificates.arithmetic:
        return certificates
    found = certificates.others[arithmetic]
    radius = found.radius if len(found.radius) else np.zeros(len(certificates))
    method = found.method or ("global",) * len(certificates)
    rows = tuple(
        replace(row, radius=float(r), method=m) for row, r, m in zip(certificates.rows, radius, method, strict=True)
    )
    mine = InArithmetic(certificates.radius, tuple(row.method for row in certificates.rows), certificates.why_not)
    others = {**certificates.others, certificates.arithmetic: mine}
    return replace(certificates, rows=rows, arithmetic=arithmetic, why_not=found.why_not, others=others)


def as_asked(
    certificates: Certificates,
    composition: Composition,
    points: torch.Tensor,
    settings: Settings,
    *,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> tuple[Certificates, LocalRadii | None]:
    """The certificates of the arithmetic that is asked for, with the local radii that are; what came of these.

    None where no local radii are asked for.
    """
    found = None
    if settings.local != "off":
        certificates, found = with_local_radii(
            certificates,
            composition,
            points,
            budget=BUDGET if settings.local == "auto" else None,
            most=settings.local_samples,
            together=settings.local == "thorough",
            progress=progress,
            journal=journal,
        )
    return under(certificates, settings.arithmetic), found


@plain_sums()
def with_local_radii(
    certificates: Certificates,
    composition: Composition,
    points: torch.Tensor,
    *,
    budget: float | None,
    most: int | None = None,
    together: bool = False,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> tuple[Certificates, LocalRadii]:
    """The certificates with the larger of both radii for each sample, and what came of the search for local ones.

    `together`: with all neurons taken together at last, as `Search.together` says.
    """
    labels, known = [row.label for row in certificates.rows], certificates.radius.tolist()
    # A margin that the network bound loses in rounding may be proved locally.
    right = [row.prediction == row.label and row.margin > 0 for row in certificates.rows]
    local = local_radii(
        composition,
        points,
        labels,
        known,
        norm=certificates.norm,
        right=right,
        budget=budget,
        most=most,
        together=together,
        progress=progress,
        journal=journal,
    )
    rows = tuple(
        replace(row, radius=radius, method="local") if radius > row.radius else row
        for row, radius in zip(certificates.rows, local.radius, strict=True)
    )
    deadline = math.inf if budget is None else time.monotonic() + budget / 2
    others = {}
    for arithmetic, other in certificates.others.items():
        task = f"local radii, {arithmetic} arithmetic"
        others[arithmetic] = _locally(
            other,
            composition,
            points,
            labels,
            local,
            deadline,
            task,
            progress or Silent(),
            norm=certificates.norm,
            together=together,
        )
    return replace(certificates, rows=rows, others=others), local


def _locally(
    promised: InArithmetic,
    composition: Composition,
    points: torch.Tensor,
    labels: Sequence[int],
    local: LocalRadii,
    deadline: float,
    task: str,
    progress: Progress,
    *,
    norm: Norm,
    together: bool,
) -> InArithmetic:
    """Larger radii from local ones of real arithmetic, where margins over the ball exceed what execution loses."""
    radius, method = promised.radius.copy(), list(promised.method)
    rows = [row for row in range(len(promised.executed)) if local.radius[row] > radius[row]]
    if not rows:
        return promised
    progress.start(task, len(rows))
    for row in rows:
        x, label, known = points[row], labels[row], radius[row]
        executed, ball = promised.executed[row].measured(norm, x.numel()), local.radius[row]
        found = confirmed(composition, x, label, ball, executed, known, deadline, norm=norm, together=together)
        if found > radius[row]:
            radius[row], method[row] = found, "local"
        progress.advance()
    progress.finish()
    return replace(promised, radius=radius, method=tuple(method))


def _certificate(
    sample: int, logits: list[float], error: float, pairwise: Sequence[Sequence[float]], label: int | None
) -> Certificate:
    order = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)
    prediction = order[0]
    target = prediction if label is None else label
    margin = min((logits[target] - logits[j] for j in range(len(logits)) if j != target), default=math.inf)
    radius = sys.float_info.max
    for j, sure in sure_margins(logits, error, target).items():
        pair = pairwise[target][j]
        if sure <= 0.0:
            radius = 0.0
        elif pair > 0.0:
            radius = min(radius, down(sure / pair))
    return Certificate(sample, target, prediction, min(margin, sys.float_info.max), radius)
