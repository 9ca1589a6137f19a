"""Between what slopes each function of one entry lies."""

from __future__ import annotations

import math

from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.pairs import MONOTONE
from lipaudit.domains.lipschitz.pointwise import GELU_SLOPES, SLOPES
from lipaudit.domains.piecewise import PIECEWISE, largest_slope
from lipaudit.rounding import up

_SMALL = 1e-60

LEAST: dict[str, float] = {
    "silu.default": 1 - SLOPES["silu.default"][0] - 1e-15,  # slopes at x and -x add up to 1, as those of GELU
    "hardswish.default": -0.5,
    "selu.default": 0.0,
}
"""The least slope of those in `pointwise.SLOPES` that are neither monotone nor symmetric: never above the truth."""


def slopes(node: Node) -> tuple[float, float] | None:
    """(low, rise): every slope of the node, entry by entry, lies in [low, low + rise]; None if it is no such function.

    The rules of the Lipschitz domain have refused what jumps, and settings that they do not know.
    """
    found = _interval(node)
    if found is None or not all(math.isfinite(x) and abs(x) < 1 / _SMALL for x in found):
        return None
    low, high = found
    if abs(low) < _SMALL:
        low = 0.0 if low >= 0 else -_SMALL
    if high - low < _SMALL:
        high = low + _SMALL
    return low, up(up(up(up(high - low))))


def _interval(node: Node) -> tuple[float, float] | None:
    op, args = node.op, node.args
    if op in MONOTONE:
        return 0.0, MONOTONE[op]
    if op in SLOPES:
        return LEAST.get(op, -SLOPES[op][0]), SLOPES[op][0]
    if op == "gelu.default":
        steepest = GELU_SLOPES[args["approximate"]]
        return 1 - steepest - 1e-15, steepest
    if op == "leaky_relu.default":
        slope = float(args["negative_slope"])
        return min(slope, 1.0), max(slope, 1.0)
    if op in ("prelu.default", "_prelu_kernel.default"):
        least, most = float(args["weight"].min()), float(args["weight"].max())
        return min(least, 1.0), max(most, 1.0)
    if op in ("threshold.default", "celu.default"):
        return 0.0, 1.0
    if op == "elu.default":
        return 0.0, float(args["scale"]) * max(1.0, float(args["alpha"])) * (1 + 1e-15)
    if op == PIECEWISE:
        steepest = largest_slope(args["slope"], args["steps"])
        return -steepest, steepest
    return None
