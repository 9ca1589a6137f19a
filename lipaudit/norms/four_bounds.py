"""The four bounds: norms of the kernel reshaped to a matrix.

Note [Reshaped kernels]
    The symbol is F(theta) = sum_a K[a] exp(-i a.theta), and exp(-i a.theta) is a product of one unit-modulus vector
    v of length k per axis, of norm sqrt(k). Put the taps of each axis with the rows (output channels) or with the
    columns (input channels) of a matrix R: then F is R contracted with those vectors, so
    ||F(theta)|| <= sqrt(product of the k) ||R||, for each of the ways to choose (four in 2-D), whatever theta.

Tight: exact for kernels of one tap; never more than the root of the number of taps too large.
Source: S. Singla and S. Feizi, Fantastic Four, ICLR 2021 (arXiv 1911.10258); their code estimates the norms of the
matrices from below by power iteration, here they are proved. The polyphase kernel makes it tighter for strides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch

from lipaudit.norms.lattice import kernel, shape
from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.verified_eigenvalues import estimate, largest_singular_value
from lipaudit.results.bounds import Upper
from lipaudit.rounding import up


def four_bounds(conv: Conv) -> Upper:
    """||conv|| <= sqrt(number of taps) times the smallest norm of the kernel reshaped to a matrix."""
    whole = kernel(conv)
    if whole.zero:
        return Upper(0.0, "four-bounds", "zero kernel")

    def promise(matrices: torch.Tensor) -> float:
        return estimate(lambda part: matrices[part], len(matrices), (matrices.shape[1], matrices.shape[2]))

    # Each is a bound, so only the one that promises to be the smallest is proved.
    best = min(reshapings(whole.taps), key=promise)
    norm = largest_singular_value(best)
    root = up(math.sqrt(math.prod(whole.size)))
    because = (
        f"root of {math.prod(whole.size)} taps times the norm of the {best.shape[1]} x {best.shape[2]} kernel matrix"
    )
    return Upper(whole.upper(up(norm * root)), "four-bounds", because)


def four_flops(conv: Conv) -> float:
    """Cost of the Gram matrix, eigenvalues and Cholesky factor of the squarest reshaping."""
    groups, out, inputs, *size = shape(conv)
    costs = [0.0]
    for count in range(len(size) + 1):
        for with_rows in itertools.combinations(size, count):
            rows = out * math.prod(with_rows)
            side, inner = sorted((rows, out * inputs * math.prod(size) // rows))
            costs.append(groups * (2.0 * side * side * inner + 4.0 * side**3))
    return max(costs)


def reshapings(taps: torch.Tensor) -> Iterator[torch.Tensor]:
    """(groups, out, in, *size) to matrices (groups, rows, columns), each axis of taps on either side."""
    axes = range(3, taps.ndim)
    for sides in itertools.product((0, 1), repeat=len(axes)):
        if any(side and taps.shape[axis] == 1 for side, axis in zip(sides, axes, strict=True)):
            continue  # a single tap is on both sides at once
        rows = [axis for side, axis in zip(sides, axes, strict=True) if not side]
        columns = [axis for side, axis in zip(sides, axes, strict=True) if side]
        ordered = taps.permute(0, 1, *rows, 2, *columns)
        yield ordered.reshape(taps.shape[0], taps.shape[1] * math.prod(taps.shape[a] for a in rows), -1)
