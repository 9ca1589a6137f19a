"""Functions of one entry at a time: their values at the ends, and the bottom of the valley where they have one."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.intervals.arithmetic import times
from lipaudit.domains.intervals.value import INFINITY, RANGES, Nodes, Range, around, both_ends, rounded, run, widened
from lipaudit.domains.piecewise import FOLDED, PIECEWISE, sum_of_pieces
from lipaudit.errors import UnsupportedOp
from lipaudit.rounding import gamma, up

_LIBRARY = 64
"""Roundings charged to one call of a function of the library, of max(1, |x|, |f(x)|); twice over."""

GROWING: dict[str, tuple[float, float]] = {
    "hardsigmoid.default": (0.0, 1.0),
    "tanh.default": (-1.0, 1.0),
    "atan.default": (-1.571, 1.571),
    "asinh.default": (-INFINITY, INFINITY),
    "erf.default": (-1.0, 1.0),
    "log_sigmoid.default": (-INFINITY, 0.0),
    "selu.default": (-1.758099341, INFINITY),
}
"""Operation -> bounds that hold for every argument (never inside the truth)."""

VALLEYS: dict[str, tuple[float, float, float]] = {
    "silu.default": (-1.279, -1.278, -0.278464543),
    "mish.default": (-1.193, -1.192, -0.308843414),
    "hardswish.default": (-1.5001, -1.4999, -0.3750001),
    "gelu.default none": (-0.752, -0.751, -0.169971208),
    "gelu.default tanh": (-0.753, -0.752, -0.170040751),
}
"""Operation -> a bracket around the bottom of its valley, and the value there, rounded down.

Each falls from 0 to the bottom, then grows; `tests/domains/test_ranges_pointwise.py` recomputes them with 50 digits.
"""

_FAR = -1000.0
"""Left of it the functions with a valley are 0 to 400 digits; torch's own value at -inf is not a number."""


def _charged(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return gamma(_LIBRARY) * (x.abs() + value.abs() + 1)


@RANGES.rule(*GROWING)
def growing(node: Node, nodes: Nodes, **arguments: Any) -> Range:
    """A growing function of one entry: its values at the ends, within what it can reach at all."""
    del nodes
    x: Range = arguments["self"]
    low, high = both_ends(node, arguments)
    return widened(low, high, _charged(x.low, low), _charged(x.high, high)).within(*GROWING[node.op])


@RANGES.rule("erfc.default")
def falling(node: Node, nodes: Nodes, self: Any) -> Range:
    """erfc falls from 2 to 0."""
    del node, nodes
    low, high = torch.erfc(self.high), torch.erfc(self.low)
    return widened(low, high, _charged(self.high, low), _charged(self.low, high)).within(0.0, 2.0)


@RANGES.rule("sin.default", "cos.default")
def wave(node: Node, nodes: Nodes, self: Any) -> Range:
    """Sine and cosine have slope at most 1 and lie in [-1, 1]."""
    del nodes
    centre, radius = self.centre_radius()
    middle = run(node, {"self": centre})
    return around(middle, radius, _charged(centre, middle)).within(-1.0, 1.0)


@RANGES.rule("sigmoid.default")
def sigmoid(node: Node, nodes: Nodes, self: Any) -> Range:
    """Sigmoid grows; 1 / (1 + exp(-x)) has a small relative error, so that it stays above 0."""
    del node, nodes
    return _sigmoid(self)


def _sigmoid(x: Range) -> Range:
    return rounded(x.low.sigmoid(), x.high.sigmoid(), _LIBRARY, nonnegative=True).within(0.0, 1.0)


@RANGES.rule("glu.default")
def gated(node: Node, nodes: Nodes, self: Any, dim: int) -> Range:
    """a sigmoid(b) with a, b the halves of the tensor: the product of their ranges."""
    del node, nodes
    lows, highs = self.low.chunk(2, dim), self.high.chunk(2, dim)
    return times(Range(lows[0], highs[0]), _sigmoid(Range(lows[1], highs[1])))


@RANGES.rule("softplus.default")
def softplus(node: Node, nodes: Nodes, self: Any, beta: float, threshold: float) -> Range:
    """Softplus grows from 0; what torch drops beyond its threshold counts as rounding."""
    del nodes
    if beta <= 0 or threshold < 0:
        raise UnsupportedOp(f"expected softplus with beta > 0 and threshold >= 0, got {beta} and {threshold}")
    low, high = both_ends(node, {**node.args, "self": self})
    dropped = math.log1p(math.exp(-threshold)) / beta * (1 + 1e-9)
    below, above = (_charged(x, y) + dropped for x, y in ((self.low, low), (self.high, high)))
    return widened(low, high, below, above).within(0.0, INFINITY)


@RANGES.rule("elu.default")
def elu(node: Node, nodes: Nodes, self: Any, alpha: float, scale: float, input_scale: float) -> Range:
    """ELU grows from -alpha scale."""
    del nodes
    if min(alpha, scale, input_scale) < 0:
        raise UnsupportedOp(f"expected ELU with settings >= 0, got {alpha}, {scale}, {input_scale}")
    size = max(1.0, float(scale)) * max(1.0, float(alpha)) * max(1.0, float(input_scale))
    return _exponential_unit(node, {**node.args, "self": self}, size, up(float(alpha) * float(scale)))


@RANGES.rule("celu.default")
def celu(node: Node, nodes: Nodes, self: Any, alpha: float) -> Range:
    """CELU grows from -alpha."""
    del nodes
    if alpha <= 0:
        raise UnsupportedOp(f"expected CELU with alpha > 0, got {alpha}")
    return _exponential_unit(node, {**node.args, "self": self}, max(1.0, float(alpha)), float(alpha))


def _exponential_unit(node: Node, arguments: dict[str, Any], size: float, depth: float) -> Range:
    """`size`: the largest of the factors inside; the function stays above -`depth`."""
    x: Range = arguments["self"]
    low, high = both_ends(node, arguments)
    return widened(low, high, size * _charged(x.low, low), size * _charged(x.high, high)).within(-depth, INFINITY)


@RANGES.rule("leaky_relu.default")
def leaky_relu(node: Node, nodes: Nodes, self: Any, negative_slope: float) -> Range:
    """Leaky ReLU is 0 at 0 and monotone on either side."""
    del nodes, negative_slope
    return _kinked(node, {**node.args, "self": self})


@RANGES.rule("rrelu.default")
def random_leaky_relu(
    node: Node, nodes: Nodes, self: Any, lower: Any, upper: Any, training: bool, generator: Any
) -> Range:
    """RReLU in eval mode is a leaky ReLU with the mean slope."""
    del nodes, lower, upper, generator
    if training:
        raise UnsupportedOp("expected RReLU in eval mode, got training=True")
    return _kinked(node, {**node.args, "self": self})


@RANGES.rule("threshold.default")
def threshold(node: Node, nodes: Nodes, self: Any, threshold: Any, value: Any) -> Range:
    """x above the threshold, a constant below it."""
    del node, nodes
    low, high = self.low.clamp_min(threshold), self.high.clamp_min(threshold)
    below, above = self.low <= threshold, self.high <= threshold
    low = torch.where(above, value, torch.where(below, low.clamp_max(value), low))
    high = torch.where(above, value, torch.where(below, high.clamp_min(value), high))
    return Range(low, high)


@RANGES.rule("prelu.default", "_prelu_kernel.default")
def prelu(node: Node, nodes: Nodes, self: Any, weight: Any) -> Range:
    """PReLU is 0 at 0 and monotone on either side, channel by channel."""
    del nodes
    if isinstance(weight, Range):
        raise UnsupportedOp(f"expected weights of {node.op} that do not depend on the input, got some that do")
    return _kinked(node, {"self": self, "weight": weight})


def _kinked(node: Node, arguments: dict[str, Any]) -> Range:
    x: Range = arguments["self"]
    first, second = both_ends(node, arguments)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    inside = (x.low <= 0) & (x.high >= 0)
    low = torch.where(inside, low.clamp_max(0), low)
    high = torch.where(inside, high.clamp_min(0), high)
    return widened(low, high, gamma(8) * low.abs(), gamma(8) * high.abs())


@RANGES.rule(PIECEWISE)
def in_pieces(node: Node, nodes: Nodes, self: Any, points: Any, steps: Any, slope: Any, offset: Any) -> Range:
    """A function of straight pieces is extreme at an end of the range, or where two pieces meet in it."""
    del nodes
    places = [self.low, self.high, *(torch.minimum(torch.maximum(p, self.low), self.high) for p in points)]
    constants = {"points": points, "steps": steps, "slope": slope, "offset": offset}
    values = torch.stack([run(node, {**constants, "self": place}) for place in places])
    sizes = torch.stack([sum_of_pieces({**constants, "self": place}) for place in places])
    lost = gamma(2 * len(points) + 8) * sizes
    none = torch.zeros_like(self.low)
    return widened((values - lost).amin(0), (values + lost).amax(0), none, none)


@RANGES.rule(FOLDED)
def folded(node: Node, nodes: Nodes, self: Any, other: Any, here: Any, there: Any, step: Any) -> Range:
    """One coordinate, and what the fold adds to it, each over its range."""
    del node, nodes
    ends = torch.stack([here * x + there * y for x in (self.low, self.high) for y in (other.low, other.high)])
    low, high = (step * ends.clamp_min(0).amin(0), step * ends.clamp_min(0).amax(0))
    size = self.magnitude + step.abs() * (here.abs() * self.magnitude + there.abs() * other.magnitude)
    low, high, lost = self.low + torch.minimum(low, high), self.high + torch.maximum(low, high), gamma(16) * size
    return widened(low - lost, high + lost, torch.zeros_like(low), torch.zeros_like(low))


@RANGES.rule("silu.default", "mish.default", "hardswish.default")
def one_valley(node: Node, nodes: Nodes, self: Any) -> Range:
    """Falls to the bottom of a valley, then grows: the ends, and the bottom where the range contains it."""
    del nodes
    return _over_valley(node, {"self": self}, node.op)


@RANGES.rule("gelu.default")
def gelu(node: Node, nodes: Nodes, self: Any, approximate: str) -> Range:
    """GELU falls to the bottom of a valley near -0.75, then grows."""
    del nodes
    key = f"gelu.default {approximate}"
    if key not in VALLEYS:
        raise UnsupportedOp(f"expected GELU approximate=none or tanh, got {approximate!r}")
    return _over_valley(node, {"self": self, "approximate": approximate}, key)


def _over_valley(node: Node, arguments: dict[str, Any], key: str) -> Range:
    left, right, bottom = VALLEYS[key]
    x: Range = arguments["self"]
    x = Range(x.low.clamp_min(_FAR), x.high.clamp_min(_FAR))
    at_low, at_high = both_ends(node, {**arguments, "self": x})
    low = torch.minimum(at_low - _charged(x.low, at_low), at_high - _charged(x.high, at_high))
    low = torch.where((x.low <= right) & (x.high >= left), bottom, low)
    high = torch.maximum(at_low + _charged(x.low, at_low), at_high + _charged(x.high, at_high))
    return widened(low, high, gamma(4) * low.abs(), gamma(4) * high.abs()).within(bottom, INFINITY)
