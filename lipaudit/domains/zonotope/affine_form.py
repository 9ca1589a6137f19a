"""The abstract value of the local domain: an affine form over an L2 ball of inputs.

Note [Affine forms]
    Of every input x + d, ||d||_2 <= r, a tensor of the network is
        z = centre + sum_i rows[i] u_i + rest,   ||(u_0 .. u_(n-1))||_2 <= 1, |u_i| <= 1 for i >= n,
        ||rest||_2 <= remainder.
    The first n rows belong to the coordinates of d / r. Row n is what the float64 centre is known to be off by, as far
    as it is known (extended.py): its u is 1. Each of the others belongs to one symbol, an unknown of one entry of one
    nonlinear operation. All tensors share the unknowns, so that what two of them have in common cancels when one
    is subtracted from the other. A form with fewer rows does not depend on the later symbols.
    The remainder is for roundings alone: it grows with the layer bounds, as in Note [Error recursion] of float64.py.

Source: affine arithmetic (L. de Figueiredo and J. Stolfi, 1997); for networks, zonotopes after G. Singh et al., Fast
and Effective Robustness Certification, NeurIPS 2018, here with an L2 ball in the first n unknowns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from lipaudit.domains.zonotope.backward import LOST_IN_SQUARES, Start, Step, Untold
from lipaudit.rounding import gamma

_CHUNK_ENTRIES = 2**19


@dataclass(frozen=True, eq=False)
class Form:
    """See Note [Affine forms]."""

    centre: torch.Tensor
    """Float64, of the tensor's shape."""
    rows: torch.Tensor
    """(rows, *shape of the tensor)."""
    inputs: int
    """n, the number of rows that share the L2 ball."""
    remainder: float = 0.0
    """Without what the linear maps since the last bounded step added."""
    loose: float = 0.0
    """With it, these maps counted by their Schur tests: crude, for terms that are as good as nothing."""
    step: Step = field(default_factory=Untold)
    """How it came about."""

    within: torch.Tensor | None = None
    """The reach, where it is known without looking at all rows."""

    @cached_property
    def reach(self) -> torch.Tensor:
        """How far each entry may be from the centre, the remainder aside: rounded up."""
        if self.within is not None:
            return self.within
        ball, symbols = self.rows.new_zeros(2, *self.rows.shape[1:])
        part = max(1, _CHUNK_ENTRIES // max(1, self.centre.numel()))
        for rows in self.rows[: self.inputs].split(part):
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


def ball(x: torch.Tensor, radius: float, rows: int | None = None) -> Form:
    """The form of the input itself: all x + d with ||d||_2 <= radius; `x` has a leading axis of one.

    With fewer `rows` than coordinates only the first ones move: for measuring time, no certificate.
    """
    centre = x.double()
    count = centre.numel() if rows is None else min(rows, centre.numel())
    moves = torch.zeros(count + 1, centre.numel(), dtype=torch.float64, device=x.device)
    moves[:count].fill_diagonal_(radius)
    return Form(centre, moves.reshape(-1, *centre.shape), count, step=Start(radius))
