"""Float64 and outward rounding: the only place that knows what a floating-point operation may lose.

Note [Model of arithmetic]
    Round-to-nearest IEEE float64 with gradual underflow; every output of a matrix product or a convolution is a
    conventional sum of products, in any order, with or without fused multiply-add (no Strassen, Winograd or FFT
    algorithm, no 3M complex product). Then a computed dot product of n terms differs from the exact one by at most
    gamma(n) |x|.|y| (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), up to
    underflow, which `TINY` covers. `check_arithmetic` refuses the settings known to break this model.

Note [Wide range]
    The product of hundreds of layer bounds leaves the range of float64. Products, sums and roots of bounds are
    taken in `decimal` with 28 digits, an unbounded exponent and rounding towards +inf: correctly rounded, hence
    sound, by the standard library.
"""

from __future__ import annotations

import contextlib
import decimal
import math
import operator
import os
from collections.abc import Iterator
from decimal import Decimal

import torch

from lipaudit.errors import LipauditError

UNIT = 2.0**-53
"""Unit roundoff u of float64."""

TINY = 1e-300
"""Added to absolute error terms: more than everything that underflow can lose."""

WIDE = decimal.Context(prec=28, rounding=decimal.ROUND_CEILING, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX, traps=[])


def gamma(n: int) -> float:
    """Upper bound of gamma_n = n u / (1 - n u), the relative error of n roundings in a row."""
    if n * UNIT >= 0.01:
        raise ValueError(f"expected n u < 0.01 for an error bound, got n = {n}")
    return n * UNIT * 1.02


def up(x: float) -> float:
    """The next float above `x`: rounds the result of one float operation outward."""
    return math.nextafter(x, math.inf)


def down(x: float) -> float:
    """The next float below `x`, never below zero: for radii."""
    return max(0.0, math.nextafter(x, -math.inf))


def wide(x: float) -> Decimal:
    """`x` exactly, as a number of unbounded range."""
    return Decimal(x)


def power_of_two(exponent: int) -> Decimal:
    """2^exponent, rounded up."""
    power = Decimal(2 ** abs(exponent))
    return WIDE.plus(power) if exponent >= 0 else WIDE.divide(Decimal(1), power)


def wide_sqrt(x: Decimal) -> Decimal:
    """Square root, rounded up (decimal's own square root rounds to nearest)."""
    root = WIDE.sqrt(x)
    return WIDE.next_plus(root) if root else root


def narrow_up(x: Decimal) -> float:
    """The smallest float known to be at least `x`; inf beyond the range of float64."""
    nearest = float(x)
    return nearest if math.isinf(nearest) or Decimal(nearest) >= x else up(nearest)


def log10_up(x: Decimal) -> float:
    """log10 of `x`, rounded up; -inf for zero."""
    return narrow_up(WIDE.next_plus(WIDE.log10(x))) if x else -math.inf


def norm_up(x: torch.Tensor) -> float:
    """Upper bound of the Euclidean (Frobenius) norm of a float64 tensor, rounding included."""
    largest = float(x.abs().max()) if x.numel() else 0.0
    if largest == 0.0:
        return 0.0
    if not math.isfinite(largest):
        raise ValueError(f"expected finite entries, got {largest}")
    # Scaling by a power of two is exact; squares below 2^-1022 are covered by the added term.
    exponent = min(1022, max(-1022, math.frexp(largest)[1]))
    scaled = float((x * 2.0**-exponent).square().sum()) + x.numel() * 2.0**-1000
    return up(up(math.sqrt(scaled * (1 + 2 * gamma(x.numel() + 2)))) * 2.0**exponent)


def norms_up(x: torch.Tensor) -> torch.Tensor:
    """Upper bounds of the Euclidean norms of x[0], x[1], ..., rounding included: many at once."""
    largest = float(x.abs().max()) if x.numel() else 0.0
    if not math.isfinite(largest):
        raise ValueError(f"expected finite entries, got {largest}")
    exponent = min(1022, max(-1022, math.frexp(largest)[1]))
    count = math.prod(x.shape[1:])
    squares = (x * 2.0**-exponent).square().flatten(1).sum(1) + (count * 2.0**-1000 if largest else 0.0)
    # Two products and a root, each within one unit.
    return (squares * (1 + 2 * gamma(count + 2))).sqrt() * (1 + 8 * UNIT) * 2.0**exponent


def length_up(x: torch.Tensor) -> float:
    """`norm_up` of errors: inf where one of them is not finite. Squares of entries far from 1 stay within range."""
    return norm_up(x) if bool(torch.isfinite(x).all()) else math.inf


def check_arithmetic(device: torch.device) -> None:
    """Refuse settings under which float64 arithmetic is not what Note [Model of arithmetic] says."""
    one = torch.tensor(1e-310, dtype=torch.float64, device=device)
    if float(one * 1) == 0.0:
        raise LipauditError(
            f"expected float64 with gradual underflow on {device}, got flush-to-zero; "
            "call torch.set_flush_denormal(False) before the audit"
        )
    if device.type == "cuda" and os.environ.get("CUBLAS_EMULATE_DOUBLE_PRECISION", "0") != "0":
        raise LipauditError(
            "expected native float64 matrix products on the GPU, got CUBLAS_EMULATE_DOUBLE_PRECISION set; unset it"
        )


_ALL_PRODUCTS = "torch.set_float32_matmul_precision('highest')"
_MULTIPLYING = {
    "mkldnn.matmul": _ALL_PRODUCTS, "mkldnn.conv": "torch.backends.mkldnn.conv.fp32_precision = 'ieee'",
    "mkldnn.rnn": "torch.backends.mkldnn.rnn.fp32_precision = 'ieee'", "cuda.matmul": _ALL_PRODUCTS,
    "cudnn.conv": "torch.backends.cudnn.allow_tf32 = False", "cudnn.rnn": "torch.backends.cudnn.allow_tf32 = False",
}  # fmt: skip
"""Where torch keeps a format for products of float32 (CPUs have those of mkldnn), and how to have float32 again."""
SHORT_UNITS = {"tf32": 2.0**-11, "bf16": 2.0**-8}


def short_formats(device: torch.device | None = None) -> dict[str, str]:
    """What torch may multiply in a shorter format than float32 (on `device`): {"cudnn.conv": "tf32"}.

    That is so for convolutions on GPUs unless it is switched off.
    """
    names = [name for name in _MULTIPLYING if device is None or (device.type == "cpu") == name.startswith("mkldnn")]
    formats = {name: operator.attrgetter(name)(torch.backends).fp32_precision for name in names}
    return {name: short for name, short in formats.items() if short not in ("ieee", "none")}


def shortened(device: torch.device) -> str:
    """Why products of float32 may be something else there, and what to do; empty if they are what they say."""
    for name, short in short_formats(device).items():
        return f"torch may multiply in {short} where the network runs ({name}); set {_MULTIPLYING[name]} and run again"
    return ""


@contextlib.contextmanager
def plain_sums() -> Iterator[None]:
    """Without the kernels that no arithmetic covers: Winograd, FFT and TF32 in cuDNN, TF32 and bf16 in products."""
    short = {name: value for name, value in short_formats().items() if not name.startswith("cudnn")}
    enabled, precision = torch.backends.cudnn.enabled, _matmul_precision()
    torch.backends.cudnn.enabled = False
    _set(dict.fromkeys(short, "ieee"))
    if precision is not None:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        _set(short)
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.enabled = enabled


def _matmul_precision() -> str | None:
    """None where formats were set one by one: torch then refuses to sum them up."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _set(formats: dict[str, str]) -> None:
    for name, value in formats.items():
        operator.attrgetter(name)(torch.backends).fp32_precision = value
