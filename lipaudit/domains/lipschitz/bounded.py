"""Functions of one operand whose slope depends on where it is taken: the steepest one over the operand's range.

Note [Segments]
    Between two points of a convex set a function moves by at most its largest slope on the set times their distance.
    A range is convex, and so is the range together with all points within an error of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.intervals.value import as_range
from lipaudit.domains.lipschitz.joining import together
from lipaudit.domains.lipschitz.magnitudes import root_of_squares, widened_norm
from lipaudit.domains.lipschitz.propagator import BOUNDED, ROOM, RULES, Ledger, Value
from lipaudit.domains.lipschitz.shape import copies
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.results.bounds import Upper
from lipaudit.rounding import TINY, down, gamma, up

Slope = Callable[[float, float], tuple[float, float]]
"""From the least and the largest value of an operand to the steepest slope and what its room is a share of: an error
of ROOM times that share must not change the slope by more than a relative ROOM and a half."""

_LIBRARY = 1 + 1e-12
"""More than a call of a function of the library and the few operations around it can lose."""


def _positive(low: float, what: str) -> float:
    if not low > 0.0:
        raise NotLipschitz(
            f"the slope of {what} is unbounded at 0, and its operand may be as small as {low:.3g}; keep it away from "
            "0, by adding an eps or by clamping"
        )
    return low


def power(exponent: float) -> Slope:
    """|n| |x|^(n - 1): at the far end of the range for n > 1, at the end next to 0 for n < 1."""

    def slope(low: float, high: float) -> tuple[float, float]:
        if exponent in (0.0, 1.0):
            return exponent, math.inf
        whole = float(exponent).is_integer()
        nearest = max(low, -high) if whole and exponent < 0 else low
        largest = max(abs(low), abs(high))
        if exponent < 1 or not whole:
            _positive(nearest, f"x^{exponent:g}")
        at = largest if exponent > 1 else nearest
        steepness = abs(exponent - 1)
        # (1 + t / (2 s))^s and (1 - t / (2 s))^-s are below 1 + t for small t: the share shrinks with the exponent.
        share = (at if exponent > 1 and whole else min(at, nearest)) / max(1.0, 2 * steepness)
        return abs(exponent) * _float_power(at, exponent - 1), share

    return slope


def _float_power(base: float, exponent: float) -> float:
    try:
        return base**exponent
    except OverflowError:
        return math.inf


def _exponential(rate: float) -> Slope:
    """rate exp(rate x), for a rate of at most 1: an error e changes it by a factor within exp(e)."""

    def slope(low: float, high: float) -> tuple[float, float]:
        del low
        return (rate * math.exp(rate * high) + TINY if rate * high < 709 else math.inf), 1.0

    return slope


def _logarithm(base: float, shift: float = 0.0) -> Slope:
    """The slope of log(x + shift) to a base, 1 / ((x + shift) log(base))."""

    def slope(low: float, high: float) -> tuple[float, float]:
        del high
        least = _positive(down(low + shift) if shift else low, "log")
        return 1.0 / least / math.log(base), least

    return slope


def _logit(low: float, high: float) -> tuple[float, float]:
    """1 / x + 1 / (1 - x), largest at one of the ends."""
    least = min(_positive(low, "logit"), _positive(down(1.0 - high), "1 - x in logit"))
    return 1.0 / least + 2.0, least / 2


SLOPES: dict[str, tuple[Slope, str]] = {
    "square.default": (power(2.0), "2 |x|"),
    "sqrt.default": (power(0.5), "1 / (2 sqrt(x))"),
    "rsqrt.default": (power(-0.5), "x^(-3/2) / 2"),
    "reciprocal.default": (power(-1.0), "1 / x^2"),
    "exp.default": (_exponential(1.0), "exp(x)"),
    "expm1.default": (_exponential(1.0), "exp(x)"),
    "exp2.default": (_exponential(math.log(2.0)), "2^x log 2"),
    "log.default": (_logarithm(math.e), "1 / x"),
    "log1p.default": (_logarithm(math.e, 1.0), "1 / (1 + x)"),
    "log2.default": (_logarithm(2.0), "1 / (x log 2)"),
    "log10.default": (_logarithm(10.0), "1 / (x log 10)"),
}
"""Operation -> its steepest slope over a range, and the formula of the slope."""

BOUNDED.update(
    {*SLOPES, "logit.default", "atan2.default", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "var.dim", "var.correction"}
)


def _with_slope(op: str) -> None:
    slope, formula = SLOPES[op]

    def rule(node: Node, ledger: Ledger, self: Any) -> Value:
        """A function of one entry: its steepest slope over the range of its operand (Note [Segments])."""
        return _steepest(node, ledger, self, slope, formula)

    RULES.rule(op)(rule)


for _op in SLOPES:
    _with_slope(_op)


@RULES.rule("logit.default")
def logit(node: Node, ledger: Ledger, self: Any, eps: float | None) -> Value:
    """log(x / (1 - x)) of x clamped to [eps, 1 - eps]: slope 1 / (x (1 - x)), steepest at an end of its range."""

    def slope(low: float, high: float) -> tuple[float, float]:
        if eps is not None:
            low, high = min(max(low, eps), 1 - eps), max(min(high, 1 - eps), eps)
        return _logit(low, high)

    return _steepest(node, ledger, self, slope, "1 / (x (1 - x))")


@RULES.rule("atan2.default")
def angle(node: Node, ledger: Ledger, self: Any, other: Any) -> Value:
    """The angle of (x, y) moves by at most 1 / its distance from the origin; it jumps across the negative x-axis."""
    read = {name: value for name, value in (("self", self), ("other", other)) if isinstance(value, Value)}
    held = [
        ledger.range_of(node, name) if name in read else as_range(constant, torch.empty(0, device=ledger.device))
        for name, constant in (("self", self), ("other", other))
    ]
    y, x = held
    apart = bool(((y.low > 0) | (y.high < 0) | (x.low > 0)).all())
    least = float(torch.hypot(*(torch.maximum(z.low, -z.high).clamp_min(0) for z in held)).min()) if apart else 0.0
    if not least > 0.0:
        raise NotLipschitz(
            "atan2 jumps across the negative x-axis and at 0, and no range keeps its operands away from there; shift "
            "or clamp them"
        )
    bound = ledger.widened(_LIBRARY / least, least)
    because = "1 / the least distance from the origin"
    moved = [
        ledger.scaled(node, value, Upper(up(copies(node, ledger, name) * bound), "range", because))
        for name, value in read.items()
    ]
    return together(node, ledger, moved, "movements of both operands")


@RULES.rule("pow.Tensor_Scalar", "pow.Tensor_Tensor")
def raised(node: Node, ledger: Ledger, self: Any, exponent: Any) -> Value:
    """x^n with a constant n: |n| |x|^(n - 1), steepest over the range of x."""
    if isinstance(exponent, torch.Tensor) and exponent.unique().numel() == 1:
        exponent = float(exponent.flatten()[0])
    if not isinstance(exponent, (int, float)) or not isinstance(self, Value) or not math.isfinite(exponent):
        raise UnsupportedOp(f"expected a power with one finite exponent that is constant, got {exponent}")
    if ledger.shape_of(node, "self") != tuple(node.shape):
        raise UnsupportedOp(f"expected an exponent that does not stretch its base, got an output of {node.shape}")
    return _steepest(node, ledger, self, power(float(exponent)), f"|n| |x|^(n - 1), n = {exponent:g}")


def _steepest(node: Node, ledger: Ledger, value: Value, slope: Slope, formula: str) -> Value:
    held = ledger.range_of(node, "self")
    bound, share = slope(float(held.low.min()), float(held.high.max()))
    if not math.isfinite(bound):
        raise NotLipschitz(f"expected the operand of {node.op} to be bounded, got values up to {held.widest:.3g}")
    if share == 0.0:
        # A range that is 0 would leave no room at all; a slope a little too large does no harm.
        bound, share = slope(0.0, ROOM)
    if math.isfinite(share):
        bound = ledger.widened(bound * _LIBRARY, share)
    return ledger.record(node, "scale", [value], Upper(bound, "range", f"slope {formula}, steepest over its range"))


@RULES.rule("std.dim")
def deviation(node: Node, ledger: Ledger, self: Any, dim: Any, unbiased: bool, keepdim: bool) -> Value:
    """The standard deviation is ||x - mean|| / sqrt(n - c): it moves by at most 1 / sqrt(n - c)."""
    del dim, keepdim
    return _deviation(node, ledger, self, 1 if unbiased else 0)


@RULES.rule("std.correction")
def deviation_corrected(node: Node, ledger: Ledger, self: Any, dim: Any, correction: Any, keepdim: bool) -> Value:
    """The standard deviation is ||x - mean|| / sqrt(n - c): it moves by at most 1 / sqrt(n - c)."""
    del dim, keepdim
    return _deviation(node, ledger, self, 1 if correction is None else correction)


def _deviation(node: Node, ledger: Ledger, value: Value, correction: float) -> Value:
    bound = up(up(1.0 / math.sqrt(_freedom(node, ledger, correction))))
    return ledger.record(node, "scale", [value], Upper(bound, "projection", "||x - mean|| / sqrt(n - correction)"))


@RULES.rule("var.dim")
def variance(node: Node, ledger: Ledger, self: Any, dim: Any, unbiased: bool, keepdim: bool) -> Value:
    """The variance has the gradient 2 (x - mean) / (n - c): its largest length over the range."""
    del keepdim
    return _variance(node, ledger, self, dim, 1 if unbiased else 0)


@RULES.rule("var.correction")
def variance_corrected(node: Node, ledger: Ledger, self: Any, dim: Any, correction: Any, keepdim: bool) -> Value:
    """The variance has the gradient 2 (x - mean) / (n - c): its largest length over the range."""
    del keepdim
    return _variance(node, ledger, self, dim, 1 if correction is None else correction)


def _variance(node: Node, ledger: Ledger, value: Value, dim: Any, correction: float) -> Value:
    free = _freedom(node, ledger, correction)
    held = ledger.range_of(node, "self")
    axes = tuple(range(held.low.ndim)) if not dim else tuple(axis % held.low.ndim for axis in dim)
    spread = float(_spread(held, axes).max())
    if not math.isfinite(spread):
        raise NotLipschitz("expected the operand of a variance to be bounded over the domain, got an infinite range")
    bound = widened_norm(ledger, spread) * up(2.0 / free)
    because = "2 ||x - mean|| / (n - correction), longest over its range"
    return ledger.record(node, "scale", [value], Upper(up(bound), "range", because))


def _spread(held: Any, axes: tuple[int, ...]) -> torch.Tensor:
    """Bounds of ||x - mean||: at most ||x - a|| for every number a; tried are 0 and the middle of the range."""
    middle = (held.low / 2 + held.high / 2).mean(axes, keepdim=True)
    away = torch.maximum(held.high - middle, middle - held.low) + gamma(8) * (held.magnitude + middle.abs())
    lengths = torch.minimum(root_of_squares(held.magnitude, axes), root_of_squares(away, axes))
    if held.length is not None and axes == (held.axis % held.low.ndim,):
        lengths = torch.minimum(lengths, held.length.squeeze(axes).expand(lengths.shape))
    return lengths


def _freedom(node: Node, ledger: Ledger, correction: float) -> float:
    """n - correction, n the number of entries that go into one output."""
    count = math.prod(ledger.shape_of(node, "self")) // math.prod(node.shape)
    if not count - correction > 0:
        raise NotLipschitz(f"expected more than {correction} entries in every variance, got {count}")
    return count - correction
