"""How far a float64 evaluation of the network may be from its exact value, operation by operation.

Note [Error recursion]
    Each operation adds a local error, bounded a posteriori from the values that were really computed: for a linear
    map gamma(terms + 2) times the same map with absolute weights on absolute values. From there on an error is a
    perturbation like any other: it grows by at most the bounds of the ledger. So with e the error of a step,
        e[step] <= upper * law(e[inputs]) + (local errors of its operations, each times the maps after it).
    Source: N. Higham, Accuracy and Stability of Numerical Algorithms, ch. 3; the recursion is soundness section 3c.

`EXACT` lists what makes no error; everything else needs a rule in `RULES` (a function of the node, its arguments
and its output that returns the tensor of local errors), and an operation in neither table is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lipaudit.errors import UnsupportedOp
from lipaudit.graph import Node, call
from lipaudit.registry import Registry
from lipaudit.rounding import TINY, gamma

LocalError = Callable[[Node, Mapping[str, Any], torch.Tensor], torch.Tensor]

RULES: Registry[LocalError] = Registry("rounding rule")

EXACT = frozenset(
    {
        "relu.default", "relu6.default", "hardtanh.default", "clamp.default", "clamp_min.default", "clamp_max.default",
        "abs.default", "neg.default", "sort.default", "amax.default", "amin.default", "max_pool1d.default",
        "max_pool2d.default", "max_pool3d.default", "adaptive_max_pool1d.default", "adaptive_max_pool2d.default",
        "adaptive_max_pool3d.default", "view.default", "_unsafe_view.default", "reshape.default",
        "flatten.using_ints", "permute.default", "transpose.int", "t.default", "unsqueeze.default",
        "squeeze.default", "squeeze.dim", "squeeze.dims", "roll.default", "flip.default", "pixel_shuffle.default",
        "pixel_unshuffle.default", "slice.Tensor", "select.int", "expand.default", "split.Tensor",
        "split_with_sizes.default", "unbind.int", "repeat.default", "chunk.default", "pad.default", "cat.default",
        "stack.default",
    }
)  # fmt: skip
"""Operations that only select, move, compare or change signs."""

_LIBRARY = 32
"""Roundings charged to one call of a transcendental function: its library error (a few units in the last place)
and the handful of operations around it, relative to the largest quantity involved."""


def local_error(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor | None:
    """Bound of the L2 norm of the error that this operation adds; None if it adds none."""
    if node.op in EXACT:
        return None
    if node.op not in RULES:
        raise UnsupportedOp(f"expected operations with a rounding rule, got {node.op} ({node.source})")
    entries = RULES[node.op](node, arguments, output)
    # The bound itself is computed in float64: a relative 1e-6 covers its own rounding many times over.
    return torch.linalg.vector_norm(entries) * (1 + 1e-6) + TINY


def _terms(arguments: Mapping[str, Any]) -> int:
    weight = arguments.get("weight")
    if weight is not None:
        return int(weight[0].numel())
    return max(1, max(a.numel() for a in arguments.values() if isinstance(a, torch.Tensor)))


@RULES.register(
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding",
    "linear.default", "avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default",
    "adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default",
    "mean.dim", "sum.dim_IntList",
)  # fmt: skip
def linear(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A sum of n products errs by at most gamma(n + 2) times the sum of their absolute values."""
    del output
    positive = {n: a.abs() if isinstance(a, torch.Tensor) else a for n, a in arguments.items()}
    return gamma(_terms(arguments) + 3) * call(node, positive)


@RULES.register("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar", "rsub.Scalar")
def addition(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A sum errs by at most two roundings (product with alpha, sum) of its terms."""
    del node, output
    x, y, alpha = arguments["self"], arguments["other"], arguments.get("alpha", 1)
    sizes = [abs(v) * (abs(alpha) if k else 1) for k, v in enumerate((x, y))]
    return gamma(3) * (sizes[0] + sizes[1])


@RULES.register("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar")
def scaling(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A product or a quotient is correctly rounded; kernels that multiply by the inverse round twice more."""
    del node, arguments
    return gamma(4) * output.abs()


@RULES.register("_native_batch_norm_legit_no_training.default")
def batch_norm(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, in whatever order: ten roundings of all its terms."""
    del node, output
    x, mean = arguments["input"], arguments["running_mean"]
    shape = (1, -1, *(1,) * (x.ndim - 2))
    scale = (arguments["running_var"] + arguments["eps"]).rsqrt()
    if arguments["weight"] is not None:
        scale = scale * arguments["weight"].abs()
    terms = (x.abs() + mean.abs().reshape(shape)) * scale.reshape(shape)
    bias = arguments["bias"]
    return gamma(16) * (terms + (0 if bias is None else bias.abs().reshape(shape)))


@RULES.register(
    "sigmoid.default", "tanh.default", "silu.default", "mish.default", "gelu.default",
    "hardsigmoid.default", "hardswish.default", "leaky_relu.default", "elu.default",
)  # fmt: skip
def smooth(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A library function of one entry errs by a few units in the last place of max(1, |x|, |f(x)|)."""
    del node
    return gamma(_LIBRARY) * (arguments["self"].abs() + output.abs() + 1)


@RULES.register("softplus.default")
def softplus(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """As `smooth`, and torch drops log(1 + exp(-beta x)) / beta beyond its threshold: a jump of that size."""
    dropped = math.log1p(math.exp(-arguments["threshold"])) / arguments["beta"]
    return smooth(node, arguments, output) + dropped * (1 + 1e-9)


@RULES.register("softmax.int")
def softmax(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """exp(x - max) / sum: the difference, the exponential, the sum of n terms and the quotient."""
    del output
    x = arguments["self"]
    count = x.shape[arguments["dim"]] + _LIBRARY
    return gamma(count) * (1 + 2 * x.abs().amax()) * call(node, arguments)
