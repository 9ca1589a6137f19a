"""What operations do to majorants, entry by entry. `STEPS` is the table; see Note [Majorants] in propagator.py.

A rule takes the node, how far the entries of each operand may move, and the largest slope or L2 bound that the
Lipschitz domain recorded. It returns how far the entries of the output may move, and the way back for weights (rows,
*shape) of the output: one tensor for each operand, in the order of the arguments. None where the rule says nothing of
this node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lipaudit.domains.graph import Node, Ref, call, quiet_vmap
from lipaudit.domains.piecewise import PIECEWISE
from lipaudit.domains.zonotope.linear_images import transposed
from lipaudit.norms.linear_maps import Conv
from lipaudit.registry import Registry
from lipaudit.rounding import gamma


@dataclass(frozen=True)
class Rule:
    """What becomes of the majorants of one operation."""

    m: torch.Tensor
    back: Callable[[torch.Tensor], Sequence[torch.Tensor]]


Moved = Mapping[str, torch.Tensor]

STEPS: Registry[Callable[[Node, Moved, float], Rule | None]] = Registry("rule for majorants")


@STEPS.register(
    "relu.default", "relu6.default", "hardtanh.default", "clamp.default", "clamp_min.default", "clamp_max.default",
    "abs.default", "tanh.default", "atan.default", "asinh.default", "sin.default", "cos.default", "erf.default",
    "erfc.default", "sigmoid.default", "log_sigmoid.default", "hardsigmoid.default", "hardswish.default",
    "silu.default", "mish.default", "selu.default", "gelu.default", "leaky_relu.default", "prelu.default",
    "_prelu_kernel.default", PIECEWISE, "rrelu.default", "elu.default", "celu.default", "softplus.default",
    "threshold.default", "square.default", "sqrt.default", "rsqrt.default", "reciprocal.default", "exp.default",
    "expm1.default", "exp2.default", "log.default", "log1p.default", "log2.default", "log10.default", "logit.default",
)  # fmt: skip
def one_entry(node: Node, moved: Moved, slope: float) -> Rule | None:
    """A function of one entry moves by at most its largest slope times what the entry moves by."""
    (m,) = moved.values()
    if tuple(m.shape) != tuple(node.shape):
        return None
    factor = slope if slope == 1.0 else slope * (1 + gamma(4))
    return Rule(m * factor, lambda c: [c * factor])


@STEPS.register("add.Tensor", "sub.Tensor", "rsub.Tensor", "cat.default", "stack.default")
def joined(node: Node, moved: Moved, slope: float) -> Rule | None:
    """A sum moves by at most the sum of what its terms move by; of a concatenation each part as it did."""
    del slope
    args = {k: abs(v) if k == "alpha" else v for k, v in node.args.items()}
    if node.op in ("sub.Tensor", "rsub.Tensor"):
        first, second = ("self", "other") if node.op == "sub.Tensor" else ("other", "self")
        args = {"self": args[first], "other": args[second], "alpha": args["alpha"]}
        return _linear(moved, lambda given: given["self"] + given["alpha"] * given["other"], args, 3)
    return _linear(moved, lambda given: call(node, given), args, 3)


_ASSEMBLED: dict[str, tuple[str, ...]] = {
    "where.self": ("self", "other"),
    "where.ScalarSelf": ("self", "other"),
    "where.ScalarOther": ("self", "other"),
    "masked_fill.Scalar": ("self", "value"),
    "masked_fill.Tensor": ("self", "value"),
    "slice_scatter.default": ("self", "src"),
    "select_scatter.default": ("self", "src"),
    "scatter.src": ("self", "src"),
    "scatter.value": ("self", "value"),
    "index_copy.default": ("self", "source"),
    "index_fill.int_Scalar": ("self", "value"),
}
"""Operation -> the arguments that its output is put together from."""


@STEPS.register(*_ASSEMBLED)
def assembled(node: Node, moved: Moved, slope: float) -> Rule | None:
    """Every entry of the output is one of an operand, or a constant."""
    del slope
    parts = _ASSEMBLED[node.op]
    args = {name: 0.0 if name in parts and isinstance(v, (int, float)) else v for name, v in node.args.items()}
    return _linear(moved, lambda given: call(node, given), args, 0, still=parts)


@STEPS.register(
    "mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar", "matmul.default", "mm.default", "bmm.default",
    "einsum.default", "tensordot.default", "cumsum.default",
)  # fmt: skip
def times_constants(node: Node, moved: Moved, slope: float) -> Rule | None:
    """A product with constants: with their absolute values."""
    del slope
    if len(node.refs()) != 1 or (node.op.startswith("div") and not isinstance(node.args["self"], Ref)):
        return None
    args = {name: _positive(value) for name, value in node.args.items() if name in ("self", "other", "mat2", "tensors")}
    (m,) = moved.values()
    rest = {**node.args, "dtype": None} if "dtype" in node.args else node.args
    terms = max(m.numel(), math.prod(node.shape))
    return _linear(moved, lambda given: call(node, {**rest, **given}), args, 2 * terms + 8, still=())


def _positive(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_positive(each) for each in value]
    if isinstance(value, torch.Tensor):
        return value.double().abs()
    return abs(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


@STEPS.register("maximum.default", "minimum.default", "max.other", "min.other", "fmax.default", "fmin.default")
def extreme_of_two(node: Node, moved: Moved, slope: float) -> Rule | None:
    """|max(a', b') - max(a, b)| <= max(|a' - a|, |b' - b|); a constant does not move."""
    return limited(node, moved, slope)


@STEPS.register("clamp.Tensor", "clamp_min.Tensor", "clamp_max.Tensor")
def limited(node: Node, moved: Moved, slope: float) -> Rule | None:
    """The same with the limits of a value."""
    del slope
    shape = tuple(node.shape)
    m = torch.stack([one.expand(shape) for one in moved.values()]).amax(0)
    shapes = [tuple(one.shape) for one in moved.values()]

    def back(c: torch.Tensor) -> list[torch.Tensor]:
        copies = max(math.prod(shape) // max(1, math.prod(own)) for own in shapes)
        return [_folded(c, own) * (1 + gamma(copies + 2)) for own in shapes]

    return Rule(m, back)


def _folded(c: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The sum of the rows' copies of entries of a tensor of that shape."""
    ones = (1,) * (c.ndim - 1 - len(shape))
    return c.sum_to_size(len(c), *ones, *shape).reshape(len(c), *shape)


@STEPS.register("sort.default", "topk.default", "kthvalue.default")
def in_order(node: Node, moved: Moved, slope: float) -> Rule | None:
    """No order statistic moves farther than the entry that moves farthest; each entry moves one of them."""
    del slope
    (m,) = moved.values()
    axis = node.args["dim"] % max(1, m.ndim)
    most = m.amax(axis, keepdim=True) if m.ndim else m
    kept = node.op != "kthvalue.default" or bool(node.args["keepdim"]) or not m.ndim
    out = most if kept else most.squeeze(axis)
    shape = tuple(m.shape)

    def back(c: torch.Tensor) -> list[torch.Tensor]:
        c = c if kept else c.unsqueeze(axis + 1)
        heaviest = c.amax(axis + 1, keepdim=True) if m.ndim else c
        return [heaviest.expand(len(c), *shape)]

    return Rule(out.expand(tuple(node.shape)), back)


@STEPS.register(
    "amax.default", "amin.default", "max.dim", "min.dim", "median.dim", "aminmax.default", "max.default", "min.default",
    "median.default",
)  # fmt: skip
def extreme(node: Node, moved: Moved, slope: float) -> Rule | None:
    """The largest, smallest or middle entry along some axes moves no farther than the one that moves farthest."""
    del slope
    (m,) = moved.values()
    dim = node.args.get("dim")
    given = [dim] if isinstance(dim, int) else dim
    axes = sorted({axis % m.ndim for axis in given}) if given else list(range(m.ndim))
    most = m.amax(axes, keepdim=True) if m.ndim else m
    shape, flat = tuple(m.shape), tuple(most.shape)
    return Rule(most.reshape(node.shape), lambda c: [c.reshape(len(c), *flat).expand(len(c), *shape)])


@STEPS.register("cummax.default", "cummin.default")
def running_extreme(node: Node, moved: Moved, slope: float) -> Rule | None:
    """A running extreme moves no farther than any entry before it."""
    del slope
    (m,) = moved.values()
    if not m.ndim:
        return None
    axis = node.args["dim"] % m.ndim
    slack = 1 + gamma(2 * m.shape[axis])
    return Rule(m.cummax(axis).values, lambda c: [c.flip(axis + 1).cumsum(axis + 1).flip(axis + 1) * slack])


@STEPS.register("max_pool1d.default", "max_pool2d.default", "max_pool3d.default", "max_pool2d_with_indices.default",
                "max_pool3d_with_indices.default")  # fmt: skip
def max_pool(node: Node, moved: Moved, slope: float) -> Rule | None:
    """The largest of a window moves no farther than the one that moves farthest; an entry adds up over its windows."""
    del slope
    (m,) = moved.values()
    axes = int(node.op.removeprefix("max_pool")[0])
    if m.ndim != axes + 2 or m.shape[0] != 1:
        return None

    def spread(values: Any) -> list[int]:
        values = [values] if isinstance(values, int) else list(values)
        return values * axes if len(values) == 1 else values

    kernel, pads, dilation = (spread(node.args[name]) for name in ("kernel_size", "padding", "dilation"))
    stride = spread(node.args["stride"]) if node.args["stride"] else kernel
    places = zip(node.shape[2:], stride, dilation, kernel, m.shape[2:], pads, strict=True)
    # What a last window reaches beyond the padding, or leaves out.
    behind = [(count - 1) * s + d * (k - 1) + 1 - n - p for count, s, d, k, n, p in places]
    ones = torch.ones(m.shape[1], 1, *kernel, dtype=torch.float64, device=m.device)
    sums = Conv(
        ones, tuple(m.shape[2:]), tuple(stride), tuple(zip(pads, behind, strict=True)), tuple(dilation), m.shape[1]
    )
    slack = 1 + gamma(2 * math.prod(kernel) + 8)
    return Rule(call(node, {**node.args, "self": m}).clamp_min(0.0), lambda c: [transposed(sums, c) * slack])


@STEPS.register("linalg_vector_norm.default", "norm.ScalarOpt_dim")
def norm(node: Node, moved: Moved, slope: float) -> Rule | None:
    """A norm moves by at most the norm of the movement, and each entry moves it by no more than itself."""
    del slope
    (m,) = moved.values()
    dim = node.args["dim"]
    given = [dim] if isinstance(dim, int) else dim
    axes = sorted({axis % m.ndim for axis in given}) if given else list(range(m.ndim))
    flat = tuple(1 if axis in axes else n for axis, n in enumerate(m.shape))
    shape, slack = tuple(m.shape), 1 + gamma(2 * m.numel() + 16)
    plain = {"dtype": None} if "dtype" in node.args else {}
    value = call(node, {**node.args, **plain, "self": m}) * slack + 1e-150
    return Rule(value, lambda c: [c.reshape(len(c), *flat).expand(len(c), *shape)])


@STEPS.register("softmax.int", "_softmax.default")
def softmax(node: Node, moved: Moved, slope: float) -> Rule | None:
    """Of the Jacobian diag(p) - p p^T no entry exceeds 1/4, and neither rows nor columns add up to more than 1/2."""
    del slope
    (m,) = moved.values()
    axis = node.args["dim"] % m.ndim
    shape = tuple(m.shape)

    def back(c: torch.Tensor) -> list[torch.Tensor]:
        heaviest = c.amax(axis + 1, keepdim=True) / 2
        total = c.sum(axis + 1, keepdim=True) / 4 * (1 + gamma(shape[axis] + 4))
        return [torch.minimum(heaviest, total).expand(len(c), *shape)]

    return Rule((m.amax(axis, keepdim=True) / 2).expand(shape), back)


def _linear(
    moved: Moved,
    function: Callable[[dict[str, Any]], torch.Tensor],
    args: Mapping[str, Any],
    roundings: int,
    *,
    still: Sequence[str] = ("self", "other", "tensors"),
) -> Rule:
    """A positive linear function of its operands, a sum of at most so many terms (0: it only moves entries).

    Tensors among the arguments `still` do not move.
    """
    names, shapes = list(moved), [tuple(m.shape) for m in moved.values()]

    def run(*operands: torch.Tensor) -> torch.Tensor:
        at = dict(zip(names, operands, strict=True))
        given: dict[str, Any] = {}
        for name, value in args.items():
            if isinstance(value, (list, tuple)):
                given[name] = [_filled(f"{name}{k}", each, at, name in still) for k, each in enumerate(value)]
            else:
                given[name] = _filled(name, value, at, name in still)
        return function(given)

    zeros = [m.new_zeros(shape) for m, shape in zip(moved.values(), shapes, strict=True)]

    def back(c: torch.Tensor) -> Sequence[torch.Tensor]:
        pull = torch.func.vjp(run, *zeros)[1]
        # An entry adds up what of the output reads it.
        slack = 1 + gamma(2 * c[0].numel() + 2 * roundings + 8) if roundings else 1.0
        with quiet_vmap():
            return [part * slack for part in torch.func.vmap(pull)(c)]

    m = run(*moved.values())
    return Rule(m * (1 + gamma(roundings + 4)) if roundings else m, back)


def _filled(name: str, value: Any, at: Mapping[str, torch.Tensor], still: bool) -> Any:
    if isinstance(value, Ref):
        return at[name]
    moves = isinstance(value, torch.Tensor) and value.is_floating_point()
    return torch.zeros_like(value, dtype=torch.float64) if still and moves else value
