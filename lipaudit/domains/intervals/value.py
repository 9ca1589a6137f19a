"""The abstract value of the range domain: an interval per entry, and sometimes a bound of the length of its vectors.

Note [Rounding of ranges]
    An end of a range is itself computed in floating point. Every rule moves it outwards by at least twice what the
    evaluation of its operation can be off (a sum of n products: gamma(n) times the sum of their absolute values), so
    that the range holds for the exact value and for one that was computed in float64 alike. An end whose computation
    overflowed or is not a number says nothing and becomes infinite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lipaudit.domains.graph import Node, call
from lipaudit.domains.interpreter import Rules
from lipaudit.rounding import TINY, gamma

RANGES = Rules("range rule")

Nodes = Mapping[str, Node]
"""The nodes of the graph by name: what a rule may look at to recognise x / ||x||."""

INFINITY = float("inf")

NORM_FLOOR = 1e-150
"""Added to norms: squares that underflow can hide entries below it."""


@dataclass(frozen=True, eq=False)
class Range:
    """What holds of a tensor for every network input in the domain: low <= z <= high entry by entry."""

    low: torch.Tensor
    """float64, the node's own shape (1, ...); may be -inf."""
    high: torch.Tensor
    axis: int | None = None
    """Axis, counted from the end (negative), along which the L2 norm is at most `length`."""
    length: torch.Tensor | None = None
    """float64, the shape with 1 at `axis`; None: nothing is known beyond the box."""

    @property
    def magnitude(self) -> torch.Tensor:
        """The largest absolute value of each entry."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def widest(self) -> float:
        """The largest absolute value of any entry; inf if one is unbounded."""
        return float(self.magnitude.max())

    @property
    def nonnegative(self) -> bool:
        """No entry can be below zero."""
        return bool((self.low >= 0).all())

    @property
    def constant(self) -> bool:
        """One value only, known exactly: a weight."""
        return self.low is self.high

    def centre_radius(self) -> tuple[torch.Tensor, torch.Tensor]:
        """c and r with c - r <= z <= c + r."""
        if self.constant:
            return self.low, torch.zeros_like(self.low)
        centre = self.low / 2 + self.high / 2  # halves first: the sum could overflow
        return centre, torch.maximum(self.high - centre, centre - self.low) * (1 + gamma(4))

    def within(self, low: torch.Tensor | float, high: torch.Tensor | float) -> Range:
        """This range and [low, high], which is known to hold as well."""
        low, high = (torch.as_tensor(end, dtype=torch.float64, device=self.low.device) for end in (low, high))
        return Range(torch.maximum(self.low, low), torch.minimum(self.high, high), self.axis, self.length)


def as_range(value: Any, like: torch.Tensor) -> Range:
    """A constant as the range that holds nothing else; a range as it is."""
    if isinstance(value, Range):
        return value
    point = torch.as_tensor(value, dtype=torch.float64, device=like.device)
    return Range(point, point)


def operands(a: Any, b: Any) -> tuple[Range, Range]:
    """Both as ranges; at least one of them is one already."""
    like = a.low if isinstance(a, Range) else b.low
    return as_range(a, like), as_range(b, like)


def low_ends(value: Any) -> Any:
    """The argument with every range replaced by its lower ends."""
    return _ends(value, lambda x: x.low)


def high_ends(value: Any) -> Any:
    """The argument with every range replaced by its upper ends."""
    return _ends(value, lambda x: x.high)


def _ends(value: Any, end: Any) -> Any:
    if isinstance(value, Range):
        return end(value)
    if isinstance(value, list):
        return [_ends(v, end) for v in value]
    return value


def run(node: Node, arguments: Mapping[str, Any]) -> torch.Tensor:
    """The node's operation in float64, whatever dtype the model asked for."""
    return call(node, {**arguments, "dtype": None} if "dtype" in arguments else arguments)


def both_ends(node: Node, arguments: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The operation applied to all lower ends, and to all upper ends."""
    low, high = (run(node, {n: end(v) for n, v in arguments.items()}) for end in (low_ends, high_ends))
    return low, high


def widened(
    low: torch.Tensor, high: torch.Tensor, below: torch.Tensor, above: torch.Tensor, *, nonnegative: bool = False
) -> Range:
    """[low - below, high + above]; `nonnegative` if the exact values are known not to be below zero.

    See Note [Rounding of ranges]: an infinite end on the wrong side or a NaN becomes an end that says nothing.
    """
    low = torch.where(low.isinf(), low, low - below - TINY)
    high = torch.where(high.isinf(), high, high + above + TINY)
    low = torch.nan_to_num(low, nan=-INFINITY, posinf=-INFINITY, neginf=-INFINITY)
    high = torch.nan_to_num(high, nan=INFINITY, posinf=INFINITY, neginf=INFINITY)
    return Range(low.clamp_min(0) if nonnegative else low, high)


def around(centre: torch.Tensor, radius: torch.Tensor, charge: torch.Tensor) -> Range:
    """[centre - radius, centre + radius], widened; an overflow in either says nothing about the entry."""
    unknown = ~(centre.isfinite() & radius.isfinite())
    low, high = (centre - radius).masked_fill(unknown, -INFINITY), (centre + radius).masked_fill(unknown, INFINITY)
    return widened(low, high, charge, charge)


def rounded(low: torch.Tensor, high: torch.Tensor, count: int, *, nonnegative: bool = False) -> Range:
    """Ends that carry a relative error of at most `count` roundings each."""
    return widened(low, high, 2 * gamma(count) * low.abs(), 2 * gamma(count) * high.abs(), nonnegative=nonnegative)


def norm_up(x: torch.Tensor, axis: int, *, keepdim: bool = True) -> torch.Tensor:
    """Upper bound of the L2 norm along `axis`, rounding and underflow included."""
    norm = torch.linalg.vector_norm(x, dim=axis, keepdim=keepdim)
    return norm * (1 + 2 * gamma(x.shape[axis] + 8)) + NORM_FLOOR


def norm_down(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Lower bound of the L2 norm along `axis`, kept as an axis of one."""
    return torch.linalg.vector_norm(x, dim=axis, keepdim=True) * (1 - 2 * gamma(x.shape[axis] + 8))


def length_along(x: Range, axis: int) -> torch.Tensor:
    """Upper bound of the L2 norm of `x` along `axis` (negative): the known length or what the box says."""
    box = norm_up(x.magnitude, axis)
    return torch.minimum(box, x.length) if x.axis == axis and x.length is not None else box
