"""Rounding of what has a bound over ranges only: normalisation, attention, powers, spreads, recurrent layers.

Everything is a posteriori, from the values that were really computed, and holds for any order of the sums. Relative
errors of the bounds themselves are covered by the margin in `float64.local_error`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lipaudit.domains.graph import Node, call
from lipaudit.domains.rounding import float64
from lipaudit.domains.rounding.float64 import RULES
from lipaudit.rounding import length_up

_LIBRARY = 32
"""As in float64.py: roundings charged to one call of a transcendental function."""

_UNDERFLOWN = 1e-140
"""More than the root of 2^-1074, times 1e30, for each of 1e12 squares."""


def _gamma(count: int) -> float:
    return float64.gamma(count)


@RULES.register(
    "pow.Tensor_Scalar", "pow.Tensor_Tensor", "square.default", "sqrt.default", "rsqrt.default", "reciprocal.default",
    "exp.default", "exp2.default", "expm1.default", "hypot.default", "glu.default",
)  # fmt: skip
def power(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A power, a root or an exponential errs by a few units in the last place of its result.

    The root of a sum of squares (lipschitz/lengths.py) may also be off by that of squares which underflow.
    """
    root = node.op == "sqrt.default" or arguments.get("exponent") == 0.5
    return _gamma(_LIBRARY) * output.abs() + (_UNDERFLOWN if root else 0.0)


@RULES.register("log.default", "log1p.default", "log2.default", "log10.default", "logit.default", "atan2.default")
def logarithm(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A logarithm, or an angle, errs by a few units in the last place of max(1, |log x|)."""
    del node, arguments
    return _gamma(_LIBRARY) * (output.abs() + 1)


@RULES.register("logaddexp.default", "logaddexp2.default")
def log_add_exp(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """The larger one plus a logarithm: a few units in the last place of all of them."""
    del node
    return _gamma(_LIBRARY) * (output.abs() + arguments["self"].abs() + arguments["other"].abs() + 1)


@RULES.register("log_softmax.int", "logsumexp.default")
def log_softmax(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """x - max - log(sum of n exponentials): the differences, the sum and the logarithm."""
    del node
    x = arguments["self"].masked_fill(arguments["self"] == -math.inf, 0.0)
    size = x.abs().amax() + math.log(arguments["self"].numel() + 1)
    return _gamma(x.numel() + _LIBRARY) * (1 + 3 * size + output.abs().masked_fill(output == -math.inf, 0.0))


@RULES.register("layer_norm.default", "rms_norm.default")
def last_axes(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """Normalisation of the last axes: see `_normalised`."""
    x, count = arguments["input"], math.prod(arguments["normalized_shape"])
    eps = torch.finfo(x.dtype).eps if arguments["eps"] is None else arguments["eps"]
    centred = node.op.startswith("layer")
    return _normalised(x.reshape(-1, count), eps, centred, x.shape, arguments["weight"], arguments.get("bias"), output)


@RULES.register("group_norm.default", "instance_norm.default")
def channels(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """Normalisation of groups of channels: see `_normalised`. With running statistics as a batch norm."""
    x = arguments["input"]
    shape = (1, -1, *(1,) * (x.ndim - 2))
    weight, bias = (None if (w := arguments[name]) is None else w.reshape(shape) for name in ("weight", "bias"))
    if node.op.startswith("instance") and not arguments["use_input_stats"]:
        mean, variance = (arguments[name].reshape(shape) for name in ("running_mean", "running_var"))
        size = (x.abs() + mean.abs()) * (variance + arguments["eps"]).rsqrt() * (1 if weight is None else weight.abs())
        return _gamma(16) * (size + (0 if bias is None else bias.abs()))
    groups = arguments.get("num_groups", x.shape[1]) * x.shape[0]
    return _normalised(x.reshape(groups, -1), arguments["eps"], True, x.shape, weight, bias, output)


def _normalised(
    rows: torch.Tensor,
    eps: float,
    centred: bool,
    shape: torch.Size,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    output: torch.Tensor,
) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, row by row.

    The mean of n numbers errs by gamma(n) mean |x|. The variance may be taken as mean x^2 - mean^2, so it errs by
    2 gamma(n) times the mean of x^2; an error of d in a = variance + eps is one of d / a in 1 / sqrt(a) while
    a - d > 0, and relative to the true value at most d / sqrt(a eps) in any case.
    """
    del output
    count = rows.shape[1]
    size = rows.abs()
    mean = rows.mean(1, keepdim=True) if centred else torch.zeros_like(rows[:, :1])
    off = _gamma(count + 8) * size.mean(1, keepdim=True) if centred else torch.zeros_like(mean)
    deviation = (rows - mean).abs()
    variance = deviation.square().mean(1, keepdim=True) + eps
    wrong = 4 * _gamma(count + 16) * size.square().mean(1, keepdim=True)
    least = (variance - 2 * wrong).clamp_min(0.99 * eps)
    relative = 2 * wrong / least + _gamma(24)
    error = (deviation * relative + (off + _gamma(24) * (size + mean.abs())) * (1 + relative)) * least.rsqrt()
    error = error.reshape(shape) * (1 if weight is None else weight.abs())
    return error + (0 if bias is None else _gamma(24) * bias.abs())


@RULES.register("var.dim", "var.correction")
def variance(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A variance of n entries errs by 4 gamma(n) times their sum of squares, divided by n - correction."""
    del node
    x = arguments["self"]
    count = x.numel() // output.numel()
    sums = torch.sum(x.square(), arguments["dim"] or tuple(range(x.ndim)), arguments["keepdim"])
    return 4 * _gamma(count + 16) * sums / (count - _correction(arguments)) + _gamma(8) * output.abs()


@RULES.register("std.dim", "std.correction")
def deviation(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """The root of a variance that errs by d: off by at most d divided by the root, and by sqrt(d)."""
    wrong = variance(node, arguments, output.square())
    # The rounded root is itself up to sqrt(d) off.
    return torch.minimum(wrong.sqrt(), wrong / output.abs().clamp_min(1e-290)) * 2 + _gamma(8) * output.abs()


def _correction(arguments: Mapping[str, Any]) -> float:
    if "unbiased" in arguments:
        return 1 if arguments["unbiased"] else 0
    return 1 if arguments["correction"] is None else arguments["correction"]


@RULES.register("scaled_dot_product_attention.default")
def attention(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """Scores that err by t change every probability by a factor within exp(2 t); then sums of n products.

    A score errs by gamma(d) scale |q| |k| + u |mask|. Blockwise kernels rescale by exponentials of differences of
    scores, at most once per key. No output is farther from the truth than two values can be apart.
    """
    del output
    q, k, v = (arguments[name].abs() for name in ("query", "key", "value"))
    if arguments["enable_gqa"]:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scale = 1.0 / math.sqrt(q.shape[-1]) if arguments["scale"] is None else abs(arguments["scale"])
    mask, keys = arguments["attn_mask"], k.shape[-2]
    scores = scale * (q @ k.transpose(-1, -2)).amax(-1, keepdim=True)
    if mask is not None and mask.is_floating_point():
        scores = scores + mask.abs().masked_fill(mask.isinf(), 0.0).amax(-1, keepdim=True)
    count = q.shape[-1] + 3 * keys + 4 * _LIBRARY
    relative = torch.expm1((_gamma(count) * (1 + 4 * scores)).clamp_max(2.0))
    weighed = call(node, {**arguments, "value": arguments["value"].abs()})
    return torch.minimum(relative * weighed, 2.1 * v.amax(-2, keepdim=True))


@RULES.register("lstm.input")
def recurrent(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """Errors of the gates of one step, carried through the later ones as in lipschitz/recurrent.py."""
    del node
    params, sequences = arguments["params"], arguments["input"]
    directions = 2 if arguments["bidirectional"] else 1
    steps = sequences.shape[1 if arguments["batch_first"] else 0]
    each = len(params) // (arguments["num_layers"] * directions)
    rows = sequences.numel() // (steps * sequences.shape[-1])
    largest, error = float(sequences.abs().max()), 0.0
    for layer in range(arguments["num_layers"]):
        squares = 0.0
        for direction in range(layer * directions, (layer + 1) * directions):
            weights = params[direction * each : (direction + 1) * each]
            memory = float(arguments["hx"][1][direction].abs().max())
            start = float(arguments["hx"][0][direction].abs().max())
            squares += _recurrence(weights, largest, max(1.0, start), memory, steps, rows, error) ** 2
        largest, error = 1.0, math.sqrt(squares)
    entries = torch.zeros_like(output)
    entries.view(-1)[0] = error
    return entries


def _recurrence(
    weights: list[torch.Tensor], size: float, start: float, memory: float, steps: int, rows: int, before: float
) -> float:
    """L2 error of the output sequence of one direction whose input is off by `before`; `size` bounds its entries."""
    into, again = (weight.abs() for weight in weights[:2])
    count = into.shape[1] + again.shape[1] + _LIBRARY
    biases = sum(bias.abs() for bias in weights[2:]) if len(weights) > 2 else 0.0
    gates = size * into.sum(1) + start * again.sum(1) + biases
    hidden = again.shape[1]
    local = _gamma(count) * (length_up(gates) + 4 * math.sqrt(hidden)) * math.sqrt(rows)
    carried, recurring = (length_up(weight) for weight in (into, again))
    state = output = total = 0.0
    for step in range(steps):
        wrong = local + carried * before + recurring * output
        level = memory + step + 1
        state = state + math.sqrt(level**2 / 16 + 17 / 16) * wrong + _gamma(16) * level * math.sqrt(rows * hidden)
        output = state + wrong / 4 + _gamma(_LIBRARY) * math.sqrt(rows * hidden)
        total += output**2
    return math.sqrt(total)
