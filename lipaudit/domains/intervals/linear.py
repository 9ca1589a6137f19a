"""Operations that multiply and add up: convolutions, dense layers, matrix products; batch norm; bicubic resizing.

With z = c + d, |d| <= r, for both operands: z1 z2 lies within |c1| r2 + r1 (|c2| + r2) of c1 c2 (S. Rump, Fast and
parallel interval arithmetic, BIT 39, 1999). A constant has r = 0, and then this is as sharp as a box can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.intervals.arithmetic import negative, over, plus, times
from lipaudit.domains.intervals.value import (
    INFINITY,
    RANGES,
    Nodes,
    Range,
    around,
    as_range,
    length_along,
    norm_up,
    operands,
    rounded,
    run,
    widened,
)
from lipaudit.errors import UnsupportedOp
from lipaudit.rounding import gamma

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_CONVOLUTIONS = (
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding",
)  # fmt: skip
_TRANSPOSED = ("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")


def bilinear(product: Product, a: Range, b: Range, terms: int) -> Range:
    """product(a, b), where each output of `product` sums at most `terms` products of an entry of each."""
    (centre_a, radius_a), (centre_b, radius_b) = a.centre_radius(), b.centre_radius()
    size_a, size_b = centre_a.abs() + radius_a, centre_b.abs() + radius_b
    centre, size = product(centre_a, centre_b), product(size_a, size_b)
    radius = torch.zeros_like(centre)
    if not a.constant:
        radius = radius + product(radius_a, size_b)
    if not b.constant:
        radius = radius + product(centre_a.abs(), radius_b)
    charge = _charge(terms) * size
    box = around(centre, radius, charge)
    signed = not a.constant and not b.constant and (a.nonnegative or b.nonnegative)
    return _with_one_sign(product, a, b, charge, box) if signed else box


def _charge(terms: int) -> float:
    """Relative to the sum of the absolute values of its terms: what a rounded sum of products may be off, twice."""
    return gamma(8 * (terms + 8))


def _with_one_sign(product: Product, a: Range, b: Range, charge: torch.Tensor, box: Range) -> Range:
    """Sharper where one operand p is not negative: the sign of an entry of the other says which end of p is worst."""
    if not a.nonnegative:
        return _with_one_sign(lambda x, y: product(y, x), b, a, charge, box)
    low = product(a.high, b.low.clamp_max(0)) + product(a.low, b.low.clamp_min(0))
    high = product(a.low, b.high.clamp_max(0)) + product(a.high, b.high.clamp_min(0))
    sharper = widened(low, high, charge, charge)
    # Where no entry of b that counts can be negative, neither can the sum: rounding must not hide that.
    negative_terms = product(torch.ones_like(a.low), (b.low < 0).to(b.low))
    floor = torch.where(negative_terms == 0, 0.0, -INFINITY)
    return box.within(sharper.low, sharper.high).within(floor, INFINITY)


@RANGES.rule(*_CONVOLUTIONS, *_TRANSPOSED)
def convolution(node: Node, nodes: Nodes, **arguments: Any) -> Range:
    """Convolution: centre and radius; if the lengths of the pixels are known, Cauchy-Schwarz tap by tap."""
    del nodes
    x, weight = operands(arguments["input"], arguments["weight"])
    fixed = {**arguments, "bias": None}

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return run(node, {**fixed, "input": left, "weight": right})

    axes = weight.low.ndim - 2
    transposed = node.op in _TRANSPOSED
    terms = weight.low.numel() // weight.low.shape[1] if transposed else weight.low[0].numel()
    out = bilinear(product, x, weight, terms)
    if x.length is not None and x.axis == -1 - axes and not transposed:
        taps = norm_up(weight.magnitude, 1)
        most = run(node, {**fixed, "input": x.length, "weight": taps, "groups": 1})
        most = most * (1 + gamma(4 * terms + 32))
        out = out.within(-most, most)
    bias = arguments["bias"]
    if bias is None:
        return out
    bias = as_range(bias, out.low)
    shape = (1, -1, *(1,) * axes)
    return _shifted(out, Range(bias.low.reshape(shape), bias.high.reshape(shape)), terms)


@RANGES.rule("linear.default")
def dense(node: Node, nodes: Nodes, input: Any, weight: Any, bias: Any) -> Range:
    """Dense layer: centre and radius; |w z| <= ||w|| ||z|| if the length of the input is known."""
    del nodes
    x, matrix = operands(input, weight)
    out = bilinear(lambda a, b: run(node, {"input": a, "weight": b, "bias": None}), x, matrix, matrix.low.shape[-1])
    if x.length is not None and x.axis == -1:
        most = x.length * norm_up(matrix.magnitude, -1, keepdim=False) * (1 + gamma(32))
        out = out.within(-most, most)
    return out if bias is None else _shifted(out, as_range(bias, out.low), matrix.low.shape[-1])


@RANGES.rule("matmul.default")
def matrix_product(node: Node, nodes: Nodes, self: Any, other: Any) -> Range:
    """Matrix product: centre and radius; row length times column length where one of them is known."""
    del nodes
    a, b = operands(self, other)
    return _matrix_product(lambda x, y: run(node, {"self": x, "other": y}), a, b)


@RANGES.rule("mm.default", "bmm.default")
def batched_product(node: Node, nodes: Nodes, self: Any, mat2: Any) -> Range:
    """Matrix product: as `matmul`."""
    del nodes
    a, b = operands(self, mat2)
    return _matrix_product(lambda x, y: run(node, {"self": x, "mat2": y}), a, b)


@RANGES.rule("addmm.default")
def shifted_product(node: Node, nodes: Nodes, self: Any, mat1: Any, mat2: Any, beta: Any, alpha: Any) -> Range:
    """beta self + alpha mat1 mat2: the matrix product, scaled and shifted."""
    del node, nodes
    return _shifted_product(self, mat1, mat2, beta, alpha)


@RANGES.rule("baddbmm.default")
def shifted_batched_product(
    node: Node, nodes: Nodes, self: Any, batch1: Any, batch2: Any, beta: Any, alpha: Any
) -> Range:
    """beta self + alpha batch1 batch2: as `addmm`."""
    del node, nodes
    return _shifted_product(self, batch1, batch2, beta, alpha)


def _shifted_product(shift: Any, a: Any, b: Any, beta: Any, alpha: Any) -> Range:
    like = next(x.low for x in (shift, a, b) if isinstance(x, Range))
    shift, a, b, beta, alpha = (as_range(value, like) for value in (shift, a, b, beta, alpha))
    product = times(_matrix_product(torch.matmul, a, b), alpha)
    return _shifted(product, times(shift, beta), a.low.shape[-1])


def _matrix_product(product: Product, a: Range, b: Range) -> Range:
    out = bilinear(product, a, b, a.low.shape[-1])
    known = (a.axis == -1 and a.length is not None) or (b.axis == -2 and b.length is not None)
    if not known or min(a.low.ndim, b.low.ndim) < 2:
        return out
    most = length_along(a, -1) * length_along(b, -2) * (1 + gamma(32))
    return out.within(-most, most)


@RANGES.rule("einsum.default")
def einstein_sum(node: Node, nodes: Nodes, equation: str, tensors: Any, path: Any) -> Range:
    """A sum of products of entries of two tensors: centre and radius."""
    del nodes, path
    if len(tensors) != 2:
        raise UnsupportedOp(f"expected einsum of two tensors, got {equation!r} with {len(tensors)}")
    a, b = operands(*tensors)
    return bilinear(lambda x, y: run(node, {**node.args, "tensors": [x, y]}), a, b, _terms(node, a, b))


@RANGES.rule("tensordot.default")
def tensor_product(node: Node, nodes: Nodes, self: Any, other: Any, dims_self: Any, dims_other: Any) -> Range:
    """A sum of products of entries of two tensors: centre and radius."""
    del nodes, dims_self, dims_other
    a, b = operands(self, other)
    return bilinear(lambda x, y: run(node, {**node.args, "self": x, "other": y}), a, b, _terms(node, a, b))


def _terms(node: Node, a: Range, b: Range) -> int:
    """At least as many as the products that an output sums: each of its indices belongs to a or b once at least."""
    return max(1, a.low.numel() * b.low.numel() // max(1, math.prod(node.shape)))


def _shifted(x: Range, shift: Range, terms: int) -> Range:
    """x + shift, where the shift may have been the first of the sum's terms."""
    below, above = (_charge(0) * end.abs() + _charge(terms) * shift.magnitude for end in (x.low, x.high))
    return widened(x.low + shift.low, x.high + shift.high, below, above)


@RANGES.rule("_native_batch_norm_legit_no_training.default")
def batch_norm(
    node: Node,
    nodes: Nodes,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
) -> Range:
    """Batch norm in eval mode: (x - mean) / sqrt(var + eps) * weight + bias, channel by channel."""
    del node, nodes, momentum
    shape = (1, -1, *(1,) * (input.low.ndim - 2))

    def channels(constant: torch.Tensor) -> Range:
        return as_range(constant.reshape(shape), input.low)

    root = (channels(running_var).low + eps).sqrt()
    scaled = over(plus(input, negative(channels(running_mean))), rounded(root, root, 4))
    scaled = scaled if weight is None else times(scaled, channels(weight))
    return scaled if bias is None else plus(scaled, channels(bias))


@RANGES.rule("upsample_bicubic2d.vec", "_upsample_bicubic2d_aa.vec", "_upsample_bicubic2d_aa.default")
def bicubic(node: Node, nodes: Nodes, **arguments: Any) -> Range:
    """Bicubic interpolation is a matrix along each axis, read off by interpolating rows and columns of ones."""
    del nodes
    operand = "input" if "input" in arguments else "self"
    x: Range = arguments[operand]

    def along(axis: int) -> torch.Tensor:
        """The absolute weights (outputs x inputs) along one axis: those along the other one add up to 1."""
        size, shape = x.low.shape[axis], [1, x.low.shape[axis], 1, 1]
        shape[axis] = size
        units = torch.eye(size, dtype=torch.float64, device=x.low.device).reshape(shape)
        resized = run(node, {**arguments, operand: units.expand(1, -1, *x.low.shape[-2:]).contiguous()})
        return resized.select(-3 - axis, 0).squeeze(0).T.abs()

    rows, columns = along(-2), along(-1)
    centre, radius = x.centre_radius()
    middle, spread = run(node, {**arguments, operand: centre}), rows @ radius @ columns.T
    # Positions, weights and products are rounded; the absolute weights of an output add up to less than 4.
    return around(middle, spread, _charge(x.low.numel() + 64) * 4 * x.magnitude.amax())
