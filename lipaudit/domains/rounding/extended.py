"""Values of one sample to many more digits than float64 has, for where ordinary rounding costs a certificate.

A value is a pair: the float64 number and what it is off by, itself known up to a much smaller error.

Note [Exact slices]
    A float64 tensor is the sum of slices of b bits each, x = x_1 + x_2 + x_3 + x_4, every entry of x_j a multiple of
    2^(e - j b) with |x_j| <= 2^(e - (j - 1) b), |x| < 2^e, for j < 4; likewise the weights. A sum of K products of such
    slices needs 2 b + log2 K bits. Where these are at most 53, the sum is exact in float64, in whatever order it is
    taken. The sums over i + j <= 5 are added without loss (two-sum). With s = K 2^(e_x + e_w), at most this is lost:
        i + j = 5 with the fourth slices, summed with rounding    2 gamma(K) s 2^(-3 b)
        i + j > 5, left out                                       6 s 2^(-4 b)
        sums of what the two-sums were off by                     gamma(64) u 16 s.
    Source: T. Ogita, S. Rump and S. Oishi, Accurate sum and dot product, SIAM J. Sci. Comput. 2005; K. Ozaki et al.,
    Error-free transformations of matrix multiplication, Numer. Algorithms 2012.

Note [Two-sum, two-product]
    s = fl(a + b) and a + b - s, p = fl(a b) and a b - p are computed exactly (D. Knuth; T. Dekker, 1971) as long as
    nothing overflows; what underflow loses is covered by `TINY`.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lipaudit.domains.graph import Node, Ref, call
from lipaudit.registry import Registry
from lipaudit.rounding import TINY, UNIT, gamma


@dataclass(frozen=True)
class Precise:
    """value + rest +- error, entry by entry."""

    value: torch.Tensor
    rest: torch.Tensor
    error: torch.Tensor


RULES: Registry[Callable[[Node, Mapping[str, Any]], Precise | None]] = Registry("precise rule")
"""A function of the node and its arguments; None where these are of sizes that it is not made for."""

_MODERATE = 300
"""Exponents of what is sliced or multiplied, at most."""

_DIGITS = decimal.Context(prec=60)


def precisely(node: Node, arguments: Mapping[str, Any]) -> Precise | None:
    """The value of an operation as a pair; None where it has no rule here."""
    return RULES[node.op](node, arguments) if node.op in RULES else None


@RULES.register(
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding",
    "linear.default",
)  # fmt: skip
def products(node: Node, arguments: Mapping[str, Any]) -> Precise | None:
    """Convolutions and dense layers; see Note [Exact slices]."""
    x, weight, bias = (arguments[name] for name in ("input", "weight", "bias"))
    batched = x.ndim >= 2 if node.op == "linear.default" else x.ndim == weight.ndim
    if not batched or not _moderate(x, weight) or weight[0].numel() >= 2**20:
        return None
    terms = weight[0].numel()
    bits = (52 - math.ceil(math.log2(terms))) // 2
    inputs, weights = _slices(x, bits), _slices(weight, bits)
    value = rest = torch.zeros((), dtype=x.dtype, device=x.device)
    for i, part in enumerate(weights):
        together = torch.cat(inputs[: 4 - i])
        found = call(node, {**arguments, "input": together, "weight": part, "bias": None})
        for partial in found.chunk(4 - i):
            value, off = _two_sum(value, partial)
            rest = rest + off
    size = terms * 2.0 ** (_exponent(x) + _exponent(weight))
    lost = 2 * gamma(terms) * 2.0 ** (-3 * bits) + 6 * 2.0 ** (-4 * bits) + gamma(64) * UNIT * 16
    error = torch.full_like(value, size * lost * (1 + gamma(8)) + TINY)
    if bias is not None:
        shape = [1] * value.ndim
        shape[-1 if node.op == "linear.default" else 1] = -1
        value, off = _two_sum(value, bias.reshape(shape))
        rest, error = rest + off, error + gamma(4) * (rest.abs() + off.abs())
    return Precise(value, rest, error * (1 + gamma(4)))


@RULES.register("_native_batch_norm_legit_no_training.default")
def batch_norm(node: Node, arguments: Mapping[str, Any]) -> Precise | None:
    """x factor + shift, both computed in decimal to 60 digits and kept as pairs."""
    del node
    x, variance = arguments["input"], arguments["running_var"]
    if not _moderate(x) or not bool((variance + arguments["eps"] > 0).all()):
        return None
    factors, shifts = _affine(arguments)
    shape = (2, 1, -1, *(1,) * (x.ndim - 2))
    factor, late_factor = x.new_tensor(factors).t().reshape(shape)
    shift, late_shift = x.new_tensor(shifts).t().reshape(shape)
    if not _moderate(factor):
        return None
    value, off = _two_product(x, factor)
    parts = [off, x * late_factor, late_shift.expand_as(x)]
    value, off = _two_sum(value, shift)
    parts.append(off)
    rest = parts[0] + parts[1] + parts[2] + parts[3]
    moved = (arguments["running_mean"].abs() * factor.flatten().abs()).reshape(factor.shape)
    error = gamma(16) * sum(part.abs() for part in parts) + 1e-45 * (value.abs() + shift.abs() + moved) + TINY
    return Precise(value, rest, error)


def _affine(arguments: Mapping[str, Any]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Factor and shift of each channel, each as a float and what it is off by."""
    means, variances = (arguments[name].tolist() for name in ("running_mean", "running_var"))
    weights, biases = (
        [default] * len(means) if arguments[name] is None else arguments[name].tolist()
        for name, default in (("weight", 1.0), ("bias", 0.0))
    )
    exact, of = _DIGITS, decimal.Decimal
    factors: list[tuple[float, float]] = []
    shifts: list[tuple[float, float]] = []
    for mean, variance, weight, bias in zip(means, variances, weights, biases, strict=True):
        factor = exact.divide(of(weight), exact.sqrt(exact.add(of(variance), of(arguments["eps"]))))
        shift = exact.subtract(of(bias), exact.multiply(of(mean), factor))
        for number, kept in ((factor, factors), (shift, shifts)):
            kept.append((float(number), float(exact.subtract(number, of(float(number))))))
    return factors, shifts


@RULES.register("add.Tensor", "sub.Tensor")
def addition(node: Node, arguments: Mapping[str, Any]) -> Precise | None:
    """A sum of two tensors; a difference where one of them is constant (others may be read as one function)."""
    x, y = arguments["self"], arguments["other"]
    negative = node.op == "sub.Tensor"
    if arguments["alpha"] != 1 or not _finite(x, y) or (negative and len(node.refs()) != 1):
        return None
    value, off = _two_sum(x, -y if negative else y)
    return Precise(value, off, torch.full_like(value, TINY))


@RULES.register("mul.Tensor", "div.Tensor")
def scaling(node: Node, arguments: Mapping[str, Any]) -> Precise | None:
    """A product with a constant tensor, or a quotient by one: x / y = q + (x - q y) / y."""
    x, y = arguments["self"], arguments["other"]
    constant = isinstance(node.args["self"], Ref) and not isinstance(node.args["other"], Ref)
    if not constant or not _moderate(x, y) or not bool((y.abs() > 2.0**-_MODERATE).all()):
        return None
    if node.op == "mul.Tensor":
        value, off = _two_product(x, y)
        return Precise(value, off, torch.full_like(value, TINY))
    value = x / y
    product, off = _two_product(value, y)
    rest = ((x - product) - off) / y
    return Precise(value, rest, gamma(4) * rest.abs() + TINY)


def _two_sum(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _two_product(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    product = a * b
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two parts of 26 bits."""
    shifted = x * (2.0**27 + 1)
    high = shifted - (shifted - x)
    return high, x - high


def _finite(*values: Any) -> bool:
    tensors = all(isinstance(v, torch.Tensor) and v.dtype == torch.float64 and v.numel() for v in values)
    return tensors and all(bool((v.abs() < 2.0**_MODERATE).all()) for v in values)


def _moderate(*values: Any) -> bool:
    """Whether these are float64 tensors of finite entries, the largest neither huge nor tiny."""
    return _finite(*values) and all(float(v.abs().max()) > 2.0**-_MODERATE for v in values)


def _exponent(x: torch.Tensor) -> int:
    return math.frexp(float(x.abs().max()))[1]


def _slices(x: torch.Tensor, bits: int) -> list[torch.Tensor]:
    """Three slices of so many bits, and what is left."""
    exponent, found = _exponent(x), []
    for number in range(1, 4):
        # Adding this rounds to a multiple of 2^(exponent - number bits): it is the last place of the sum.
        shift = 1.5 * 2.0 ** (52 + exponent - number * bits)
        part = (x + shift) - shift
        found.append(part)
        x = x - part
    return [*found, x]
