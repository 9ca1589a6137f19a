"""Norms over ranges: how large matrices, copies and spreads are whose entries stay within their ranges."""

from __future__ import annotations

import math

import torch

from lipaudit.domains.intervals.value import Range
from lipaudit.domains.lipschitz.propagator import ROOM, Ledger
from lipaudit.errors import NotLipschitz
from lipaudit.rounding import UNIT, gamma, up

SMALLEST = ROOM
"""Norms below this are rounded up to it: they would leave no room for rounding errors."""

HALF = up(math.sqrt(0.5))
"""1 / sqrt(2), rounded up."""


def finite(bound: float, what: str) -> float:
    """A bound as it came. Raises `NotLipschitz` if it is infinite or not a number."""
    if not math.isfinite(bound):
        raise NotLipschitz(f"expected {what} to be bounded over the inputs in the domain, got a range that overflows")
    return bound


def widened_norm(ledger: Ledger, bound: float, reach: float = 1.0) -> float:
    """A norm over ranges with room for an error e that changes it by `reach` times e (Note [Room for rounding])."""
    bound = max(bound, SMALLEST)
    return ledger.widened(bound, bound / reach)


def root_of_squares(size: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """The root of the sum of squares over some axes, rounded up; squares beyond float64 do not overflow."""
    largest = size.abs().amax(axes, keepdim=True).clamp_min(1e-290)
    count = math.prod(size.shape[axis] for axis in axes)
    return (size / largest).square().sum(axes).sqrt() * largest.squeeze(axes) * (1 + gamma(2 * count + 16))


def schur(size: torch.Tensor) -> torch.Tensor:
    """sqrt(largest row sum x largest column sum) of matrices without negative entries, rounded up."""
    rows, columns = (size.sum(axis).amax(-1) for axis in (-1, -2))
    return rows.sqrt() * columns.sqrt() * (1 + gamma(2 * max(size.shape[-2:]) + 16))


def matrix_norms(held: Range) -> torch.Tensor:
    """Bounds of ||Y||, the last two axes being the matrix: Frobenius norm of |Y|, or of its lengths, or Schur test."""
    size = held.magnitude
    best = torch.minimum(root_of_squares(size, (-2, -1)), schur(size))
    if held.axis in (-1, -2) and held.length is not None:
        shape = list(size.shape)
        shape[held.axis] = 1
        best = torch.minimum(best, root_of_squares(held.length.expand(shape), (-2, -1)))
    return best


def row_spreads(held: Range) -> torch.Tensor:
    """Bounds of the root of the largest eigenvalue of cov(rows of Y), whatever their probabilities.

    At most the radius of a ball that holds all rows, and at most ||Y - 1 c^T|| / sqrt(2) for any row c, because
    cov = (Y - 1 c^T)^T J (Y - 1 c^T) with ||J|| <= 1/2 (Note [Softmax] in attention.py).
    """
    middle = held.high.amax(-2, keepdim=True) / 2 + held.low.amin(-2, keepdim=True) / 2
    size = torch.maximum(held.high - middle, middle - held.low) + gamma(4) * (held.low.abs() + held.high.abs())
    radius = root_of_squares(size, (-1,)).amax(-1)
    if held.axis == -1 and held.length is not None:
        radius = torch.minimum(radius, held.length.expand(*size.shape[:-1], 1).amax((-2, -1)))
    whole = torch.minimum(matrix_norms(held), torch.minimum(root_of_squares(size, (-2, -1)), schur(size)))
    return torch.minimum(radius, whole * HALF * (1 + 4 * UNIT))


def copied(factors: torch.Tensor, shape: tuple[int, ...]) -> float:
    """The norm of copying a tensor of that shape to that of the factors, then multiplying by them (all >= 0).

    Each output reads one entry, so the squares of an entry's factors add up to the square of its column's length.
    """
    largest = float(factors.max())
    if math.prod(shape) == factors.numel() or not largest > 0.0 or math.isinf(largest):
        return largest
    copies = factors.numel() // math.prod(shape)
    squares = (factors / largest).square().sum_to_size(shape)
    return float(squares.max().sqrt()) * largest * (1 + gamma(2 * copies + 16))
