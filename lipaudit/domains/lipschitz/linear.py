"""Maps with weights: convolution, dense, batch norm in eval mode, scaling and shifting by constants."""

from __future__ import annotations

from typing import Any

import torch

from lipaudit.domains.lipschitz.shape import broadcast
from lipaudit.domains.lipschitz.value import RULES, Ledger, Value
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.graph import Node
from lipaudit.norms.maps import Conv, Dense, Scale
from lipaudit.rounding import UNIT


def _constant(weight: Any, what: str) -> torch.Tensor:
    if not isinstance(weight, torch.Tensor):
        raise UnsupportedOp(f"expected {what} that does not depend on the input, got one that does")
    weight = weight.to(torch.float64)
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"expected {what} of finite numbers, got NaN or inf")
    return weight


def _value(x: Any, what: str) -> Value:
    if not isinstance(x, Value):
        raise UnsupportedOp(f"expected {what} to depend on the input, got a constant")
    return x


@RULES.rule("conv1d.default", "conv2d.default", "conv3d.default")
def convolution(
    node: Node,
    ledger: Ledger,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Value:
    """A convolution is linear; its norm is that of its parity torus, with the real padding, stride and size."""
    del bias  # a shift changes no distance
    return _convolve(node, ledger, input, weight, stride, [(p, p) for p in padding], dilation, groups)


@RULES.rule("conv1d.padding", "conv2d.padding", "conv3d.padding")
def convolution_named_padding(
    node: Node,
    ledger: Ledger,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: str,
    dilation: Any,
    groups: int,
) -> Value:
    """A convolution with padding "same" or "valid"; "same" puts the odd pixel behind."""
    del bias
    kernel = weight.shape[2:]
    dilation = list(dilation) * (len(kernel) // len(dilation))
    if padding == "valid":
        pads = [(0, 0)] * len(kernel)
    else:
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    return _convolve(node, ledger, input, weight, stride, pads, dilation, groups)


def _convolve(
    node: Node, ledger: Ledger, x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Value:
    source = _value(x, "the image of a convolution")
    weight = _constant(weight, "a kernel")
    axes = weight.ndim - 2
    size = ledger.shape_of(node, "input")[2:]
    conv = Conv(
        weight=weight,
        input_size=tuple(size),
        stride=tuple(_spread(stride, axes)),
        padding=tuple(_spread(padding, axes)),
        dilation=tuple(_spread(dilation, axes)),
        groups=groups,
    )
    if conv.output_size != node.shape[2:]:
        raise ValueError(f"expected an output of size {conv.output_size}, got {node.shape[2:]}")
    return ledger.pend(node, source, conv)


def _spread(values: Any, axes: int) -> list[Any]:
    values = list(values)
    return values * axes if len(values) == 1 else values


@RULES.rule("linear.default")
def dense(node: Node, ledger: Ledger, input: Any, weight: Any, bias: Any) -> Value:
    """x -> W x + b has the Lipschitz constant ||W||."""
    del bias
    source = _value(input, "the input of a dense layer")
    matrix = Dense(_constant(weight, "a weight matrix"), ledger.shape_of(node, "input"))
    return ledger.pend(node, source, matrix)


@RULES.rule("_native_batch_norm_legit_no_training.default")
def batch_norm(
    node: Node,
    ledger: Ledger,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
) -> Value:
    """Batch norm in eval mode scales channel c by weight / sqrt(running_var + eps)."""
    del bias, momentum  # a shift changes no distance; momentum only matters in training
    source = _value(input, "the input of a batch norm")
    variance = _constant(running_var, "a running variance") + eps
    _constant(running_mean, "a running mean")
    if not bool((variance > 0).all()):
        raise NotLipschitz("expected running_var + eps > 0 in every channel, got zero or less")
    factor = variance.rsqrt() if weight is None else _constant(weight, "a batch norm weight") / variance.sqrt()
    shape = ledger.shape_of(node, "input")
    factor = factor.reshape(1, -1, *(1,) * (len(shape) - 2))
    # One rounding each in the sum, the root and the quotient (rsqrt: one more), each at most 2 u.
    return ledger.pend(node, source, Scale(factor, shape, relative_error=8 * UNIT))


def _scale(node: Node, ledger: Ledger, source: Value, operand: str, factor: torch.Tensor, error: float) -> Value:
    source = broadcast(node, ledger, source, operand)
    return ledger.pend(node, source, Scale(factor, tuple(node.shape), relative_error=error))


@RULES.rule("mul.Tensor", "mul.Scalar")
def multiply(node: Node, ledger: Ledger, self: Any, other: Any) -> Value:
    """Multiplying by a constant is linear: the largest factor, or folded into the neighbouring weights."""
    if isinstance(self, Value) and isinstance(other, Value):
        raise NotLipschitz("the product of two values that both depend on the input has no global bound")
    operand, constant = ("self", other) if isinstance(self, Value) else ("other", self)
    source = self if isinstance(self, Value) else other
    return _scale(node, ledger, source, operand, _as_tensor(constant, ledger), 0.0)


@RULES.rule("div.Tensor", "div.Scalar")
def divide(node: Node, ledger: Ledger, self: Any, other: Any) -> Value:
    """Dividing by a constant is linear: the inverse of the smallest divisor, or folded into the weights."""
    if isinstance(other, Value):
        raise NotLipschitz("a quotient whose divisor depends on the input has no global bound")
    divisor = _as_tensor(other, ledger)
    if not bool((divisor != 0).all()):
        raise NotLipschitz("expected divisors other than zero, got a zero")
    return _scale(node, ledger, self, "self", 1.0 / divisor, 2 * UNIT)


@RULES.rule("neg.default")
def negate(node: Node, ledger: Ledger, self: Any) -> Value:
    """Changing the sign is an isometry."""
    return _scale(node, ledger, self, "self", torch.tensor(-1.0, dtype=torch.float64, device=ledger.device), 0.0)


def _as_tensor(constant: Any, ledger: Ledger) -> torch.Tensor:
    if not isinstance(constant, torch.Tensor):
        constant = torch.tensor(float(constant), dtype=torch.float64, device=ledger.device)
    return _constant(constant, "a factor")
