"""Quotients whose divisor depends on the network input: bounds over ranges, and two that need none.

Note [Normalised vectors]
    x / max(||x||, c) is the nearest point of the ball of radius c, divided by c: 1 / c Lipschitz, however short x is.
    Where the norm is never below m > c, the same holds with m. Its two steps apart would cost 1 / c + ||x|| / c^2.
    So does x / s with s = ||x|| + c or s = r = sqrt(||x||^2 + c^2): its Jacobian (I - x x^T / (s r)) / s, r = ||x|| in
    the first case, has eigenvalues between 0 and 1 / s, as ||x||^2 <= s r.

Note [Shares]
    x / y with y = a sum(x) + c over n entries x >= 0, a and c >= 0, moves by dx / y - x a sum(dx) / y^2. As
    ||x|| <= sum(x) and |sum(dx)| <= sqrt(n) ||dx||, that is at most (1 + sqrt(n)) ||dx|| / y, and y >= c.

    x / sqrt(mean(x^2) + eps), divided or multiplied by rsqrt, is RMS norm: 1 / sqrt(eps) (normalisation.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lipaudit.domains.graph import Node, Ref
from lipaudit.domains.lipschitz.lengths import squared
from lipaudit.domains.lipschitz.magnitudes import copied, finite
from lipaudit.domains.lipschitz.propagator import BOUNDED, Ledger, Value
from lipaudit.errors import NotLipschitz
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, gamma, up

BOUNDED.add("div.Tensor")

_NEVER_NEGATIVE = {"linalg_vector_norm.default", "relu.default", "sigmoid.default", "softmax.int", "abs.default"}


def quotient(node: Node, ledger: Ledger, self: Any, other: Value) -> Value:
    """x / y follows x times 1 / |y| and y times |x| / y^2, over their ranges (products.py, Note [Hybrid path]).

    `self` may be a constant. Vectors that are divided by their own length or sum follow it as a whole: Notes
    [Normalised vectors] and [Shares]. Raises `NotLipschitz` where the divisor may be 0.
    """
    whole = _own_size(node, ledger)
    if whole is not None:
        # The rounding of the length or sum is part of that of the quotient (float64.py).
        ledger.settle(other)
        return ledger.record(node, "scale", [self], whole)
    y = ledger.range_of(node, "other")
    x = (
        ledger.range_of(node, "self").magnitude
        if isinstance(self, Value)
        else torch.as_tensor(self, dtype=torch.float64).to(y.low).abs()
    )
    least = torch.maximum(y.low, -y.high)
    smallest = float(least.min())
    if not smallest > 0.0:
        raise NotLipschitz(
            f"a quotient is bounded only where its divisor stays away from 0, and this divisor may be anything from "
            f"{float(y.low.min()):.3g} to {float(y.high.max()):.3g}"
        )
    shape = tuple(node.shape)
    # The path runs through (x, y) and (x, y'): only one of the two divisors carries an error.
    factors = [(other, (x / least / least).expand(shape), y.low.shape, "the largest dividend / divisor^2")]
    if isinstance(self, Value):
        factors.insert(0, (self, (1.0 / least).expand(shape), x.shape, "1 / the smallest divisor"))
    moved = []
    for value, factor, read, because in factors:
        bound = ledger.widened(finite(copied(factor, read), because) * (1 + gamma(8)), smallest)
        moved.append(ledger.scaled(node, value, Upper(bound, "range", because)))
    return ledger.record(node, "sum", moved, Upper(1.0, "sum", "quotient: each operand moves while the other stays"))


def _own_size(node: Node, ledger: Ledger) -> Upper | None:
    """The bound of x / max(||x||, c) and of x / (c + a sum(x)), along some axes of the very x; None for others."""
    nodes = {each.name: each for each in ledger.graph.nodes}
    divisor = _read(nodes, node.args["other"])
    while divisor is not None and divisor.op == "expand.default":
        divisor = _read(nodes, divisor.args["self"])
    own = node.args["self"]
    if divisor is None or not isinstance(own, Ref) or ledger.shape_of(node, "self") != tuple(node.shape):
        return None
    size = _read(nodes, divisor.args.get("self"))
    floored = _floored(nodes, divisor)
    if floored is not None and floored[0] == own:
        floor, factor, because = floored[1], 1.0, "x / max(||x||, c), nearest point of a ball"
    elif divisor.op == "sqrt.default":
        return root_mean_square(node, ledger, "self", "other")
    elif size is None or size.args.get("self") != own or not size.args.get("keepdim"):
        return None
    elif _is_sum(divisor, size) and getattr(_read(nodes, own), "op", None) in _NEVER_NEGATIVE:
        count = math.prod(node.shape) // math.prod(size.shape)
        floor, factor, because = float(divisor.args["other"]), 1 + up(math.sqrt(count)), "x / (c + its sum or mean)"
    else:
        return None
    bound, because = up(up(factor / floor)), f"{because}, c = {floor:.3g}"
    if ledger.domain is not None:
        least = float(ledger.range_of(node, "other").low.min())
        if least > 1.01 * floor:
            bound, because = ledger.widened(up(up(factor / least)), least), f"{because}, divisor >= {least:.3g}"
    return Upper(bound, "projection", because)


def root_mean_square(node: Node, ledger: Ledger, vector: str, root: str) -> Upper | None:
    """The bound where the argument `root` is sqrt or rsqrt of mean(x^2) + eps along axes of the argument `vector`."""
    nodes = {each.name: each for each in ledger.graph.nodes}
    shifted = _read(nodes, getattr(_read(nodes, node.args[root]), "args", {}).get("self"))
    size = _read(nodes, shifted.args.get("self")) if shifted is not None else None
    if (
        shifted is None
        or size is None
        or size.op != "mean.dim"
        or not _is_sum(shifted, size)
        or not size.args["keepdim"]
    ):
        return None
    square, own = _read(nodes, size.args["self"]), node.args[vector]
    if square is None or not isinstance(own, Ref) or ledger.shape_of(node, vector) != tuple(node.shape):
        return None
    if squared(square) is None or not _same(nodes, square.args["self"], own):
        return None
    eps = float(shifted.args["other"])
    return Upper(up(up(1.0 / math.sqrt(eps))), "normalisation", f"1 / sqrt(eps), eps = {eps:.3g}")


def _same(nodes: Mapping[str, Node], one: Ref, other: Ref) -> bool:
    """Whether two arguments are one tensor; also x - mean(x) that a model writes out twice."""
    left, right = _read(nodes, one), _read(nodes, other)
    if one == other or left is None or right is None or not left.op == right.op == "sub.Tensor":
        return one == other
    return all(isinstance(v, Ref) for v in (left.args["self"], left.args["other"])) and left.args == right.args


def _read(nodes: Mapping[str, Node], read: Any) -> Node | None:
    return nodes.get(read.name) if isinstance(read, Ref) else None


def _floored(nodes: Mapping[str, Node], divisor: Node) -> tuple[Ref, float] | None:
    """For max(||x||, c), ||x|| + c or sqrt(||x||^2 + c^2), along some axes that are kept: x and c; else None."""
    length, floor = divisor.args.get("self"), divisor.args.get("other", divisor.args.get("min"))
    if divisor.op == "maximum.default" and not isinstance(length, Ref):
        length, floor = floor, length
    plain = divisor.op in ("clamp_min.default", "clamp.default", "maximum.default", "add.Tensor")
    bounded = divisor.args.get("max") is None and divisor.args.get("alpha", 1) == 1
    if plain and bounded and (floor := _positive_number(floor)) is not None:
        vector = _vector(nodes, length)
        return None if vector is None else (vector, floor)
    if divisor.op != "sqrt.default":
        return None
    shifted = _read(nodes, divisor.args["self"])
    eps = None if shifted is None or shifted.op != "add.Tensor" else _positive_number(shifted.args["other"])
    if shifted is None or eps is None or shifted.args["alpha"] != 1:
        return None
    vector = _squares(nodes, shifted.args["self"])
    return None if vector is None else (vector, math.sqrt(eps) * (1 - 4 * UNIT))


def _vector(nodes: Mapping[str, Node], length: Any) -> Ref | None:
    """The tensor whose lengths along some axes, which are kept, these are; sqrt(||x||^2 + eps) counts as one."""
    node = _read(nodes, length)
    if node is None:
        return None
    if node.op == "linalg_vector_norm.default" and node.args["ord"] == 2 and node.args["keepdim"]:
        return node.args["self"]
    if node.op != "sqrt.default":
        return None
    inner = _read(nodes, node.args["self"])
    shifted = inner is not None and inner.op == "add.Tensor" and inner.args["alpha"] == 1
    if inner is not None and shifted and _positive_number(inner.args["other"]) is not None:
        return _squares(nodes, inner.args["self"])
    return _squares(nodes, node.args["self"])


def _squares(nodes: Mapping[str, Node], total: Any) -> Ref | None:
    """The tensor whose squares are summed along some axes that are kept."""
    node = _read(nodes, total)
    if node is None or node.op != "sum.dim_IntList" or not node.args["keepdim"]:
        return None
    square = _read(nodes, node.args["self"])
    source = None if square is None else squared(square)
    return None if source is None else Ref(source)


def _positive_number(value: Any) -> float | None:
    """A constant large enough that squares which underflow do not matter beside it: the least entry."""
    if isinstance(value, Ref) or value is None:
        return None
    least = float(torch.as_tensor(value, dtype=torch.float64).min())
    return least if 1e-100 <= least < math.inf else None


def _is_sum(divisor: Node, size: Node) -> bool:
    shifted = divisor.op == "add.Tensor" and divisor.args["alpha"] == 1
    return shifted and size.op in ("sum.dim_IntList", "mean.dim") and _positive(divisor.args["other"])


def _positive(number: Any) -> bool:
    """Large enough that squares which underflow do not matter beside it."""
    return isinstance(number, (int, float)) and number >= 1e-100
