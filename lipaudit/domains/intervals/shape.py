"""Operations that are monotone in every entry and have no weights of their own: applied to both ends.

What only moves, copies, selects or compares entries is exact; sums and averages round. Some of them keep vectors
whole (or take parts of them), and then a known length is carried over.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.intervals.value import INFINITY, RANGES, Nodes, Range, both_ends, run, widened
from lipaudit.errors import UnsupportedOp
from lipaudit.rounding import gamma

RESHAPING = (
    "view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unsqueeze.default",
    "squeeze.default", "squeeze.dim", "squeeze.dims",
)  # fmt: skip
PERMUTING = ("permute.default", "transpose.int", "t.default")
SELECTING = (
    "slice.Tensor", "split.Tensor", "split_with_sizes.default", "chunk.default", "roll.default", "flip.default",
    "expand.default", "pad.default",
)  # fmt: skip
DROPPING = ("select.int", "unbind.int")
"""Operations that remove the axis `dim`."""

EXACT = (
    "repeat.default", "tile.default", "rot90.default", "tril.default", "triu.default", "diagonal.default",
    "constant_pad_nd.default", "pixel_shuffle.default", "pixel_unshuffle.default", "channel_shuffle.default",
    "unfold.default", "im2col.default", "repeat_interleave.self_int", "repeat_interleave.self_Tensor", "index.Tensor",
    "_unsafe_index.Tensor", "index_select.default", "gather.default", "take_along_dim.default", "where.self",
    "where.ScalarSelf", "where.ScalarOther", "masked_fill.Scalar", "masked_fill.Tensor", "cat.default",
    "stack.default", "slice_scatter.default", "select_scatter.default",
    *(f"{kind}{axes}d.{name}" for kind in ("upsample_nearest", "_upsample_nearest_exact")
      for axes in (1, 2, 3) for name in ("vec", "default")),
    "relu.default", "relu6.default", "hardtanh.default", "clamp.default", "clamp.Tensor", "clamp_min.default",
    "clamp_max.default", "clamp_min.Tensor", "clamp_max.Tensor", "maximum.default", "minimum.default", "max.other",
    "scatter.src", "scatter.value", "index_copy.default", "index_fill.int_Scalar", "median.default", "min.other",
    "fmax.default", "fmin.default", "amax.default", "amin.default", "max.default", "min.default",
    "aminmax.default", "max_pool1d.default", "max_pool2d.default", "max_pool3d.default",
)  # fmt: skip

VALUES_AND_INDICES = (
    "median.dim", "kthvalue.default", "cummax.default", "cummin.default",
    "max.dim", "min.dim", "sort.default", "topk.default", "max_pool2d_with_indices.default",
    "max_pool3d_with_indices.default", "adaptive_max_pool1d.default", "adaptive_max_pool2d.default",
    "adaptive_max_pool3d.default",
)  # fmt: skip

SUMS = (
    "mean.dim", "mean.default", "sum.dim_IntList", "sum.default", "cumsum.default", "avg_pool1d.default",
    "avg_pool2d.default", "avg_pool3d.default", "adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default",
    "adaptive_avg_pool3d.default", "col2im.default",
)  # fmt: skip

INTERPOLATING = (
    "upsample_linear1d.vec", "upsample_linear1d.default", "upsample_bilinear2d.vec", "_upsample_bilinear2d_aa.vec",
    "_upsample_bilinear2d_aa.default", "upsample_trilinear3d.vec", "upsample_trilinear3d.default",
    "grid_sampler_2d.default", "grid_sampler_3d.default",
)  # fmt: skip

JUMPING = (
    "floor.default", "ceil.default", "round.default", "round.decimals", "trunc.default", "frac.default",
    "sign.default", "sgn.default", "heaviside.default", "fmod.Scalar", "fmod.Tensor", "remainder.Scalar",
    "remainder.Tensor", "floor_divide.default", "div.Tensor_mode", "div.Scalar_mode",
)  # fmt: skip
"""No Lipschitz bound passes them, so nothing is said of their values."""


@RANGES.rule(*RESHAPING, *PERMUTING, *SELECTING, *DROPPING)
def moved(node: Node, nodes: Nodes, **arguments: Any) -> Range:
    """Entries that are moved, selected or copied keep their ranges; vectors that stay whole keep their length."""
    del nodes
    return Range(*both_ends(node, arguments), *_carried(node, arguments))


@RANGES.rule(*EXACT)
def monotone(node: Node, nodes: Nodes, **arguments: Any) -> Range:
    """A function that grows with every entry takes its least value at the lower ends, its largest at the upper."""
    del nodes
    if any(isinstance(arguments.get(name), Range) for name in ("mask", "condition", "index", "indices")):
        raise UnsupportedOp(f"expected a mask that does not depend on the input in {node.op}, got one that does")
    return Range(*both_ends(node, arguments))


@RANGES.rule("index_put.default", "_unsafe_index_put.default", "scatter_add.default", "index_add.default")
def added(node: Node, nodes: Nodes, **arguments: Any) -> Range:
    """Entries that are replaced at constant places, or added there: alpha times each, which it grows or falls with."""
    del nodes
    if arguments.get("accumulate") is False:
        return Range(*both_ends(node, arguments))
    name = {"index_put": "values", "scatter_add": "src", "index_add": "source"}[
        node.op.split(".")[0].removeprefix("_unsafe_")
    ]
    start, term = (
        value if isinstance(value, Range) else Range(value, value) for value in (arguments["self"], arguments[name])
    )
    fixed = dict(arguments)
    if fixed.get("alpha", 1) < 0:
        fixed["alpha"], term = -fixed["alpha"], Range(-term.high, -term.low)
    low, high = both_ends(node, {**fixed, "self": start, name: term})
    charge = 2 * gamma(term.low.numel() + 8)
    below, above = (
        charge * run(node, {**fixed, "self": end.abs(), name: other.abs()})
        for end, other in ((start.low, term.low), (start.high, term.high))
    )
    return widened(low, high, below, above)


@RANGES.rule(*VALUES_AND_INDICES)
def order_statistics(node: Node, nodes: Nodes, **arguments: Any) -> Range:
    """The k-th largest entry grows with every entry."""
    del nodes
    if node.output != 0:
        raise UnsupportedOp(f"expected the values of {node.op}, got its indices as a function of the input")
    if arguments.get("sorted") is False:
        raise UnsupportedOp(f"expected {node.op} with sorted=True, got an order that is not defined")
    return Range(*both_ends(node, arguments))


@RANGES.rule(*SUMS)
def sums(node: Node, nodes: Nodes, **arguments: Any) -> Range:
    """Sums and averages grow with every entry; n terms round as gamma(n) times the sum of absolute values."""
    del nodes
    x: Range = arguments["self"]
    low, high = both_ends(node, arguments)
    charge = 2 * gamma(x.low.numel() + 8)
    below, above = (charge * run(node, {**arguments, "self": end.abs()}) for end in (x.low, x.high))
    total = widened(low, high, below, above, nonnegative=x.nonnegative)
    axis, length = _carried(node, arguments) if node.op == "mean.dim" else (None, None)
    return Range(total.low, total.high, axis, None if length is None else length * (1 + charge))


@RANGES.rule(*INTERPOLATING)
def interpolated(node: Node, nodes: Nodes, **arguments: Any) -> Range:
    """Linear interpolation is an average of neighbours; its weights come from positions that are rounded too."""
    del nodes
    if isinstance(arguments.get("grid"), Range) or arguments.get("interpolation_mode", 0) not in (0, 1):
        raise UnsupportedOp(f"expected {node.op} at constant places and without negative weights, got another")
    x: Range = arguments["input"] if "input" in arguments else arguments["self"]
    low, high = both_ends(node, arguments)
    charge = 2 * gamma(x.low.numel() + 64) * x.magnitude.amax()
    return widened(low, high, charge, charge, nonnegative=x.nonnegative)


@RANGES.rule(*JUMPING)
def jumping(node: Node, nodes: Nodes, **arguments: Any) -> Range:
    """Nothing is known of what jumps: the Lipschitz domain refuses it."""
    del nodes
    device = next(x.low.device for x in arguments.values() if isinstance(x, Range))
    high = torch.full(node.shape, INFINITY, dtype=torch.float64, device=device)
    return Range(-high, high)


def _carried(node: Node, arguments: dict[str, Any]) -> tuple[int | None, torch.Tensor | None]:
    """Axis and length after an operation whose vectors are (parts of, or for `mean.dim` averages of) the old ones."""
    x: Range = arguments["self"]
    if x.axis is None or x.length is None:
        return None, None
    axis = _new_axis(node, arguments, tuple(x.low.shape), x.axis)
    if axis is None:
        return None, None
    # Every entry is labelled with the length of its vector, and the labels are moved like the entries.
    labels = run(node, {**arguments, "self": x.length.expand(x.low.shape)})
    return axis, labels.amax(axis, keepdim=True)


def _new_axis(node: Node, arguments: dict[str, Any], shape: tuple[int, ...], axis: int) -> int | None:
    """Where the vectors along `axis` lie after the operation; None if they are not kept."""
    rank, new = len(shape), node.shape
    start = axis + rank
    if node.op in RESHAPING:
        before = math.prod(shape[:start])
        same = [k for k, size in enumerate(new) if size == shape[start] and math.prod(new[:k]) == before]
        parts = axis == -1 and len(new) > 0 and shape[-1] % new[-1] == 0
        return same[0] - len(new) if same else (-1 if parts else None)
    if node.op == "permute.default":
        return [d % rank for d in arguments["dims"]].index(start) - rank
    if node.op == "transpose.int":
        first, second = arguments["dim0"] % rank, arguments["dim1"] % rank
        return {first: second, second: first}.get(start, start) - rank
    if node.op in DROPPING or node.op == "mean.dim":
        dims = arguments["dim"] if isinstance(arguments["dim"], list) else [arguments["dim"]]
        removed = {d % rank for d in dims if d is not None} or set(range(rank))
        if start in removed:
            return None
        return axis if arguments.get("keepdim") else start - sum(d < start for d in removed) - len(new)
    if node.op == "pad.default" and (arguments["mode"] != "constant" or arguments["value"]):
        return None
    if node.op == "roll.default" and not arguments["dims"]:
        return None  # rolls the flattened tensor
    if node.op in SELECTING and new[axis] <= shape[axis] and len(new) >= rank:
        return axis
    return None
