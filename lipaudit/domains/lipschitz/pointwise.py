"""Functions of one entry at a time: the largest slope, exact or rounded up; and sorting, which is 1-Lipschitz.

The constants of the smooth ones are the maxima of their derivatives, rounded up in the ninth digit;
`tests/domains/test_pointwise.py` recomputes each with 50 digits.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.propagator import RULES, Ledger, Value
from lipaudit.domains.lipschitz.shape import constants_only
from lipaudit.domains.piecewise import PIECEWISE, largest_slope
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, up

SLOPES: dict[str, tuple[float, str]] = {
    "relu.default": (1.0, "slope 0 or 1"),
    "relu6.default": (1.0, "slope 0 or 1"),
    "hardtanh.default": (1.0, "slope 0 or 1"),
    "clamp.default": (1.0, "slope 0 or 1"),
    "clamp_min.default": (1.0, "slope 0 or 1"),
    "clamp_max.default": (1.0, "slope 0 or 1"),
    "abs.default": (1.0, "slope -1 or 1"),
    "tanh.default": (1.0, "largest slope 1, at 0"),
    "atan.default": (1.0, "largest slope 1, at 0"),
    "asinh.default": (1.0, "largest slope 1, at 0"),
    "sin.default": (1.0, "slope cos(x)"),
    "cos.default": (1.0, "slope -sin(x)"),
    "erf.default": (1.128379168, "largest slope 2 / sqrt(pi), at 0"),
    "erfc.default": (1.128379168, "steepest -2 / sqrt(pi), at 0"),
    "sigmoid.default": (0.25, "largest slope 1/4, at 0"),
    "log_sigmoid.default": (1.0, "slope sigmoid(-x)"),
    "hardsigmoid.default": (0.16666666666666669, "slope 0 or 1/6"),
    "hardswish.default": (1.5, "largest slope 3/2, at 3"),
    "silu.default": (1.099839321, "largest slope, near 2.40"),
    "mish.default": (1.088498162, "largest slope, near 1.49"),
    "selu.default": (1.758099341, "largest slope alpha scale, at 0 from below"),
}
"""Operation -> largest absolute slope (never below the truth) and where it is reached."""

GELU_SLOPES = {"none": 1.128904146, "tanh": 1.128993069}

JUMPS = (
    "floor.default", "ceil.default", "round.default", "round.decimals", "trunc.default", "frac.default",
    "sign.default", "sgn.default", "heaviside.default", "fmod.Scalar", "fmod.Tensor", "remainder.Scalar",
    "remainder.Tensor", "floor_divide.default", "div.Tensor_mode", "div.Scalar_mode",
)  # fmt: skip
"""Operations that jump: no rule but a refusal."""


def _with_slope(op: str) -> None:
    slope, where = SLOPES[op]

    def rule(node: Node, ledger: Ledger, self: Any, **settings: Any) -> Value:
        """An entry-wise function: its largest slope."""
        constants_only(node, settings, settings)
        ledger.entering[node.name] = self
        sign = _sign_kept(node, ledger)
        if sign is not None and any(_sign_kept(each, ledger) == (sign[0], 1 - sign[1]) for each in ledger.graph.nodes):
            return ledger.sorted(node, f"signs({sign[0]})", [self], "scale", sign[1], 2)
        return ledger.record(node, "scale", [self], Upper(slope, "pointwise", where))

    RULES.rule(op)(rule)


def _sign_kept(node: Node, ledger: Ledger) -> tuple[str, int] | None:
    """Of what the node keeps one sign, and which: 0 positive, 1 negative. (x+, x-) moves no farther than x."""
    low, high = (0, None) if node.op == "relu.default" else (node.args.get("min"), node.args.get("max"))
    if node.op not in ("relu.default", "clamp.default", "clamp_min.default", "clamp_max.default"):
        return None
    if (low, high) not in ((0, None), (None, 0)):
        return None
    name, part = node.args["self"].name, int(low is None)
    source = ledger.node(name)
    return (source.args["self"].name, 1 - part) if source and source.op == "neg.default" else (name, part)


for _op in SLOPES:
    _with_slope(_op)


@RULES.rule(*JUMPS)
def jumping(node: Node, ledger: Ledger, **arguments: Any) -> Value:
    """It jumps: two inputs however close can be a whole step apart, so there is no Lipschitz bound."""
    del ledger, arguments
    raise NotLipschitz(f"{node.op.split('.')[0]} jumps: no Lipschitz bound exists; use a continuous function instead")


@RULES.rule("gelu.default")
def gelu(node: Node, ledger: Ledger, self: Any, approximate: str) -> Value:
    """GELU: its largest slope, at sqrt(2) for the exact form."""
    if approximate not in GELU_SLOPES:
        raise UnsupportedOp(f"expected GELU approximate={' or '.join(GELU_SLOPES)}, got {approximate!r}")
    return ledger.record(node, "scale", [self], Upper(GELU_SLOPES[approximate], "pointwise", "largest slope"))


@RULES.rule("leaky_relu.default")
def leaky_relu(node: Node, ledger: Ledger, self: Any, negative_slope: float) -> Value:
    """Leaky ReLU: max(1, |negative slope|)."""
    slope = max(1.0, abs(float(negative_slope)))
    return ledger.record(node, "scale", [self], Upper(slope, "pointwise", "slope 1 or the negative slope"))


@RULES.rule("prelu.default", "_prelu_kernel.default")
def prelu(node: Node, ledger: Ledger, self: Any, weight: Any) -> Value:
    """PReLU: 1 or the largest |weight|, one per channel."""
    constants_only(node, ["weight"], {"weight": weight})
    if ledger.shape_of(node, "self") != tuple(node.shape):
        raise UnsupportedOp(f"expected weights of {node.op} that do not stretch its operand, got {tuple(weight.shape)}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("expected PReLU weights of finite numbers, got NaN or inf")
    slope = max(1.0, float(weight.abs().max()))
    return ledger.record(node, "scale", [self], Upper(slope, "pointwise", "slope 1 or the weight"))


@RULES.rule(PIECEWISE)
def in_pieces(node: Node, ledger: Ledger, self: Any, points: Any, steps: Any, slope: Any, offset: Any) -> Value:
    """A continuous function of straight pieces: its steepest one."""
    del points, offset
    return ledger.record(node, "scale", [self], Upper(largest_slope(slope, steps), "pointwise", "the steepest piece"))


@RULES.rule("rrelu.default")
def random_leaky_relu(
    node: Node, ledger: Ledger, self: Any, lower: Any, upper: Any, training: bool, generator: Any
) -> Value:
    """RReLU in eval mode is a leaky ReLU with the mean slope: max(1, |lower + upper| / 2)."""
    del generator
    if training:
        raise UnsupportedOp("expected RReLU in eval mode, got training=True")
    slope = abs(float(lower) + float(upper)) / 2
    largest = max(1.0, slope if slope <= 0.99 else up(slope))
    return ledger.record(node, "scale", [self], Upper(largest, "pointwise", "slope 1 or the mean slope"))


@RULES.rule("elu.default")
def elu(node: Node, ledger: Ledger, self: Any, alpha: float, scale: float, input_scale: float) -> Value:
    """ELU: |scale| max(1, |alpha input_scale|)."""
    if input_scale != 1 or alpha < 0 or scale < 0:
        raise UnsupportedOp(
            f"expected ELU with alpha, scale >= 0 and input_scale 1, got {alpha}, {scale}, {input_scale}"
        )
    factor = Upper(float(scale) * max(1.0, float(alpha)) * (1 + 1e-15), "pointwise", "largest slope")
    return ledger.record(node, "scale", [self], Upper(1.0, "pointwise", "") if alpha == scale == 1 else factor)


@RULES.rule("celu.default")
def celu(node: Node, ledger: Ledger, self: Any, alpha: Any) -> Value:
    """CELU, x above 0 and alpha (exp(x / alpha) - 1) below: slope at most 1 for alpha > 0."""
    if not alpha > 0:
        raise UnsupportedOp(f"expected CELU with alpha > 0, got {alpha}")
    return ledger.record(node, "scale", [self], Upper(1.0, "pointwise", "slope 1 or exp(x / alpha)"))


@RULES.rule("softplus.default")
def softplus(node: Node, ledger: Ledger, self: Any, beta: float, threshold: float) -> Value:
    """Softplus: slope below 1, if what torch drops beyond the threshold is below the rounding of float64."""
    ledger.entering[node.name] = self
    if beta <= 0 or threshold < 0:
        raise UnsupportedOp(f"expected softplus with beta > 0 and threshold >= 0, got {beta} and {threshold}")
    dropped = math.log1p(math.exp(-threshold))
    if not dropped <= UNIT * threshold:
        raise NotLipschitz(
            f"softplus with threshold {threshold:g} jumps by {dropped / beta:.2g} where it becomes x, more than "
            f"{str(ledger.graph.dtype).removeprefix('torch.')} rounds: no Lipschitz bound exists; give it threshold=40"
        )
    return ledger.record(node, "scale", [self], Upper(1.0, "pointwise", "slope below 1"))


@RULES.rule("threshold.default")
def threshold(node: Node, ledger: Ledger, self: Any, threshold: Any, value: Any) -> Value:
    """x above the threshold and a constant below: slope 0 or 1 if the constant is the threshold, else it jumps."""
    if threshold != value:
        raise NotLipschitz(
            f"threshold jumps from {value} to {threshold}: no Lipschitz bound exists; give it value={threshold}"
        )
    return ledger.record(node, "scale", [self], Upper(1.0, "pointwise", "slope 0 or 1"))


@RULES.rule("sort.default")
def sort(node: Node, ledger: Ledger, self: Any, dim: int, descending: bool) -> Value:
    """Sorting is 1-Lipschitz: sorted vectors are never farther apart (rearrangement inequality)."""
    del dim, descending
    return _sorted(node, ledger, self)


@RULES.rule("topk.default")
def largest_few(node: Node, ledger: Ledger, self: Any, k: int, dim: int, largest: bool, sorted: bool) -> Value:
    """The k largest entries are a part of the sorted vector, which is 1-Lipschitz, in whatever order."""
    del k, dim, largest
    if not sorted:
        raise UnsupportedOp("expected topk with sorted=True, got an order that may jump")
    return _sorted(node, ledger, self)


def _sorted(node: Node, ledger: Ledger, value: Value) -> Value:
    if node.output != 0:
        raise UnsupportedOp("expected the sorted values, got the sorting indices as a function of the input")
    return ledger.record(node, "scale", [value], Upper(1.0, "pointwise", "a permutation of the entries"))
