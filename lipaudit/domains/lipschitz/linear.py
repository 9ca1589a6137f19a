"""Maps with weights: convolution, transposed convolution, dense, batch norm in eval mode."""

from __future__ import annotations

from typing import Any

from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.products import product
from lipaudit.domains.lipschitz.propagator import RULES, Ledger, Value
from lipaudit.domains.lipschitz.scaling import constant, dependent
from lipaudit.domains.lipschitz.shape import constants_only
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.norms.linear_maps import Conv, Dense, Scale, Transposed
from lipaudit.rounding import UNIT


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
    """A convolution is linear: its norm, with the real padding, stride and size; a kernel that moves is a product."""
    constants_only(node, ["bias"], {"bias": bias})  # a shift changes no distance
    if isinstance(input, Value) and isinstance(weight, Value):
        return product(node, ledger, input, weight, names=("input", "weight"))
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
    constants_only(node, ["bias", "weight"], {"bias": bias, "weight": weight})
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
    source = dependent(x, "the image of a convolution")
    weight = constant(weight, "a kernel")
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


@RULES.rule("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def transposed_convolution(
    node: Node,
    ledger: Ledger,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Value:
    """A transposed convolution has the norm of the convolution that it is the transpose of."""
    constants_only(node, ["bias"], {"bias": bias})
    source = dependent(input, "the image of a transposed convolution")
    weight = constant(weight, "a kernel")
    axes = weight.ndim - 2
    stride, added = tuple(_spread(stride, axes)), _spread(output_padding, axes)
    if any(a >= s for a, s in zip(added, stride, strict=True)):
        raise UnsupportedOp(f"expected output_padding below the stride, got {added} and stride {list(stride)}")
    conv = Conv(
        weight=weight,
        input_size=tuple(node.shape[2:]),
        stride=stride,
        padding=tuple((p, p) for p in _spread(padding, axes)),
        dilation=tuple(_spread(dilation, axes)),
        groups=groups,
    )
    if conv.output_size != ledger.shape_of(node, "input")[2:]:
        raise ValueError(f"expected an input of size {conv.output_size}, got {ledger.shape_of(node, 'input')[2:]}")
    return ledger.pend(node, source, Transposed(conv))


@RULES.rule("linear.default")
def dense(node: Node, ledger: Ledger, input: Any, weight: Any, bias: Any) -> Value:
    """x -> W x + b has the Lipschitz constant ||W||."""
    constants_only(node, ["bias"], {"bias": bias})
    source = dependent(input, "the input of a dense layer")
    matrix = Dense(constant(weight, "a weight matrix"), ledger.shape_of(node, "input"))
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
    del momentum  # matters in training only
    constants_only(node, ["bias"], {"bias": bias})  # a shift changes no distance
    source = dependent(input, "the input of a batch norm")
    variance = constant(running_var, "a running variance") + eps
    constant(running_mean, "a running mean")
    if not bool((variance > 0).all()):
        raise NotLipschitz("expected running_var + eps > 0 in every channel, got zero or less")
    factor = variance.rsqrt() if weight is None else constant(weight, "a batch norm weight") / variance.sqrt()
    shape = ledger.shape_of(node, "input")
    factor = factor.reshape(1, -1, *(1,) * (len(shape) - 2))
    # One rounding each in the sum, the root and the quotient (rsqrt: one more), each at most 2 u.
    return ledger.pend(node, source, Scale(factor, shape, relative_error=8 * UNIT))
