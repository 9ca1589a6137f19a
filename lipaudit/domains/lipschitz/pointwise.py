"""Functions of one entry at a time: the largest slope, exact or rounded up; and sorting, which is 1-Lipschitz.

The constants of the smooth ones are the maxima of their derivatives, rounded up in the ninth digit;
`tests/domains/test_pointwise.py` recomputes each with 50 digits.
"""

from __future__ import annotations

from typing import Any

from lipaudit.domains.lipschitz.value import RULES, Ledger, Value
from lipaudit.errors import UnsupportedOp
from lipaudit.graph import Node
from lipaudit.results import Upper

SLOPES: dict[str, tuple[float, str]] = {
    "relu.default": (1.0, "slope 0 or 1"),
    "relu6.default": (1.0, "slope 0 or 1"),
    "hardtanh.default": (1.0, "slope 0 or 1"),
    "clamp.default": (1.0, "slope 0 or 1"),
    "clamp_min.default": (1.0, "slope 0 or 1"),
    "clamp_max.default": (1.0, "slope 0 or 1"),
    "abs.default": (1.0, "slope -1 or 1"),
    "tanh.default": (1.0, "largest slope 1, at 0"),
    "sigmoid.default": (0.25, "largest slope 1/4, at 0"),
    "hardsigmoid.default": (0.16666666666666669, "slope 0 or 1/6"),
    "hardswish.default": (1.5, "largest slope 3/2, at 3"),
    "silu.default": (1.099839321, "largest slope, near 2.40"),
    "mish.default": (1.088498162, "largest slope, near 1.49"),
}
"""Operation -> largest absolute slope (never below the truth) and where it is reached."""

GELU_SLOPES = {"none": 1.128904146, "tanh": 1.128993069}


def _with_slope(op: str) -> None:
    slope, where = SLOPES[op]

    def rule(node: Node, ledger: Ledger, self: Any, **settings: Any) -> Value:
        """An entry-wise function: its largest slope."""
        if any(isinstance(value, Value) for value in settings.values()):
            raise UnsupportedOp(f"expected the settings of {op} not to depend on the input, got one that does")
        return ledger.record(node, "scale", [self], Upper(slope, "pointwise", where))

    RULES.rule(op)(rule)


for _op in SLOPES:
    _with_slope(_op)


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


@RULES.rule("elu.default")
def elu(node: Node, ledger: Ledger, self: Any, alpha: float, scale: float, input_scale: float) -> Value:
    """ELU: |scale| max(1, |alpha input_scale|)."""
    if input_scale != 1 or alpha < 0 or scale < 0:
        raise UnsupportedOp(
            f"expected ELU with alpha, scale >= 0 and input_scale 1, got {alpha}, {scale}, {input_scale}"
        )
    factor = Upper(float(scale) * max(1.0, float(alpha)) * (1 + 1e-15), "pointwise", "largest slope")
    return ledger.record(node, "scale", [self], Upper(1.0, "pointwise", "") if alpha == scale == 1 else factor)


@RULES.rule("softplus.default")
def softplus(node: Node, ledger: Ledger, self: Any, beta: float, threshold: float) -> Value:
    """Softplus without its threshold: slope below 1. What torch drops beyond the threshold counts as rounding."""
    if beta <= 0 or threshold < 0:
        raise UnsupportedOp(f"expected softplus with beta > 0 and threshold >= 0, got {beta} and {threshold}")
    return ledger.record(node, "scale", [self], Upper(1.0, "pointwise", "slope below 1"))


@RULES.rule("sort.default")
def sort(node: Node, ledger: Ledger, self: Any, dim: int, descending: bool) -> Value:
    """Sorting is 1-Lipschitz: sorted vectors are never farther apart (rearrangement inequality)."""
    del dim, descending
    if node.output != 0:
        raise UnsupportedOp("expected the sorted values, got the sorting indices as a function of the input")
    return ledger.record(node, "scale", [self], Upper(1.0, "pointwise", "a permutation of the entries"))


@RULES.rule("softmax.int", "_softmax.default")
def softmax(node: Node, ledger: Ledger, self: Any, dim: int, **settings: Any) -> Value:
    """Softmax has the Lipschitz constant 1/2: its Jacobian diag(p) - p p^T has norm at most 1/2."""
    del dim, settings
    return ledger.record(node, "scale", [self], Upper(0.5, "pointwise", "Jacobian diag(p) - p p^T, norm <= 1/2"))
