"""What is bounded by construction: softmax, attention, normalisation, recurrent cells; and spreads.

Note [Normalised vectors]
    With s^2 the mean of the squares of n deviations (from the mean; for rms_norm from 0), the normalised vector has
    the length sqrt(n) s / sqrt(s^2 + eps) <= sqrt(n). Its entries add up to 0 where the mean was taken off, and of
    such a vector no entry is larger than sqrt((n - 1) / n) times its length: sqrt(n - 1) instead of sqrt(n).
    The box adds what it knows: by the triangle inequality s lies within ||r|| / sqrt(n) of that of its centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.intervals.arithmetic import negative, plus, times
from lipaudit.domains.intervals.linear import batch_norm
from lipaudit.domains.intervals.value import (
    INFINITY,
    NORM_FLOOR,
    RANGES,
    Nodes,
    Range,
    as_range,
    norm_down,
    norm_up,
    rounded,
    widened,
)
from lipaudit.errors import UnsupportedOp
from lipaudit.rounding import TINY, gamma


def spread(x: Range, centred: bool) -> tuple[Range, torch.Tensor, torch.Tensor]:
    """The deviations along the last axis, and the least and largest root of the mean of their squares."""
    n = x.low.shape[-1]
    slack = 2 * gamma(n + 16)
    centre, radius = x.centre_radius()
    deviations, middle = Range(x.low, x.high), centre
    if centred:
        # x_i - mean(x) = (1 - 1/n) x_i - (the others) / n
        own = (x.high - x.low) / n
        low, high = x.low - x.high.mean(-1, keepdim=True) + own, x.high - x.low.mean(-1, keepdim=True) - own
        middle = centre - centre.mean(-1, keepdim=True)
        charge = slack * (x.magnitude + x.magnitude.mean(-1, keepdim=True))
        deviations = widened(low, high, charge, charge)
    error = slack * norm_up(x.magnitude, -1) + NORM_FLOOR
    least = (norm_down(middle, -1) - norm_up(radius, -1) - error) / math.sqrt(n) * (1 - slack)
    most = (norm_up(middle.abs() + radius, -1) + error) / math.sqrt(n) * (1 + slack)
    # Squares beyond 1e308 overflow, and then the box shows nothing.
    least = torch.nan_to_num(least, nan=0.0, posinf=0.0).clamp_min(0)
    return deviations, least, torch.nan_to_num(most, nan=INFINITY, posinf=INFINITY)


def standardised(x: Range, eps: float, centred: bool) -> Range:
    """x normalised along the last axis, with its length: Note [Normalised vectors]."""
    n = x.low.shape[-1]
    slack = 1 + 2 * gamma(n + 32)
    deviations, least, most = spread(x, centred)
    floor, top = (torch.hypot(s, torch.full_like(s, math.sqrt(eps))) for s in (least, most))
    share = torch.nan_to_num(most / top, nan=1.0).clamp_max(1) * slack
    low = torch.minimum(deviations.low / floor, deviations.low / top)
    high = torch.maximum(deviations.high / floor, deviations.high / top)
    ceiling = math.sqrt(n - 1 if centred else n) * share
    out = rounded(low, high, n + 32).within(-ceiling, ceiling)
    whole = torch.nan_to_num(norm_up(deviations.magnitude, -1) / floor * slack, nan=INFINITY, posinf=INFINITY)
    return Range(out.low, out.high, -1, torch.minimum(math.sqrt(n) * share, whole))


def _affine(x: Range, weight: Any, bias: Any) -> Range:
    x = x if weight is None else times(x, as_range(weight, x.low))
    return x if bias is None else plus(x, as_range(bias, x.low))


def _last_axes(node: Node, x: Range, axes: Sequence[int], eps: float, weight: Any, bias: Any, centred: bool) -> Range:
    first = -len(axes)
    flat = standardised(Range(x.low.flatten(first), x.high.flatten(first)), eps, centred)
    out = _affine(Range(flat.low.reshape(node.shape), flat.high.reshape(node.shape)), weight, bias)
    length = flat.length
    if len(axes) > 1 or length is None:
        return out
    length = length if weight is None else length * weight.abs().max()
    length = length if bias is None else length + norm_up(bias, -1)
    return Range(out.low, out.high, -1, length * (1 + gamma(8)))


@RANGES.rule("layer_norm.default")
def layer_norm(
    node: Node, nodes: Nodes, input: Any, normalized_shape: Any, weight: Any, bias: Any, eps: float, cudnn_enable: bool
) -> Range:
    """Layer norm: |z| <= sqrt(d - 1) |weight| + |bias|, and ||z|| <= sqrt(d) max |weight| + ||bias||."""
    del nodes, cudnn_enable
    return _last_axes(node, input, normalized_shape, eps, weight, bias, centred=True)


@RANGES.rule("rms_norm.default")
def rms_norm(node: Node, nodes: Nodes, input: Any, normalized_shape: Any, weight: Any, eps: float | None) -> Range:
    """RMS norm: |z| <= sqrt(d) |weight|, and ||z|| <= sqrt(d) max |weight|."""
    del nodes
    # Without eps torch takes the resolution of the dtype: less eps is a wider range, and 0 holds for all of them.
    return _last_axes(node, input, normalized_shape, eps or 0.0, weight, None, centred=False)


@RANGES.rule("group_norm.default")
def group_norm(
    node: Node, nodes: Nodes, input: Any, num_groups: int, weight: Any, bias: Any, eps: float, cudnn_enabled: bool
) -> Range:
    """Group norm: |z| <= sqrt(d - 1) |weight| + |bias| with d the entries of a group."""
    del nodes, cudnn_enabled
    return _channel_groups(node, input, num_groups, weight, bias, eps)


@RANGES.rule("instance_norm.default")
def instance_norm(
    node: Node,
    nodes: Nodes,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Range:
    """Instance norm: group norm with a channel per group; with running statistics, batch norm."""
    del cudnn_enabled
    if not use_input_stats:
        return batch_norm(node, nodes, input, weight, bias, running_mean, running_var, momentum, eps)
    return _channel_groups(node, input, input.low.shape[1], weight, bias, eps)


def _channel_groups(node: Node, x: Range, groups: int, weight: Any, bias: Any, eps: float) -> Range:
    grouped = (x.low.shape[0], groups, -1)  # windows may lie along the first axis
    flat = standardised(Range(x.low.reshape(grouped), x.high.reshape(grouped)), eps, centred=True)
    shape = (1, -1, *(1,) * (x.low.ndim - 2))
    weight, bias = (None if constant is None else constant.reshape(shape) for constant in (weight, bias))
    return _affine(Range(flat.low.reshape(node.shape), flat.high.reshape(node.shape)), weight, bias)


@RANGES.rule("var.dim", "std.dim")
def variance(node: Node, nodes: Nodes, self: Any, dim: Any, unbiased: bool, keepdim: bool) -> Range:
    """The variance: at most the mean square distance from the centre's mean, at least what the box cannot undo."""
    del nodes, keepdim
    return _spread_over(node, self, dim, 1 if unbiased else 0)


@RANGES.rule("var.correction", "std.correction")
def corrected_variance(node: Node, nodes: Nodes, self: Any, dim: Any, correction: Any, keepdim: bool) -> Range:
    """As `var.dim`, the divisor n - correction."""
    del nodes, keepdim
    return _spread_over(node, self, dim, 1 if correction is None else correction)


def _spread_over(node: Node, x: Range, dim: Any, correction: float) -> Range:
    rank = x.low.ndim
    axes = [d % rank for d in dim] if dim else list(range(rank))
    order = [d for d in range(rank) if d not in axes] + axes
    low, high = (end.permute(order).flatten(rank - len(axes)) for end in (x.low, x.high))
    n = low.shape[-1]
    if correction >= n:
        raise UnsupportedOp(f"expected more than {correction} entries in a variance, got {n}")
    _, least, most = spread(Range(low, high), centred=True)
    factor = math.sqrt(n / (n - correction))
    std = rounded(least[..., 0] * factor, most[..., 0] * factor, 8, nonnegative=True)
    if not node.op.startswith("std"):
        std = rounded(std.low.square(), std.high.square(), 4, nonnegative=True)
    return Range(std.low.reshape(node.shape), std.high.reshape(node.shape))


@RANGES.rule("softmax.int", "_softmax.default")
def softmax(node: Node, nodes: Nodes, self: Any, dim: int, **settings: Any) -> Range:
    """Softmax: p_i is largest where x_i is largest and the others least; ||p||^2 <= max p as they add up to 1."""
    del node, nodes, settings
    top = self.high.amax(dim, keepdim=True)
    # An argument beyond -745 underflows to 0 (`TINY`); above, its own rounding counts 745 units of the exponential.
    slack = gamma(2 * (self.low.shape[dim] + 2048))
    least, most = (self.low - top).exp(), (self.high - top).exp()
    others_least = (least.sum(dim, keepdim=True) * (1 - slack) - least * (1 + slack) - TINY).clamp_min(0)
    others_most = most.sum(dim, keepdim=True) * (1 + slack) - most * (1 - slack) + TINY
    up, down = most * (1 + slack) + TINY, (least * (1 - slack) - TINY).clamp_min(0)
    high = (up / (up + others_least) * (1 + slack)).nan_to_num(nan=1.0).clamp(0, 1)
    low = (down / (down + others_most) * (1 - slack)).nan_to_num(nan=0.0).clamp(0, 1)
    length = high.amax(dim, keepdim=True).sqrt() * (1 + slack)
    return Range(low, high, dim % low.ndim - low.ndim, length)


@RANGES.rule("logsumexp.default")
def log_sum_exp(node: Node, nodes: Nodes, self: Any, dim: Any, keepdim: bool) -> Range:
    """log sum exp grows with every entry."""
    del node, nodes
    return _log_sum_exp(self, dim, keepdim)


@RANGES.rule("log_softmax.int")
def log_softmax(node: Node, nodes: Nodes, self: Any, dim: int, **settings: Any) -> Range:
    """log softmax is x - log sum exp x, and at most 0."""
    del node, nodes, settings
    return plus(self, negative(_log_sum_exp(self, [dim], True))).within(-INFINITY, 0.0)


def _log_sum_exp(x: Range, dim: Any, keepdim: bool) -> Range:
    low, high = (torch.logsumexp(end, dim, keepdim) for end in (x.low, x.high))
    tops = (end.amax(dim, keepdim) for end in (x.low, x.high))
    count = 2 * (x.low.numel() + 2048)  # as in softmax
    below, above = (gamma(count) * (1 + end.abs() + top.abs()) for end, top in zip((low, high), tops, strict=True))
    return widened(low, high, below, above)


@RANGES.rule("scaled_dot_product_attention.default")
def attention(
    node: Node,
    nodes: Nodes,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Range:
    """Attention averages the values of the keys: every entry between the least and the largest of its channel."""
    del nodes, query, key, is_causal, scale
    if dropout_p:
        raise UnsupportedOp(f"expected attention without dropout, got dropout_p={dropout_p}")
    value = value if isinstance(value, Range) else Range(value, value)
    low, high = value.low.amin(-2, keepdim=True), value.high.amax(-2, keepdim=True)
    if enable_gqa and low.shape[-3] != node.shape[-3]:
        copies = node.shape[-3] // low.shape[-3]
        low, high = (end.repeat_interleave(copies, -3) for end in (low, high))
    if not _leaves_a_key(attn_mask):
        low, high = low.clamp_max(0), high.clamp_min(0)
    charge = 2 * gamma(value.low.shape[-2] + 64) * torch.maximum(low.abs(), high.abs())
    out = widened(low, high, charge, charge)
    return Range(out.low.expand(node.shape), out.high.expand(node.shape))


def _leaves_a_key(mask: Any) -> bool:
    """Whether no query can lose all its keys to the mask: torch answers 0 for such a query."""
    if mask is None:
        return True
    least = mask.low if isinstance(mask, Range) else mask
    kept = least if least.dtype == torch.bool else least > -INFINITY
    return bool(kept.any(-1).all())


@RANGES.rule("lstm.input")
def lstm(node: Node, nodes: Nodes, **arguments: Any) -> Range:
    """LSTM: the output o tanh(c) of a gate 0 < o < 1 lies in [-1, 1]."""
    del nodes
    weights = arguments["num_layers"] * (2 if arguments["bidirectional"] else 1)
    if len(arguments["params"]) != weights * (4 if arguments["has_biases"] else 2):
        raise UnsupportedOp("expected an LSTM without projections, got one with them")
    if node.output not in (0, 1):
        raise UnsupportedOp("expected the outputs of an LSTM, got its cell state, which grows with every step")
    ones = torch.ones(node.shape, dtype=torch.float64, device=arguments["input"].low.device)
    return Range(-ones, ones)
