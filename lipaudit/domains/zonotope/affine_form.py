"""The abstract value of the local domain: an affine form over a ball of inputs.

Note [Affine forms]
    Of every input x + d, ||d|| <= r in L2 or L1, a tensor of the network is
        z = centre + sum_i rows[i] u_i + rest,   ||(u_0 .. u_(n-1))|| <= 1, |u_i| <= 1 for i >= n,
        ||rest||_2 <= remainder.
    The first n rows belong to the coordinates of d / r; how far they carry is the dual norm of the rows. A ball of Linf
    is a box: n is 0, and each coordinate has a symbol like any other, after row n. Where the domain of inputs is known,
    the box is what the ball has in common with it, and its middle need not be x.
    Row n is what the float64 centre is known to be off by, as far as it is known (extended.py): its u is 1. Each of the
    others belongs to one symbol, an unknown of one entry of one nonlinear operation. All tensors share the unknowns, so
    that what two of them have in common cancels when one is subtracted from the other. A form with fewer rows does not
    depend on the later symbols. The remainder is for roundings alone: it grows with the layer bounds, as in Note [Error
    recursion] of float64.py.

Source: affine arithmetic (L. de Figueiredo and J. Stolfi, 1997); for networks, zonotopes after G. Singh et al., Fast
and Effective Robustness Certification, NeurIPS 2018, here with a ball in the first n unknowns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from lipaudit.domains.zonotope.backward import LOST_IN_SQUARES, Start, Step, Untold
from lipaudit.results.threat import Norm
from lipaudit.rounding import TINY, UNIT, gamma

_CHUNK_ENTRIES = 2**19


@dataclass(frozen=True)
class Shared:
    """The first rows of a form: how many unknowns are together at most 1, and in which norm. A box shares nothing."""

    count: int
    norm: Norm = "l2"

    def furthest(self, rows: torch.Tensor) -> torch.Tensor:
        """How far the sum of these first `rows` times their unknowns may be from 0, up to rounding: the dual norm."""
        if self.norm == "l1":
            return rows.abs().amax(0) if len(rows) else rows.new_zeros(rows.shape[1:])
        return torch.linalg.vector_norm(rows, dim=0)


@dataclass(frozen=True, eq=False)
class Form:
    """See Note [Affine forms]."""

    centre: torch.Tensor
    """Float64, of the tensor's shape."""
    rows: torch.Tensor
    """(rows, *shape of the tensor)."""
    shared: Shared
    """The n rows that share the ball."""
    remainder: float = 0.0
    """Without what the linear maps since the last bounded step added."""
    loose: float = 0.0
    """With it, these maps counted by their Schur tests: crude, for terms that are as good as nothing."""
    step: Step = field(default_factory=Untold)
    """How it came about."""

    within: torch.Tensor | None = None
    """The reach, where it is known without looking at all rows."""

    @property
    def inputs(self) -> int:
        """n, the number of rows that share the ball."""
        return self.shared.count

    @cached_property
    def reach(self) -> torch.Tensor:
        """How far each entry may be from the centre, the remainder aside: rounded up."""
        if self.within is not None:
            return self.within
        ball, symbols = self.rows.new_zeros(2, *self.rows.shape[1:])
        part = max(1, _CHUNK_ENTRIES // max(1, self.centre.numel()))
        for rows in self.rows[: self.inputs].split(part):
            if self.shared.norm == "l1":
                ball = torch.maximum(ball, self.shared.furthest(rows).square())
            else:
                ball += (rows * rows).sum(0)
        for rows in self.rows[self.inputs :].split(part):
            symbols += rows.abs().sum(0)
        return (ball.sqrt() + symbols) * (1 + 2 * gamma(len(self.rows) + 8)) + LOST_IN_SQUARES

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What each entry lies between, rounded outward."""
        reach = (self.reach + self.remainder) * (1 + gamma(4))
        slack = gamma(2) * (self.centre.abs() + reach)
        return self.centre - reach - slack, self.centre + reach + slack

    def padded(self, count: int) -> torch.Tensor:
        """The rows, with zeros for the symbols that came later: `count` in all."""
        missing = count - len(self.rows)
        if not missing:
            return self.rows
        return torch.cat([self.rows, self.rows.new_zeros(missing, *self.rows.shape[1:])])


def ball(
    x: torch.Tensor,
    radius: float,
    rows: int | None = None,
    *,
    norm: Norm = "l2",
    domain: tuple[float, float] | None = None,
) -> Form:
    """The form of the input itself: all x + d with ||d|| <= radius in that norm; `x` has a leading axis of one.

    In Linf, of these inputs those in the `domain`. With fewer `rows` than coordinates only the first ones move: for
    measuring time, no certificate.
    """
    centre = x.double()
    count = centre.numel() if rows is None else min(rows, centre.numel())
    if norm == "linf":
        return _box(*_ends(centre, radius, domain), count)
    moves = torch.zeros(count + 1, centre.numel(), dtype=torch.float64, device=x.device)
    moves[:count].fill_diagonal_(radius)
    shared, start = Shared(count, norm), Start(radius, norm)
    return Form(centre, moves.reshape(-1, *centre.shape), shared, step=start)


def _ends(x: torch.Tensor, radius: float, domain: tuple[float, float] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest value of each entry, rounded outward. What lies outside of the domain stays there."""
    low, high = x - radius, x + radius
    slack = UNIT * (x.abs() + radius) * 2 + TINY
    low, high = low - slack, high + slack
    if domain is not None:
        low = torch.maximum(low, x.clamp_max(domain[0]))
        high = torch.minimum(high, x.clamp_min(domain[1]))
    return low, high


def _box(low: torch.Tensor, high: torch.Tensor, count: int) -> Form:
    centre = low + (high - low) / 2
    half = torch.maximum(high - centre, centre - low) * (1 + gamma(4)) + TINY
    moves = torch.zeros(count + 1, centre.numel(), dtype=torch.float64, device=low.device)
    moves[1:].diagonal().copy_(half.flatten()[:count])
    return Form(centre, moves.reshape(-1, *centre.shape), Shared(0), step=Start(half))
