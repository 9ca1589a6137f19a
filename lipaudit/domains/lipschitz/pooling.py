"""Pooling and reductions: averages and sums are linear, maxima count how many windows see an entry."""

from __future__ import annotations

import math
from typing import Any

from lipaudit.domains.lipschitz.shape import linear_call
from lipaudit.domains.lipschitz.value import RULES, Ledger, Value
from lipaudit.graph import Node
from lipaudit.results import Upper
from lipaudit.rounding import up


def _root(windows: float) -> float:
    root = math.sqrt(windows)
    return root if root * root == windows and root.is_integer() else up(root)


def _pool(node: Node, ledger: Ledger, x: Value, coisometry: float | None) -> Value:
    terms = math.prod(ledger.shape_of(node, "self"))
    return ledger.pend(node, x, linear_call(node, ledger, "self", terms, coisometry))


@RULES.rule("mean.dim", "sum.dim_IntList")
def reduce_axes(node: Node, ledger: Ledger, self: Any, dim: Any, keepdim: bool, dtype: Any) -> Value:
    """A sum over axes of n entries has norm sqrt(n), their mean 1 / sqrt(n): rows without overlap."""
    del dim, keepdim, dtype  # the number of summed entries is read off the shapes
    summed = math.prod(ledger.shape_of(node, "self")) // math.prod(node.shape)
    mean = node.op.startswith("mean")
    return _pool(node, ledger, self, up(1.0 / math.sqrt(summed)) if mean and summed > 1 else _root(summed))


@RULES.rule("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default")
def adaptive_average(node: Node, ledger: Ledger, self: Any, output_size: Any) -> Value:
    """Adaptive average pooling: 1 / sqrt(window) where the sizes divide, else the Schur test of its weights."""
    del output_size
    before, after = ledger.shape_of(node, "self")[2:], node.shape[2:]
    if any(n % m for n, m in zip(before, after, strict=True)):
        return _pool(node, ledger, self, None)
    window = math.prod(before) // math.prod(after)
    return _pool(node, ledger, self, up(1.0 / math.sqrt(window)) if window > 1 else 1.0)


def _averaging(*ops: str) -> None:
    def rule(node: Node, ledger: Ledger, **arguments: Any) -> Value:
        """Average pooling: root of the largest row sum times the largest column sum of its weights."""
        return _pool(node, ledger, arguments["self"], _disjoint_windows(arguments))

    for op in ops:
        RULES.rule(op)(rule)


def _disjoint_windows(pool: dict[str, Any]) -> float | None:
    """1 / sqrt(window) for the plain case, stride equal to the window and no padding."""
    kernel, stride = list(pool["kernel_size"]), list(pool["stride"] or pool["kernel_size"])
    plain = not any(pool["padding"]) and not pool["ceil_mode"] and pool.get("divisor_override") is None
    if not plain or kernel != stride:
        return None
    return up(1.0 / math.sqrt(math.prod(kernel))) if math.prod(kernel) > 1 else 1.0


_averaging("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")


@RULES.rule("max_pool1d.default", "max_pool2d.default", "max_pool3d.default")
def max_pool(
    node: Node,
    ledger: Ledger,
    self: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> Value:
    """Max pooling: the root of the largest number of windows that contain one entry; 1 without overlap.

    |max_w x - max_w y| <= max_w |x - y|, so the squares of all windows add up to at most each entry's square
    times the windows it lies in.
    """
    del ceil_mode  # the number of windows is read off the output
    size = ledger.shape_of(node, "self")
    axes = node.op.removeprefix("max_pool")[0]
    count = int(axes)

    def spread(values: Any) -> list[int]:
        values = [values] if isinstance(values, int) else list(values)
        return values * count if len(values) == 1 else values

    kernel, pads, dilations = spread(kernel_size), spread(padding), spread(dilation)
    strides = spread(stride) if stride else kernel
    windows = 1
    for axis in range(count):
        seen = [0] * size[axis - count]
        for first in range(node.shape[axis - count]):
            for tap in range(kernel[axis]):
                place = first * strides[axis] + tap * dilations[axis] - pads[axis]
                if 0 <= place < len(seen):
                    seen[place] += 1
        windows *= max(seen)
    because = f"an entry lies in at most {windows} windows"
    return ledger.record(node, "scale", [self], Upper(_root(windows), "max-pool", because))


@RULES.rule("adaptive_max_pool1d.default", "adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def adaptive_max_pool(node: Node, ledger: Ledger, self: Any, output_size: Any) -> Value:
    """Adaptive max pooling: windows overlap at most once per axis where the sizes do not divide."""
    del output_size
    windows = 1
    for n, m in zip(ledger.shape_of(node, "self")[2:], node.shape[2:], strict=True):
        seen = [0] * n
        for i in range(m):
            for place in range(i * n // m, -(-(i + 1) * n // m)):
                seen[place] += 1
        windows *= max(seen)
    because = f"an entry lies in at most {windows} windows"
    return ledger.record(node, "scale", [self], Upper(_root(windows), "max-pool", because))


@RULES.rule("amax.default", "amin.default")
def extremum(node: Node, ledger: Ledger, self: Any, dim: Any, keepdim: bool) -> Value:
    """The maximum over axes moves by at most the largest movement: 1."""
    del dim, keepdim
    return ledger.record(node, "scale", [self], Upper(1.0, "max-pool", "one window per output"))
