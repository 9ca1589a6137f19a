"""Layer, group, instance and RMS normalisation: global bounds through eps, sharper where the range shows a spread.

Note [Normalisation]
    With c = x - mean(x), d entries and s^2 = |c|^2 / d + eps, the map x -> c / s has the Jacobian
    (P - c c^T / (d s^2)) / s, P the projection that takes the mean away. c lies in the image of P and
    |c|^2 = d (s^2 - eps) <= d s^2, so the bracket has eigenvalues between 0 and 1: the norm of the Jacobian is at
    most 1 / s <= 1 / sqrt(variance + eps). Without the mean (RMS norm) the same holds with c = x and P the identity.
    The weights come after it, one factor per entry, and stay with the maps that follow.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.intervals.normalisation import spread
from lipaudit.domains.intervals.value import Range
from lipaudit.domains.lipschitz.propagator import BOUNDED, RULES, Ledger, Value
from lipaudit.domains.lipschitz.scaling import constant, dependent
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.norms.linear_maps import Scale
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, up

BOUNDED.update({"layer_norm.default", "group_norm.default", "rms_norm.default", "instance_norm.default"})


@RULES.rule("layer_norm.default")
def layer_norm(
    node: Node,
    ledger: Ledger,
    input: Any,
    normalized_shape: Any,
    weight: Any,
    bias: Any,
    eps: float,
    cudnn_enable: bool,
) -> Value:
    """Layer norm: 1 / sqrt(variance + eps), then its weights (Note [Normalisation])."""
    _shift(bias)
    del cudnn_enable
    return _normalise(node, ledger, input, weight, eps, math.prod(normalized_shape))


@RULES.rule("group_norm.default")
def group_norm(
    node: Node, ledger: Ledger, input: Any, num_groups: int, weight: Any, bias: Any, eps: float, cudnn_enabled: bool
) -> Value:
    """Group norm: 1 / sqrt(variance + eps) of each group of channels, then its weights (Note [Normalisation])."""
    _shift(bias)
    del cudnn_enabled
    size = math.prod(ledger.shape_of(node, "input")[1:]) // num_groups  # windows may lie along the first axis
    return _normalise(node, ledger, input, None if weight is None else _per_channel(node, weight), eps, size)


@RULES.rule("instance_norm.default")
def instance_norm(
    node: Node,
    ledger: Ledger,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value:
    """Instance norm: 1 / sqrt(variance + eps) of each channel; with running statistics a constant scaling."""
    _shift(bias)
    del momentum, cudnn_enabled
    weight = None if weight is None else _per_channel(node, weight)
    if not use_input_stats:
        constant(running_mean, "a running mean")
        variance = _per_channel(node, running_var) + eps
        if not bool((variance > 0).all()):
            raise NotLipschitz("expected running_var + eps > 0 in every channel, got zero or less")
        factor = variance.rsqrt() if weight is None else weight / variance.sqrt()
        scale = Scale(factor, tuple(node.shape), relative_error=8 * UNIT)
        return ledger.pend(node, dependent(input, "the input of an instance norm"), scale)
    return _normalise(node, ledger, input, weight, eps, math.prod(node.shape[2:]))


@RULES.rule("rms_norm.default")
def rms_norm(node: Node, ledger: Ledger, input: Any, normalized_shape: Any, weight: Any, eps: float | None) -> Value:
    """RMS norm: 1 / sqrt(mean of squares + eps), then its weights (Note [Normalisation])."""
    # Without an eps torch takes the machine's, a different function in every precision: it counts as none.
    return _normalise(node, ledger, input, weight, eps or 0.0, math.prod(normalized_shape), centred=False)


def _normalise(
    node: Node, ledger: Ledger, value: Any, weight: Any, eps: float, count: int, *, centred: bool = True
) -> Value:
    """`count` neighbouring entries are normalised together."""
    source = dependent(value, "the input of a normalisation")
    least = _least_deviation(node, ledger, count, centred)
    if eps >= 0 and least * least > eps:
        # An error e of the operand moves the root of the mean of the squares by at most e / sqrt(count).
        bound = ledger.widened(_inverse_root(least * least + eps), least * math.sqrt(count))
        because = f"1 / sqrt(variance + eps), variance at least {least * least:.3g} over its range"
    elif eps > 0:
        bound, because = _inverse_root(eps), f"1 / sqrt(eps), eps = {eps:.3g}"
    else:
        raise NotLipschitz(
            f"{node.op} without an eps is unbounded where all its entries are equal, and no range excludes that; "
            "give it an eps"
        )
    upper = Upper(bound, "normalisation", because)
    if weight is None:
        return ledger.record(node, "scale", [source], upper)
    scale = Scale(constant(weight, "weights of a normalisation"), tuple(node.shape))
    return ledger.pend(node, ledger.scaled(node, source, upper), scale)


def _inverse_root(variance: float) -> float:
    return up(up(up(up(1.0 / math.sqrt(variance)))))


def _least_deviation(node: Node, ledger: Ledger, count: int, centred: bool) -> float:
    """The least root of the mean of the squares of any group, in every point of its range; 0 if unknown."""
    if ledger.domain is None:
        return 0.0
    held = ledger.range_of(node, "input")
    grouped = Range(held.low.reshape(-1, count), held.high.reshape(-1, count))
    return float(spread(grouped, centred)[1].min())


def _per_channel(node: Node, weight: Any) -> torch.Tensor:
    """One number per channel, shaped to multiply the output."""
    return constant(weight, "a number per channel").reshape(1, -1, *(1,) * (len(node.shape) - 2))


def _shift(bias: Any) -> None:
    """A constant bias changes no distance."""
    if isinstance(bias, Value):
        raise UnsupportedOp("expected the bias of a normalisation not to depend on the input, got one that does")
