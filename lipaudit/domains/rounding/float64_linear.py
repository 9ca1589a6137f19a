"""Rounding of linear operations whose number of terms is not that of a weight: products, interpolation, sums, norms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lipaudit.domains.einsum import einsum_labels
from lipaudit.domains.graph import Node, call
from lipaudit.domains.rounding import float64
from lipaudit.domains.rounding.float64 import RULES
from lipaudit.domains.transforms import TRANSFORMS, transform

_NORM_FLOOR = 1e-140
"""What squares below the range of float64 can add up to, and more, after the root."""


def _gamma(count: int) -> float:
    return float64.gamma(count)


def absolute(node: Node, arguments: Mapping[str, Any]) -> torch.Tensor:
    """The operation on the absolute values of all its operands."""

    def positive(value: Any) -> Any:
        if isinstance(value, list):
            return [positive(v) for v in value]
        numbers = isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
        return value.abs() if numbers else value

    return call(node, {name: positive(value) for name, value in arguments.items()})


@RULES.register("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def transposed(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """At most one product per channel of the group and tap goes into an output."""
    del output
    weight = arguments["weight"]
    terms = weight[:, 0].numel() // arguments["groups"]
    return _gamma(terms + 3) * absolute(node, arguments)


@RULES.register("matmul.default", "mm.default", "bmm.default", "tensordot.default")
def product(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A sum of n products errs by at most gamma(n) times the sum of their absolute values."""
    operands = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    if node.op.startswith("tensordot"):
        terms = math.prod(operands[0].shape[axis] for axis in arguments["dims_self"])
    else:
        terms = operands[0].shape[-1]
    del output
    return _gamma(terms + 3) * absolute(node, arguments)


@RULES.register(*TRANSFORMS)
def fourier(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A sum of n products with roots of unity errs by at most gamma(8 n + 64) / 4 times the sum of absolute values.

    That is the direct sum, with roots off by a few units. A fast transform errs by far less: in L2, by eta log2(n)
    times the output for eta of some 7 u and radix two (Higham, Accuracy and Stability, 2nd ed., theorem 24.2), and by
    the three transforms of at most 4 n entries that a length with large prime factors takes.
    """
    x = arguments["self"]
    what = transform(node.op, arguments, x.shape)
    sums = x.abs().sum(what.axes, keepdim=True) * (what.factor * (2 if what.half_before else 1))
    return (_gamma(8 * what.count + 64) * sums).expand(output.shape)


@RULES.register("addmm.default", "baddbmm.default")
def added_product(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """beta x + alpha A B: the products, their sum, two factors and the shift."""
    del output
    factor = arguments["mat1"] if node.op.startswith("addmm") else arguments["batch1"]
    size = {**arguments, "alpha": abs(arguments["alpha"]), "beta": abs(arguments["beta"])}
    entries = _gamma(factor.shape[-1] + 8) * absolute(node, size)
    # A shift of -inf is the exact result.
    return entries.masked_fill(entries.isinf(), 0.0) if bool(arguments["self"].isinf().any()) else entries


@RULES.register("einsum.default")
def contraction(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """Every term is a product of one entry of each operand: the summed axes say how many there are."""
    tensors = arguments["tensors"]
    if len(tensors) == 2:
        first, second, kept = einsum_labels(arguments["equation"], [tensor.shape for tensor in tensors])
        sizes: dict[Any, int] = {}
        for labels, tensor in zip((first, second), tensors, strict=True):
            for label, size in zip(labels, tensor.shape, strict=True):
                sizes[label] = max(size, sizes.get(label, 1))
        terms = math.prod(size for label, size in sizes.items() if label not in kept)
    else:
        terms = math.prod(tensor.numel() for tensor in tensors)
    del output
    return _gamma(terms + 8) * absolute(node, arguments)


@RULES.register("mean.default", "sum.default", "cumsum.default", "col2im.default")
def running(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A sum of n terms errs by at most gamma(n) times the sum of their absolute values."""
    del output
    if node.op.startswith("cumsum"):
        terms = arguments["self"].shape[arguments["dim"]] if arguments["self"].ndim else 1
    elif node.op.startswith("col2im"):
        terms = math.prod(arguments["kernel_size"])
    else:
        terms = arguments["self"].numel()
    return _gamma(terms + 3) * absolute(node, arguments)


@RULES.register("index_put.default", "_unsafe_index_put.default", "scatter_add.default", "index_add.default")
def placed(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """At most all terms are added in one place; what is only replaced is exact."""
    if arguments.get("accumulate") is False:
        return torch.zeros_like(output)
    size = {**arguments, **({"alpha": abs(arguments["alpha"])} if "alpha" in arguments else {})}
    terms = max(value.numel() for name, value in arguments.items() if name in ("values", "src", "source"))
    return _gamma(terms + 8) * absolute(node, size)


@RULES.register("cdist.default", "_cdist_forward.default")
def distances(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """Differences are rounded relatively; a product of matrices is off by gamma(d) (|x| + |y|)^2 before the root."""
    del node
    x, y = arguments["x1"], arguments["x2"]
    error = _gamma(x.shape[-1] + 64) * output.abs()
    if not by_products(arguments["p"], arguments["compute_mode"], x, y):
        return error
    squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    wrong = 2 * _gamma(x.shape[-1] + 64) * squares
    return torch.minimum(wrong.sqrt(), wrong / output.abs().clamp_min(1e-290)) + error


def by_products(p: float, mode: int | None, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether Euclidean distances may be computed as |x|^2 - 2 x.y + |y|^2: for more than 25 points, or on demand."""
    return p == 2 and mode != 2 and (mode == 1 or max(x.shape[-2], y.shape[-2]) > 25)


@RULES.register(
    "grid_sampler_2d.default", "grid_sampler_3d.default",
    "upsample_linear1d.vec", "upsample_linear1d.default", "upsample_bilinear2d.vec", "upsample_trilinear3d.vec",
    "upsample_trilinear3d.default", "upsample_bicubic2d.vec", "_upsample_bilinear2d_aa.vec",
    "_upsample_bilinear2d_aa.default", "_upsample_bicubic2d_aa.vec", "_upsample_bicubic2d_aa.default",
)  # fmt: skip
def interpolation(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A position among n inputs is off by a few n u, a weight by twice that; the weights of an axis add up to below 3.

    Then a sum over each axis. Charged to the largest input, as a position may be rounded to the next one.
    """
    x = arguments["input"] if "input" in arguments else arguments["self"]
    sizes = [max(before, after) for before, after in zip(x.shape[2:], output.shape[2:], strict=True)]
    del node
    largest = x.abs().amax()
    return torch.full_like(output, 3.0 ** len(sizes)) * (_gamma(16 * sum(sizes) + 128) * largest)


@RULES.register("linalg_vector_norm.default", "norm.ScalarOpt_dim")
def norm(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
    """A root of a sum of n squares: half of the sum's relative error, and what underflow takes off."""
    del node
    count = arguments["self"].numel() // max(1, output.numel())
    return _gamma(count + 16) * output.abs() + _NORM_FLOOR
