"""What a function of one entry does between two values: it lies in a band around a straight line. `BANDS` is the table.

Note [Bands]
    A form can only go on as a form: f(z) in slope z + shift +- error for all z in [low, high]. The slope is that of the
    chord, (f(high) - f(low)) / (high - low); any slope is sound, as the error is computed for the one that is taken.
    Functions of few pieces: f(z) - slope z is monotone between the places where it can turn, so its values there
    and at the ends bound it. Curved ones with |f''| <= M and slopes in [a, b]: off the chord by at most
        M w^2 / 2    and    2 w (s - a) (b - s) / (b - a),    w half of the width, s the slope of the chord.
    Values of f are charged with the rounding that float64.py states for them.

Source: the chord is the line of least area for ReLU (G. Singh et al., NeurIPS 2018); the rest is calculus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lipaudit.domains.graph import Node, call
from lipaudit.domains.piecewise import PIECEWISE
from lipaudit.domains.rounding.float64 import RULES as ROUNDINGS
from lipaudit.errors import UnsupportedOp
from lipaudit.registry import Registry
from lipaudit.rounding import TINY, gamma

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Band:
    """f(z) in slope z + shift +- error, entry by entry."""

    slope: torch.Tensor
    shift: torch.Tensor
    error: torch.Tensor


BANDS: Registry[Callable[[Node, Arguments, torch.Tensor, torch.Tensor, float], Band]] = Registry("band")
"""A function of the node, its other arguments, the ends of the range of its operand `self`, and the largest slope that
the Lipschitz domain knows of: no band is steeper."""

TURNS: dict[str, Callable[[Arguments], Sequence[Any]]] = {
    "relu.default": lambda _: [0.0],
    "relu6.default": lambda _: [0.0, 6.0],
    "hardtanh.default": lambda a: [a["min_val"], a["max_val"]],
    "clamp.default": lambda a: [end for end in (a["min"], a["max"]) if end is not None],
    "clamp_min.default": lambda a: [a["min"]],
    "clamp_max.default": lambda a: [a["max"]],
    "abs.default": lambda _: [0.0],
    "leaky_relu.default": lambda _: [0.0],
    "prelu.default": lambda _: [0.0],
    "_prelu_kernel.default": lambda _: [0.0],
    "threshold.default": lambda a: [a["threshold"]],
    "hardsigmoid.default": lambda _: [-3.0, 3.0],
    PIECEWISE: lambda a: list(a["points"]),
}
"""Operation -> where its straight pieces meet."""

CURVES: dict[str, tuple[float, tuple[float, float]]] = {
    "sigmoid.default": (0.096225045, (0.0, 0.25)),
    "tanh.default": (0.769800359, (0.0, 1.0)),
    "silu.default": (0.5, (-0.099839321, 1.099839321)),
    "mish.default": (0.644204638, (-0.112526123, 1.088498162)),
    "gelu.default none": (0.797884561, (-0.128904146, 1.128904146)),
    "gelu.default tanh": (0.797884561, (-0.128993069, 1.128993069)),
    "erf.default": (0.967882899, (0.0, 1.128379168)),
    "erfc.default": (0.967882899, (-1.128379168, 0.0)),
    "atan.default": (0.649519053, (0.0, 1.0)),
    "asinh.default": (0.384900180, (0.0, 1.0)),
    "sin.default": (1.0, (-1.0, 1.0)),
    "cos.default": (1.0, (-1.0, 1.0)),
    "log_sigmoid.default": (0.25, (0.0, 1.0)),
}
"""Operation -> M >= |f''| and [a, b], its slopes: rounded outward in the ninth digit; tests recompute each."""


@BANDS.register("relu.default")
def relu(node: Node, arguments: Arguments, low: torch.Tensor, high: torch.Tensor, steepest: float) -> Band:
    """ReLU: see `rectified`."""
    del node, arguments, steepest  # it has no other arguments
    return rectified(low, high)


def rectified(low: torch.Tensor, high: torch.Tensor) -> Band:
    """ReLU: nothing at all happens to what is known to be positive, nor is anything left of what is negative."""
    exact = torch.zeros_like(low)
    points = (low, high, torch.minimum(torch.maximum(exact, low), high))
    slope = _chord(low, high, low.clamp_min(0.0), high.clamp_min(0.0)).clamp(0.0, 1.0)
    band = _enclosing(slope, [(point, point.clamp_min(0.0), exact) for point in points])
    above, below = low >= 0, high <= 0  # neither, if the range is not a number
    slope = torch.where(above, 1.0, torch.where(below, 0.0, band.slope))
    straight = above | below
    return Band(slope, band.shift.masked_fill(straight, 0.0), band.error.masked_fill(straight, 0.0))


@BANDS.register(*(name for name in TURNS if name != "relu.default"))
def pieces(node: Node, arguments: Arguments, low: torch.Tensor, high: torch.Tensor, steepest: float) -> Band:
    """A function of straight pieces: its chord, and how far the places where pieces meet are off it."""
    at_low, at_high = (_value(node, arguments, end) for end in (low, high))
    slope = _chord(low, high, at_low[0], at_high[0]).clamp(-steepest, steepest)
    ends = [(low, *at_low), (high, *at_high)]
    turns = (torch.as_tensor(turn, dtype=low.dtype, device=low.device) for turn in TURNS[node.op](arguments))
    return _enclosing(slope, [*ends, *(_at(node, arguments, turn, low, high) for turn in turns)])


@BANDS.register("hardswish.default")
def hard_swish(node: Node, arguments: Arguments, low: torch.Tensor, high: torch.Tensor, steepest: float) -> Band:
    """x clamp(x + 3, 0, 6) / 6: pieces that meet at -3 and 3; between them a parabola of slope s at 3 s - 3/2."""
    at_low, at_high = (_value(node, arguments, end) for end in (low, high))
    slope = _chord(low, high, at_low[0], at_high[0]).clamp(-steepest, steepest)
    turns = (low.new_tensor(-3.0), low.new_tensor(3.0), (3 * slope - 1.5).clamp(-3.0, 3.0))
    return _enclosing(
        slope, [(low, *at_low), (high, *at_high), *(_at(node, arguments, turn, low, high) for turn in turns)]
    )


@BANDS.register(*(name for name in CURVES if " " not in name))
def curved(node: Node, arguments: Arguments, low: torch.Tensor, high: torch.Tensor, steepest: float) -> Band:
    """A curved function: its chord, off it by at most what curvature or the extreme slopes allow."""
    del steepest  # it is one of the two slopes
    return _curve(node, arguments, low, high, *CURVES[node.op])


@BANDS.register("gelu.default")
def gelu(node: Node, arguments: Arguments, low: torch.Tensor, high: torch.Tensor, steepest: float) -> Band:
    """GELU, exact or by tanh: a curved function."""
    del steepest  # it is one of the two slopes
    return _curve(node, arguments, low, high, *CURVES[f"{node.op} {arguments['approximate']}"])


@BANDS.register("softplus.default")
def softplus(node: Node, arguments: Arguments, low: torch.Tensor, high: torch.Tensor, steepest: float) -> Band:
    """Softplus without its threshold: |f''| <= beta / 4, slopes in [0, 1]."""
    del steepest  # it is one of the two slopes
    return _curve(node, arguments, low, high, float(arguments["beta"]) / 4 * (1 + 1e-15), (0.0, 1.0))


@BANDS.register("elu.default")
def elu(node: Node, arguments: Arguments, low: torch.Tensor, high: torch.Tensor, steepest: float) -> Band:
    """ELU with alpha = 1: its slope is continuous, |f''| <= scale, slopes in [0, scale]."""
    if arguments["alpha"] != 1 or arguments["input_scale"] != 1:
        raise UnsupportedOp("expected ELU with alpha 1 for a local certificate, got one whose slope jumps")
    scale = abs(float(arguments["scale"]))
    del steepest  # it is one of the two slopes
    return _curve(node, arguments, low, high, scale, (0.0, scale))


@BANDS.register("celu.default")
def celu(node: Node, arguments: Arguments, low: torch.Tensor, high: torch.Tensor, steepest: float) -> Band:
    """CELU: |f''| <= 1 / alpha, slopes in [0, 1]."""
    del steepest  # it is one of the two slopes
    return _curve(node, arguments, low, high, 1 / float(arguments["alpha"]) * (1 + 1e-15), (0.0, 1.0))


def _curve(
    node: Node,
    arguments: Arguments,
    low: torch.Tensor,
    high: torch.Tensor,
    curvature: float,
    slopes: tuple[float, float],
) -> Band:
    (at_low, below), (at_high, above) = (_value(node, arguments, end) for end in (low, high))
    chord = _chord(low, high, at_low, at_high)
    slope = chord.clamp(*slopes)
    half = (high - low) / 2 * (1 + gamma(4))
    steepness = (slope - slopes[0]) * (slopes[1] - slope) / (slopes[1] - slopes[0]) * 2 * half
    error = torch.minimum(curvature / 2 * half.square(), steepness)
    # Of the chord through computed values: their errors, and roundings; a slope that was clamped is off by rounding.
    error = error + 2 * ((chord - slope).abs() * half + below + above)
    shift = (at_low + at_high) / 2 - slope * ((low + high) / 2)
    sizes = at_low.abs() + at_high.abs() + slope.abs() * (low.abs() + high.abs()) + shift.abs()
    return Band(slope, shift, error * (1 + gamma(16)) + gamma(16) * sizes + TINY)


def _chord(low: torch.Tensor, high: torch.Tensor, at_low: torch.Tensor, at_high: torch.Tensor) -> torch.Tensor:
    width = high - low
    return torch.where(width > 0, (at_high - at_low) / width.clamp_min(TINY), 0.0)


def _value(node: Node, arguments: Arguments, point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """f at that point, and a bound of the error of the computed value."""
    given = {**arguments, "self": point}
    value = call(node, given)
    if node.op not in ROUNDINGS:
        return value, torch.zeros_like(value)
    return value, ROUNDINGS[node.op](node, given, value) * (1 + gamma(8))


def _at(
    node: Node, arguments: Arguments, turn: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """That place, or the nearer end if it is not in the range, with the value there and its error."""
    place = torch.minimum(torch.maximum(turn, low), high)
    return place, *_value(node, arguments, place)


def _enclosing(slope: torch.Tensor, points: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Band:
    """The band of that slope that all these points of the function lie in."""
    offs = torch.stack([value - slope * place for place, value, _ in points])
    rounding = torch.stack([error + gamma(4) * (value.abs() + (slope * place).abs()) for place, value, error in points])
    highest, lowest = (offs + rounding).amax(0), (offs - rounding).amin(0)
    shift = (highest + lowest) / 2
    error = torch.maximum(highest - shift, shift - lowest)
    return Band(slope, shift, error * (1 + gamma(4)) + gamma(4) * shift.abs())
