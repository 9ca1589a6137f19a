"""What one operation may lose when the network runs in its own dtype, at every input of a ball around one image.

Note [Executed]
    The executed network works in one floating-point format: round to nearest, gradual underflow, every output of a
    convolution or a dense layer a conventional sum of products, in any order, in blocks, with or without fused
    multiply-add, partial sums in this format or a wider one. Not: Winograd, FFT or Strassen algorithms, TF32, bfloat16
    products of float32 operands. Then an operation of n roundings errs by at most
        gamma(n) size(z) + (underflows),     gamma(n) = n u / (1 - n u),
    entry by entry, where z is what it really reads and size(z) the sum of the absolute values of all its terms, such as
    |W| |z| + |b|. What it reads at a perturbed input is at most `reach` (L2) away from what float64 computes at the
    centre, so the L2 norm of the error is at most
        gamma(n) (||size(centre)|| + steep reach) + (underflows),      steep a Lipschitz constant of the size.
    Source: N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1.

`SIZES` has the operations whose arithmetic is known, `float64.EXACT` those that lose nothing. Another operation, such
as a library function of which no error is proved in float32, is a reason to certify nothing: `refusal` names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lipaudit.domains.graph import Node, Ref
from lipaudit.domains.rounding.float64 import EXACT
from lipaudit.domains.rounding.float64_linear import absolute
from lipaudit.registry import Registry
from lipaudit.rounding import up


@dataclass(frozen=True)
class Format:
    """A binary floating-point format."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def unit(self) -> float:
        """Unit roundoff u: half the distance from 1 to the next number."""
        return torch.finfo(self.dtype).eps / 2

    @property
    def smallest(self) -> float:
        """The smallest number above zero."""
        return torch.finfo(self.dtype).tiny * torch.finfo(self.dtype).eps

    @property
    def largest(self) -> float:
        return torch.finfo(self.dtype).max

    def holds(self, number: float) -> bool:
        """Whether the number is one of the format."""
        return math.isinf(number) or float(torch.tensor(number, dtype=self.dtype)) == number

    def normal(self, number: float) -> bool:
        """Whether rounding the number to the format is a relative error of at most u; zero is."""
        return number == 0.0 or torch.finfo(self.dtype).tiny <= abs(number) <= self.largest

    def gamma(self, roundings: int) -> float:
        """Upper bound of n u / (1 - n u); inf where n u is half or more, and the formula does not hold."""
        lost = roundings * self.unit
        return up(up(lost / (1.0 - lost))) if lost < 0.5 else math.inf


@dataclass(frozen=True)
class Size:
    """What an operation adds up, see Note [Executed]."""

    entries: torch.Tensor
    """float64: at the centre, the sum of the absolute values of all terms of each entry of the output."""
    roundings: int
    steep: float | None = None
    """Lipschitz constant (L2) of `entries` in the operands, all of them together; None: that of the absolute map."""
    underflows: float = 1.0
    """Results of each entry that may fall below the normal numbers, times what they are multiplied by afterwards."""
    passing: float = 1.0
    """No intermediate result exceeds `entries` by more than this factor: a mean is a sum first."""
    peak: tuple[float, float] | None = None
    """The largest intermediate result at the centre, and its Lipschitz constant, where no factor says it."""


Sizing = Callable[[Node, Mapping[str, Any], torch.Tensor], Size]
SIZES: Registry[Sizing] = Registry("size rule")


VALUES = ("min", "max", "min_val", "max_val", "value", "threshold", "other", "alpha", "negative_slope", "beta", "self")
"""Arguments that are numbers to calculate or compare with; others are axes and sizes."""

ENTRYWISE = frozenset(
    {
        "add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar", "rsub.Scalar", "rsub.Tensor", "mul.Tensor",
        "mul.Scalar", "div.Tensor", "div.Scalar",
    }
)  # fmt: skip


def refusal(node: Node, form: Format, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why nothing is known of this operation as executed in that format; empty if something is.

    `shapes` are those of the nodes by name.
    """
    name = node.op.split(".")[0].removeprefix("_native_").removesuffix("_legit_no_training")
    where = f"({node.title}, {node.source})"
    if node.op not in EXACT and node.op not in SIZES:
        return f"{name} in {form.name} has no proved error {where}"
    given = [float(node.args[key]) for key in VALUES if isinstance(node.args.get(key), (int, float))]
    for key in VALUES:
        if isinstance(value := node.args.get(key), torch.Tensor) and not value.is_floating_point():
            given += value.to(torch.float64).flatten().tolist()  # whole numbers, rounded as they meet activations
    if node.op.startswith("div"):
        divisor = node.args["other"]
        moving = isinstance(divisor, Ref)
        if not moving:
            given += (1.0 / torch.as_tensor(divisor, dtype=torch.float64)).flatten().tolist()
    fits = form.holds if node.op in EXACT else form.normal
    lost = [value for value in given if not fits(value)]
    if lost:
        return f"{lost[0]:g} in {name} is rounded in {form.name} {where}"
    if node.op in ENTRYWISE:
        several = len(node.refs()) > 1 and not node.op.startswith(("add", "sub", "rsub"))
        if several or any(shapes[ref] != node.shape for ref in node.refs()):
            return f"{name} of activations of these shapes has no proved error in {form.name} {where}"
    return _batch_norm_refusal(node, form, where) if name == "batch_norm" else ""


@SIZES.register(
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding",
    "linear.default", "conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input",
)  # fmt: skip
def products(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> Size:
    """|W| |z| + |b|: a product for each weight of an output, their sum and the bias."""
    del output
    weight = arguments["weight"]
    transposed = node.op.startswith("conv_transpose")
    terms = weight.numel() // weight.shape[1] if transposed else weight[0].numel()
    return Size(absolute(node, arguments), terms + 3, underflows=terms + 1.0)


@SIZES.register(
    "avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default", "adaptive_avg_pool1d.default",
    "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default", "mean.dim", "mean.default",
    "sum.dim_IntList", "sum.default",
)  # fmt: skip
def averages(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> Size:
    """A sum of n entries, then a quotient, or a product with a rounded inverse."""
    before = arguments["self"].shape
    if node.op.startswith("avg_pool"):
        axes = int(node.op.partition("_pool")[2][0])
        kernel = list(arguments["kernel_size"])
        terms = math.prod(kernel * axes if len(kernel) == 1 else kernel)
    elif node.op.startswith("adaptive"):
        axes = int(node.op.partition("_pool")[2][0])
        windows = zip(before[-axes:], output.shape[-axes:], strict=True)
        terms = math.prod(min(n, -(-n // m) + 1) for n, m in windows)
    else:
        terms = arguments["self"].numel() // max(1, output.numel())
    divisor = abs(arguments.get("divisor_override") or 1)
    return Size(absolute(node, arguments), terms + 4, underflows=2.0, passing=float(max(terms, divisor)))


@SIZES.register("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar", "rsub.Scalar", "rsub.Tensor")
def sums(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> Size:
    """|x| + |alpha y|: a number rounded to the format, a product with alpha, a sum."""
    alpha = abs(float(arguments.get("alpha", 1)))
    x, y = arguments["self"], arguments["other"]
    scaled = (x, y) if node.op.startswith("rsub") else (y, x)
    entries = alpha * abs(scaled[0]) + abs(scaled[1])
    plain = alpha == 1 and all(isinstance(value, torch.Tensor) and value.is_floating_point() for value in (x, y))
    return Size(entries.expand_as(output), 1 if plain else 4, steep=max(1.0, alpha))


@SIZES.register("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar")
def scalings(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> Size:
    """A product with a constant, or a quotient by one, perhaps with its inverse."""
    del node, arguments
    return Size(output.abs(), 4, underflows=2.0)


@SIZES.register("_native_batch_norm_legit_no_training.default")
def batch_norm(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> Size:
    """(x - mean) / sqrt(var + eps) weight + bias, or x scale + shift with scale and shift computed first.

    At most six roundings make the scale, with approximate roots at most ten, and four more follow. The rounding of eps
    counts as one of them: it is relative, as var and eps are not negative.
    """
    del node, output
    x, mean = arguments["input"], arguments["running_mean"]
    shape = (1, -1, *(1,) * (x.ndim - 2))
    root = (arguments["running_var"] + arguments["eps"]).rsqrt()
    weight = torch.ones_like(root) if arguments["weight"] is None else arguments["weight"].abs()
    size = x.abs() + mean.abs().reshape(shape)
    entries = size * (root * weight).reshape(shape)
    largest = root.clamp_min(1.0) * weight.clamp_min(1.0)
    peak = float((size * largest.reshape(shape)).max())
    if arguments["bias"] is not None:
        bias = arguments["bias"].abs()
        entries, peak = entries + bias.reshape(shape), peak + float(bias.max())
    lost = 4.0 + float(weight.max()) + float(root.max())
    return Size(entries, 16, underflows=lost, peak=(peak + float(root.max()), float(largest.max())))


def _batch_norm_refusal(node: Node, form: Format, where: str) -> str:
    """Scales that are no normal numbers, and variances below zero: the relative errors above would not hold."""
    variance, eps, weight = node.args["running_var"].double(), float(node.args["eps"]), node.args["weight"]
    root = (variance + eps).rsqrt()
    scale = root if weight is None else root * weight.double()
    # Where var + eps is a normal number, what a rounded eps is off by is at most u of it.
    normal = all(map(form.normal, [*(variance + eps).tolist(), *root.tolist(), *scale.tolist()]))
    if normal and not bool((variance < 0).any()):
        return ""
    return f"batch_norm has a variance below zero, or an eps or a scale out of the range of {form.name} {where}"


@SIZES.register("leaky_relu.default")
def leaky_relu(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> Size:
    """A rounded slope times the negative entries."""
    del node, output
    slope = abs(float(arguments["negative_slope"]))
    return Size(slope * arguments["self"].abs(), 3, steep=slope)


@SIZES.register("prelu.default")
def prelu(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> Size:
    """A slope times the negative entries."""
    del node, output
    slope = float(arguments["weight"].abs().max())
    return Size(slope * arguments["self"].abs(), 2, steep=slope)


@SIZES.register("hardsigmoid.default")
def hard_sigmoid(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> Size:
    """min(max(x + 3, 0), 6) / 6: the sum errs only between 0 and 6, where it is not cut off."""
    del node
    return Size(torch.ones_like(output), 6, steep=0.0, peak=(6.0 + _largest(arguments), 1.0))


@SIZES.register("hardswish.default")
def hard_swish(node: Node, arguments: Mapping[str, Any], output: torch.Tensor) -> Size:
    """x min(max(x + 3, 0), 6) / 6, as in `hard_sigmoid`, times x."""
    del node, output
    return Size(arguments["self"].abs(), 8, steep=1.0, underflows=4.0, peak=(6.0 * (_largest(arguments) + 3.0), 6.0))


def _largest(arguments: Mapping[str, Any]) -> float:
    return float(arguments["self"].abs().max())
