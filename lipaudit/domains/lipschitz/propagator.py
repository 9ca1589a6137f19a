"""The ledger that the rules of the Lipschitz domain write: values are in `pending.py`.

Note [Sorted]
    max(a, b) and min(a, b), entry by entry, are the larger and the smaller halves of the sorted pairs (a, b), and the
    maximum and the minimum along an axis are the first and the last part of the tensor sorted along it. Sorting brings
    no two vectors farther apart (rearrangement inequality), so they are disjoint pieces of a tensor that moves no
    farther than the pairs, or than the tensor before it was sorted: of a fork that no node of the graph computes.

Note [Room for rounding]
    A factor read off a range, |y| of a product x y, holds for the exact values. The evaluated ones are off by some
    error e, and |x' y' - x y| <= |y'| e_x + |x| e_y has the evaluated y'. So such factors are taken for a range wider
    by a relative ROOM, and hold as long as no error exceeds what was added: the smallest of all these is `room`.

"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
import torch

from lipaudit.domains.graph import Graph, Node
from lipaudit.domains.interpreter import Rules
from lipaudit.domains.intervals import Range, walk_ranges
from lipaudit.domains.lipschitz.pairs import MONOTONE, pair_bound
from lipaudit.domains.lipschitz.pending import Inner as Inner  # the rules read these names here
from lipaudit.domains.lipschitz.pending import Link as Link
from lipaudit.domains.lipschitz.pending import Parts, joined
from lipaudit.domains.lipschitz.pending import Piece as Piece
from lipaudit.domains.lipschitz.pending import Value as Value
from lipaudit.domains.lipschitz.pending import merged as merged
from lipaudit.domains.lipschitz.pending import only_moves as only_moves
from lipaudit.domains.rounding.float64 import EXACT
from lipaudit.errors import NotLipschitz, RuleError
from lipaudit.files.journal import Parts as KeptParts
from lipaudit.files.journal import fingerprint
from lipaudit.norms.linear_maps import Dense, Gather, LinearMap, Scale, schur_test
from lipaudit.norms.methods import norm_bound
from lipaudit.norms.power_iteration import lower_bound
from lipaudit.progress import Progress, Silent
from lipaudit.results.bounds import Kind, Law, LayerBound, Upper
from lipaudit.rounding import WIDE, log10_up, up, wide, wide_sqrt

RULES = Rules("Lipschitz rule")

BOUNDED: set[str] = set()
"""Operations whose rules ask for the ranges of their arguments; each module adds its own."""

ROOM = 1e-6
"""See Note [Room for rounding]."""

SORTING = Upper(1.0, "pointwise", "sorting")

INPUT = "input"
"""The step that stands for the network input."""


@dataclass
class Ledger:
    """The flat proof: one `LayerBound` per bounded step, in order."""

    graph: Graph
    device: torch.device
    method: str = "best"
    measure: bool = True
    """Also measure each convolution and dense map from below."""
    progress: Progress = field(default_factory=Silent)
    lines: list[LayerBound] = field(default_factory=list)
    so_far: dict[str, Decimal] = field(default_factory=lambda: {INPUT: Decimal(1)})
    """Lipschitz bound from the network input to each step."""
    parts: dict[str, Parts] = field(default_factory=dict)
    """The operations that each step consists of: where rounding errors arise."""
    domain: tuple[float, float] | None = None
    """The range of the entries of the network input; without it, operations that need one are refused."""
    journal: KeptParts | None = None
    """Keeps what was found about convolutions and dense maps."""
    room: float = math.inf
    """No bound that rests on ranges holds where rounding errors exceed this; see Note [Room for rounding]."""
    looks_back: bool = field(default=True, init=False)
    """Whether rules may bound several operations at once by a better argument."""
    entering: dict[str, Value] = field(default_factory=dict)
    """By node, for functions of one entry that nowhere fall: what they read, with its pending maps."""
    norms: dict[str, float] = field(default_factory=dict)
    """By node, for maps inside of a block that is bounded at once: what is proved of the norm."""
    inner: dict[str, Inner] = field(default_factory=dict)
    """By node, for sums of branches that are one map."""
    maps: dict[str, LinearMap] = field(default_factory=dict)
    """By node, for linear operations: the map."""
    _grown: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    _ranges: Iterator[tuple[str, Range]] | None = None
    _kept: dict[str, Range] = field(default_factory=dict)
    _last_bounded: dict[str, str] = field(default_factory=dict)
    """By node: the last operation that asks for its range."""
    _settled: dict[tuple[str, ...], str] = field(default_factory=dict)
    _maps: dict[str, tuple[str, Link]] = field(default_factory=dict)
    """By step, for linear maps: the step before, and the map."""
    _forks: dict[str, Value] = field(default_factory=dict)
    _users: dict[str, int] = field(init=False)
    _shapes: dict[str, tuple[int, ...]] = field(init=False)
    _places: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._users = self.graph.users()
        self._shapes = {node.name: node.shape for node in self.graph.nodes}
        self._shapes[INPUT] = (1, *self.graph.input_shape)
        self._places = {node.name: place for place, node in enumerate(self.graph.nodes)}

    @property
    def used_domain(self) -> bool:
        """Whether some bound holds only for network inputs in the domain."""
        return self._ranges is not None

    def node(self, name: str) -> Node | None:
        """The node of that name; None for the network input."""
        return self.graph.nodes[self._places[name]] if name in self._places else None

    def shape_of(self, node: Node, argument: str) -> tuple[int, ...]:
        """Shape of what the node reads as that argument, with the leading axis of one."""
        return self._shapes[node.args[argument].name]

    def pend(self, node: Node, value: Value, linear: LinearMap) -> Value:
        """The value after one more linear operation; settled at once where several readers would repeat work."""
        self.maps[node.name] = linear
        pending = replace(value, chain=(*value.chain, Link(linear, ((node, linear),))))
        repeated = self._users.get(node.name, 0) > 1 and any(link.heavy for link in pending.chain)
        return self.settle(pending) if repeated else pending

    def select(self, node: Node, value: Value, operand: str, linear: Gather) -> Value:
        """The value after a node that hands on some entries of its argument, each at most once: a piece of it."""
        source = self.settle(value)  # so that the bound of the whole is a factor of what becomes of the piece
        shape = self.shape_of(node, operand)
        count = math.prod(shape)
        places = linear.apply(torch.arange(count, dtype=torch.float64, device=self.device).reshape(shape))
        entries = torch.zeros(count, dtype=torch.bool, device=self.device)
        entries[places.long().flatten()] = True
        if int(entries.sum()) != places.numel():
            return self.pend(node, value, linear)
        piece = Piece(node.args[operand].name, entries)
        # Distinct entries: the rows of the map are orthogonal and of length one.
        return self.pend(node, replace(source, pieces=(*source.pieces, piece)), replace(linear, coisometry=1.0))

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
        """One of several pieces of a sorted tensor, such as all the smaller ones of pairs; see Note [Sorted].

        The tensor `fork` is at most `upper` times as far from another as its `inputs`, joined by `law`; the node is its
        `part` of `parts`. `computed` are the nodes that give the parts, where they round.
        """
        if fork not in self._forks:
            grown = [(each.name, 1.0) for each, _ in computed]
            self._forks[fork] = self.record_block(replace(node, name=fork), law, inputs, upper, computed, grown)
        whole = self._forks[fork]
        entries = torch.zeros(parts, math.prod(node.shape), dtype=torch.bool, device=self.device)
        entries[part] = True
        return replace(whole, pieces=(*whole.pieces, Piece(fork, entries.flatten())))

    def widened(self, bound: float, quantity: float | None = None) -> float:
        """A bound read off ranges, with room for rounding; `quantity` is what the room is a share of, if not it."""
        self.room = min(self.room, ROOM * (bound if quantity is None else quantity))
        return bound * (1 + 2 * ROOM)

    def range_of(self, node: Node, argument: str, number: int | None = None) -> Range:
        """Bounds of what the node reads as that argument, over all network inputs in the domain.

        Raises `NotLipschitz` if the audit was given no domain.
        """
        if self.domain is None:
            raise NotLipschitz(
                f"{node.op} has a bound only where its inputs are bounded; give the range of the network input, "
                "domain=(0, 1) for pixels"
            )
        if self._ranges is None:
            self._ranges = walk_ranges(self.graph, *self.domain)
            readers = ((name, each.name) for each in self.graph.nodes if each.op in BOUNDED for name in each.refs())
            self._last_bounded = dict(readers)
        read = (node.args[argument] if number is None else node.args[argument][number]).name
        while read not in self._kept:
            name, found = next(self._ranges, ("", None))
            if found is None:
                raise RuleError(f"{node.op} asks for a range that no operation of its kind was to ask for any more")
            if name in self._last_bounded:
                self._kept[name] = found
        found = self._kept[read]
        # The walk comes by in the order of the graph: what no later node asks for is not needed any more.
        place = self._places[node.name]
        self._kept = {name: r for name, r in self._kept.items() if self._places[self._last_bounded[name]] >= place}
        return found

    def growth(self) -> dict[str, list[tuple[str, float]]]:
        """For each step the operations it consists of, with how far a rounding error made there grows within the step.

        In a merged step, the error of an early map passes through the maps after it (their Schur tests).
        """
        return {step: self._grown.get(step) or self.factors(parts) for step, parts in self.parts.items()}

    def covered(self) -> Iterator[tuple[Node, LinearMap | None]]:
        """The operations whose rounding errors some step counts, with their maps."""
        for node, linear in itertools.chain.from_iterable(self.parts.values()):
            yield node, linear
            if node.name in self.inner:
                yield from ((part, inner) for part, inner, _ in self.inner[node.name].parts)

    def factors(self, parts: Sequence[tuple[Node, LinearMap | None]]) -> list[tuple[str, float]]:
        """The operations of one step, and how far a rounding error of each grows until its end."""
        factors, factor = [], 1.0
        for position, (node, linear) in reversed(list(enumerate(parts))):
            factors.append((node.name, factor))
            if node.name in self.inner:
                factors += [(part.name, up(factor * growth)) for part, _, growth in self.inner[node.name].parts]
            if linear is not None and position > 0:
                factor = up(factor * schur_test(linear, self.device))
        return factors

    def settle(self, value: Value) -> Value:
        """The same tensor with every pending map bounded and on the ledger."""
        key = self._key(value)
        if key not in self._settled:
            step = value.step
            for link in merged(value.chain):
                step = self._bound_map(step, link)
            self._settled[key] = step
        return Value(self._settled[key], pieces=value.pieces)

    def known_step(self, value: Value) -> str | None:
        """The step of the value, if its pending maps are bounded already or none needs to be."""
        if all(only_moves(link) for link in merged(value.chain)):
            return value.step
        return self._settled.get(self._key(value))

    def growth_between(self, first: str, last: str) -> Decimal | None:
        """How far distances grow from one step to another that sees the input only through it; None if unknown.

        By the lines in between alone: `so_far` may be smaller than this, by lines that go past the first step.
        """
        found = {first: Decimal(1)}
        for line in self.lines:
            if last in found:
                break
            if line.step not in found and all(step in found for step in line.inputs):
                inputs = [found[step] for step in line.inputs]
                found[line.step] = WIDE.multiply(wide(line.upper.value), _joined(line.law, inputs))
        return found.get(last)

    def record(self, node: Node, law: Law, inputs: Sequence[Value], upper: Upper, *, exact: bool = True) -> Value:
        """The value after a nonlinear or joining operation; exactly one times one input, unrounded, needs no line."""
        return self.record_block(node, law, inputs, upper, (), [], exact=exact)

    def record_block(
        self,
        node: Node,
        law: Law,
        inputs: Sequence[Value],
        upper: Upper,
        parts: Parts,
        grown: list[tuple[str, float]],
        *,
        exact: bool = True,
    ) -> Value:
        """`record` for a whole block that ends in the node, with `parts` and `grown` as `replaced` has them."""
        if grown:
            self._grown[node.name] = grown
        steps = [self.settle(value).step for value in inputs]
        pieces = joined([value.pieces for value in inputs])
        if law == "scale" and upper.value == 1.0 and node.op in EXACT:
            return Value(steps[0], pieces=pieces)
        total = _joined(law, [self.so_far[step] for step in steps])
        kind: Kind = "exact" if exact and law == "scale" else "upper"
        return Value(self._write(node, law, steps, upper, total, kind=kind, parts=parts), pieces=pieces)

    def replaced(
        self,
        node: Node,
        value: Value,
        upper: Upper,
        parts: Parts,
        grown: list[tuple[str, float]],
    ) -> Value | None:
        """The value after a whole block of the graph that ends in the node, bounded at once by a better argument.

        `parts` are the operations of the block, `grown` how far a rounding error of each grows until its end.
        """
        step = self.settle(value).step
        self._grown[node.name] = grown
        ops = dict.fromkeys(spoken(part.op) for part, _ in parts)
        bound = self.so_far[step]
        return Value(self._write(node, "scale", [step], upper, bound, kind="upper", parts=parts, op=" + ".join(ops)))

    def lines_to(self, step: str) -> list[LayerBound]:
        """The lines that the bound of this step rests on: not those of blocks that a better argument bounds."""
        wanted, kept = {step}, []
        for line in reversed(self.lines):
            if line.step in wanted:
                kept.append(line)
                wanted.update(line.inputs)
        return kept[::-1]

    def scaled(self, node: Node, value: Value, upper: Upper) -> Value:
        """One operand of a node with several, times how far the output follows it: a line of its own."""
        step = self.settle(value).step
        name = self._write(node, "scale", [step], upper, self.so_far[step], kind="upper", part=True)
        return Value(name, pieces=value.pieces)

    def _key(self, value: Value) -> tuple[str, ...]:
        return (value.step, *(node.name for link in value.chain for node, _ in link.parts))

    def _bound_map(self, step: str, link: Link) -> str:
        if only_moves(link):
            return step
        node = link.parts[-1][0]
        self._maps[node.name] = step, link
        began = time.perf_counter()
        pair = self._pair(link)
        spent = time.perf_counter() - began
        upper, candidates, lower, seconds = self._found(node, link)
        if pair is not None:
            before, parts, both, grown = pair
            apart = WIDE.multiply(wide(upper.value), self.so_far[step])
            if WIDE.multiply(wide(both.value), self.so_far[before]) < apart:
                self._grown[node.name] = grown
                total, seconds = self.so_far[before], seconds + spent
                return self._write(node, "scale", [before], both, total, kind="upper", parts=parts, seconds=seconds)
        exact = upper.method in ("svd-verified", "diagonal", "isometry") or "(exact)" in upper.because
        return self._write(
            node,
            "scale",
            [step],
            upper,
            self.so_far[step],
            kind="exact" if exact else "upper",
            parts=link.parts,
            candidates=candidates,
            lower=lower,
            seconds=seconds,
        )

    def _pair(self, link: Link) -> tuple[str, Parts, Upper, list[tuple[str, float]]] | None:
        """The step before a dense layer, an activation and this one, all of these, and their bound (pairs.py)."""
        read = link.parts[0][0].refs()
        bend = self.node(read[0]) if len(read) == 1 and self.looks_back else None
        if bend is None or bend.name not in self.entering or bend.op not in MONOTONE:
            return None
        # What only moves entries has no step of its own: the activation has to read the layer itself.
        entered = self.settle(self.entering[bend.name]).step
        before, first = self._maps.get(entered, ("", None))
        if (
            first is None
            or bend.refs() != [entered]
            or not isinstance(first.linear, Dense)
            or not isinstance(link.linear, Dense)
        ):
            return None
        guesses = [linear for _, linear in (*first.parts[::-1], *link.parts) if isinstance(linear, Scale)]
        upper = pair_bound(first.linear, link.linear, MONOTONE[bend.op], guesses)
        if upper is None:
            return None
        parts = (*first.parts, (bend, None), *link.parts)
        return before, parts, upper, self.through(parts, MONOTONE[bend.op])

    def through(self, parts: Parts, slope: float, last: float = 1.0) -> list[tuple[str, float]]:
        """How far a rounding error of each part grows until the end, through maps and an activation of that slope.

        Where the last part is a sum, `last` is what it multiplies the parts before it by.
        """
        found, factor = [], 1.0
        for node, linear in reversed(parts):
            found.append((node.name, factor))
            through = (last if node is parts[-1][0] else slope) if linear is None else schur_test(linear, self.device)
            factor = up(factor * through)
        return found

    def _found(self, node: Node, link: Link) -> tuple[Upper, tuple[Upper, ...], float | None, float]:
        """The bound of a map, those it was chosen from, a norm measured from below, and the seconds that it all took.

        From the journal where it holds them of the very same map.
        """
        keep, part, about = self.journal if link.heavy else None, f"bound-{node.name}", ""
        if keep is not None:
            about = fingerprint(keep.version, self.method, self.measure, self.device.type, *_told(link.linear))
        kept = None if keep is None else keep.get(part, about)
        if kept is not None:
            each = zip(kept["value"].tolist(), kept["method"].tolist(), kept["because"].tolist(), strict=True)
            upper, *others = (Upper(*one) for one in each)
            low = float(kept["lower"])
            return upper, tuple(others), None if math.isnan(low) else low, float(kept["seconds"])
        began = time.perf_counter()
        upper, candidates = norm_bound(link.linear, self.method, self.device)
        lower = lower_bound(link.linear, device=self.device) if link.heavy and self.measure else None
        seconds = time.perf_counter() - began
        if keep is not None:
            every = (upper, *candidates)
            keep.put(
                part,
                about,
                seconds,
                value=np.array([one.value for one in every]),
                method=np.array([one.method for one in every]),
                because=np.array([one.because for one in every]),
                lower=np.array(math.nan if lower is None else lower),
            )
        return upper, candidates, lower, seconds

    def _write(
        self,
        node: Node,
        law: Law,
        steps: Sequence[str],
        upper: Upper,
        total: Decimal,
        *,
        kind: Kind,
        parts: Parts = (),
        part: bool = False,
        op: str = "",
        **measured: Any,
    ) -> str:
        parts = parts or ((node, None),)
        step_name = node.name
        if part:
            step_name = f"{node.name}#{sum(line.step.startswith(node.name + '#') for line in self.lines) + 1}"
        bound = WIDE.multiply(wide(upper.value), total)
        names = list(dict.fromkeys(part.title for part, _ in parts))
        line = LayerBound(
            name=" + ".join(names),
            op=op or " + ".join(spoken(part.op) for part, _ in parts),
            upper=upper,
            law=law,
            inputs=tuple(steps),
            step=step_name,
            log10_so_far=log10_up(bound),
            shape=node.shape[1:],
            kind=kind,
            source=parts[0][0].source,
            **measured,
        )
        self.lines.append(line)
        # The rounding of an operation with several operands arises once, where they are joined.
        self.so_far[step_name], self.parts[step_name] = bound, () if part else parts
        self.progress.advance(0 if part else len(parts), line.name)
        return step_name


def _joined(law: Law, bounds: Sequence[Decimal]) -> Decimal:
    """How far the operands of a step move together, rounded up."""
    if law == "sum":
        total = bounds[0]
        for bound in bounds[1:]:
            total = WIDE.add(total, bound)
        return total
    if law == "root_sum_squares":
        total = Decimal(0)
        for bound in bounds:
            total = WIDE.add(total, WIDE.multiply(bound, bound))
        return wide_sqrt(total)
    return max(bounds)


def _told(linear: Any) -> list[Any]:
    """All that a map is made of, for a fingerprint."""
    found: list[Any] = [type(linear).__name__]
    for part in fields(linear):
        value = getattr(linear, part.name)
        if isinstance(value, torch.Tensor):
            found.append(value.detach().cpu().numpy())
        else:
            found += _told(value) if is_dataclass(value) else [value]
    return found


def spoken(op: str) -> str:
    """`_native_batch_norm_legit_no_training.default` is batch_norm to everybody."""
    return op.split(".")[0].removeprefix("_native_").removesuffix("_legit_no_training")
