"""Symbols of one layer taken together: far from all of them can be at their ends at once.

Note [Groups]
    A band says f(z) = slope z + shift + error e with |e| <= 1, entry by entry. Seen from the centre c of z,
        error (e + t) = f(z) - f(c) - slope (z - c),    t = (shift + slope c - f(c)) / error,
    and the right side is at most bend |z - c|, with bend the largest difference of slope and a secant of f from c. So
        ||e + t||_2 <= ||(bend / error) (z - c)||_2,
    and z - c is known as a linear function of the unknowns: of d in a ball, and of the groups before, each in a ball
    around its -t. Of blocks B_k that are multiplied by vectors y_k of length at most 1, for any a_k > 0,
        ||sum_k B_k y_k||_2 <= ||(B_1 / a_1, B_2 / a_2, ...)||_2 sqrt(a_1^2 + a_2^2 + ...).
    That norm is proved (norms/verified_eigenvalues.py). So the e of a layer lie in a box and in a ball. By duality,
    for any multiplier m > 0, with q_j(e) = g_j e - m (e + t_j)^2 / 2,
        <g, e> <= sum_j max { q_j(e) : |e| <= 1 } + m radius^2 / 2.
    Where the directions in which the entries move differ, this is much less than sum_j |g_j|: the price of looking at
    one neuron at a time, which no choice of slopes gets around.

Sources: that relaxations of single neurons have such a price is H. Salman et al., A Convex Relaxation Barrier to Tight
Robustness Verification of Neural Networks, NeurIPS 2019; duality, any textbook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lipaudit.domains.zonotope.affine_form import Form, Shared
from lipaudit.domains.zonotope.relaxations import Band
from lipaudit.norms.verified_eigenvalues import largest_singular_value
from lipaudit.rounding import TINY, UNIT, gamma

_MULTIPLIERS = 3
_ESTIMATE_STEPS = 6
FARTHEST = 4.0
"""Of t, which lies between -1 and 1 but for rounding."""
_MOST = 8192
"""Symbols, for the memory of a Gram matrix; where so many signs are open, nothing can be proved anyway."""
_LEAST = 1e-6
"""A radius whose square is of moderate size."""


@dataclass(frozen=True, eq=False)
class Group:
    """The symbols of the rows `start` to `stop`: each |e| <= 1, and together ||e + shift||_2 <= radius."""

    start: int
    stop: int
    shift: torch.Tensor
    radius: float

    def furthest(self, g: torch.Tensor) -> torch.Tensor:
        """Upper bounds of <g, e> for each column of `g`, (symbols, columns)."""
        best = g.abs().sum(0) * (1 + 2 * gamma(len(g) + 8))
        sizes, t, square = best, self.shift[:, None], self.radius * self.radius
        multiplier = (torch.linalg.vector_norm(g, dim=0) / self.radius).clamp_min(TINY)
        for _ in range(_MULTIPLIERS):
            e = (g / multiplier - t).clamp_(-1.0, 1.0)
            length = (e + t).square_().sum(0)
            bound = e.mul_(g).sum(0) + multiplier / 2 * (square - length)
            # The best e up to rounding: what that costs is of second order.
            slack = gamma(len(g) + 32) * (sizes + multiplier * (square + length + len(g)))
            best = torch.minimum(best, bound + slack)  # a bound that is not a number stays one, and proves nothing
            multiplier = (multiplier * (length.sqrt() / self.radius)).clamp_min(TINY)
        return best


def ends(rows: torch.Tensor, shared: Shared, groups: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor]:
    """How far sum_i rows[i] u_i may lie below and above zero, for each column of `rows`, (rows, columns)."""
    inputs = shared.count
    ball, known = shared.furthest(rows[:inputs]), rows[inputs]
    below, above, sizes, done = ball - known, ball + known, ball + known.abs(), inputs + 1
    for group in groups:
        if group.start >= len(rows):
            break
        alone = rows[done : group.start].abs().sum(0)
        together = rows[group.start : group.stop]
        below, above = below + alone + group.furthest(-together), above + alone + group.furthest(together)
        sizes, done = sizes + alone + together.abs().sum(0), group.stop
    alone = rows[done:].abs().sum(0)
    slack = 4 * gamma(len(rows) + 32) * (sizes + alone) + TINY**0.5
    return below + alone + slack, above + alone + slack


def of_relu(
    form: Form,
    places: torch.Tensor,
    ends: tuple[torch.Tensor, torch.Tensor],
    band: Band,
    start: int,
    groups: Sequence[Group],
) -> Group | None:
    """The group of the symbols from `start` on, which ReLU needs at these `places` of its operand `form`.

    `ends` is the range of the operand, `band` what it lies in. None where rounding leaves nothing of it, or memory.
    """
    z, low, high, slope, shift, error = (
        value.flatten()[places] for value in (form.centre, *ends, band.slope, band.shift, band.error)
    )
    flattest, steepest = secants(z, low, high)
    bend = torch.maximum(steepest - slope, slope - flattest) + gamma(8)
    weight = bend / error * (1 + gamma(4))
    t, lost = off_line(z, slope, shift, error)
    if len(places) > _MOST or not bool((t.abs() <= FARTHEST).all()):
        return None
    off = form.remainder * float(weight.max()) + float(torch.linalg.vector_norm(lost / error))
    return gathered(start, form.rows.flatten(1)[:, places], form.inputs, groups, weight, t, off)


def secants(z: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The flattest and the steepest secant of ReLU from z to anywhere in its range, where low < 0 < high."""
    return torch.where(z >= 0, z / (z - low), 0.0), torch.where(z >= 0, 1.0, high / (high - z))


def off_line(
    z: torch.Tensor, slope: torch.Tensor, shift: torch.Tensor, error: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """t of Note [Groups] for ReLU, and what rounding lost of error t."""
    sizes = shift.abs() + (slope * z).abs() + z.abs()
    return (shift + slope * z - z.clamp_min(0.0)) / error, gamma(8) * sizes


def gathered(
    start: int,
    rows: torch.Tensor,
    inputs: int,
    groups: Sequence[Group],
    weight: torch.Tensor,
    shift: torch.Tensor,
    off: float,
) -> Group:
    """The group of the symbols from `start` on, one for each column of `rows`.

    `rows` (rows, symbols) are those of z, `weight` is at least bend / error, `shift` is t up to rounding; `off` bounds
    the norm of all else that (bend / error) (z - c) may be.
    """
    moves = rows * weight
    constant, alone, done = moves[inputs].clone(), moves.new_zeros(moves.shape[1]), inputs + 1
    # A ball of L1 lies within that of L2.
    blocks = [moves[:inputs]] if inputs else []
    lengths = [largest_about(block) for block in blocks]
    for group in groups:
        if group.start >= len(rows):
            break
        alone += moves[done : group.start].abs().sum(0)
        block, done = moves[group.start : group.stop], group.stop
        boxed, centre = block.abs().sum(0), group.shift @ block
        length = group.radius * largest_about(block)
        if float(torch.linalg.vector_norm(boxed)) <= length + float(torch.linalg.vector_norm(centre)):
            alone += boxed
        else:
            blocks.append(block * group.radius)
            lengths.append(length)
            constant -= centre
    alone += moves[done:].abs().sum(0)
    shares = [math.sqrt(max(length, TINY)) for length in lengths]
    norm = 0.0
    if blocks:
        stacked = torch.cat([block / share for block, share in zip(blocks, shares, strict=True)])
        try:
            norm = math.sqrt(math.fsum(share * share for share in shares)) * largest_singular_value(stacked[None])
        except ValueError:  # not finite
            norm = math.inf
        norm *= 1 + 8 * UNIT * min(stacked.shape)
    # Every entry of `moves` and of the sums has lost a few roundings of sums of that many terms.
    rounding = gamma(4 * len(rows) + 32) * float(torch.linalg.vector_norm(moves.abs().sum(0)))
    radius = norm + float(torch.linalg.vector_norm(constant.abs() + alone))
    radius = (radius + rounding + off) * (1 + 1e-12)
    box = float(torch.linalg.vector_norm(1 + shift.abs())) * (1 + 1e-12)
    return Group(start, start + moves.shape[1], shift, max(radius if radius < box else box, _LEAST))


def largest_about(block: torch.Tensor) -> float:
    """About the norm of a matrix: it only weighs blocks against each other."""
    v = torch.ones(block.shape[1], dtype=block.dtype, device=block.device)
    length = 0.0
    for _ in range(_ESTIMATE_STEPS):
        v = block.mT @ (block @ v)
        length = float(torch.linalg.vector_norm(v))
        if not 0.0 < length < math.inf:
            return 0.0
        v /= length
    return math.sqrt(length)
