"""Sums, products, quotients and powers of ranges, entry by entry; and the rules for these operations."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipaudit.domains.graph import Node, Ref
from lipaudit.domains.intervals.value import (
    INFINITY,
    NORM_FLOOR,
    RANGES,
    Nodes,
    Range,
    as_range,
    both_ends,
    operands,
    rounded,
    widened,
)
from lipaudit.domains.rounding.float64_linear import by_products
from lipaudit.errors import UnsupportedOp
from lipaudit.rounding import gamma

_LIBRARY = 64
"""Roundings charged to one call of a function of the library: its error and the few operations around it."""


def plus(a: Range, b: Range) -> Range:
    """a + b: the ends add up."""
    low, high = a.low + b.low, a.high + b.high
    below, above = (2 * gamma(4) * (x.abs() + y.abs()) for x, y in ((a.low, b.low), (a.high, b.high)))
    return widened(low, high, below, above, nonnegative=a.nonnegative and b.nonnegative)


def times(a: Range, b: Range) -> Range:
    """a b: the least and the largest of the products of the ends; a square if both are the same tensor."""
    if a is b and not a.constant:
        return square(a)
    left, right = _distinct(a), _distinct(b)
    low, high = _extremes([x * y for x in left for y in right])
    return rounded(low, high, 4, nonnegative=a.nonnegative and b.nonnegative)


def over(a: Range, b: Range) -> Range:
    """a / b: the least and the largest of the quotients of the ends; anything where b may be 0."""
    low, high = _extremes([x / y for x in _distinct(a) for y in _distinct(b)])
    quotient = rounded(low, high, 4)
    if a.nonnegative:
        quotient = quotient.within(torch.where(b.low > 0, 0.0, -INFINITY), INFINITY)
    unknown = (b.low <= 0) & (b.high >= 0)
    return Range(quotient.low.masked_fill(unknown, -INFINITY), quotient.high.masked_fill(unknown, INFINITY))


def square(x: Range) -> Range:
    """x^2 grows with |x|."""
    size = absolute(x)
    return rounded(size.low.square(), size.high.square(), 4, nonnegative=True)


def absolute(x: Range) -> Range:
    """|x|: 0 is the least where the range contains it."""
    return Range(torch.maximum(x.low, -x.high).clamp_min(0), x.magnitude)


def negative(x: Range) -> Range:
    """-x: the ends change places."""
    return Range(-x.high, -x.low, x.axis, x.length)


def _distinct(x: Range) -> tuple[torch.Tensor, ...]:
    return (x.low,) if x.constant else (x.low, x.high)


def _extremes(candidates: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    low = high = candidates[0]
    for candidate in candidates[1:]:
        low, high = torch.minimum(low, candidate), torch.maximum(high, candidate)
    return low, high


@RANGES.rule("add.Tensor", "add.Scalar")
def add(node: Node, nodes: Nodes, self: Any, other: Any, alpha: Any) -> Range:
    """a + alpha b: the ends add up."""
    del node, nodes
    a, b = operands(self, other)
    return plus(a, b if alpha == 1 else times(b, as_range(alpha, b.low)))


@RANGES.rule("sub.Tensor", "sub.Scalar")
def subtract(node: Node, nodes: Nodes, self: Any, other: Any, alpha: Any) -> Range:
    """a - alpha b: the lower end takes the upper end of what is subtracted."""
    return add(node, nodes, self, negative(operands(self, other)[1]), alpha)


@RANGES.rule("rsub.Scalar", "rsub.Tensor")
def reverse_subtract(node: Node, nodes: Nodes, self: Any, other: Any, alpha: Any) -> Range:
    """other - alpha self."""
    return subtract(node, nodes, other, self, alpha)


@RANGES.rule("addcmul.default")
def add_product(node: Node, nodes: Nodes, self: Any, tensor1: Any, tensor2: Any, value: Any) -> Range:
    """self + value tensor1 tensor2."""
    like = next(x.low for x in (self, tensor1, tensor2) if isinstance(x, Range))
    product = times(as_range(tensor1, like), as_range(tensor2, like))
    return add(node, nodes, as_range(self, like), product, value)


@RANGES.rule("mul.Tensor", "mul.Scalar")
def multiply(node: Node, nodes: Nodes, self: Any, other: Any) -> Range:
    """A product is extreme where both factors are; x times itself is a square."""
    del node, nodes
    return times(*operands(self, other))


@RANGES.rule("div.Tensor", "div.Scalar")
def divide(node: Node, nodes: Nodes, self: Any, other: Any) -> Range:
    """A quotient is extreme where both operands are; unbounded where the divisor may be 0; x / ||x|| has length 1."""
    quotient = over(*operands(self, other))
    divisor = _size_in_divisor(node, nodes) if isinstance(other, Range) else None
    if divisor is None:
        return quotient
    one = 1 + 2 * gamma(self.low.numel() + 8)
    if divisor.op == "sum.dim_IntList":  # x / (its sum + something)
        return quotient.within(0.0, one) if self.nonnegative else quotient
    unit = quotient.within(-one, one)
    axis = _single_axis(divisor.args["dim"], self.low.ndim)
    if axis is None:
        return unit
    return Range(unit.low, unit.high, axis, torch.full_like(self.low.narrow(axis, 0, 1), one))


def _size_in_divisor(node: Node, nodes: Nodes) -> Node | None:
    """The node of ||x|| or sum(x) if this node is x / max(||x||, c), x / (||x|| + c), or the same with the sum."""
    numerator, divisor = node.args["self"], nodes.get(node.args["other"].name)
    while divisor is not None and divisor.op in ("expand.default", "clamp_min.default", "add.Tensor"):
        if divisor.op == "add.Tensor" and not _nonnegative_constant(divisor):
            return None
        divisor = nodes.get(divisor.args["self"].name)
    if divisor is None or divisor.op not in ("linalg_vector_norm.default", "sum.dim_IntList"):
        return None
    own = isinstance(numerator, Ref) and divisor.args["self"] == numerator
    along = divisor.args["keepdim"] and divisor.args["dim"] and divisor.args.get("ord", 2) == 2
    return divisor if own and along else None


def _nonnegative_constant(node: Node) -> bool:
    other = node.args["other"]
    if isinstance(other, Ref) or not isinstance(node.args["self"], Ref) or node.args["alpha"] != 1:
        return False
    return bool((torch.as_tensor(other) >= 0).all())


def _single_axis(dim: list[int] | None, rank: int) -> int | None:
    return dim[0] % rank - rank if dim is not None and len(dim) == 1 else None


@RANGES.rule("neg.default")
def negate(node: Node, nodes: Nodes, self: Any) -> Range:
    """-x: the ends change places."""
    del node, nodes
    return negative(self)


@RANGES.rule("abs.default")
def absolute_value(node: Node, nodes: Nodes, self: Any) -> Range:
    """|x|: 0 is the least where the range contains it."""
    del node, nodes
    return absolute(self)


@RANGES.rule("square.default")
def squared(node: Node, nodes: Nodes, self: Any) -> Range:
    """x^2 grows with |x|."""
    del node, nodes
    return square(self)


@RANGES.rule("pow.Tensor_Scalar", "pow.Tensor_Tensor")
def power(node: Node, nodes: Nodes, self: Any, exponent: Any) -> Range:
    """x^n grows with x for odd n and with |x| for even n; other powers grow with x where x >= 0; x^-n is 1 / x^n."""
    del node, nodes
    if isinstance(exponent, torch.Tensor) and exponent.unique().numel() == 1:
        exponent = float(exponent.flatten()[0])
    if not isinstance(exponent, (int, float)) or not isinstance(self, Range) or not math.isfinite(exponent):
        raise UnsupportedOp(f"expected a power with one finite exponent that is constant, got {exponent}")
    raised = _power(self, abs(float(exponent)))
    return raised if exponent >= 0 else over(as_range(1.0, self.low), raised)


def _power(x: Range, exponent: float) -> Range:
    if exponent % 2 == 0:
        base = absolute(x)
    elif exponent % 2 == 1:
        base = x
    else:
        base = Range(x.low.clamp_min(0), x.high)  # values below 0 have no such power and are left out
    low, high = base.low**exponent, base.high**exponent
    return rounded(low, high, _LIBRARY + int(exponent), nonnegative=base.nonnegative)


@RANGES.rule("sqrt.default")
def root(node: Node, nodes: Nodes, self: Any) -> Range:
    """The square root grows with x; values below 0 have none and are left out."""
    del node, nodes
    return rounded(self.low.clamp_min(0).sqrt(), self.high.sqrt(), 4, nonnegative=True)


@RANGES.rule("rsqrt.default")
def reciprocal_root(node: Node, nodes: Nodes, self: Any) -> Range:
    """1 / sqrt(x) falls with x; unbounded where x may be 0."""
    del node, nodes
    return rounded(self.high.rsqrt(), self.low.clamp_min(0).rsqrt(), 8, nonnegative=True)


@RANGES.rule("reciprocal.default")
def reciprocal(node: Node, nodes: Nodes, self: Any) -> Range:
    """1 / x; unbounded where x may be 0."""
    del node, nodes
    return over(as_range(1.0, self.low), self)


@RANGES.rule("exp.default", "exp2.default")
def exponential(node: Node, nodes: Nodes, self: Any) -> Range:
    """exp grows with x."""
    del nodes
    return rounded(*both_ends(node, {"self": self}), _LIBRARY, nonnegative=True)


@RANGES.rule("expm1.default")
def exponential_minus_one(node: Node, nodes: Nodes, self: Any) -> Range:
    """exp(x) - 1 grows with x, from -1."""
    del nodes
    return rounded(*both_ends(node, {"self": self}), _LIBRARY).within(-1.0, INFINITY)


@RANGES.rule("log.default", "log2.default", "log10.default", "log1p.default")
def logarithm(node: Node, nodes: Nodes, self: Any) -> Range:
    """log grows with x; unbounded where x may be 0."""
    del nodes
    least = -1.0 if node.op == "log1p.default" else 0.0
    return _logarithmic(node, {"self": Range(self.low.clamp_min(least), self.high)})


@RANGES.rule("logit.default")
def logit(node: Node, nodes: Nodes, self: Any, eps: float | None) -> Range:
    """log(x / (1 - x)) grows with x; unbounded where x may be 0 or 1."""
    del nodes
    return _logarithmic(node, {"self": Range(self.low.clamp(0, 1), self.high.clamp(0, 1)), "eps": eps})


def _logarithmic(node: Node, arguments: dict[str, Any]) -> Range:
    low, high = both_ends(node, arguments)
    below, above = (gamma(_LIBRARY) * (1 + end.abs()) for end in (low, high))
    return widened(low, high, below, above)


@RANGES.rule("hypot.default")
def hypotenuse(node: Node, nodes: Nodes, self: Any, other: Any) -> Range:
    """sqrt(a^2 + b^2) grows with |a| and |b|."""
    del nodes
    a, b = (absolute(operand) for operand in operands(self, other))
    return rounded(*both_ends(node, {"self": a, "other": b}), _LIBRARY, nonnegative=True)


@RANGES.rule("logaddexp.default", "logaddexp2.default")
def log_add_exp(node: Node, nodes: Nodes, self: Any, other: Any) -> Range:
    """log(exp(a) + exp(b)) grows with both."""
    del nodes
    a, b = operands(self, other)
    low, high = both_ends(node, {"self": a, "other": b})
    below, above = (
        gamma(_LIBRARY) * (1 + x.abs() + y.abs() + end.abs())
        for x, y, end in ((a.low, b.low, low), (a.high, b.high, high))
    )
    return widened(low, high, below, above)


@RANGES.rule("atan2.default")
def angle(node: Node, nodes: Nodes, self: Any, other: Any) -> Range:
    """The angle of a box off the negative x-axis is extreme at its corners; of any other, nothing is known."""
    del node, nodes
    y, x = operands(self, other)
    low, high = _extremes([torch.atan2(b, a) for b in (y.low, y.high) for a in (x.low, x.high)])
    unknown = ~((y.low > 0) | (y.high < 0) | (x.low > 0))
    low, high = low.masked_fill(unknown, -3.2), high.masked_fill(unknown, 3.2)
    return rounded(low - 1e-15, high + 1e-15, _LIBRARY)


@RANGES.rule("cdist.default", "_cdist_forward.default")
def distances(node: Node, nodes: Nodes, x1: Any, x2: Any, p: float, compute_mode: Any) -> Range:
    """Distances to constant points grow with the absolute value of every difference."""
    del node, nodes
    if isinstance(x1, Range) and isinstance(x2, Range):
        raise UnsupportedOp("expected distances to constant points, got two sets that depend on the input")
    a, b = operands(x1, x2)
    apart = plus(
        Range(a.low[..., :, None, :], a.high[..., :, None, :]),
        negative(Range(b.low[..., None, :, :], b.high[..., None, :, :])),
    )
    low, high = (torch.linalg.vector_norm(end, p, -1) for end in (absolute(apart).low, apart.magnitude))
    off = torch.zeros((), dtype=torch.float64, device=low.device)
    if by_products(p, compute_mode, a.low, b.low):
        size = sum(torch.linalg.vector_norm(z.magnitude, 2, -1).square().amax() for z in (a, b))
        off = (8 * gamma(a.low.shape[-1] + _LIBRARY) * size).sqrt()
    count = 2 * gamma(a.low.shape[-1] + _LIBRARY)
    return widened(low, high, off + count * low, off + count * high + NORM_FLOOR, nonnegative=True)


@RANGES.rule("linalg_vector_norm.default")
def vector_norm(node: Node, nodes: Nodes, self: Any, ord: Any, dim: Any, keepdim: bool, dtype: Any) -> Range:
    """A norm grows with the absolute value of every entry."""
    del nodes, keepdim, dtype
    return _norm(node, self, ord, dim)


@RANGES.rule("norm.ScalarOpt_dim")
def norm(node: Node, nodes: Nodes, self: Any, p: Any, dim: Any, keepdim: bool) -> Range:
    """A norm grows with the absolute value of every entry."""
    del nodes, keepdim
    return _norm(node, self, 2 if p is None else p, dim)


def _norm(node: Node, self: Range, ord: Any, dim: Any) -> Range:
    if ord < 1:
        raise UnsupportedOp(f"expected a norm of order 1 or more, got {ord}")
    size = absolute(self)
    low, high = both_ends(node, {**node.args, "self": size})
    norm = rounded(low, high, self.low.numel() + _LIBRARY, nonnegative=True)
    found = Range(norm.low, norm.high + NORM_FLOOR)
    if ord != 2 or self.length is None or self.axis is None or self.axis != _single_axis(dim, self.low.ndim):
        return found.within(0.0, INFINITY)
    return found.within(0.0, self.length.amax(self.axis, keepdim=True).reshape(low.shape))
