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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lipaudit.domains.graph import Node, Ref, call
from lipaudit.domains.piecewise import FOLDED, PIECEWISE, sum_of_pieces
from lipaudit.errors import UnsupportedOp
from lipaudit.registry import Registry
from lipaudit.results.bounds import Law
from lipaudit.rounding import TINY, length_up
from lipaudit.rounding import gamma as gamma  # one for all modules here

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
        "stack.default", "rot90.default", "channel_shuffle.default", "tile.default", "repeat_interleave.self_int",
        "repeat_interleave.self_Tensor", "unfold.default", "im2col.default", "tril.default", "triu.default",
        "upsample_nearest1d.default", "upsample_nearest2d.default", "upsample_nearest3d.default",
        "upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec",
        "_upsample_nearest_exact1d.default", "_upsample_nearest_exact2d.default", "_upsample_nearest_exact3d.default",
        "_upsample_nearest_exact1d.vec", "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact3d.vec",
        "index.Tensor", "_unsafe_index.Tensor", "index_select.default", "gather.default", "take_along_dim.default",
        "diagonal.default",
        "constant_pad_nd.default", "where.self", "_conj.default",
        "view_as_real.default", "view_as_complex.default", "complex.default", "fft_fftshift.default",
        "fft_ifftshift.default", "where.ScalarSelf", "where.ScalarOther", "masked_fill.Scalar",
        "masked_fill.Tensor", "slice_scatter.default", "select_scatter.default", "maximum.default", "minimum.default",
        "max.other", "min.other", "fmax.default", "fmin.default", "clamp.Tensor", "clamp_min.Tensor",
        "clamp_max.Tensor", "max.dim", "min.dim", "max.default", "min.default", "aminmax.default", "topk.default",
        "max_pool2d_with_indices.default", "max_pool3d_with_indices.default", "threshold.default", "median.default",
        "median.dim", "kthvalue.default", "cummax.default", "cummin.default", "scatter.src", "scatter.value",
        "index_copy.default", "index_fill.int_Scalar",
    }
)  # fmt: skip
"""Operations that only select, move, compare or change signs."""

LAWS: Mapping[Law, Callable[[Sequence[float]], float]] = {
    "scale": lambda errors: errors[0],
    "sum": sum,
    "root_sum_squares": lambda errors: math.hypot(*errors),
    "max": lambda errors: math.hypot(*errors),  # the branches' own roundings are not pieces of one error
}
"""How the errors of its inputs join in a step of the ledger, by its law; see Note [Error recursion]."""

_LIBRARY = 32
"""Roundings charged to one call of a transcendental function: its library error (a few units in the last place)
and the handful of operations around it, relative to the largest quantity involved."""


def local_error(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> float | None:
    """Bound of the L2 norm of the error that this operation adds; None if it adds none."""
    if node.op in EXACT:
        return None
    if node.op not in RULES:
        raise UnsupportedOp(f"expected operations with a rounding rule, got {node.op} ({node.source})")
    entries = RULES[node.op](node, arguments, output)
    if output.is_complex():
        # Real and imaginary part of n complex products are sums of 2 n real ones each, of at most |x| |y| in all, and
        # the error has the absolute value of both together: 2 root(2) times that of n real products, and less than 4.
        entries = 4 * entries
    # The bound itself is computed in float64: a relative 1e-6 covers its own rounding many times over.
    return length_up(entries) * (1 + 1e-6) + TINY


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


@RULES.register("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar", "rsub.Scalar", "rsub.Tensor")
def addition(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A sum errs by at most two roundings (product with alpha, sum) of its terms; minus infinity stays what it is.

    A difference of two activations may be x - tanh(x), which the ledger reads as one: the error of tanh counts here.
    """
    x, y, alpha = arguments["self"], arguments["other"], arguments.get("alpha", 1)
    sizes = [abs(v) * (abs(alpha) if k else 1) for k, v in enumerate((x, y))]
    both = node.op == "sub.Tensor" and _depend(node, "self", "other")
    error = gamma(_LIBRARY if both else 3) * (sizes[0] + sizes[1])
    masks = any(isinstance(v, torch.Tensor) and bool(v.isinf().any()) for v in (x, y))
    return error.masked_fill(output.isinf(), 0.0) if masks else error


def _depend(node: Node, *names: str) -> bool:
    """Whether all these arguments depend on the network input."""
    return all(isinstance(node.args[name], Ref) for name in names)


@RULES.register("mul.Scalar", "div.Scalar")
def scaling(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A product or a quotient is correctly rounded; kernels that multiply by the inverse round twice more."""
    del node, arguments
    return gamma(4) * output.abs()


@RULES.register("mul.Tensor")
def product(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A product is correctly rounded.

    A product of two activations may be x g(c x), which the ledger reads as one (lipschitz/patterns.py): the error of
    the gate, at most gamma(_LIBRARY) (1 + |g|), counts here, whichever of the two it is. So does the relative error of
    rsqrt(mean(x^2) + eps), a mean over as many entries as it is multiplied by (lipschitz/quotients.py).
    """
    error = gamma(4) * output.abs()
    if not _depend(node, "self", "other"):
        return error
    sizes = sorted(arguments[name].numel() for name in ("self", "other"))
    error = gamma(sizes[1] // sizes[0] + _LIBRARY) * output.abs()
    return error + gamma(_LIBRARY) * (output.abs() + arguments["self"].abs() + arguments["other"].abs())


@RULES.register("addcmul.default")
def shifted_product(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """x + c y z: two products and a sum."""
    del node, output
    x, y, z = (arguments[name].abs() for name in ("self", "tensor1", "tensor2"))
    return gamma(6) * (x + abs(arguments["value"]) * y * z)


@RULES.register("div.Tensor")
def division(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A quotient is correctly rounded; the norm of n terms in x / max(||x||, c) is charged here, relatively."""
    terms = arguments["self"].numel() if isinstance(node.args["other"], Ref) else 0
    return gamma(terms + 16) * output.abs()


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
    "hardsigmoid.default", "hardswish.default", "leaky_relu.default", "elu.default", "celu.default", "selu.default",
    "atan.default", "asinh.default", "sin.default", "cos.default", "erf.default", "erfc.default",
    "log_sigmoid.default", "prelu.default", "rrelu.default",
)  # fmt: skip
def smooth(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A library function of one entry errs by a few units in the last place of max(1, |x|, |f(x)|)."""
    del node
    return gamma(_LIBRARY) * (arguments["self"].abs() + output.abs() + 1)


@RULES.register(PIECEWISE)
def in_pieces(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A sum of products and of differences."""
    del node, output
    return gamma(2 * len(arguments["points"]) + 8) * sum_of_pieces(arguments)


@RULES.register(FOLDED)
def folded(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """Two products and their sum, a product and a sum."""
    del node, output
    x, y = arguments["self"].abs(), arguments["other"].abs()
    return gamma(8) * (x + arguments["step"].abs() * (arguments["here"].abs() * x + arguments["there"].abs() * y))


@RULES.register("softplus.default")
def softplus(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """As `smooth`, and torch drops log(1 + exp(-beta x)) / beta beyond its threshold: a jump of that size."""
    dropped = math.log1p(math.exp(-arguments["threshold"])) / arguments["beta"]
    return smooth(node, arguments, output) + dropped * (1 + 1e-9)


@RULES.register("softmax.int")
def softmax(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """exp(x - max) / sum: the difference, the exponential, the sum of n terms and the quotient.

    An entry that is minus infinity, a mask, has the probability 0 whatever the others are.
    """
    del output
    x = arguments["self"].masked_fill(arguments["self"] == -math.inf, 0.0)
    count = x.shape[arguments["dim"]] + _LIBRARY
    return gamma(count) * (1 + 2 * x.abs().amax()) * call(node, arguments)
