"""Margins and certified radii.

Note [Promise R]
    A certificate is about the real function of the stored weights: the network evaluated without rounding, with
    exactly the tensors that run (parametrised weights as computed in the model's own dtype). Its margins are
    computed in float64, with a proved bound E of the error (`domains/rounding/float64.py`), and the radius is
        min over j of (margin_j - E_j) / L_yj,
    rounded down; L_yj is the pairwise bound. Strictly inside it no input has another top class. A margin that E
    swallows, a tie and a wrong prediction give radius 0.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lipaudit.certification.executed import Executed, Execution, Promise, Promised, executed_radius, lost, promised
from lipaudit.certification.local_search import BUDGET, LocalRadii, confirmed, local_radii
from lipaudit.certification.network_bound import Composition, compose, on_device
from lipaudit.domains.lipschitz.propagator import INPUT
from lipaudit.domains.rounding.extended import precisely
from lipaudit.domains.rounding.float64 import LAWS, local_error
from lipaudit.errors import BadThreat, CaptureError, LipauditError, RuleError
from lipaudit.graph.ir import Node, call, evaluate
from lipaudit.graph.wrappers import as_module, domain_of
from lipaudit.held import Held, differs_in_double, refuse
from lipaudit.inputs import check_inputs, check_labels, with_labels
from lipaudit.journal import Journal
from lipaudit.progress import Progress, Silent
from lipaudit.results.bounds import Certificate
from lipaudit.rounding import TINY, down, length_up, up
from lipaudit.threat import doubt_of

_HARMLESS = 1e-3
"""Share of a margin that rounding may cost before the sample is evaluated with more digits."""
_BEARABLE = 0.5
"""The same where the radius is below `resolution` even without any rounding: more digits of it would say nothing."""


@dataclass(frozen=True, repr=False)
class Certificates:
    """One row per sample. Without labels, the radius is about keeping the predicted class."""

    radius: np.ndarray
    prediction: np.ndarray
    margin: np.ndarray
    rows: tuple[Certificate, ...]
    rounding: float = 0.0
    """Largest bound of the rounding error of a sample's logits, L2; every radius is already reduced by it."""
    promise: Promise = "R"
    """What the radii are about (lipaudit/certification/executed.py)."""
    why_not: str = ""
    """Why no radius is certified under this promise, or why local ones that were asked for are missing; empty if all
    are there, or could be."""
    others: Mapping[Promise, Promised] = field(default_factory=dict)
    """The radii under other promises that were asked for."""

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Certificates({(self.radius > 0).sum()} of {len(self)} radii above 0, promise {self.promise})"


def certify(
    model: nn.Module,
    inputs: torch.Tensor | np.ndarray | DataLoader[Any] | Dataset[Any],
    labels: torch.Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    method: Literal["best", "global", "local", "thorough"] = "best",
    norms: str = "best",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    device: str | torch.device | None = None,
    domain: tuple[float, float] | None = None,
    promise: Promise = "R",
    progress: Progress | None = None,
) -> Certificates:
    """Certified L2 radii of `inputs` (n, ...), in their own units; with a DataLoader or Dataset, of its images.

    No input closer to row k than `radius[k]` changes its prediction (its label, where labels are given: the radius
    of a misclassified sample is 0). With a `domain`, the range of the entries of raw inputs, (0, 1) for pixels, this is
    said of inputs in the domain only; networks with products of activations, attention and the like need one. For an
    ART classifier it is its `clip_values`, the units of which are those of the radii.
    `method`: "global" radii come from Lipschitz bounds (layer norms by `norms`); "local" adds those from affine forms
    around each sample, which may take minutes each, and takes the larger; "best" does so as far as a minute allows;
    "thorough" goes on where "local" ends and takes all neurons together, which reaches farther in small ReLU networks
    and takes many times longer.
    `promise`: what is certified is the exact function of the weights ("R"), the network as executed in its own dtype
    ("F") or in float64 ("D"), see `lipaudit.certification.executed`; where that cannot be proved every radius is 0 and
    `.why_not` says why.
    Raises the errors of `lipaudit.bound`, and `BadThreat` for unfit inputs. Warns of pixels from 0 to 255 without a
    `domain`: most networks take them from 0 to 1.
    """
    module = on_device(as_module(model, mean=mean, std=std), device)
    domain = domain_of(model, domain)
    inputs, labels = with_labels(inputs, labels)
    points = check_inputs(inputs)
    if domain is None and (doubt := doubt_of(points)):
        warnings.warn(doubt, stacklevel=2)
    if domain is not None and not bool(((points >= domain[0]) & (points <= domain[1])).all()):
        reached = f"{float(points.min()):g} to {float(points.max()):g}"
        raise BadThreat(f"expected inputs in the domain [{domain[0]:g}, {domain[1]:g}], got entries from {reached}")
    composition = compose(module, tuple(points.shape[1:]), domain=domain, method=norms, progress=progress)
    answers = None if labels is None else check_labels(labels, len(points), len(composition.network.pairwise))
    asked = () if promise == "R" else (promise,)
    found = certify_with(composition, points, answers, promises=asked, progress=progress)
    if method == "global":
        return under(found, promise)
    budget, together = BUDGET if method == "best" else None, method == "thorough"
    found, local = with_local_radii(found, composition, points, budget=budget, together=together, progress=progress)
    found = under(found, promise)
    if method == "best" or not local.why_not:
        return found
    return replace(found, why_not=found.why_not or f"local radii, {local.tried} tried: {local.why_not}")


def certify_with(
    composition: Composition,
    inputs: torch.Tensor,
    labels: Sequence[int] | None = None,
    *,
    promises: Sequence[Promise] = (),
    progress: Progress | None = None,
    held: Held | None = None,
) -> Certificates:
    """`certify` for a network that is already bounded: radii of R, and those of `promises` beside them.

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
    error_of, execution = ErrorRecursion(composition), Execution(composition, promises)
    if "D" in promises and not execution.why["D"]:
        execution.refuse("D", differs_in_double(composition, inputs))
    rows: list[Certificate] = []
    beside: dict[Promise, list[tuple[float, Executed]]] = {promise: [] for promise in promises}
    largest = 0.0
    with torch.no_grad():
        for sample, x in enumerate(inputs):
            point = x.to(composition.ledger.device, torch.float64)
            logits, error = error_of(point)
            if error > _spared(logits, pairwise, point):
                logits, error = error_of(point, careful=True)
            largest = max(largest, error)
            label = None if labels is None else int(labels[sample])
            rows.append(_certificate(sample, logits, error, pairwise, label))
            target, sure = rows[-1].label, sure_margins(logits, error, rows[-1].label)
            for promise, executed in execution.around(point).items():
                radius = executed_radius(executed, sure, pairwise[target], execution.ratios[target])
                beside[promise].append((min(radius, rows[-1].radius), executed))
            progress.advance()
    correct = sum(row.radius > 0 for row in rows)
    progress.finish(f"{correct} of {len(rows)} have a positive radius")
    found = Certificates(
        radius=np.array([row.radius for row in rows]),
        prediction=np.array([row.prediction for row in rows], dtype=np.int64),
        margin=np.array([row.margin for row in rows]),
        rows=tuple(rows),
        rounding=largest,
        others={promise: promised(execution, promise, each, correct) for promise, each in beside.items()},
    )
    looked = held or Held(composition)
    looked.at_images(inputs, lost(found.others))
    if held is None:
        refuse(looked.differences)
    return found


def under(certificates: Certificates, promise: Promise) -> Certificates:
    """The certificates with the radii of another promise in their rows, those of R beside them."""
    if promise == certificates.promise:
        return certificates
    found = certificates.others[promise]
    radius = found.radius if len(found.radius) else np.zeros(len(certificates))
    method = found.method or ("global",) * len(certificates)
    rows = tuple(
        replace(row, radius=float(r), method=m) for row, r, m in zip(certificates.rows, radius, method, strict=True)
    )
    mine = Promised(certificates.radius, tuple(row.method for row in certificates.rows), certificates.why_not)
    others = {**certificates.others, certificates.promise: mine}
    return replace(certificates, radius=radius, rows=rows, promise=promise, why_not=found.why_not, others=others)


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
    for promise, other in certificates.others.items():
        task = f"local radii, promise {promise}"
        others[promise] = _locally(
            other, composition, points, labels, local, deadline, task, progress or Silent(), together=together
        )
    return replace(certificates, radius=np.array([row.radius for row in rows]), rows=rows, others=others), local


def _locally(
    promised: Promised,
    composition: Composition,
    points: torch.Tensor,
    labels: Sequence[int],
    local: LocalRadii,
    deadline: float,
    task: str,
    progress: Progress,
    *,
    together: bool,
) -> Promised:
    """The larger radii from local ones of R, where the margins over the ball exceed what execution loses."""
    radius, method = promised.radius.copy(), list(promised.method)
    rows = [row for row in range(len(promised.executed)) if local.radius[row] > radius[row]]
    if not rows:
        return promised
    progress.start(task, len(rows))
    for row in rows:
        x, label, known, executed = points[row], labels[row], radius[row], promised.executed[row]
        found = confirmed(composition, x, label, local.radius[row], executed, known, deadline, together=together)
        if found > radius[row]:
            radius[row], method[row] = found, "local"
        progress.advance()
    progress.finish()
    return replace(promised, radius=radius, method=tuple(method))


class ErrorRecursion:
    """Evaluates one sample in float64 and bounds the L2 error of its logits (Note [Error recursion])."""

    def __init__(self, composition: Composition) -> None:
        self.graph, self.ledger, self.head = composition.graph, composition.ledger, composition.head
        self.growth = self.ledger.growth()
        self.last = self.ledger.settle(self.head).step
        self.covered = {node for step in self.growth.values() for node, _ in step}

    def __call__(self, x: torch.Tensor, *, careful: bool = False) -> tuple[list[float], float]:
        """The logits and the error bound; `careful` takes several times as long, for a bound that is far smaller."""
        local: dict[str, float] = {}

        def run(node: Node, arguments: dict[str, Any]) -> torch.Tensor:
            found = precisely(node, arguments) if careful else None
            if found is None:
                output = call(node, arguments)
                error = local_error(node, arguments, output)
            else:
                output = found.value
                error = length_up(found.rest.abs() + found.error) * (1 + 1e-6) + TINY
            if error is not None:
                if node.name not in self.covered:
                    raise RuleError(f"{node.op} ({node.source}) rounds, but no step of the ledger accounts for it")
                local[node.name] = error
            return output

        logits = evaluate(self.graph, x, run=run).tolist()
        if not all(math.isfinite(value) for value in [*logits, *local.values()]):
            raise LipauditError("expected finite logits in float64, got NaN or inf; check the weights and inputs")
        errors = {INPUT: 0.0}
        for line in self.ledger.lines:
            before = [errors[step] for step in line.inputs]
            passed = LAWS[line.law](before)
            added = sum(local.get(node, 0.0) * factor for node, factor in self.growth[line.step])
            # One upward step per operation above; few terms, so a relative 1e-12 covers them all.
            errors[line.step] = (line.upper.value * passed + added) * (1 + 1e-12)
        # Factors that were read off ranges hold only while errors stay within their room (lipschitz/propagator.py).
        error = errors[self.last]
        trusted = math.isfinite(error) and all(e <= self.ledger.room for e in errors.values())
        return logits, error if trusted else math.inf


def sure_margins(logits: Sequence[float], error: float, target: int) -> dict[int, float]:
    """What the logit of `target` exceeds each other logit by, at least; 0 where that is not sure."""
    # Two logits of a vector that is off by `error` are together off by at most sqrt(2) times that; one rounding more.
    slack = up(up(math.sqrt(2.0)) * error)
    margins = {j: logits[target] - value for j, value in enumerate(logits) if j != target}
    return {j: down(down(value) - slack) if value > 0 else 0.0 for j, value in margins.items()}


def resolution(point: torch.Tensor) -> float:
    """An L2 distance below which float32 numbers of this size hardly change: 2^-23 of their norm."""
    return float(torch.linalg.vector_norm(point)) * 2.0**-23


def _spared(logits: Sequence[float], pairwise: Sequence[Sequence[float]], point: torch.Tensor) -> float:
    """The error that logits may have without a second, longer evaluation."""
    first, second = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[:2]
    margin = logits[first] - logits[second]
    without_rounding = margin / pairwise[first][second] if pairwise[first][second] > 0 else math.inf
    return margin * (_BEARABLE / math.sqrt(2) if without_rounding < resolution(point) else _HARMLESS)


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
