"""Polynomials p(N) of one linear operator: exponentials of skew convolutions, cut off after some terms.

Note [Polynomials]
    x + N x + N(N x) / 2 + ... is p(N) x for one polynomial p, whatever the order in which a network computes it. Let N
    be a convolution of stride 1 that pads as far as its kernel reaches, by zeros or around the border, or a square
    matrix. Then its transpose is the convolution of the flipped kernel K'[j, i, -a] = K[i, j, a] with the same padding
    (what a zero padding cuts off, it cuts off of both), so the kernel of N' = (N - N^T) / 2 is (K - K') / 2. N' is
    skew, so normal, with the spectrum in i [-rho, rho], rho = ||N|| >= ||N'||, and
        ||p(N')|| = max |p(i t)| over its spectrum <= max |p(i t)|, |t| <= rho.
    With E = N - N', N^k - N'^k is a sum of k products of E with k - 1 factors of norm rho at most:
        ||p(N)|| <= max |p(i t)| + sum_k |c_k| k rho^(k-1) ||E||.
    Likewise (N + N^T) / 2 and max |p(t)| for symmetric kernels. The bound is never above sum_k |c_k| rho^k, what the
    sum of the branches has. The coefficients c_k are fractions, without rounding.
    Source: Singla and Feizi, ICML 2021 (SOC, where the series is infinite); with p and E made explicit here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch

from lipaudit.domains.bernstein import float_up, largest_value, square_on_axis, sum_up
from lipaudit.domains.graph import Graph, Node, Ref, refs_in
from lipaudit.domains.lipschitz.propagator import INPUT, RULES, Ledger, Value
from lipaudit.errors import LipauditError
from lipaudit.norms.linear_maps import Conv, Dense, Identity, LinearMap, Pad, Scale, schur_test
from lipaudit.norms.merging import merge
from lipaudit.norms.methods import norm_bound
from lipaudit.results.bounds import Upper
from lipaudit.rounding import TINY, UNIT, up

_MOST_TERMS = 64
"""Polynomials of a higher degree are taken apart."""

_NORMAL = 1e-3
"""A kernel is taken for a skew or a symmetric one if it is off by less than this share."""

_SUMS = ("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar", "rsub.Scalar", "rsub.Tensor")
_FACTORS = ("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar", "neg.default")
_MAPS = (
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding",
    "linear.default",
)  # fmt: skip
_PADS = ("pad.default", "constant_pad_nd.default")

Coefficients = tuple[Fraction, ...]


@dataclass(frozen=True)
class _Term:
    """The output of a node as p(N) of the output of another one, perhaps padded for what comes next."""

    source: str
    coefficients: Coefficients
    operator: int | None = None
    """Which operator N is; None for a polynomial without it."""
    pad: Pad | None = None


@dataclass(frozen=True)
class Block:
    """The nodes that compute p(N) of the output of `source`, the last of which holds it."""

    source: str
    nodes: tuple[Node, ...]
    operator: Conv | Dense
    coefficients: Coefficients
    skew: bool
    rest: float
    """||E||, see Note [Polynomials]."""
    maps: Mapping[str, LinearMap]
    gains: Mapping[str, Coefficients]
    """By node: the polynomial of N that an error there passes through until the end."""

    def bound(self, method: str) -> tuple[Upper, float]:
        """The bound of ||p(N)||, and that of ||N||."""
        rho = float(norm_bound(self.operator, method)[0])
        square = Fraction(rho) ** 2
        if self.skew:
            largest = up(math.sqrt(max(0.0, largest_value(square_on_axis(self.coefficients), Fraction(0), square))))
        else:
            ends = (Fraction(-rho), Fraction(rho))
            negative = tuple(-c for c in self.coefficients)
            largest = max(largest_value(p, *ends) for p in (self.coefficients, negative))
        slope = tuple(k * abs(c) for k, c in enumerate(self.coefficients))[1:]
        added = up(self.rest * sum_up(slope, rho)) if self.rest else 0.0
        kind, variable = ("skew", "p(i t)") if self.skew else ("symmetric", "p(t)")
        because = f"p(N), N {kind}: |{variable}| <= {largest:.9g} for |t| <= {rho:.6g}, {added:.2g} for what N is off"
        value = min(up(largest + added), sum_up(self.coefficients, rho))
        return Upper(value, "polynomial", because), rho


def polynomials(ledger: Ledger) -> Callable[[Node, Mapping[str, Any]], Value | None]:
    """What stands for the value of a node: of a block, what enters it, until the last one bounds it; else None."""
    ends: dict[str, Block] = {}
    inner: set[str] = set()
    for block in blocks(ledger):
        ends[block.nodes[-1].name] = block
        inner.update(node.name for node in block.nodes[:-1])

    def instead(node: Node, arguments: Mapping[str, Any]) -> Value | None:
        if node.name not in inner and node.name not in ends:
            return None
        value = next(value for value in arguments.values() if isinstance(value, Value))
        if node.name in inner:
            return value
        block = ends[node.name]
        upper, rho = block.bound(ledger.method)
        parts = tuple((each, block.maps[each.name]) for each in block.nodes)
        ledger.norms.update({each.name: rho for each in block.nodes if each.op in _MAPS})
        grown = [(each.name, sum_up(block.gains[each.name], rho)) for each in reversed(block.nodes)]
        return ledger.replaced(node, value, upper, parts, grown)

    return instead


def blocks(ledger: Ledger) -> list[Block]:
    """The blocks of the graph that compute a polynomial of one skew or symmetric operator, and are read at the end."""
    again = _applied_again(ledger.graph)
    if not again:
        return []
    reading = _Reading(ledger)
    for node in ledger.graph.nodes:
        if node.op not in _MAPS or node.name in again:
            reading.read(node)
    return list(reading.found())


def _applied_again(graph: Graph) -> set[str]:
    """The nodes whose weight another one has as well."""
    alike: dict[tuple[Any, ...], list[tuple[str, torch.Tensor]]] = {}
    for node in graph.nodes:
        weight = node.args.get("weight") if node.op in _MAPS else None
        if isinstance(weight, torch.Tensor):
            some = (tuple(weight.shape), weight.dtype, *weight.flatten()[:4].tolist())
            alike.setdefault(some, []).append((node.name, weight))
    return {
        name
        for group in alike.values()
        for name, weight in group
        if any(other != name and (w is weight or torch.equal(w, weight)) for other, w in group)
    }


class _Maps(Ledger):
    """Runs the rule of a linear operation for its map alone."""

    seen: LinearMap | None = None

    def pend(self, node: Node, value: Value, linear: LinearMap) -> Value:
        del node
        self.seen = linear
        return value

    def map_of(self, node: Node) -> LinearMap | None:
        self.seen = None
        arguments = {n: Value(INPUT) if isinstance(v, Ref) else v for n, v in node.args.items()}
        try:
            RULES[node.op](node, self, **arguments)
        except (LipauditError, ValueError, TypeError, RuntimeError):
            return None  # the walk over the graph says why
        return self.seen


@dataclass
class _Reading:
    """The graph as far as it has been read for polynomials."""

    ledger: Ledger
    terms: dict[str, _Term] = field(default_factory=dict)
    operators: list[Conv | Dense] = field(default_factory=list)
    edges: dict[str, list[tuple[str, Fraction, int]]] = field(default_factory=dict)
    """By node: what it reads, times what, and how many times N is applied."""
    maps: dict[str, LinearMap] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.ledger.graph
        self._rules = _Maps(graph, self.ledger.device)
        self.shapes = {INPUT: (1, *graph.input_shape), **{node.name: tuple(node.shape) for node in graph.nodes}}

    def read(self, node: Node) -> None:
        """Find out of what the node is a polynomial, if of anything."""
        if node.op in _SUMS:
            self._read_sum(node)
        elif node.op in _FACTORS:
            self._read_factor(node)
        elif (node.op in _MAPS or node.op in _PADS) and len(node.refs()) == 1:
            self._read_map(node)

    def _read_sum(self, node: Node) -> None:
        operands = _operands(node)
        moving = [(value.name, factor) for value, factor in operands if isinstance(value, Ref) and factor is not None]
        shifts = [value for value, _ in operands if not isinstance(value, Ref)]
        factors = [factor for _, factor in operands]
        if None in factors or not all(map(_finite, shifts)) or not self._same_shape(node, [n for n, _ in moving]):
            return
        options = [[(name, factor, term) for term in self._terms(name)] for name, factor in moving]
        for first in options[0]:
            for rest in options[1] if len(options) > 1 else [None]:
                summands = [first] if rest is None else [first, rest]
                term = _added([(term, factor) for _, factor, term in summands])
                if term is not None and term.source != node.name:
                    self.terms[node.name] = term
                    self.edges[node.name] = [(name, factor, 0) for name, factor, _ in summands]
                    self.maps[node.name] = _stretch(node.shape, max(abs(f) for _, f, _ in summands), self.ledger)
                    return

    def _read_factor(self, node: Node) -> None:
        value, factor = _scaled(node)
        if value is None or factor is None or not self._same_shape(node, [value.name]):
            return
        term = self._terms(value.name)[0]
        if term.pad is None:
            self.terms[node.name] = replace(term, coefficients=tuple(c * factor for c in term.coefficients))
            self.edges[node.name] = [(value.name, factor, 0)]
            self.maps[node.name] = _stretch(node.shape, abs(factor), self.ledger)

    def _read_map(self, node: Node) -> None:
        linear, name = self._rules.map_of(node), node.refs()[0]
        if isinstance(linear, Pad):
            term = self._terms(name)[0]
            if term.pad is None:
                self.terms[node.name] = replace(term, pad=linear)
                self.edges[node.name], self.maps[node.name] = [(name, Fraction(1), 0)], linear
            return
        if linear is None:
            return
        for term in self._terms(name):
            whole = linear if term.pad is None else merge(term.pad, linear)
            number = self._number(whole)
            fits = number is not None and term.operator in (None, number)
            if fits and len(term.coefficients) <= _MOST_TERMS:
                moved = (Fraction(0), *term.coefficients)
                self.terms[node.name] = _Term(term.source, moved, number)
                self.edges[node.name], self.maps[node.name] = [(name, Fraction(1), 1)], linear
                return

    def _terms(self, name: str) -> list[_Term]:
        """What the output of a node is known to be, the longest way back first."""
        own = _Term(name, (Fraction(1),))
        return [self.terms[name], own] if name in self.terms else [own]

    def _same_shape(self, node: Node, names: Sequence[str]) -> bool:
        return bool(names) and all(self.shapes[name] == tuple(node.shape) for name in names)

    def _number(self, linear: LinearMap | None) -> int | None:
        """The number of an operator that can be skew; equal ones have the same."""
        if not isinstance(linear, (Conv, Dense)) or _flipped(linear) is None or linear.relative_error:
            return None
        for number, known in enumerate(self.operators):
            if _equal(known, linear):
                return number
        self.operators.append(linear)
        return len(self.operators) - 1

    def found(self) -> Iterator[Block]:
        """The largest blocks whose inner nodes nobody else reads."""
        readers: dict[str, set[str]] = {}
        for node in self.ledger.graph.nodes:
            for name in node.refs():
                readers.setdefault(name, set()).add(node.name)
        taken: set[str] = set()
        for node in reversed(self.ledger.graph.nodes):
            term = self.terms.get(node.name)
            if node.op not in _SUMS or node.name in taken or term is None or len(term.coefficients) < 3:
                continue
            inside = self._inside(node.name, term.source)
            closed = all(readers[name] <= inside for name in inside - {node.name})
            if closed and self.ledger.graph.output not in inside - {node.name} and not inside & taken:
                block = self._block(node, term, inside)
                if block is not None:
                    taken |= inside
                    yield block

    def _inside(self, last: str, source: str) -> set[str]:
        """The nodes on the ways from the source to the last one, which belongs to them."""
        inside, waiting = {last}, [last]
        while waiting:
            for name, _, _ in self.edges[waiting.pop()]:
                if name != source and name not in inside:
                    inside.add(name)
                    waiting.append(name)
        return inside

    def _block(self, last: Node, term: _Term, inside: set[str]) -> Block | None:
        operator = None if term.operator is None else self.operators[term.operator]
        rests = None if operator is None else _off_normal(operator)
        if operator is None or rests is None:
            return None
        nodes = tuple(node for node in self.ledger.graph.nodes if node.name in inside)
        gains: dict[str, Coefficients] = {last.name: (Fraction(1),)}
        for node in reversed(nodes):
            for name, factor, times in self.edges[node.name]:
                passed = (*(Fraction(0),) * times, *(c * factor for c in gains[node.name]))
                gains[name] = _plus(gains.get(name, ()), passed)
        return Block(term.source, nodes, operator, term.coefficients, *rests, self.maps, gains)


def _operands(node: Node) -> list[tuple[Any, Fraction | None]]:
    """The summands and their factors."""
    alpha = _fraction(node.args.get("alpha", 1))
    first, second = node.args["self"], node.args["other"]
    if alpha is None:
        return [(first, None), (second, None)]
    if node.op.startswith("rsub"):
        return [(second, Fraction(1)), (first, -alpha)]
    return [(first, Fraction(1)), (second, alpha if node.op.startswith("add") else -alpha)]


def _scaled(node: Node) -> tuple[Ref | None, Fraction | None]:
    """What the node multiplies, and by which number."""
    if node.op == "neg.default":
        return node.args["self"], Fraction(-1)
    first, second = node.args["self"], node.args["other"]
    if not isinstance(first, Ref) and node.op.startswith("mul"):
        first, second = second, first
    factor = None if not isinstance(first, Ref) or refs_in(second) else _fraction(second)
    if factor is None or (factor == 0 and node.op.startswith("div")):
        return None, None
    return first, 1 / factor if node.op.startswith("div") else factor


def _fraction(number: Any) -> Fraction | None:
    """The number itself; None if it is not a finite one."""
    if isinstance(number, torch.Tensor):
        if number.numel() != 1 or number.is_complex():
            return None
        number = number.item()
    return Fraction(number) if isinstance(number, (int, float)) and math.isfinite(number) else None


def _finite(shift: Any) -> bool:
    shift = torch.as_tensor(shift)
    return not shift.is_complex() and bool(torch.isfinite(shift).all())


def _stretch(shape: Sequence[int], factor: Fraction, ledger: Ledger) -> LinearMap:
    """How far the output follows each operand; the sum of operands is no map of one of them."""
    if factor <= 1:
        return Identity(tuple(shape))
    return Scale(torch.full((), float_up(factor), dtype=torch.float64, device=ledger.device), tuple(shape))


def _added(summands: Sequence[tuple[_Term, Fraction]]) -> _Term | None:
    """The sum of polynomials of one operator; None if they are of several."""
    terms = [term for term, _ in summands]
    operators = {term.operator for term in terms} - {None}
    if len({term.source for term in terms}) > 1 or len(operators) > 1 or any(term.pad for term in terms):
        return None
    total: Coefficients = ()
    for term, factor in summands:
        total = _plus(total, tuple(c * factor for c in term.coefficients))
    return _Term(terms[0].source, total, next(iter(operators), None))


def _plus(a: Coefficients, b: Coefficients) -> Coefficients:
    length = max(len(a), len(b))
    a, b = ((*p, *(Fraction(0),) * (length - len(p))) for p in (a, b))
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _equal(a: Conv | Dense, b: Conv | Dense) -> bool:
    keys = [key for key in vars(a) if key != "weight"]
    same = type(a) is type(b) and all(getattr(a, key) == getattr(b, key) for key in keys)
    return same and (a.weight is b.weight or torch.equal(a.weight, b.weight))


def _flipped(linear: Conv | Dense) -> torch.Tensor | None:
    """The weight of the transposed map as one of the same kind; None if it is none."""
    weight = linear.weight
    if isinstance(linear, Dense):
        return weight.mT if weight.shape[0] == weight.shape[1] else None
    reach = [d * (k - 1) for d, k in zip(linear.dilation, linear.kernel_size, strict=True)]
    around = all(2 * before == 2 * after == r for (before, after), r in zip(linear.padding, reach, strict=True))
    square = weight.shape[0] == weight.shape[1] * linear.groups
    if not (around and square and set(linear.stride) == {1} and linear.padding_mode in ("zeros", "circular")):
        return None
    per_group = weight.unflatten(0, (linear.groups, -1)).transpose(1, 2).flatten(0, 1)
    return per_group.flip(tuple(range(2, weight.ndim)))


def _off_normal(linear: Conv | Dense) -> tuple[bool, float] | None:
    """Whether the operator is skew rather than symmetric, and ||E||; None if it is neither, or nearly so."""
    flipped = _flipped(linear)
    assert flipped is not None
    size = schur_test(linear, linear.weight.device)
    rests = {}
    for skew, sum_of_both in ((True, linear.weight + flipped), (False, linear.weight - flipped)):
        # One rounding for each sum; halves are exact, but for underflow, which the added number covers.
        half = sum_of_both / 2
        if not bool(sum_of_both.any()):
            rests[skew] = 0.0
            continue
        rests[skew] = up(schur_test(replace(linear, weight=half, relative_error=2 * UNIT), half.device) + TINY)
    skew = rests[True] <= rests[False]
    return (skew, rests[skew]) if rests[skew] <= _NORMAL * size else None
