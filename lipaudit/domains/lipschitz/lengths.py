"""Lengths that a network writes out: roots of sums of squares, in any spelling.

sqrt(x.pow(2).sum(1) + eps), LPPool with p = 2, sqrt(avg_pool2d(x * x)), sqrt(x^2 / 2 + y^2 / 2): as a square, a sum and
a root they have no bound, or one over ranges only.

Note [Lengths]
    Let e be made of squares of activations x_k by sums, averages, multiples and moves without negative factors, and of
    constants >= 0 that are added: e_i = sum_k A_ik x_k^2 + c_i. Then sqrt(e_i) is the length of the vector of all
    sqrt(A_ik) x_k and sqrt(c_i), and lengths move no farther than their vectors:
        ||d sqrt(e)||^2 <= sum_i sum_k A_ik dx_k^2 <= max_k (sum_i A_ik) ||dx||^2,
    for several tensors x the sum of that over each. max(e, c) with c >= 0 and |e| in between move no farther either.
    The sums over i are what e hands back to each square of ones behind it.
    Rounding. No term of e is negative, so the relative errors of its operations add up to one of e, half of which its
    root has: it is charged to the root, and so is what squares lose by underflow (float64_bounded.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lipaudit.domains.graph import Node, Ref, call, refs_in
from lipaudit.domains.lipschitz.propagator import INPUT, Ledger, Value
from lipaudit.domains.piecewise import PIECEWISE
from lipaudit.results.bounds import Upper
from lipaudit.rounding import gamma, up

_ADDING = ("add.Tensor", "add.Scalar")
_SCALING = ("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar")
_AVERAGING = (
    "sum.dim_IntList", "mean.dim", "sum.default", "mean.default", "avg_pool1d.default", "avg_pool2d.default",
    "avg_pool3d.default", "adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default",
)  # fmt: skip
_MOVING = (
    "view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "permute.default",
    "transpose.int", "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims", "expand.default",
    "slice.Tensor", "select.int", "split.Tensor", "split_with_sizes.default", "chunk.default", "unbind.int",
)  # fmt: skip
_NOT_BELOW = ("clamp_min.default", "clamp.default", "relu.default", "abs.default")

_MOST = 1e30
"""Factors of squares: beyond, what underflows might be more than what is charged to the root."""
_LARGEST = 4096
"""Operations in one length."""


@dataclass(frozen=True)
class _Length:
    """A root, all that lies between it and the squares, and by tensor the largest sum of the factors of an entry."""

    nodes: tuple[Node, ...]
    squares: Mapping[str, str]
    """By square: the tensor that it is of."""
    moved: Mapping[str, float]
    roundings: int


def lengths(ledger: Ledger) -> Callable[[Node, Mapping[str, Any]], Value | None]:
    """What stands for the value of a node of a length: of its inner nodes what enters, at the root the bound."""
    found = {node.name: length for node in ledger.graph.nodes if (length := _length(node, ledger)) is not None}
    readers: dict[str, set[str]] = {}
    for node in ledger.graph.nodes:
        for name in node.refs():
            readers.setdefault(name, set()).add(node.name)
    inside = {name: {node.name for node in length.nodes} for name, length in found.items()}
    closed = {
        name: length
        for name, length in found.items()
        if all(readers[inner] <= inside[name] for inner in inside[name] - {name})
        and ledger.graph.output not in inside[name] - {name}
    }
    inner = {part.name for name, length in closed.items() for part in length.nodes if part.name != name}
    entered: dict[str, Value] = {}

    def instead(node: Node, arguments: Mapping[str, Any]) -> Value | None:
        if node.name not in inner and node.name not in closed:
            return None
        if node.name in closed:
            return _bound(node, closed[node.name], ledger, entered)
        value = next(v for some in arguments.values() for v in (some if isinstance(some, list) else [some]) if _is(v))
        if squared(node) is not None:
            entered[node.name] = value
        return value

    return instead


def _is(value: Any) -> bool:
    return isinstance(value, Value)


def _bound(node: Node, length: _Length, ledger: Ledger, entered: Mapping[str, Value]) -> Value:
    values = {source: entered[square] for square, source in length.squares.items()}
    because = "a length moves no farther than its vector: root of the largest sum of the factors of an entry"
    moved = [
        ledger.scaled(node, values[source], Upper(up(math.sqrt(largest)), "norm", because))
        for source, largest in length.moved.items()
    ]
    # What the rule of roots charges, gamma(32), and what its operand may be off by.
    growth = gamma(32 + length.roundings) / gamma(32) * (1 + 1e-6)
    grown = [(part.name, growth if part is node else 0.0) for part in length.nodes]
    upper = Upper(1.0, "norm", "a length moves no farther than its vector")
    parts = tuple((part, None) for part in length.nodes)
    return ledger.record_block(node, "root_sum_squares", moved, upper, parts, grown, exact=False)


def _length(root: Node, ledger: Ledger) -> _Length | None:
    """The root of a sum of squares that the node is; None for others."""
    half = root.op == "pow.Tensor_Scalar" and root.args["exponent"] == 0.5
    if not (half or root.op == "sqrt.default") or not isinstance(root.args["self"], Ref):
        return None
    inside: dict[str, Node] = {root.name: root}
    waiting = root.refs()
    while waiting:
        name = waiting.pop()
        node = ledger.node(name)
        if name in inside:
            continue
        if node is None or name in ledger.graph.complexes or len(inside) > _LARGEST:
            return None
        if not (squared(node) or _keeps_sign(node)):
            return None
        inside[name] = node
        if squared(node) is None:
            waiting += node.refs()
    order = [node for node in ledger.graph.nodes if node.name in inside]
    back = {order[-1].args["self"].name: torch.ones(_shape(ledger, order[-1].args["self"].name), dtype=torch.float64)}
    squares: dict[str, str] = {}
    totals: dict[str, torch.Tensor] = {}
    for node in order[-2::-1]:
        source, factors = squared(node), back.pop(node.name)
        if not bool((factors <= _MOST).all()):
            return None
        if source is not None:
            squares[node.name] = source
            totals[source] = totals.get(source, torch.zeros(())) + factors
            continue
        for name in set(node.refs()):
            handed = factors if node.op in _NOT_BELOW else _handed_back(node, name, factors, ledger)
            back[name] = back.get(name, torch.zeros(())) + handed
    roundings = sum(40 + (sum(math.prod(_shape(ledger, name)) for name in node.refs())) for node in order)
    slack = 1 + 4 * gamma(roundings)
    moved = {source: float(total.max()) * slack for source, total in totals.items()}
    return _Length(tuple(order), squares, moved, roundings)


def _shape(ledger: Ledger, name: str) -> tuple[int, ...]:
    node = ledger.node(name)
    return (1, *ledger.graph.input_shape) if name == INPUT or node is None else tuple(node.shape)


def squared(node: Node) -> str | None:
    """The name of what the node squares."""
    read = node.args.get("self")
    if not isinstance(read, Ref):
        return None
    twice = node.op == "mul.Tensor" and node.args["other"] == read
    power = node.op == "pow.Tensor_Scalar" and node.args["exponent"] == 2
    return read.name if twice or power or node.op == "square.default" else None


def _keeps_sign(node: Node) -> bool:
    """Whether the node is a sum, an average, a multiple or a move, without negative factors and constants."""
    constants = [
        torch.as_tensor(value, dtype=torch.float64)
        for name, value in node.args.items()
        if name in ("self", "other") and not refs_in(value)
    ]
    if not all(bool(torch.isfinite(value).all()) and bool((value >= 0).all()) for value in constants):
        return False
    if node.args.get("dtype") is not None:
        return False
    if node.op in _ADDING:
        return node.args.get("alpha", 1) == 1
    if node.op in _SCALING:
        over = node.op.startswith("div") and not isinstance(node.args["self"], Ref)
        return len(node.refs()) == 1 and len(constants) == 1 and not over
    if node.op in _AVERAGING:
        return (node.args.get("divisor_override") or 1) > 0
    if node.op in ("clamp_min.default", "clamp.default"):
        low = node.args["min"]
        return isinstance(low, (int, float)) and low >= 0 and node.args.get("max") is None
    if node.op == PIECEWISE:
        slope, offset, steps = (node.args[name] for name in ("slope", "offset", "steps"))
        return bool((slope >= 0).all()) and bool((offset >= 0).all()) and not bool(steps.any())
    return node.op in _MOVING or node.op in ("relu.default", "abs.default")


def _handed_back(node: Node, name: str, factors: torch.Tensor, ledger: Ledger) -> torch.Tensor:
    """The sums of the factors with which each entry of that argument goes into the outputs, times theirs."""

    def at(x: torch.Tensor) -> torch.Tensor:
        def given(value: Any) -> Any:
            if isinstance(value, Ref):
                return x if value.name == name else torch.zeros(_shape(ledger, value.name), dtype=torch.float64)
            if isinstance(value, list):
                return [given(one) for one in value]
            return value.double().cpu() if isinstance(value, torch.Tensor) else value

        return call(node, {key: given(value) for key, value in node.args.items()})

    zero = torch.zeros(_shape(ledger, name), dtype=torch.float64)
    return torch.func.vjp(at, zero)[1](factors.expand(node.shape))[0]
