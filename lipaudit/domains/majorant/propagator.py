"""Majorants through a captured network, by the rules of the Lipschitz domain.

Note [Majorants]
    Between any two inputs x and x' every operation moves by z' - z = J (x' - x) for some matrix J of a known kind: of a
    linear map that map; of a function of one entry a diagonal of its secants; of a maximum rows that are means over its
    window; of sorting a mean of permutations. Of an operation of which only an L2 bound U is known, some J of norm at
    most U: one of rank one will do. So with |J| <= M entry by entry,
        forwards    |x' - x| <= 1 in every entry gives |z' - z| <= m,   m_out = M m,
        backwards   |(J_last .. J_1)^T v| <= c,   c_in = M^T c,   c = |v| at first,
    and the function <v, z> moves by at most <|v|, m> from Linf, and by at most the largest entry of c from L1. Beside
    the bounds of all entries goes one of their L2 norm, so that L2 bounds do not lose the root of the size each time.
    A rule for a linear operation hands a `LinearMap` to `ledger.pend`, as in the two other domains; what operations
    with a rule of `STEPS` do entry by entry stands there; all others count by the L2 bound that their rule records.
    Maps are held against the operation: a rule may be right about norms and wrong about entries.

Source: entrywise bounds of products of matrices; for Linf this is interval arithmetic in the worst place, e.g.
B. Zhang et al., Towards Certifying L-infinity Robustness using Neural Networks with L-inf-dist Neurons, ICML 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from lipaudit.domains.graph import Node, Ref, call
from lipaudit.domains.interpreter import walk
from lipaudit.domains.lipschitz import RULES
from lipaudit.domains.lipschitz.blocks import whole_blocks
from lipaudit.domains.lipschitz.pending import Link, Parts
from lipaudit.domains.lipschitz.propagator import INPUT, SORTING, Ledger, Value, merged, only_moves
from lipaudit.domains.majorant.steps import STEPS, Rule, one_entry
from lipaudit.domains.rounding.float64 import LAWS
from lipaudit.domains.zonotope.linear_images import transposed
from lipaudit.errors import RuleError
from lipaudit.norms.linear_maps import LinearMap
from lipaudit.results.bounds import Law, Upper
from lipaudit.results.threat import Norm, circumradius
from lipaudit.rounding import TINY, gamma, length_up, up

_WRITTEN_OUT = ("sub.Tensor", "mul.Tensor", "div.Tensor")
"""Operations of two operands that may be a function of one entry, as x sigmoid(x): then their bound is a slope."""

_MOST_ENTRIES = 2**25
"""Of one tensor, for all rows that go backwards side by side."""


@dataclass(frozen=True)
class Weight:
    """What goes backwards: |J^T v| <= c entry by entry for each v, and its L2 norm is at most `length`."""

    c: torch.Tensor
    """(rows, *shape of the tensor)."""
    length: torch.Tensor
    """(rows,)."""

    @classmethod
    def of(cls, c: torch.Tensor, length: torch.Tensor | None = None) -> Weight:
        c = c.nan_to_num(nan=math.inf, posinf=math.inf)
        norm = torch.linalg.vector_norm(c.flatten(1), dim=1) * (1 + gamma(c[0].numel() + 8)) + 1e-150
        norm = norm.nan_to_num(nan=math.inf, posinf=math.inf)
        return cls(c, norm if length is None else torch.minimum(norm, length))

    def plus(self, other: Weight) -> Weight:
        return Weight.of((self.c + other.c) * (1 + gamma(2)), (self.length + other.length) * (1 + gamma(2)))


@dataclass(frozen=True, eq=False)
class Step:
    """How a tensor came about from earlier ones (their numbers), and the way back."""

    parents: tuple[int, ...]
    """-1 is the network input."""
    back: Callable[[Weight], Sequence[Weight]]
    forth: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    """How far the output moves where the operands move by so much."""
    nodes: tuple[Node, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Of the operands."""
    shape: tuple[int, ...]
    """Of the output."""
    device: torch.device

    def stretch(self, norm: Norm) -> float:
        """How far the output moves at most where operands move by 1 in the norm: in L1, by 1 all together."""
        if norm == "linf":
            moved = [torch.ones(shape, dtype=torch.float64, device=self.device) for shape in self.shapes]
            return float(self.forth(moved).nan_to_num(nan=math.inf).amax())
        every = torch.ones(1, *self.shape, dtype=torch.float64, device=self.device)
        return max(float(part.c.amax()) for part in self.back(Weight.of(every)))


@dataclass(frozen=True)
class Moving(Value):
    """A value of the Lipschitz domain with how far its entries move, before the linear maps that are pending."""

    m: torch.Tensor = field(kw_only=True)
    """Each entry, where no entry of the network input moves by more than 1."""
    length: float = field(kw_only=True)
    """All of them together, in L2."""
    number: int = field(kw_only=True)
    """Of the step it is the output of; -1 for the network input."""


@dataclass
class Majorants(Ledger):
    """Runs the Lipschitz rules on majorants; `whole` is the ledger of the L2 bound."""

    whole: Ledger = field(kw_only=True)
    steps: list[Step] = field(default_factory=list, init=False)
    lengths: dict[str, float] = field(default_factory=dict, init=False)
    """By node: how far its output moves in L2, where no entry of the network input moves by more than 1."""
    _values: dict[str, Moving] = field(default_factory=dict, init=False)
    """By node."""
    _pended: dict[str, list[LinearMap]] = field(default_factory=dict, init=False)
    """By node."""
    _bent: set[str] = field(default_factory=set, init=False)
    """Nodes that do something else, too."""
    _known: dict[tuple[str, ...], Moving] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.looks_back = False  # one operation after the other
        self._round = circumradius("linf", math.prod(self.graph.input_shape))

    def run(self) -> Moving:
        """The logits, with what is pending. Raises what the rules raise."""
        m = torch.ones(1, *self.graph.input_shape, dtype=torch.float64, device=self.device)
        start = Moving(INPUT, m=m, length=self._round, number=-1)
        self._values[INPUT] = start
        first: Value = start
        with torch.no_grad():
            found = walk(self.graph, RULES, first, self, self._check, instead=whole_blocks(self))
        assert isinstance(found, Moving)
        return found

    def pend(self, node: Node, value: Value, linear: LinearMap) -> Value:
        self._pended.setdefault(node.name, []).append(linear)
        return super().pend(node, value, linear)

    def settle(self, value: Value) -> Moving:
        assert isinstance(value, Moving)
        key = (str(value.number), *(node.name for link in value.chain for node, _ in link.parts))
        if key not in self._known:
            found = replace(value, chain=(), pieces=())
            for link in merged(value.chain):
                found = self._through(found, link)
            self._known[key] = found
            if value.chain and found.step in self._values:  # all of what the node does
                self.lengths[found.step] = found.length
        return replace(self._known[key], pieces=value.pieces)

    def _through(self, value: Moving, link: Link) -> Moving:
        linear = link.linear.absolute()
        lost = 0.0 if only_moves(link) else 1.01 * linear.relative_error
        terms = 0 if only_moves(link) else linear.terms

        def back(weight: Weight) -> list[Weight]:
            c = transposed(linear, weight.c)
            if only_moves(link):
                return [Weight.of(c, weight.length)]
            return [Weight.of(c * (1 + gamma(2 * (terms + weight.c[0].numel()) + 8) + lost) + TINY)]

        def forth(moved: Sequence[torch.Tensor]) -> torch.Tensor:
            (m,) = moved
            m = linear.apply(m)
            return m if only_moves(link) else m * (1 + gamma(2 * terms + 8) + lost) + TINY

        nodes = tuple(part for part, _ in link.parts)
        return self._new(nodes, value.length if only_moves(link) else math.inf, [value], forth, back)

    def record(self, node: Node, law: Law, inputs: Sequence[Value], upper: Upper, *, exact: bool = True) -> Value:
        del exact
        self._bent.add(node.name)
        values = [self.settle(value) for value in inputs]
        # Branches that move apart in one tensor do so in L2: here their lengths are not shares of one.
        length = (
            up(upper.value * LAWS[law]([value.length for value in values]) * (1 + gamma(8))) if upper.value else 0.0
        )
        rule: Callable[[Node, Mapping[str, torch.Tensor], float], Rule | None] | None
        if law == "scale" and upper.method == "pointwise" and node.op in _WRITTEN_OUT:
            known, rule = {"self": values[0]}, one_entry
        else:
            known = {name: self.settle(self._values[ref]) for name, ref in _operands(node)}
            rule = STEPS.get(node.op)
        if rule is not None and rule(node, {name: value.m for name, value in known.items()}, upper.value) is not None:
            return self._entrywise(node, rule, known, length, values, upper)
        return self._by_length(node, length, values, upper, law)

    def _entrywise(
        self,
        node: Node,
        rule: Callable[..., Rule | None],
        known: Mapping[str, Moving],
        length: float,
        values: Sequence[Moving],
        upper: Upper,
    ) -> Moving:
        numbers = [value.number for value in known.values()]
        same = numbers == [value.number for value in values]

        def at(moved: Sequence[torch.Tensor]) -> Rule:
            found = rule(node, dict(zip(known, moved, strict=True)), upper.value)
            assert found is not None
            return found

        def back(weight: Weight) -> list[Weight]:
            parts = at([value.m for value in known.values()]).back(weight.c)
            most = upper.value * weight.length * (1 + gamma(4)) if same and upper.value else None
            return [Weight.of(part + TINY, most) for part in parts]

        return self._new((node,), length, list(known.values()), lambda moved: at(moved).m + TINY, back)

    def _by_length(
        self, node: Node, length: float, values: Sequence[Moving], upper: Upper, law: Law = "scale"
    ) -> Moving:
        def back(weight: Weight) -> list[Weight]:
            nothing = torch.zeros_like(weight.length)
            far = upper.value * weight.length * (1 + gamma(4)) + TINY if upper.value else nothing
            return [_spread(far, value.m) for value in values]

        def forth(moved: Sequence[torch.Tensor]) -> torch.Tensor:
            far = LAWS[law]([length_up(m) for m in moved]) * upper.value * (1 + gamma(8)) if upper.value else 0.0
            return torch.full(tuple(node.shape), far, dtype=torch.float64, device=self.device)

        return self._new((node,), length, values, forth, back)

    def scaled(self, node: Node, value: Value, upper: Upper) -> Value:
        source = self.settle(value)
        self._bent.add(node.name)
        return self._by_length(node, up(upper.value * source.length), [source], upper)

    def replaced(
        self, node: Node, value: Value, upper: Upper, parts: Parts, grown: list[tuple[str, float]]
    ) -> Value | None:
        del parts, grown
        source = self.settle(value)
        self._bent.add(node.name)
        return self._by_length(node, up(upper.value * source.length), [source], upper)

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
        del fork, part, parts, computed  # entries tell by themselves how far each moves
        return self.record(node, law, inputs, upper)

    def _new(
        self,
        nodes: tuple[Node, ...],
        length: float,
        parents: Sequence[Moving],
        forth: Callable[[Sequence[torch.Tensor]], torch.Tensor],
        back: Callable[[Weight], Sequence[Weight]],
    ) -> Moving:
        moved = [parent.m for parent in parents]
        m = forth(moved).nan_to_num(nan=math.inf, posinf=math.inf)
        length = min(length, length_up(m))
        shapes = tuple(tuple(m.shape) for m in moved)
        numbers = tuple(parent.number for parent in parents)
        self.steps.append(Step(numbers, back, forth, nodes, shapes, tuple(m.shape), self.device))
        return Moving(nodes[-1].name, m=m.clamp_max(length), length=length, number=len(self.steps) - 1)

    def largest(self, value: Moving, c: torch.Tensor) -> torch.Tensor:
        """How far <v, z> moves at most where the network input moves by 1 in L1, z being the value, for all |v| <= c.

        One number for each row of `c`, (rows, *shape).
        """
        most = max(
            value.m.numel(), max(math.prod(node.shape) for node in self.graph.nodes), self._values[INPUT].m.numel()
        )
        return torch.cat([self._backwards(value, part) for part in c.split(max(1, _MOST_ENTRIES // most))])

    def _backwards(self, value: Moving, c: torch.Tensor) -> torch.Tensor:
        waiting = {value.number: Weight.of(c)}
        while max(waiting) >= 0:
            number = max(waiting)
            step, weight = self.steps[number], waiting.pop(number)
            for parent, part in zip(step.parents, step.back(weight), strict=True):
                waiting[parent] = waiting[parent].plus(part) if parent in waiting else part
        last = waiting[-1]
        return torch.minimum(last.c.flatten(1).amax(1), last.length)

    def _check(self, node: Node, value: Value) -> None:
        """Holds the maps of a linear operation against what it does, between two random inputs."""
        assert isinstance(value, Moving)
        self._values[node.name] = value
        if not value.chain and value.step == node.name:
            self.lengths[node.name] = value.length
        maps = self._pended.pop(node.name, [])
        refs = set(node.refs())
        if not maps or node.name in self._bent:
            return
        generator = torch.Generator().manual_seed(len(self._values))
        shape = self._shapes[next(iter(refs))]
        x, d = (torch.randn(shape, generator=generator, dtype=torch.float64).to(self.device) for _ in range(2))
        image = d
        for linear in maps:
            image = linear.apply(image)
        here, there = (call(node, {k: _given(v, at) for k, v in node.args.items()}) for at in (x, x + d))
        held = torch.isfinite(here) & torch.isfinite(there)
        off = (there - here - image.reshape(here.shape)).masked_fill(~held, 0.0)
        size = (here.abs() + there.abs()).masked_fill(~held, 0.0)
        close = 1e-9 * (size.max() + image.abs().max()) + TINY if off.numel() else 0.0
        if len(refs) != 1 or not bool((off.abs() <= close).all()):
            raise RuleError(f"the rule of {node.op} hands on a map that is not what the operation does")


def _operands(node: Node) -> list[tuple[str, str]]:
    """The arguments that depend on the input, and what they read; in a list by their place in it."""
    found: list[tuple[str, str]] = []
    for name, value in node.args.items():
        parts = enumerate(value) if isinstance(value, (list, tuple)) else [("", value)]
        found += [(f"{name}{place}", part.name) for place, part in parts if isinstance(part, Ref)]
    return found


def _given(value: object, at: torch.Tensor) -> object:
    if isinstance(value, Ref):
        return at
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    return [_given(each, at) for each in value] if isinstance(value, list) else value


def _spread(length: torch.Tensor, like: torch.Tensor) -> Weight:
    """Of a vector of that length nothing but it is known."""
    c = length.reshape(-1, *(1,) * like.ndim).expand(len(length), *like.shape)
    return Weight(c, length)
