"""Pooling and reductions: averages and sums are linear, maxima count how many windows see an entry."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.propagator import RULES, Ledger, Value
from lipaudit.domains.lipschitz.shape import MAX_POOLS, linear_call, root
from lipaudit.errors import UnsupportedOp
from lipaudit.results.bounds import Upper
from lipaudit.rounding import up

Windows = tuple[tuple[int, ...], tuple[int, ...]]


def _pool(node: Node, ledger: Ledger, x: Value, coisometry: float | None, windows: Windows | None = None) -> Value:
    terms = math.prod(ledger.shape_of(node, "self"))
    return ledger.pend(node, x, replace(linear_call(node, ledger, "self", terms, coisometry), windows=windows))


@RULES.rule("mean.dim", "sum.dim_IntList")
def reduce_axes(node: Node, ledger: Ledger, self: Any, dim: Any, keepdim: bool, dtype: Any) -> Value:
    """A sum over axes of n entries has norm sqrt(n), their mean 1 / sqrt(n): rows without overlap."""
    del dim, keepdim, dtype  # the number of summed entries is read off the shapes
    return _reduced(node, ledger, self)


@RULES.rule("mean.default", "sum.default")
def reduce_all(node: Node, ledger: Ledger, self: Any, dtype: Any) -> Value:
    """The sum of all n entries has norm sqrt(n), their mean 1 / sqrt(n)."""
    del dtype
    return _reduced(node, ledger, self)


def _reduced(node: Node, ledger: Ledger, value: Value) -> Value:
    summed = math.prod(ledger.shape_of(node, "self")) // math.prod(node.shape)
    mean = node.op.startswith("mean")
    return _pool(node, ledger, value, up(up(1.0 / math.sqrt(summed))) if mean and summed > 1 else root(summed))


@RULES.rule("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default")
def adaptive_average(node: Node, ledger: Ledger, self: Any, output_size: Any) -> Value:
    """Adaptive average pooling: 1 / sqrt(window) where the sizes divide, else the Schur test of its weights."""
    del output_size
    before, after = _pooled_axes(node, ledger)
    if any(n % m for n, m in zip(before, after, strict=True)):
        return _pool(node, ledger, self, None)
    sizes = tuple(n // m for n, m in zip(before, after, strict=True))
    window = math.prod(sizes)
    return _pool(node, ledger, self, up(up(1.0 / math.sqrt(window))) if window > 1 else 1.0, (sizes, sizes))


def _pooled_axes(node: Node, ledger: Ledger) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes before and after along the axes of the pool, the last ones; the channel axis may be missing."""
    axes = int(node.op.partition("_pool")[2][0])
    return ledger.shape_of(node, "self")[-axes:], node.shape[-axes:]


def _averaging(*ops: str) -> None:
    def rule(node: Node, ledger: Ledger, **arguments: Any) -> Value:
        """Average pooling: root of the largest row sum times the largest column sum of its weights."""
        if (arguments.get("divisor_override") or 1) < 0:
            raise UnsupportedOp(
                f"expected a divisor_override above 0 in {node.op} ({node.source}), got "
                f"{arguments['divisor_override']}; average with a positive one, and negate the result"
            )
        return _pool(node, ledger, arguments["self"], *_windows(int(node.op[8]), arguments))

    for op in ops:
        RULES.rule(op)(rule)


def _windows(axes: int, pool: dict[str, Any]) -> tuple[float | None, Windows | None]:
    """1 / sqrt(window) where none overlap; the size and stride of windows. Both only for averages without a border."""
    kernel, stride = (_each(pool[name] or pool["kernel_size"], axes) for name in ("kernel_size", "stride"))
    if any(pool["padding"]) or pool["ceil_mode"] or pool.get("divisor_override") is not None:
        return None, None
    window = math.prod(kernel)
    apart = None if kernel != stride else up(up(1.0 / math.sqrt(window))) if window > 1 else 1.0
    return apart, (kernel, stride)


_averaging("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")


def _each(values: Any, axes: int) -> tuple[int, ...]:
    values = (values,) if isinstance(values, int) else tuple(values)
    return values * axes if len(values) == 1 else values


@RULES.rule(*MAX_POOLS)
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
    times the windows it lies in. Padding with -inf, the pool's own or one in front, is in no maximum.
    """
    _refuse_indices(node, 0)
    del ceil_mode  # the number of windows is read off the output
    size = ledger.shape_of(node, "self")
    axes = node.op.removeprefix("max_pool")[0]
    count = int(axes)

    kernel, pads, dilations = (_each(values, count) for values in (kernel_size, padding, dilation))
    strides = _each(stride, count) if stride else kernel
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
    return ledger.record(node, "scale", [self], Upper(root(windows), "max-pool", because))


@RULES.rule("adaptive_max_pool1d.default", "adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def adaptive_max_pool(node: Node, ledger: Ledger, self: Any, output_size: Any) -> Value:
    """Adaptive max pooling: windows overlap at most once per axis where the sizes do not divide."""
    _refuse_indices(node, 0)
    del output_size
    windows = 1
    for n, m in zip(*_pooled_axes(node, ledger), strict=True):
        seen = [0] * n
        for i in range(m):
            for place in range(i * n // m, -(-(i + 1) * n // m)):
                seen[place] += 1
        windows *= max(seen)
    because = f"an entry lies in at most {windows} windows"
    return ledger.record(node, "scale", [self], Upper(root(windows), "max-pool", because))


def _refuse_indices(node: Node, *values: int) -> None:
    """Where the maximum lies is not continuous."""
    if node.output is not None and node.output not in values:
        raise UnsupportedOp(f"expected the values of {node.op}, got their indices as a function of the input")


_ONE_WINDOW = Upper(1.0, "max-pool", "one window per output")


@RULES.rule("amax.default", "amin.default")
def extremum(node: Node, ledger: Ledger, self: Any, dim: Any, keepdim: bool) -> Value:
    """The maximum over axes moves by at most the largest movement: 1."""
    del dim, keepdim
    return _extreme(node, ledger, self)


@RULES.rule("max.dim", "min.dim")
def extremum_along(node: Node, ledger: Ledger, self: Any, dim: int, keepdim: bool) -> Value:
    """The maximum along an axis moves by at most the largest movement: 1."""
    del dim, keepdim
    _refuse_indices(node, 0)
    return _extreme(node, ledger, self)


@RULES.rule("median.dim")
def median_along(node: Node, ledger: Ledger, self: Any, dim: int, keepdim: bool) -> Value:
    """The median is an entry of the sorted vector, which is 1-Lipschitz."""
    del dim, keepdim
    _refuse_indices(node, 0)
    return ledger.record(node, "scale", [self], _ONE_WINDOW)


@RULES.rule("kthvalue.default")
def order_statistic(node: Node, ledger: Ledger, self: Any, k: int, dim: int, keepdim: bool) -> Value:
    """The k-th smallest entry is one of the sorted vector, which is 1-Lipschitz."""
    del k, dim, keepdim
    _refuse_indices(node, 0)
    return ledger.record(node, "scale", [self], _ONE_WINDOW)


@RULES.rule("cummax.default", "cummin.default")
def running_extremum(node: Node, ledger: Ledger, self: Any, dim: int) -> Value:
    """Running maxima of n entries: each moves by at most the largest movement before it, together by sqrt(n) times."""
    _refuse_indices(node, 0)
    count = node.shape[dim] if node.shape else 1
    return ledger.record(
        node, "scale", [self], Upper(root(count), "max-pool", f"an entry is the largest {count} times")
    )


@RULES.rule("max.default", "min.default")
def extremum_of_all(node: Node, ledger: Ledger, self: Any) -> Value:
    """The maximum of all entries moves by at most the largest movement: 1."""
    return _extreme(node, ledger, self)


@RULES.rule("median.default")
def median_of_all(node: Node, ledger: Ledger, self: Any) -> Value:
    """The median of all entries moves by at most the largest movement: 1."""
    return ledger.record(node, "scale", [self], _ONE_WINDOW)


@RULES.rule("aminmax.default")
def extrema(node: Node, ledger: Ledger, self: Any, dim: Any, keepdim: bool) -> Value:
    """The minimum and the maximum along an axis each move by at most the largest movement: 1."""
    del dim, keepdim
    _refuse_indices(node, 0, 1)
    return _extreme(node, ledger, self)


_EXTREMA = {
    "amax.default": 0, "max.dim": 0, "max.default": 0, "amin.default": 1, "min.dim": 1, "min.default": 1,
    "aminmax.default": None,
}  # fmt: skip
"""Which end of the sorted entries: the first are the largest. Both of them have the smallest as their output 0."""


def _extreme(node: Node, ledger: Ledger, value: Value) -> Value:
    """One end of the entries along some axes, and a piece of the sorted tensor where the other end is read too."""
    whole, axes, end = _end(node, ledger)
    ends = {_end(each, ledger) for each in ledger.graph.nodes if each.op in _EXTREMA}
    if math.prod(ledger.shape_of(node, "self")) < 2 * math.prod(node.shape) or (whole, axes, 1 - end) not in ends:
        return ledger.record(node, "scale", [value], _ONE_WINDOW)
    fork = f"sorted({whole}; {', '.join(map(str, sorted(axes)))})"
    return ledger.sorted(node, fork, [value], "scale", end, 2)


def _end(node: Node, ledger: Ledger) -> tuple[str, frozenset[int], int]:
    """What the node reads, along which axes, and which end of it; see `_EXTREMA`."""
    count, dim = len(ledger.shape_of(node, "self")), node.args.get("dim")
    given = [dim] if isinstance(dim, int) else dim
    axes = frozenset(axis % count for axis in given) if given else frozenset(range(count))
    end = _EXTREMA[node.op]
    return node.args["self"].name, axes, 1 - (node.output or 0) if end is None else end


@RULES.rule("linalg_vector_norm.default")
def vector_norm(node: Node, ledger: Ledger, self: Any, ord: Any, dim: Any, keepdim: bool, dtype: Any) -> Value:
    """A norm moves by at most the norm of the movement: 1 for order 2 and above, sqrt(n) for order 1."""
    del dim, keepdim, dtype
    return _norm(node, ledger, self, ord)


@RULES.rule("norm.ScalarOpt_dim")
def older_norm(node: Node, ledger: Ledger, self: Any, p: Any, dim: Any, keepdim: bool) -> Value:
    """A norm moves by at most the norm of the movement: 1 for order 2 and above, sqrt(n) for order 1."""
    del dim, keepdim
    return _norm(node, ledger, self, 2 if p is None else p)


def _norm(node: Node, ledger: Ledger, value: Value, order: Any) -> Value:
    if order not in (1, 2, math.inf):
        raise UnsupportedOp(f"expected a norm of order 1, 2 or inf, got {order}")
    count = math.prod(ledger.shape_of(node, "self")) // max(1, math.prod(node.shape))
    bound = root(count) if order == 1 else 1.0
    because = f"reverse triangle inequality, order {order} of {count} entries"
    return ledger.record(node, "scale", [value], Upper(bound, "norm", because))


@RULES.rule("cdist.default", "_cdist_forward.default")
def distances(node: Node, ledger: Ledger, x1: Any, x2: Any, p: float, compute_mode: Any) -> Value:
    """Distances to n constant points: each moves by at most the movement of its point, together by sqrt(n) times."""
    del compute_mode
    if isinstance(x1, Value) and isinstance(x2, Value):
        raise UnsupportedOp(f"expected {node.op} to constant points, got two sets that depend on the input")
    operand, points = ("x1", x2) if isinstance(x1, Value) else ("x2", x1)
    if p not in (1, 2):  # that of order inf hides a NaN
        raise UnsupportedOp(f"expected distances of order 1 or 2, got {p}")
    if not bool(torch.isfinite(points).all()):
        raise ValueError("expected points of finite numbers, got NaN or inf")
    shape = ledger.shape_of(node, operand)
    before = math.prod(node.shape[:-2]) // max(1, math.prod(shape[:-2]))  # batches that share the points
    count = points.shape[-2] * before * (shape[-1] if p == 1 else 1)
    because = f"reverse triangle inequality, order {p:g}, to {points.shape[-2]} points"
    return ledger.record(node, "scale", [x1 if operand == "x1" else x2], Upper(root(count), "norm", because))


@RULES.rule("cumsum.default")
def running_sum(node: Node, ledger: Ledger, self: Any, dim: int, dtype: Any) -> Value:
    """Running sums of n entries have norm 1 / (2 sin(pi / (4 n + 2))), exactly.

    The inverse takes differences D; D D^T is tridiagonal, its least eigenvalue is 4 sin^2(pi / (4 n + 2)).
    """
    del dtype
    count = node.shape[dim] if node.shape else 1
    # Three roundings of the argument and a library function, whose relative errors the sine hands on: 1e-14 is plenty.
    bound = 1.0 / (2 * math.sin(math.pi / (4 * count + 2))) * (1 + 1e-14)
    return ledger.record(node, "scale", [self], Upper(bound, "closed-form", f"running sum of {count} entries (exact)"))
