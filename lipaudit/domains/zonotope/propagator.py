"""Affine forms through a captured network, by the rules of the Lipschitz domain.

Note [Two domains, one table]
    A rule for a linear operation hands a `LinearMap` to `ledger.pend`. The global ledger collects these maps and bounds
    them; this one also runs them on the rows of a form. So whatever is linear has one rule for both. A nonlinear
    operation comes to `ledger.record`; what it does to forms stands in `BANDS`, `POOLS` and `JOINS`, and an operation
    in none of them is refused: there the local certificate ends, the global one does not.

Note [Roundings of forms]
    All arithmetic is float64. What centre and rows lose in one operation, over all inputs of the ball, is at most
    gamma(terms) |A| (|centre| + reach) entry by entry, as in Note [Error recursion] of float64.py; the L2 norm of that
    joins the remainder, and the remainder grows by the bounds of the global ledger: a line of it bounds the same
    linear map here, and the slopes of a band are slopes of the function.
    Bounds multiply, and in a deep network the remainder outgrows all else. Where all that follows depends on one tensor
    alone, a large remainder becomes symbols: rest = remainder e, ||e||_2 <= 1, a row for each entry and a group of them
    all. Rows follow what the network does and not what it could do; the remainder begins again at zero. An output of a
    ReLU that is zero over the whole ball has no rest.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch

from lipaudit.domains.graph import Node, Ref, call
from lipaudit.domains.lipschitz.pending import Parts
from lipaudit.domains.lipschitz.propagator import SORTING, Ledger, Value, merged, only_moves
from lipaudit.domains.rounding.extended import precisely
from lipaudit.domains.rounding.float64 import EXACT, LAWS
from lipaudit.domains.rounding.float64 import RULES as ROUNDINGS
from lipaudit.domains.zonotope.affine_form import Form
from lipaudit.domains.zonotope.backward import Banded, Chosen, Mapped
from lipaudit.domains.zonotope.ball_constraints import Group, of_relu
from lipaudit.domains.zonotope.linear_images import applied
from lipaudit.domains.zonotope.max_pooling import POOLS, largest
from lipaudit.domains.zonotope.quadratic_constraints import Sectors
from lipaudit.domains.zonotope.refinement import sharpened
from lipaudit.domains.zonotope.relaxations import BANDS, Band
from lipaudit.domains.zonotope.sums_and_concats import JOINS, reaches
from lipaudit.errors import LipauditError, NotLipschitz, RuleError
from lipaudit.norms.linear_maps import LinearMap, schur_test
from lipaudit.results.bounds import Law, Upper
from lipaudit.rounding import TINY, gamma, length_up

NEGLIGIBLE = 1e-11
"""Errors of a band below this share of an entry's size get no symbol; they join the remainder."""

CROWDING, HARMFUL = 3e-5, 1e-10
"""A remainder becomes symbols above these shares, of the mean reach of an entry and of its mean size."""

LOWER_LINES = ("relu.default",)
"""Operations that lie above every line through 0 of a slope between 0 and 1."""


class TooWide(LipauditError):
    """The forms need more rows than there is room for: the ball is too large for this method."""


@dataclass(frozen=True)
class Tracked(Value):
    """A value of the Lipschitz domain that carries its affine form along."""

    form: Form = field(kw_only=True)
    stretched: bool = field(default=False, kw_only=True)
    """Whether a factor is on its way to a sum, which sees to it itself."""


@dataclass
class LocalLedger(Ledger):
    """Runs the Lipschitz rules on forms; `whole` is the ledger of the network bound, `room_for` the most rows."""

    whole: Ledger = field(kw_only=True)
    room_for: int = field(kw_only=True)
    patience: int = field(default=sys.maxsize, kw_only=True)
    """The most rows, those of roundings aside, with which something may come of it."""
    backwards: bool = field(default=True, kw_only=True)
    """Whether ranges are sharpened backwards where a sign is open."""
    together: bool = field(default=False, kw_only=True)
    """Whether ranges are sharpened by all symbols together: quadratic_constraints.py."""
    sectors: Sectors | None = field(default=None, init=False)
    rows: int = field(default=0, init=False)
    roundings: int = field(default=0, init=False)
    """How many of the rows stand for roundings."""
    groups: list[Group] = field(default_factory=list, init=False)
    centres: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    _local: dict[str, float] = field(default_factory=dict, init=False)
    _entered: dict[str, Form] = field(default_factory=dict, init=False)
    _rests: dict[str, torch.Tensor] = field(default_factory=dict, init=False)
    _alone: dict[str, tuple[float, list[tuple[str, float]]]] = field(default_factory=dict, init=False)
    """By step, for maps that the network bound has no line for: their bound, and how roundings grow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.looks_back = False  # forms go through the operations one by one
        self._uppers = {line.step: line.upper.value for line in self.whole.lines}
        if len(self._uppers) != len(self.whole.lines):
            raise NotLipschitz("expected one bound per step for a local certificate, got a step that has two")
        self._growth = self.whole.growth()
        self._nodes = {node.name: node for node in self.graph.nodes}
        read = {node.args["self"].name for node in self.graph.nodes if node.op in LOWER_LINES}
        # Where only a ReLU reads a value, it has fewer roundings after it than before.
        self._bottlenecks = self.graph.bottlenecks()
        self._narrow = self._bottlenecks - {name for name in read if self._users[name] == 1}

    def start(self, form: Form) -> Tracked:
        """The network input, all of the ball."""
        self.rows, self.centres = len(form.rows), {"input": form.centre}
        if self.together:
            self.sectors = Sectors(form.inputs, form.rows.device)
            if len(form.rows) > form.inputs + 1:  # a box
                half = form.rows[form.inputs + 1 :].flatten(1).sum(1)
                self.sectors.add_boxed(half, float(half.mean()))
        return Tracked("input", form=form)

    def pend(self, node: Node, value: Value, linear: LinearMap) -> Value:
        assert isinstance(value, Tracked)
        if value.stretched:
            raise _without_rule(node)
        self._entered.setdefault(node.name, value.form)
        form = self._through(node, value.form, linear)
        pending = super().pend(node, value, linear)
        assert isinstance(pending, Tracked)
        return replace(pending, form=replace(form, remainder=pending.form.remainder))

    def settle(self, value: Value) -> Tracked:
        assert isinstance(value, Tracked)
        step, remainder = value.step, value.form.remainder
        for link in merged(value.chain):
            name = link.parts[-1][0].name
            if name in self._alone:
                upper, growth = self._alone[name]
            elif name in self._uppers and _names(self.whole.parts[name]) == _names(link.parts):
                upper, growth = self._uppers[name], self._growth[name]
            elif only_moves(link):
                continue
            else:  # the network bound sees more than this map at once
                upper, growth = self._alone[name] = schur_test(link.linear, self.device), self.factors(link.parts)
            added = sum(self._local.get(part, 0.0) * factor for part, factor in growth)
            remainder, step = (upper * remainder + added) * (1 + 1e-12), name
        return Tracked(step, pieces=value.pieces, form=replace(value.form, remainder=remainder, loose=remainder))

    def scaled(self, node: Node, value: Value, upper: Upper) -> Value:
        form = self.settle(value).form
        remainder = form.remainder * upper.value * (1 + 1e-15)
        return Tracked(node.name, form=replace(form, remainder=remainder, loose=remainder), stretched=True)

    def record(self, node: Node, law: Law, inputs: Sequence[Value], upper: Upper, *, exact: bool = True) -> Value:
        del exact
        forms = [self.settle(value).form for value in inputs]
        remainder = LAWS[law]([form.remainder for form in forms]) * upper.value
        if node.op in BANDS:
            form, lost = self._within_band(node, forms[0], upper.value)
        elif node.op == "max_pool2d.default":
            form, lost = largest(node, forms[0], upper.value, self._sharpened, self._bent)
        elif node.op in POOLS:
            form, lost = self._pooled(node, forms[0])
        elif node.op in JOINS:
            form, lost = self._joined(node, forms)
        else:
            raise _without_rule(node)
        self.centres[node.name] = form.centre
        remainder = (remainder + lost) * (1 + 1e-12)
        form = replace(form, remainder=remainder, loose=remainder)
        return Tracked(node.name, form=self._unburdened(node, form) if node.name in self._narrow else form)

    def check(self, node: Node, value: Value) -> None:
        """Hold the maps of a linear operation against what it does: a rule may be right about norms and wrong here.

        All of its maps have been run now, so that what its centre is off by can join its row.
        """
        before = self._entered.pop(node.name, None)
        if before is None:
            return
        assert isinstance(value, Tracked)
        form, some = value.form, slice(0, 8)
        form.rows[form.inputs] += self._rests.pop(node.name)
        if not bool(torch.isfinite(form.centre).all()):
            raise NotLipschitz(f"expected finite activations for a local certificate, got others from {node.op}")
        moved = {ref: self._centre(ref) + before.rows[some].sum(0) for ref in set(node.refs())}
        args = {name: self._resolved(arg, moved) for name, arg in node.args.items()}
        there = call(node, args)
        off = (there - form.centre - form.rows[some].sum(0)).abs()
        close = 1e-9 * (form.centre.abs() + form.reach).max() + TINY if off.numel() else 0.0
        if node.op not in EXACT:  # what cancels leaves the roundings of what was there before
            close = close + 64 * ROUNDINGS[node.op](node, args, there)
        if len(moved) != 1 or not bool((off <= close).all()):
            raise RuleError(f"the rule of {node.op} hands on a map that is not what the operation does")

    def sorted(
        self,
        node: Node,
        fork: str,
        inputs: Sequence[Value],
        law: Law,
        part: int,
        parts: int,
        upper: Upper = SORTING,
        computed: Parts = (),
    ) -> Value:
        del fork, part, parts, computed  # a form tells by itself what moves with what
        return self.record(node, law, inputs, upper)

    def range_of(self, node: Node, argument: str, number: int | None = None) -> Any:
        del argument, number
        raise _without_rule(node)

    def _through(self, node: Node, form: Form, linear: LinearMap) -> Form:
        rows = applied(linear, form.rows)
        positive = linear.absolute()
        moved = positive.apply(form.reach)
        lost = (gamma(linear.terms + 4) + linear.relative_error) * length_up(moved) * (1 + 1e-6)
        given = self._given(node)
        centre, rest, eta = self._centred(node, given)
        last = rows.shape[1:] == centre.shape
        if node.name not in self.centres:  # a node may consist of several maps; its shifts are in its centre
            lost += length_up(eta) * (1 + 1e-6)
            self._local[node.name], self._rests[node.name] = 0.0, rest
        self.centres[node.name] = centre
        self._local[node.name] += lost + TINY
        loose = (schur_test(linear, self.device) * form.loose + lost) * (1 + 1e-12) + TINY
        # A map of one term per entry scales what each row adds.
        within = moved * (1 + gamma(8) + linear.relative_error) + TINY if linear.terms == 1 else None
        reach = Form(centre, rows, form.shared, within=within).reach
        reach = (reach + rest.abs()) * (1 + gamma(2)) if last else reach
        far = positive.apply(form.reach + form.loose)
        step = Mapped((form.step,), linear, far, rest.abs() + eta if last else None, reach + loose)
        return Form(centre, rows, form.shared, loose=loose, within=reach, step=step)

    def _centred(self, node: Node, given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The value at the centre, what it is known to be off by, and a bound of what is left."""
        found = precisely(node, given)
        if found is not None:
            # The rest joins a row: one rounding more there.
            return found.value, found.rest, (found.error + gamma(4) * found.rest.abs()) * (1 + gamma(4))
        centre = call(node, given)
        eta = torch.zeros_like(centre) if node.op in EXACT else ROUNDINGS[node.op](node, given, centre)
        return centre, torch.zeros_like(centre), eta.expand_as(centre)

    def _given(self, node: Node) -> dict[str, Any]:
        """The arguments of the node, with centres for what depends on the input."""
        return {name: self._resolved(value) for name, value in node.args.items()}

    def _resolved(self, value: Any, instead: Mapping[str, torch.Tensor] = MappingProxyType({})) -> Any:
        if isinstance(value, Ref):
            return instead[value.name] if value.name in instead else self._centre(value.name)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.double()
        return [self._resolved(v, instead) for v in value] if isinstance(value, list) else value

    def _centre(self, name: str) -> torch.Tensor:
        if name not in self.centres:  # its rule handed on what it read: nothing was moved
            node = self._nodes[name]
            self.centres[name] = call(node, self._given(node))
        return self.centres[name]

    def _within_band(self, node: Node, form: Form, steepest: float) -> tuple[Form, float]:
        """f(z) for a function of one entry, with one symbol more for each entry that is not straight there."""
        low, high = self._sharpened(form)
        band = BANDS[node.op](node, self._given(node), low, high, steepest)
        if self.sectors is not None and node.name in self._bottlenecks:
            self.sectors.narrow(form, (band.slope != 0) | (band.error > 0))
        return self._bent(form, band, (low, high), relu=node.op in LOWER_LINES)

    def _sharpened(self, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
        return sharpened(form, self.groups, self.sectors, backwards=self.backwards)

    def _bent(
        self, form: Form, band: Band, ends: tuple[torch.Tensor, torch.Tensor], *, relu: bool = True
    ) -> tuple[Form, float]:
        """A function of one entry in its band over the range between `ends`, and the L2 norm of what rounding lost."""
        low, high = ends
        reach = torch.maximum(high - form.centre, form.centre - low)
        steep = band.slope.abs().clamp_min(1.0) if relu else band.slope.abs()
        size = steep * (form.centre.abs() + torch.maximum(reach, form.reach)) + band.shift.abs()
        straight = (band.error == 0) & (band.shift == 0) & ((band.slope == 0) | (band.slope == 1))
        size = size.masked_fill(straight, 0.0)  # nothing is computed
        lost = gamma(6) * length_up(size)
        before, centre, first = form, band.slope * form.centre + band.shift, self.rows
        within = (band.slope.abs() * form.reach + band.error) * (1 + gamma(8)) + TINY
        form, small, places = self._with_symbols(
            Form(centre, form.rows, form.shared, within=within), band.error, band.slope, tied=relu
        )
        if relu and len(places):
            if self.sectors is not None:
                self.sectors.add_relu(before, places, ends, band)
            group = of_relu(before, places, ends, band, first, self.groups)
            self.groups += [group] if group else []
        far = form.reach + band.slope.abs().clamp_min(1.0) * before.remainder + lost
        step = Banded((before.step,), band, before.centre, size, far, *(ends if relu else ()))
        return replace(form, step=step), lost + small + TINY

    def _with_symbols(
        self,
        form: Form,
        error: torch.Tensor,
        slope: torch.Tensor | None = None,
        *,
        everywhere: bool = False,
        tied: bool = False,
    ) -> tuple[Form, float, torch.Tensor]:
        """The form off by at most `error` in each entry, the norm of what is negligible, and the places with a symbol.

        Its rows are first multiplied by `slope`; `form.within` is already that of the result. With `everywhere`,
        nothing but zero is negligible. Of symbols that are `tied`, more is known than that they are at most 1.
        """
        assert form.within is not None
        worth = error > (0.0 if everywhere else NEGLIGIBLE * (form.centre.abs() + form.within))
        places = worth.flatten().nonzero().flatten()
        small = length_up(error.masked_fill(worth, 0.0)) * (1 + 1e-6)
        first, before = self.rows, len(form.rows)
        if len(places):
            self.rows += len(places)
        if self.rows > self.room_for or self.rows - self.roundings > self.patience:
            most = min(self.room_for, self.patience + self.roundings)
            raise TooWide(f"expected at most {most} rows, got {self.rows}")
        rows = form.rows.new_empty(self.rows if len(places) else before, *form.rows.shape[1:])
        torch.mul(form.rows, 1.0 if slope is None else slope, out=rows[:before])
        rows[before:] = 0.0
        rows.flatten(1)[torch.arange(first, first + len(places), device=places.device), places] = error.flatten()[
            places
        ]
        if self.sectors is not None and len(places) and not tied:
            self.sectors.add_boxed(error.flatten()[places], float(form.within.mean()))
        return replace(form, rows=rows), small, places

    def _unburdened(self, node: Node, form: Form) -> Form:
        """The form with its remainder as symbols, where it has grown and half of the room is left."""
        large = max(CROWDING * float(form.reach.mean()), HARMFUL * float(form.centre.abs().mean()))
        if not large < form.remainder < math.inf:
            return form
        moving = torch.ones_like(form.centre, dtype=torch.bool)
        if node.op in LOWER_LINES:
            assert isinstance(form.step, Banded)
            band = form.step.band  # where it is zero so are the output and its roundings
            moving = (band.slope != 0) | (band.shift != 0) | (band.error != 0)
        count = int(moving.sum())
        if self.rows + count > self.room_for // 2:
            return form
        start, error = self.rows, moving.double() * form.remainder
        self.roundings += count
        within = (form.reach + error) * (1 + gamma(2))
        alone = replace(form, within=within, remainder=0.0, loose=0.0)
        lighter, small, _ = self._with_symbols(alone, error, everywhere=True)
        assert not small
        self.groups.append(Group(start, self.rows, form.centre.new_zeros(count), 1.0))
        return lighter

    def _pooled(self, node: Node, form: Form) -> tuple[Form, float]:
        pooled, half, places = POOLS[node.op](node, form)
        size = pooled.centre.abs() + pooled.reach + half
        lost = gamma(6) * length_up(size)
        after, small, _ = self._with_symbols(replace(pooled, within=(pooled.reach + half) * (1 + gamma(4))), half)
        far = after.reach + 64 * form.remainder  # an entry lies in no more windows than that, squared
        step = Chosen((form.step,), places, tuple(form.centre.shape), half, size, far)
        return replace(after, step=step), lost + small + TINY

    def _joined(self, node: Node, forms: Sequence[Form]) -> tuple[Form, float]:
        centre, rest, eta = self._centred(node, self._given(node))
        count = max(len(form.rows) for form in forms)
        rows, step = JOINS[node.op](node, forms, [form.padded(count) for form in forms])
        rows[forms[0].inputs] += rest
        form = Form(centre, rows, forms[0].shared)
        form = replace(form, within=form.reach)
        # The rows are added with a rounding each, too.
        added = torch.zeros_like(centre) if node.op in EXACT else gamma(6) * reaches(node, forms)
        rounding = eta + added
        lost = length_up(rounding) * (1 + 1e-6)
        far = form.reach + sum(each.remainder for each in forms) + lost
        form = replace(form, step=step(rest.abs() + rounding, far))
        return form, lost


def _names(parts: Sequence[tuple[Node, LinearMap | None]]) -> list[str]:
    return [node.name for node, _ in parts]


def _without_rule(node: Node) -> NotLipschitz:
    return NotLipschitz(f"expected operations that have a local rule, got {node.op}")
