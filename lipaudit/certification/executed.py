"""Which function a certificate is about: the mathematical one, or the network as executed in a floating-point format.

Note [Three arithmetics]
    real: the exact function of the stored weights, without rounding.
    native: the network as executed in its own dtype. Every input within the radius, rounded to that dtype and evaluated
        in it, in whatever order its sums are taken (domains/rounding/native.py says what is covered), gets the same
        answer. Constants are those that run now: weights that a parametrisation computes again before each pass may
        come out otherwise where its sums are taken in another order, and are another network.
    float64: the same in float64, with the weights that run now cast to it: `model.double()`.
    Certificates of the last two come from the margins and bounds of the first. At an input z within r of x, the
    executed logits are off by at most E(r) = a + b r, so the answer is j nowhere in the ball as long as
        margin_j - r L_yj - E_yj(r) > 0,   r = (margin_j - a) / (L_yj + b).
    Rounding an input z' to the dtype moves it by at most u ||z'||, so the radius of inputs before it is
        (r - u ||x|| - underflow) / (1 + u).
    Source: Note [Error recursion] in rounding/float64.py, with the ball's spread added to what each operation reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lipaudit.certification.network_bound import Composition
from lipaudit.domains.graph import Node, call, evaluate
from lipaudit.domains.lipschitz.propagator import INPUT
from lipaudit.domains.rounding.float64 import LAWS
from lipaudit.domains.rounding.native import SIZES, Format, Size, refusal
from lipaudit.norms.linear_maps import schur_test
from lipaudit.results.bounds import Arithmetic, LayerBound
from lipaudit.results.threat import Norm, circumradius
from lipaudit.rounding import down, length_up, narrow_up, norm_up, shortened, up

_SLACK = 1 + 1e-9
"""Covers the roundings, in float64, of the few positive terms of an error bound."""


def format_of(arithmetic: Arithmetic, dtype: torch.dtype) -> Format:
    """In which the network is executed; `dtype` is its own."""
    return Format(torch.float64 if arithmetic == "float64" else dtype)


@dataclass(frozen=True)
class Affine:
    """The bound a + b r of an error, for all inputs within r of the centre."""

    a: float = 0.0
    b: float = 0.0

    def at(self, radius: float) -> float:
        return up(up(self.a + up(self.b * radius))) if self.b else self.a

    def times(self, factor: float) -> Affine:
        return Affine(self.a * factor if factor else 0.0, self.b * factor if factor else 0.0)

    def plus(self, other: Affine) -> Affine:
        return Affine(self.a + other.a, self.b + other.b)


@dataclass(frozen=True)
class Executed:
    """What execution in one format may change of the logits around one input."""

    whole: Affine
    """Of the vector of logits, L2."""
    before: Affine
    """Of the step before the last linear maps."""
    after: Affine
    """Of the vector of logits, were it exact up to there."""
    limit: float
    """Overflow is ruled out for inputs within this distance; below zero: not even at the centre."""
    cast: float
    """How far rounding moves the centre itself, at most."""
    unit: float

    def difference(self, ratio: float) -> Affine:
        """Of the difference of two logits, the rows of whose last linear maps are at most `ratio` apart."""
        both = up(math.sqrt(2.0))
        whole = self.whole.times(both)
        apart = self.before.times(ratio).plus(self.after.times(both))
        return apart if apart.a <= whole.a else whole

    def measured(self, norm: Norm, entries: int) -> Executed:
        """The same around an input of so many entries, for distances in that norm."""
        if norm == "l2":
            return self
        # Within r in the norm is within `times` r in L2, and what L2 moves by at most `cast` moves in Linf as little.
        times, root = circumradius(norm, entries), circumradius("linf", entries)
        whole, before, after = (Affine(e.a, up(e.b * times)) for e in (self.whole, self.before, self.after))
        cast = up(self.cast * root) if norm == "l1" else self.cast
        limit = down(self.limit / times) if self.limit > 0 else self.limit
        return replace(self, whole=whole, before=before, after=after, limit=limit, cast=cast)

    def uncast(self, radius: float) -> float:
        """The radius of inputs that are still to be rounded, from that of what the network reads."""
        return down(down(down(radius - self.cast)) / up(1.0 + self.unit)) if radius > self.cast else 0.0


class Execution:
    """How far the network as executed is off, around one input after the other. `why` names what cannot be bounded."""

    def __init__(self, composition: Composition, arithmetics: Sequence[Arithmetic]) -> None:
        self.graph, self.ledger, self.head = composition.graph, composition.ledger, composition.head
        self.rows, self.classes = composition.rows, len(composition.network.pairwise)
        self.formats: dict[Arithmetic, Format] = {
            arithmetic: format_of(arithmetic, self.graph.dtype) for arithmetic in arithmetics if arithmetic != "real"
        }
        self.why: dict[Arithmetic, str] = {arithmetic: self._refused(arithmetic) for arithmetic in self.formats}
        self.forms = {form.dtype: form for arithmetic, form in self.formats.items() if not self.why[arithmetic]}
        if not self.forms:
            return
        self.growth = self.ledger.growth()
        self.lines = {line.step: line for line in self.ledger.lines}
        self.last = self.ledger.settle(self.head).step
        maps = {node.name: linear for node, linear in self.ledger.covered() if linear is not None}
        self.steep = {name: schur_test(linear, self.ledger.device) for name, linear in maps.items()}
        self.steep |= {name: inner.stretch for name, inner in self.ledger.inner.items()}
        self.reached = {step: narrow_up(bound) for step, bound in self.ledger.so_far.items()}
        self.ratios = self._ratios()

    def refuse(self, arithmetic: Arithmetic, why: str) -> None:
        """Gives no such arithmetic, for a reason that its operations do not show."""
        self.why[arithmetic] = self.why[arithmetic] or why
        self.forms = {form.dtype: form for each, form in self.formats.items() if not self.why[each]}

    def _refused(self, arithmetic: Arithmetic) -> str:
        """Why this arithmetic cannot be given for the network, whatever the input."""
        form = self.formats[arithmetic]
        if self.graph.casts:
            return f"the model leaves its own dtype: {self.graph.casts[0]}"
        if form.dtype == torch.float32 and (short := shortened(self.ledger.device)):
            return short
        if self.graph.rounded:
            return f"rounding is not proved for a function written in several operations: {self.graph.rounded[0]}"
        if self.graph.rewritten:
            return f"{self.graph.rewritten[0]} has no proved error in {form.name}"
        for node in self.graph.nodes:
            for value in _tensors(node):
                if value.dtype != self.graph.dtype:
                    return f"the model mixes {value.dtype} with {self.graph.dtype} ({node.title}, {node.source})"
        shapes = {node.name: node.shape for node in self.graph.nodes} | {INPUT: (1, *self.graph.input_shape)}
        covered = {node.name for node, _ in self.ledger.covered()}
        for node in self.graph.nodes:
            why = refusal(node, form, shapes)
            if not why and node.op in SIZES and node.name not in covered:
                why = f"{node.op} rounds outside the ledger ({node.title}, {node.source})"
            if why:
                return why
        return "its bound rests on ranges of activations, which rounding leaves" if self.ledger.used_domain else ""

    def _ratios(self) -> list[list[float]]:
        """Bounds of how far apart the rows of the last linear maps are; inf where that is not known."""
        classes = self.classes
        if self.rows is None or not self.head.chain:
            return [[math.inf] * classes for _ in range(classes)]
        return self.rows

    def around(self, x: torch.Tensor) -> dict[Arithmetic, Executed]:
        """For each arithmetic that is not refused; `x` has no batch axis."""
        if not self.forms:
            return {}
        with torch.no_grad():
            walk = _Walk(self)
            evaluate(self.graph, x.to(self.ledger.device, torch.float64), run=walk.run)
        size = norm_up(x.to(torch.float64))
        largest = float(x.abs().max()) if x.numel() else 0.0
        found: dict[Arithmetic, Executed] = {}
        for arithmetic, form in self.formats.items():
            if self.why[arithmetic]:
                continue
            off = walk.states[form.dtype]
            whole = off.error_of(self.last)
            before = off.error_of(self.head.step)
            after = off.exact_up_to(self.head.step).error_of(self.last)
            cast = up(up(form.unit * size) + form.smallest * math.sqrt(x.numel()))
            limit = min(off.limit, form.largest / 2 - largest)
            found[arithmetic] = Executed(whole, before, after, limit, cast, form.unit)
        return found


def _tensors(node: Node) -> list[torch.Tensor]:
    values = [one for value in node.args.values() for one in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]


class _Walk:
    """One pass at the centre in float64, with what each format may be off by after every operation."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        centre = Format(torch.float64)
        # What float64 itself is off by at the centre belongs to the distance of the executed values from it.
        self.own = _Off(execution, centre, None)
        self.states = {centre.dtype: self.own}
        for dtype, form in execution.forms.items():
            self.states.setdefault(dtype, _Off(execution, form, self.own))

    def run(self, node: Node, arguments: Mapping[str, Any]) -> torch.Tensor:
        output = call(node, arguments)
        size = SIZES[node.op](node, arguments, output) if node.op in SIZES else None
        entries = (0.0, 0.0)
        if size is not None:
            # Sums of positive numbers in float64: a relative 1e-6 covers their roundings.
            norm, most = length_up(size.entries), float(size.entries.abs().amax())
            entries = (norm * (1 + 1e-6), most * (1 + 1e-6))
        for off in self.states.values():
            off.see(node, size, *entries)
        return output


class _Off:
    """Error bounds of one format, node by node and step by step."""

    def __init__(self, execution: Execution, form: Format, own: _Off | None) -> None:
        self.execution, self.form, self.own = execution, form, own or self
        self.moved: dict[str, tuple[float, Affine]] = {INPUT: (1.0, Affine())}
        """By node: Lipschitz bound from the input, and error."""
        self.local: dict[str, Affine] = {}
        self.errors: dict[str, Affine] = {INPUT: Affine()}
        self.limit = math.inf

    def see(self, node: Node, size: Size | None, norm: float, most: float) -> None:
        """Take an operation into account whose `size` at the centre has this L2 norm and this largest entry."""
        execution, refs = self.execution, node.refs()
        slope = sum(self.moved[ref][0] for ref in refs)
        error = _total([self.moved[ref][1] for ref in refs])
        step = node.name if node.name in execution.lines else None
        added = Affine()
        if size is not None:
            own = sum(self.own.moved[ref][1].a for ref in refs)
            reach = Affine(own + error.a, slope + error.b)
            added = self.local[node.name] = self._added(node, size, reach, norm, most)
        if step is not None:
            self.moved[node.name] = execution.reached[step], self.error_of(step)
            return
        steep = execution.steep.get(node.name, 1.0 if len(refs) == 1 else math.inf)
        stretch = execution.ledger.norms.get(node.name, steep)
        self.moved[node.name] = slope * stretch * _SLACK, error.times(stretch * _SLACK).plus(added)

    def _added(self, node: Node, size: Size, reach: Affine, norm: float, most: float) -> Affine:
        """The error of the operation itself; notes where it may overflow."""
        steep = self.execution.steep.get(node.name, 1.0) if size.steep is None else size.steep
        lost = self.form.gamma(size.roundings) * _SLACK
        below = size.underflows * 2 * self.form.smallest * math.sqrt(size.entries.numel())
        peak, rising = size.peak or (size.passing * most, size.passing * steep)
        # Sums round up by at most a factor 1 + gamma <= 2.
        room = self.form.largest / 2 - (peak + rising * reach.a) * _SLACK
        rise = rising * reach.b * _SLACK
        limit = room * (1 - 1e-9) / rise if rise > 0 else math.inf
        self.limit = min(self.limit, limit if room > 0 else -1.0)
        return Affine(lost * (norm + steep * reach.a) + below, lost * steep * reach.b).times(_SLACK)

    def error_of(self, step: str) -> Affine:
        """Of a step of the ledger, see Note [Error recursion]."""
        if step not in self.errors:
            line = self.execution.lines[step]
            before = [self.error_of(name) for name in line.inputs]
            self.errors[step] = self._through(line, before)
        return self.errors[step]

    def _through(self, line: LayerBound, before: Sequence[Affine]) -> Affine:
        law, factor = LAWS[line.law], line.upper.value
        passed = Affine(law([error.a for error in before]), law([error.b for error in before])).times(factor)
        grown = [self.local[node].times(g) for node, g in self.execution.growth[line.step] if node in self.local]
        return _total([passed, *grown]).times(_SLACK)

    def exact_up_to(self, step: str) -> _Off:
        """The same operations, were that step exact."""
        other = _Off(self.execution, self.form, self.own)
        other.local, other.errors = self.local, {INPUT: Affine(), step: Affine()}
        return other


def _total(errors: Sequence[Affine]) -> Affine:
    return Affine(sum(error.a for error in errors), sum(error.b for error in errors))


def executed_radius(
    executed: Executed, sure: Mapping[int, float], pairwise: Sequence[float], ratios: Sequence[float]
) -> float:
    """The radius of inputs before rounding, from margins that are `sure` in exact arithmetic; see the note above."""
    if not executed.limit > 0:
        return 0.0
    radius = executed.limit
    for j, margin in sure.items():
        lost = executed.difference(ratios[j])
        left = down(margin - lost.a) if math.isfinite(lost.a) else 0.0
        slope = up(pairwise[j] + lost.b)
        if not left > 0 or not math.isfinite(slope):
            return 0.0
        if slope > 0:
            radius = min(radius, down(left / slope))
    return executed.uncast(radius)


@dataclass(frozen=True)
class InArithmetic:
    """Certified radii of one arithmetic, one per sample."""

    radius: np.ndarray
    method: tuple[str, ...]
    why_not: str = ""
    """Why no radius is certified; empty if one is, or could be."""
    executed: tuple[Executed, ...] = ()
    """What execution may change around each sample; empty for real arithmetic, and where nothing is known of it."""


def in_arithmetic(
    execution: Execution, arithmetic: Arithmetic, found: Sequence[tuple[float, Executed]], exact: int
) -> InArithmetic:
    """Radii of one arithmetic; `exact` says how many samples have one of real arithmetic."""
    count = len(found)
    if execution.why[arithmetic]:
        return InArithmetic(np.zeros(0), (), execution.why[arithmetic])
    radii, executed = np.array([radius for radius, _ in found]), tuple(each for _, each in found)
    why_not = ""
    if exact and not (radii > 0).any():
        overflows = sum(not each.limit > 0 for each in executed)
        least = min((each.whole.a for each in executed), default=0.0)
        why_not = (
            f"overflow in {execution.formats[arithmetic].name} cannot be ruled out for {overflows} of {count} images"
            if overflows
            else f"rounding may change the logits by {least:.3g} (L2) or more, and no margin is proved to exceed it"
        )
    return InArithmetic(radii, ("global",) * count, why_not, executed)


def lost(others: Mapping[Arithmetic, InArithmetic]) -> Callable[[int, float], float]:
    """How far (L2) logits as executed may be from those of the float64 graph, so far from the image of a row.

    inf where nothing is known: float64 itself is off by what D says.
    """

    def at(row: int, reach: float) -> float:
        each = [
            others[arithmetic].executed[row]
            for arithmetic in ("native", "float64")
            if arithmetic in others and others[arithmetic].executed
        ]
        if len(each) < 2 or not all(reach <= executed.limit for executed in each):
            return math.inf
        return up(sum(executed.whole.at(reach) for executed in each))

    return at
