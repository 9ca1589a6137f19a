"""How far apart the rows of a matrix are, two by two, rounded up; and the bounds of pairs of classes that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

import torch

from lipaudit.rounding import UNIT, WIDE, gamma, narrow_up, up, wide

FEW_ROWS = 128
"""Up to so many, pairs are taken one by one; beyond, their matrix is computed with outward rounding."""


def row_distances(rows: torch.Tensor, error: Sequence[float], factor: float = 1.0) -> list[list[float]]:
    """Upper bounds of factor ||w_i - w_j||, each row w_i within `error[i]` of the given one."""
    count = len(rows)
    if count > FEW_ROWS:
        return _many_distances(rows, torch.tensor(error, dtype=torch.float64, device=rows.device), factor)
    distances = [[0.0] * count for _ in range(count)]
    for i in range(count - 1):
        differences = rows[i + 1 :] - rows[i]
        largest = differences.abs().amax(dim=1).clamp_min(1e-290)
        # One rounding per difference, then a sum of squares of numbers of moderate size.
        squares = (differences / largest[:, None]).square().sum(dim=1)
        slack = 1 + 2 * gamma(rows.shape[1] + 8)
        norms = (squares.sqrt() * largest * slack + 1e-280) * (1 + 8 * UNIT)
        for offset, norm in enumerate(norms.tolist()):
            j = i + 1 + offset
            distances[i][j] = distances[j][i] = up(up(norm + up(error[i] + error[j])) * factor)
    return distances


def _many_distances(rows: torch.Tensor, error: torch.Tensor, factor: float) -> list[list[float]]:
    """The same from ||w_i||^2 + ||w_j||^2 - 2 w_i.w_j, a matrix product; what cancels is in the error term."""
    largest = float(rows.abs().max()) or 1.0
    scaled = rows / largest
    squares = scaled.square().sum(1)
    sums = squares[:, None] + squares[None, :]
    # Each of the three sums of n products errs by gamma(n) times the same with absolute values; so does the quotient.
    slack = 4 * gamma(rows.shape[1] + 8) * (1 + 1e-6)
    distances = ((sums - 2 * (scaled @ scaled.T)).clamp_min(0.0) + slack * sums + 1e-280).sqrt() * largest
    distances = (distances + error[:, None] + error[None, :]) * (factor * (1 + 32 * UNIT))
    return distances.fill_diagonal_(0.0).tolist()


def pairs_of(distances: list[list[float]], base: Decimal, most: float = math.inf) -> tuple[tuple[float, ...], ...]:
    """base times the distances, rounded up; at most `most`, and 0 on the diagonal."""
    count = len(distances)
    if count > FEW_ROWS:
        products = torch.tensor(distances, dtype=torch.float64) * narrow_up(base)
        products = torch.nextafter(products, torch.full_like(products, math.inf)).nan_to_num(nan=math.inf)
        return tuple(map(tuple, products.clamp_max(most).fill_diagonal_(0.0).tolist()))
    return tuple(
        tuple(0.0 if i == j else min(most, narrow_up(WIDE.multiply(wide(distances[i][j]), base))) for j in range(count))
        for i in range(count)
    )
