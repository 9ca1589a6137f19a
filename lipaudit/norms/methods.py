"""Spectral norms of single linear maps, each proved from above.

`CONV_METHODS` and `DENSE_METHODS` are the tables: a method is a function from a map to an `Upper`. `norm_bound`
runs a table over a map and keeps every candidate; the smallest is the layer's bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from lipaudit.errors import RuleError
from lipaudit.norms.aol import aol_bound, aol_flops, aol_plain_bound
from lipaudit.norms.four_bounds import four_bounds, four_flops
from lipaudit.norms.gram import (
    gram_bound,
    gram_flops,
    gram_lattice_bound,
    gram_lattice_flops,
    gram_torus_bound,
    gram_torus_flops,
)
from lipaudit.norms.lattice import BUDGET, SPARE
from lipaudit.norms.linear_maps import (
    Conv,
    Dense,
    Gather,
    Identity,
    LinearMap,
    Pad,
    Scale,
    Transposed,
    schur_test,
    sum_norm,
)
from lipaudit.norms.lipgrid import lipgrid_bound, lipgrid_flops, riesz_bound, riesz_flops
from lipaudit.norms.tight import tight_bound, tight_flops
from lipaudit.norms.torus import torus_bound, torus_flops
from lipaudit.norms.verified_eigenvalues import largest_singular_value
from lipaudit.registry import Registry
from lipaudit.results.bounds import Upper
from lipaudit.results.threat import Norm, norm_of
from lipaudit.rounding import check_arithmetic, norm_up, plain_sums, up

Map = TypeVar("Map", Conv, Dense)

AGREE = 1e-9
"""Two proofs whose bounds differ by less than this share say the same."""

CONV_METHODS: Registry[Callable[[Conv], Upper]] = Registry("convolution norm")
DENSE_METHODS: Registry[Callable[[Dense], Upper]] = Registry("dense norm")

CONV_METHODS.register("torus")(torus_bound)
CONV_METHODS.register("tight")(tight_bound)


@DENSE_METHODS.register("svd")
def svd_bound(dense: Dense) -> Upper:
    """||W|| <= the largest singular value, proved by Cholesky of rho I - W W^T.

    Tight: to 1e-9. Source: Rump, BIT 51 (2011) 367-384; see `verified_eigenvalues.py`.
    """
    weight = dense.weight
    exponent = _exponent(weight)
    scaled = weight * 2.0**-exponent
    norm = largest_singular_value(scaled[None])
    error = dense.relative_error * norm_up(scaled) if dense.relative_error else 0.0
    return Upper(up((norm + error) * 2.0**exponent), "svd-verified", "largest singular value, proved by Cholesky")


def schur_bound(linear: Conv | Dense) -> Upper:
    """||A||^2 <= the largest row sum times the largest column sum of |A| (Schur test).

    Source: the Schur test, ||A||_2^2 <= ||A||_1 ||A||_inf.
    """
    value = schur_test(linear, linear.weight.device)
    return Upper(value, "schur", "root of the largest row sum times the largest column sum of absolute values")


CONV_METHODS.register("schur")(schur_bound)
CONV_METHODS.register("gram")(gram_torus_bound)
CONV_METHODS.register("gram-lattice")(gram_lattice_bound)
CONV_METHODS.register("riesz-grid")(riesz_bound)
CONV_METHODS.register("lipgrid")(lipgrid_bound)
CONV_METHODS.register("four-bounds")(four_bounds)
CONV_METHODS.register("aol")(aol_bound)
CONV_METHODS.register("aol-plain")(aol_plain_bound)
DENSE_METHODS.register("schur")(schur_bound)
DENSE_METHODS.register("gram")(gram_bound)
DENSE_METHODS.register("aol")(aol_bound)
DENSE_METHODS.register("aol-plain")(aol_plain_bound)

BEST = {Conv: ("torus", "schur"), Dense: ("svd",)}
"""The methods that can be the smallest: what all others bound is the norm on the lattice, at least that of a torus."""

TRIFLE = 2e9
"""What real borders may cost beside a torus of any size, in the unit of `tight_flops`: about a tenth of a second."""


def _as_much_again(conv: Conv) -> float:
    """What real borders may cost: as much as the torus, or what nobody notices beside reading the network."""
    return max(TRIFLE, torus_flops(conv))


CONV_LIMITS: dict[str, tuple[Callable[[Conv], float], float | Callable[[Conv], float]]] = {
    "tight": (tight_flops, _as_much_again),
    "gram": (gram_torus_flops, SPARE),
    "gram-lattice": (gram_lattice_flops, SPARE),
    "riesz-grid": (riesz_flops, SPARE),
    "lipgrid": (lipgrid_flops, BUDGET),
    "four-bounds": (four_flops, BUDGET),
    "aol": (aol_flops, BUDGET),
    "aol-plain": (aol_flops, -1.0),  # never below "aol"
}
"""What a method costs, from shapes alone, and the cost up to which `best` and `all` include it; one not listed always
runs."""
DENSE_LIMITS: dict[str, tuple[Callable[[Dense], float], float]] = {
    "gram": (gram_flops, BUDGET),
    "aol": (aol_flops, BUDGET),
    "aol-plain": (aol_flops, -1.0),
}


def norm_bound(
    linear: LinearMap, method: str = "best", device: torch.device | None = None
) -> tuple[Upper, tuple[Upper, ...]]:
    """The smallest proved bound of ||linear||, and every candidate; of proofs that agree, the first in the table.

    `method` is "best" (what can be the smallest; small maps with their real borders where that takes at most as much
    work again as the torus, by their shapes, or next to none; the torus says where it is left out), "all" (every method
    that costs little, for the report), "tight" (real borders whatever they take), or the name of a single method.
    `device` is where a map that is given as a function has its constants.
    """
    if isinstance(linear, Transposed):
        return norm_bound(linear.conv, method, device)
    if isinstance(linear, (Conv, Dense)):
        table = CONV_METHODS if isinstance(linear, Conv) else DENSE_METHODS
        chosen = _chosen(linear, table, method)
        candidates = tuple(_by(name, linear) for name in chosen)
        if isinstance(linear, Conv) and method in ("best", "all") and "tight" not in chosen:
            candidates = tuple(_left_out(linear, upper) for upper in candidates)
        agreeing = min(map(float, candidates)) * (1 + AGREE)
        return next(upper for upper in candidates if upper.value <= agreeing), candidates
    if isinstance(linear, Scale):
        value = float(linear.factor.abs().max()) * (1 + linear.relative_error) if linear.factor.numel() else 0.0
        value = up(value) if linear.relative_error else value
        return Upper(value, "diagonal", "largest factor (exact)"), ()
    if isinstance(linear, Identity) or (isinstance(linear, Gather) and linear.isometric):
        return Upper(1.0, "isometry", "moves entries or adds a constant (exact)"), ()
    if isinstance(linear, Pad) and linear.padding_mode == "zeros":
        return Upper(1.0, "isometry", "borders of a constant, or cropped (exact)"), ()
    if isinstance(linear, Gather) and linear.coisometry is not None:
        return Upper(linear.coisometry, "disjoint-windows", "rows of equal length without overlap (exact)"), ()
    value = schur_test(linear, device)
    return Upper(value, "schur", "root of the largest row sum times the largest column sum"), ()


def _by(method: str, linear: Conv | Dense) -> Upper:
    return CONV_METHODS[method](linear) if isinstance(linear, Conv) else DENSE_METHODS[method](linear)


def _chosen(linear: Conv | Dense, table: Iterable[str], method: str) -> list[str]:
    if method == "tight" and isinstance(linear, Conv):
        return ["torus", "tight", "schur"]
    affordable = [name for name in table if affords(linear, name)]
    if method == "all":
        return affordable
    if method in ("best", "tight"):
        return [name for name in affordable if name in (*BEST[type(linear)], "tight")]
    return [method]


def affords(linear: Conv | Dense, method: str) -> bool:
    """Whether `best` and `all` may take that method for this map, which shapes alone decide."""
    if isinstance(linear, Conv):
        return method not in CONV_LIMITS or _within(linear, *CONV_LIMITS[method])
    return method not in DENSE_LIMITS or _within(linear, *DENSE_LIMITS[method])


def _within(linear: Map, cost: Callable[[Map], float], limit: float | Callable[[Map], float]) -> bool:
    return cost(linear) <= (limit(linear) if callable(limit) else limit)


def _left_out(conv: Conv, upper: Upper) -> Upper:
    """A bound on the torus that says what real borders would take, where they are left out for their cost."""
    cost = tight_flops(conv)
    if upper.method != "torus-parity" or math.isinf(cost):
        return upper
    times = f"{cost / torus_flops(conv):.0f} times the work"
    return replace(upper, because=f"{upper.because}; real borders are left to method 'tight': about {times}")


def _bound_in(linear: Conv | Dense, norm: str, method: str) -> Upper:
    """The smallest proved bound of the operator norm. `method` is for L2: in Linf and L1 there is one, an exact one."""
    measured = norm_of(norm)
    if measured == "l2":
        return norm_bound(linear, method)[0]
    if method not in ("best", "all"):
        raise RuleError(f"expected method 'best' for a norm in {measured}, which is a largest sum, got {method!r}")
    what = "row" if measured == "linf" else "column"
    exact = " (exact)" if isinstance(linear, Dense) or linear.padding_mode == "zeros" else ", taps apart"
    because = f"largest {what} sum of absolute values, real borders{exact}"
    return Upper(sum_norm(linear, measured), f"{what}-sums", because)


@plain_sums()
def dense_norm(weight: torch.Tensor, *, method: str = "best", norm: Norm = "l2") -> Upper:
    """A proved bound of the operator norm of a matrix (out, in) of any floating dtype: the spectral norm in L2.

    In Linf ("linf", the largest row sum) and L1 ("l1", the largest column sum) exact but for rounding upwards. Raises
    `ValueError` for NaN or inf entries or a wrong number of axes, `RuleError` for an unknown method.
    """
    if weight.ndim != 2:
        raise ValueError(f"expected a matrix (out, in), got shape {tuple(weight.shape)}")
    weight = _checked(weight)
    return _bound_in(Dense(weight, (weight.shape[1],)), norm, method)


@plain_sums()
def conv_norm(
    weight: torch.Tensor,
    *,
    input_size: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    method: str = "best",
    norm: Norm = "l2",
) -> Upper:
    """A proved bound of the operator norm of a convolution as it runs on maps of `input_size`.

    L2 to L2 by default. "linf" is Linf to Linf and "l1" L1 to L1, both with real borders: exact but for rounding
    upwards, unless padding copies entries.

    `weight` is (out, in / groups, *kernel) with 1 to 3 kernel axes, any floating dtype; `input_size` is what
    enters the convolution, (height, width) in 2-D. There is no default for it: the norm depends on it.
    Raises `ValueError` for shapes that do not fit, NaN or inf, `RuleError` for an unknown method, `LipauditError`
    where denormal numbers are flushed to zero.
    """
    axes = weight.ndim - 2
    if not 1 <= axes <= 3 or len(input_size) != axes:
        raise ValueError(
            f"expected a kernel with 1 to 3 spatial axes and an input_size of as many, got weight shape "
            f"{tuple(weight.shape)} and input_size {tuple(input_size)}"
        )
    pads = _each(padding, axes, "padding", 0)
    conv = Conv(
        weight=_checked(weight),
        input_size=tuple(int(n) for n in input_size),
        stride=_each(stride, axes, "stride", 1),
        padding=tuple((p, p) for p in pads),
        dilation=_each(dilation, axes, "dilation", 1),
        groups=groups,
        padding_mode=padding_mode,
    )
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"expected groups to divide {weight.shape[0]} output channels, got {groups}")
    if min(conv.output_size) < 1:
        raise ValueError(
            f"expected an input of at least the kernel's extent, got input_size {conv.input_size}, kernel "
            f"{conv.kernel_size}, dilation {conv.dilation}, padding {pads}"
        )
    return _bound_in(conv, norm, method)


def _each(value: int | Sequence[int], axes: int, name: str, least: int) -> tuple[int, ...]:
    values = (value,) * axes if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != axes or min(values) < least:
        raise ValueError(f"expected {name} of {axes} whole numbers >= {least}, got {value!r}")
    return values


def _checked(weight: torch.Tensor) -> torch.Tensor:
    check_arithmetic(weight.device)
    if not weight.is_floating_point():
        raise ValueError(f"expected floating-point weights, got {weight.dtype}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("expected finite weights, got NaN or inf")
    return weight.detach().to(torch.float64)


def _exponent(weight: torch.Tensor) -> int:
    """e such that weight 2^-e is of moderate size; the scaling is exact."""
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    return min(1000, max(-1000, math.frexp(largest)[1])) if largest else 0
