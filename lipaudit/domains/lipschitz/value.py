"""The abstract value of the Lipschitz domain, and the ledger that the rules write.

Note [Pieces]
    Slices of one tensor that are processed apart and concatenated again move independently: with S_i disjoint
    selections and f_i of Lipschitz constant L_i, ||cat f_i(S_i dx)||^2 <= sum L_i^2 ||S_i dx||^2, so the whole has
    max L_i, not the root of the sum of their squares. So a value remembers of which pieces of which tensors it is a
    function: `Piece(fork, entries)` says that it depends on the network input only through those entries of the
    output of node `fork`, and that its bound contains the bound of that output as a factor. Rounding errors of the
    branches are not pieces of one error; the certificate adds those of a `max` step by root of squares.

Note [Room for rounding]
    A factor read off a range, |y| of a product x y, holds for the exact values. The evaluated ones are off by some
    error e, and |x' y' - x y| <= |y'| e_x + |x| e_y has the evaluated y'. So such factors are taken for a range wider
    by a relative ROOM, and hold as long as no error exceeds what was added: the smallest of all these is `room`.

Note [Pending maps]
    Between two nonlinear operations a network is linear, and the norm of the composite is at most the product of
    the norms, often far below it (batch norm after a convolution). So a linear operation does not bound anything:
    it appends its map to the value. Only an operation that needs a number settles the value: neighbouring maps
    are merged (`maps.merge`), each merged map is bounded, and each bound becomes a line of the ledger.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
import torch

from lipaudit.claims import Law, LayerBound, Upper
from lipaudit.domains.ranges import Range, walk_ranges
from lipaudit.domains.roundoff import EXACT
from lipaudit.domains.walk import Rules
from lipaudit.errors import NotLipschitz, RuleError
from lipaudit.graph import Graph, Node
from lipaudit.journal import Parts, fingerprint
from lipaudit.norms import norm_bound
from lipaudit.norms.maps import Conv, Dense, Gather, Identity, LinearMap, Transposed, merge, schur_test
from lipaudit.norms.power import lower_bound
from lipaudit.progress import Progress, Silent
from lipaudit.rounding import WIDE, log10_up, up, wide, wide_sqrt

RULES = Rules("Lipschitz rule")

BOUNDED: set[str] = set()
"""Operations whose rules ask for the ranges of their arguments; each module adds its own."""

ROOM = 1e-6
"""See Note [Room for rounding]."""

INPUT = "input"
"""The step that stands for the network input."""


@dataclass(frozen=True)
class Link:
    """A linear operation that has not been bounded yet; `parts` are the nodes that were merged into it."""

    linear: LinearMap
    parts: tuple[tuple[Node, LinearMap], ...]

    @property
    def heavy(self) -> bool:
        return isinstance(self.linear, (Conv, Dense, Transposed))


@dataclass(frozen=True, eq=False)
class Piece:
    """Some entries of the output of a node; see Note [Pieces]."""

    fork: str
    entries: torch.Tensor
    """Boolean, one for each entry of the output."""


@dataclass(frozen=True)
class Value:
    """A tensor as a function of the network input: a bounded step of the ledger, then linear maps."""

    step: str
    chain: tuple[Link, ...] = ()
    pieces: tuple[Piece, ...] = ()


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
    parts: dict[str, tuple[tuple[Node, LinearMap | None], ...]] = field(default_factory=dict)
    """The operations that each step consists of: where rounding errors arise."""
    domain: tuple[float, float] | None = None
    """The range of the entries of the network input; without it, operations that need one are refused."""
    journal: Parts | None = None
    """Keeps what was found about convolutions and dense maps."""
    room: float = math.inf
    """No bound that rests on ranges holds where rounding errors exceed this; see Note [Room for rounding]."""
    _ranges: Iterator[tuple[str, Range]] | None = None
    _kept: dict[str, Range] = field(default_factory=dict)
    _last_bounded: dict[str, str] = field(default_factory=dict)
    """By node: the last operation that asks for its range."""
    _settled: dict[tuple[str, ...], str] = field(default_factory=dict)
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

    def shape_of(self, node: Node, argument: str) -> tuple[int, ...]:
        """Shape of what the node reads as that argument, with the leading axis of one."""
        return self._shapes[node.args[argument].name]

    def pend(self, node: Node, value: Value, linear: LinearMap) -> Value:
        """The value after one more linear operation; settled at once where several readers would repeat work."""
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
        return {step: self._factors(parts) for step, parts in self.parts.items()}

    def _factors(self, parts: Sequence[tuple[Node, LinearMap | None]]) -> list[tuple[str, float]]:
        factors, factor = [], 1.0
        for position, (node, linear) in reversed(list(enumerate(parts))):
            factors.append((node.name, factor))
            if linear is not None and position > 0:
                factor = up(factor * schur_test(linear, self.device))
        return factors

    def settle(self, value: Value) -> Value:
        """The same tensor with every pending map bounded and on the ledger."""
        key = (value.step, *(node.name for link in value.chain for node, _ in link.parts))
        if key not in self._settled:
            step = value.step
            for link in merged(value.chain):
                step = self._bound_map(step, link)
            self._settled[key] = step
        return Value(self._settled[key], pieces=value.pieces)

    def record(self, node: Node, law: Law, inputs: Sequence[Value], upper: Upper, *, exact: bool = True) -> Value:
        """The value after a nonlinear or joining operation; exactly one times one input, unrounded, needs no line."""
        steps = [self.settle(value).step for value in inputs]
        pieces = _joined([value.pieces for value in inputs])
        if law == "scale" and upper.value == 1.0 and node.op in EXACT:
            return Value(steps[0], pieces=pieces)
        bounds = [self.so_far[step] for step in steps]
        if law == "sum":
            total = bounds[0]
            for bound in bounds[1:]:
                total = WIDE.add(total, bound)
        elif law == "root_sum_squares":
            total = Decimal(0)
            for bound in bounds:
                total = WIDE.add(total, WIDE.multiply(bound, bound))
            total = wide_sqrt(total)
        else:
            total = max(bounds)
        kind = "exact" if exact and law == "scale" else "upper"
        return Value(self._write(node, law, steps, upper, total, kind=kind), pieces=pieces)

    def scaled(self, node: Node, value: Value, upper: Upper) -> Value:
        """One operand of a node with several, times how far the output follows it: a line of its own."""
        step = self.settle(value).step
        name = self._write(node, "scale", [step], upper, self.so_far[step], kind="upper", part=True)
        return Value(name, pieces=value.pieces)

    def _bound_map(self, step: str, link: Link) -> str:
        isometric = isinstance(link.linear, Identity) or (isinstance(link.linear, Gather) and link.linear.isometric)
        if isometric and all(node.op in EXACT for node, _ in link.parts):
            return step
        node = link.parts[-1][0]
        upper, candidates, lower, seconds = self._found(node, link)
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
            upper, *candidates = (Upper(*one) for one in each)
            low = float(kept["lower"])
            return upper, tuple(candidates), None if math.isnan(low) else low, float(kept["seconds"])
        began = time.perf_counter()
        upper, candidates = norm_bound(link.linear, self.method)
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
        return upper, tuple(candidates), lower, seconds

    def _write(
        self,
        node: Node,
        law: Law,
        steps: Sequence[str],
        upper: Upper,
        total: Decimal,
        *,
        kind: str,
        parts: tuple[tuple[Node, LinearMap | None], ...] = (),
        part: bool = False,
        **measured: object,
    ) -> str:
        parts = parts or ((node, None),)
        step_name = node.name
        if part:
            step_name = f"{node.name}#{sum(line.step.startswith(node.name + '#') for line in self.lines) + 1}"
        bound = WIDE.multiply(wide(upper.value), total)
        names = list(dict.fromkeys(part.title for part, _ in parts))
        line = LayerBound(
            name=" + ".join(names),
            op=" + ".join(_spoken(part.op) for part, _ in parts),
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


def _told(linear: LinearMap) -> list[Any]:
    """All that a map is made of, for a fingerprint."""
    found: list[Any] = [type(linear).__name__]
    for part in fields(linear):
        value = getattr(linear, part.name)
        if isinstance(value, torch.Tensor):
            found.append(value.detach().cpu().numpy())
        else:
            found += _told(value) if is_dataclass(value) else [value]
    return found


def _joined(pieces: Sequence[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """What is common to all: the forks of which each is a function, with the entries of any."""
    forks = [{piece.fork: piece.entries for piece in some} for some in pieces]
    common = [name for name in forks[0] if all(name in fork for fork in forks)] if forks else []
    return tuple(Piece(name, torch.stack([fork[name] for fork in forks]).any(0)) for name in common)


def _spoken(op: str) -> str:
    """`_native_batch_norm_legit_no_training.default` is batch_norm to everybody."""
    return op.split(".")[0].removeprefix("_native_").removesuffix("_legit_no_training")


def merged(chain: Sequence[Link]) -> list[Link]:
    """Neighbouring maps put together where their composite is a map of a known kind."""
    links: list[Link] = []
    for link in chain:
        together = merge(links[-1].linear, link.linear) if links else None
        if together is None:
            links.append(link)
        else:
            links[-1] = Link(together, (*links[-1].parts, *link.parts))
    # A scaling that could not go backwards may still go forwards: scale, then (conv merged with its batch norm).
    return links if len(links) == len(chain) else merged(links)
