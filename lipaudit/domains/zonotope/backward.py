"""How a form came about, step by step, so that linear functions of it can be bounded backwards.

Note [Backwards]
    Let D be how far a tensor is from its centre. Every step bounds <c, D_out> from below, for all inputs of the ball,
    by <c', D_in> + constant, with c' linear in c but for the choice of a line where the operation is bent: where c is
    positive, f lies above its lower line, where it is negative, f lies below its upper line. At the input D is in the
    ball of radius r, so that <c, D> >= -r ||c|| in the dual norm. Taken one after the other from the last to the first,
    the steps turn <c, D_out> into a number. Lines may be chosen anew each time, for each c, which forms cannot.
    Roundings: centres are off by eta (float64.py), which costs |c| eta; what the products with c lose is at most
    gamma(n) <|c|, |A| reach>, with reach how far the form says that D_in goes.

Source: backward linear bounds are H. Zhang et al., Efficient Neural Network Robustness Certification with General
Activation Functions (CROWN), NeurIPS 2018; choosing the lower line of ReLU by gradients is K. Xu et al., Fast and
Complete (alpha-CROWN), ICLR 2021.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Protocol

import torch

from lipaudit.domains.zonotope.linear_images import transposed
from lipaudit.domains.zonotope.relaxations import Band
from lipaudit.norms.linear_maps import LinearMap
from lipaudit.results.threat import Norm
from lipaudit.rounding import TINY, gamma

_NUMBERS = itertools.count()

LOST_IN_SQUARES = 1e-150
"""More than what squares lose by underflow, after the root."""


class Step(Protocol):
    """One step: `c` has the shape (rows, *shape of the tensor)."""

    @property
    def number(self) -> int:
        """Grows from step to step."""

    @property
    def parents(self) -> tuple[Step, ...]: ...

    @property
    def reach(self) -> torch.Tensor | None:
        """How far the entries may be from their centre; for the rounding of sums of c. None where nothing is added."""

    def back(self, c: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """c' for each parent, and the constants, (rows,)."""


def _number() -> int:
    return next(_NUMBERS)


@dataclass(frozen=True, eq=False)
class Untold:
    """How a form came about where nobody will ask."""

    parents: tuple[Step, ...] = ()
    reach: torch.Tensor | None = None
    number: int = -1

    def back(self, c: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        raise LookupError(f"expected a form that is told how it came about, to bound {len(c)} functions of it")


@dataclass(frozen=True, eq=False)
class Start:
    """The input itself: where its entries lie."""

    radius: float | torch.Tensor
    """Of the ball. In Linf, half the width of the box in each entry."""
    norm: Norm = "l2"
    """Of the ball; a box has none."""
    parents: tuple[Step, ...] = ()
    reach: torch.Tensor | None = None
    number: int = field(default_factory=_number)

    def back(self, c: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        if isinstance(self.radius, torch.Tensor):
            return [], -_against(c, self.radius) - TINY
        flat = c.reshape(len(c), -1)
        length = flat.abs().amax(1) if self.norm == "l1" else torch.linalg.vector_norm(flat, dim=1)
        return [], -self.radius * (length * (1 + 2 * gamma(c[0].numel() + 8)) + LOST_IN_SQUARES) - TINY


@dataclass(frozen=True, eq=False)
class Mapped:
    """A linear map, then a constant shift."""

    parents: tuple[Step]
    linear: LinearMap
    moved: torch.Tensor
    """|A| reach of the operand."""
    lost: torch.Tensor | None
    """How far the computed centre may be off, entry by entry."""
    reach: torch.Tensor
    number: int = field(default_factory=_number)

    def back(self, c: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        # An entry of A^T c sums at most as many terms as c has entries.
        error = (gamma(self.linear.terms + c[0].numel() + 4) + self.linear.relative_error) * self.moved
        error = error if self.lost is None else error + self.lost
        return [transposed(self.linear, c)], -_against(c, error)


@dataclass(frozen=True, eq=False)
class Banded:
    """A function of one entry, in its band; for ReLU with lower lines of any slope through 0 as well."""

    parents: tuple[Step]
    band: Band
    centre: torch.Tensor
    """Of the operand."""
    size: torch.Tensor
    """At least |slope z| + |shift|, whatever line is taken."""
    reach: torch.Tensor
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    """Range of the operand of a ReLU."""
    number: int = field(default_factory=_number)
    chosen: list[torch.Tensor] = field(default_factory=list)
    """Empty, or one tensor: slopes of the lower lines of a ReLU, between 0 and 1, (rows of c, *shape)."""

    def back(self, c: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        band = self.band
        rounding = gamma(8) * (self.size + band.error)
        if self.low is None or self.high is None:
            return [c * band.slope], -_against(c, band.error + rounding)
        open_sign = (self.low < 0) & (self.high > 0)
        alpha = self.chosen[0] if self.chosen else self.least_area()
        lower = torch.where(open_sign, alpha, band.slope)
        # Seen from the centre slope z + shift, the lower line z -> lower z is lower by this at z = centre:
        drop = torch.where(open_sign, band.slope * self.centre + band.shift - lower * self.centre, band.error)
        slope = torch.where(c > 0, lower, band.slope)
        # -<|below|, error> - <above, drop>, with c = above - |below|.
        constant = _dot(c, band.error) - _dot(c.clamp_min(0.0), band.error + drop)
        lost = gamma(8 + c[0].numel()) * (drop.abs() + 3 * band.error)
        return [slope * c], constant - _against(c, rounding + lost)

    def least_area(self) -> torch.Tensor:
        """Lower lines of slope 0 or 1, whichever leaves less between the lines."""
        assert self.low is not None
        assert self.high is not None
        return (self.high > -self.low).double()


@dataclass(frozen=True, eq=False)
class Chosen:
    """One entry of the operand for each of the output, shifted by a constant, give or take `half`."""

    parents: tuple[Step]
    places: torch.Tensor
    shape: tuple[int, ...]
    """Of the operand."""
    half: torch.Tensor
    size: torch.Tensor
    reach: torch.Tensor
    number: int = field(default_factory=_number)

    def back(self, c: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        flat = c.new_zeros(len(c), math.prod(self.shape)).index_add(1, self.places, c.flatten(1))
        windows = int(self.places.bincount().max())  # that an entry lies in: their sum rounds
        error = self.half + gamma(windows) * (self.size + self.half)
        return [flat.reshape(len(c), *self.shape)], -_against(c, error)


@dataclass(frozen=True, eq=False)
class Summed:
    """A sum of operands times factors, stretched to one shape."""

    parents: tuple[Step, ...]
    factors: tuple[float, ...]
    shapes: tuple[tuple[int, ...], ...]
    error: torch.Tensor
    reach: torch.Tensor
    number: int = field(default_factory=_number)

    def back(self, c: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        parts = [
            (c * factor).sum_to_size(len(c), *(1,) * (c.ndim - 1 - len(shape)), *shape).reshape(len(c), *shape)
            for factor, shape in zip(self.factors, self.shapes, strict=True)
        ]
        return parts, -_against(c, self.error)


@dataclass(frozen=True, eq=False)
class Joined:
    """A concatenation: (start, length) of each operand along `axis`, which does not count the rows."""

    parents: tuple[Step, ...]
    axis: int
    places: tuple[tuple[int, int], ...]
    stacked: bool
    reach: torch.Tensor
    number: int = field(default_factory=_number)

    def back(self, c: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        parts = [c.narrow(self.axis + 1, start, length) for start, length in self.places]
        parts = [part.squeeze(self.axis + 1) for part in parts] if self.stacked else parts
        return parts, c.new_zeros(len(c))


def lower_bounds(step: Step, c: torch.Tensor) -> torch.Tensor:
    """Lower bounds of <c, D> over the ball for each row of `c`, D being how far the tensor is from its centre."""
    waiting: dict[int, tuple[Step, torch.Tensor]] = {step.number: (step, c)}
    total, sizes, count = c.new_zeros(len(c)), c.new_zeros(len(c)), 0
    while waiting:
        step, c = waiting.pop(max(waiting))
        parts, constants = step.back(c)
        total, sizes, count = total + constants, sizes + constants.abs(), count + 1
        for parent, part in zip(step.parents, parts, strict=True):
            if parent.number in waiting:
                part = waiting[parent.number][1] + part
                if parent.reach is not None:
                    total = total - gamma(4) * _against(part, parent.reach)
            waiting[parent.number] = (parent, part)
    return total - gamma(2 * count + 8) * sizes


def ancestors(step: Step) -> list[Step]:
    """The step and all that it goes back to."""
    found: dict[int, Step] = {}
    waiting = [step]
    while waiting:
        step = waiting.pop()
        if step.number not in found:
            found[step.number] = step
            waiting.extend(step.parents)
    return list(found.values())


def _against(c: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """<|c|, error>, rounded up."""
    return _dot(c.abs(), error) * (1 + 2 * gamma(c[0].numel() + 8))


def _dot(c: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """<c, v> for every row of c; `v` is one for all of them or has a row for each."""
    if v.ndim < c.ndim:
        return c.reshape(len(c), -1) @ v.expand(c.shape[1:]).flatten()
    return (c * v).reshape(len(c), -1).sum(1)
