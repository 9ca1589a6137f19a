"""The norm on the infinite lattice, cell by cell: what no frequency of no map can exceed, to about 1e-4.

Note [Cells of frequencies]
    Let M = sup ||F||, attained at theta*, and u, v its unit singular vectors. On any line theta* + s w the function
    p(s) = Re(u^* F v), its phase centred, is a trigonometric function of type D = sum_a |w_a| (k_a - 1) / 2 with
    |p| <= M and p(0) = M; by Bernstein and Szego p'^2 <= D^2 (M^2 - p^2), so p(s) >= M cos(D s) while D s <= pi.
    Divide the torus into cells of half widths h: one of them contains theta*, and at its centre
        ||F(centre)|| >= M cos(delta),   delta = sum_a h_a (k_a - 1) / 2.
    So M <= rho if ||F(centre)|| <= rho cos(delta) is proved for all cells of a partition. Cells for which it fails
    are halved along every axis; the few around the peak remain, and a trained kernel, which is peaked, needs few.
    Since ||F(-theta)|| = ||F(theta)||, half of the torus is enough.
    With a grid of equal cells this is M. Riesz's bound of `lipgrid.py`.

Source: our own; for Bernstein's inequality in this form see R. P. Boas, Entire Functions, 1954, chapter 11.
"""

from __future__ import annotations

import itertools
import math

import torch

from lipaudit.norms.lattice import reduced
from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.power_iteration import landscape
from lipaudit.norms.symbol import GramMatrices, Symbols
from lipaudit.norms.verified_eigenvalues import holds, largest_eigenvalue

TOLERANCE = 3e-4
"""How far, relatively, the square of the bound may be above what is attained."""
PER_TAP = 8
"""Cells per axis at first, for each tap but one."""
LANDSCAPE = 32
_PLACES = 8
STEPS = 6


def lattice_norm(conv: Conv, *, most: float) -> float | None:
    """Bound of the norm of `conv` on the infinite lattice (borders ignored); None if it takes more than `most` cells.

    A symbol of constant norm, like that of an orthogonal layer, would need all cells: that is what `most` is for.
    """
    conv, _ = reduced(conv)
    symbols = Symbols(conv)
    if symbols.zero:
        return 0.0
    spans = [max(int(t.places[:, axis].max()) for t in symbols.taps) for axis in range(len(conv.stride))]
    axes = [axis for axis, span in enumerate(spans) if span and not symbols.flat[axis]]
    sizes = [PER_TAP * span if axis in axes else 1 for axis, span in enumerate(spans)]
    # An axis has PER_TAP (k - 1) cells, so half a cell is h = pi / (PER_TAP (k - 1)), and h (k - 1) / 2 is the same
    # for all axes.
    cells = _first_cells(sizes, axes)
    if len(cells) > most:
        return None
    rho = _peak(symbols, conv, axes) * (1 + TOLERANCE)
    delta = first = len(axes) * math.pi / (2 * PER_TAP)
    while len(cells):
        most -= len(cells)
        if most < 0:
            return None
        shrunk = math.cos(delta) ** 2 * (1 - 1e-15)
        batch = GramMatrices(symbols, 2 * cells + 1, sizes)
        numbers = torch.arange(len(cells), device=symbols.device)
        failed = numbers[~holds(batch, numbers, rho * shrunk)]
        if len(failed) and delta < first:  # is there a higher peak than thought?
            some = failed[:: -(-len(failed) // _PLACES)]
            rho = max(rho, largest_eigenvalue(batch, some) * (1 + TOLERANCE))
            failed = failed[~holds(batch, failed, rho * shrunk)]
        cells, delta = _halves(cells[failed.cpu()], axes), delta / 2
        sizes = [2 * size if axis in axes else size for axis, size in enumerate(sizes)]
    return symbols.unscale(symbols.root(rho, 1.001 / math.cos(first) ** 2))


def _first_cells(sizes: list[int], axes: list[int]) -> torch.Tensor:
    """The cells of half of the torus, number i of an axis having its centre at pi (2 i + 1) / size."""
    halved = [size // 2 if axis in axes[:1] else size for axis, size in enumerate(sizes)]
    return torch.cartesian_prod(*(torch.arange(size) for size in halved)).reshape(-1, len(sizes))


def _halves(cells: torch.Tensor, axes: list[int]) -> torch.Tensor:
    """The cells that come of halving along every axis."""
    steps = itertools.product(*((0, 1) if axis in axes else (0,) for axis in range(cells.shape[1])))
    doubled = torch.stack([2 * cells[:, a] if a in axes else cells[:, a] for a in range(cells.shape[1])], dim=1)
    return torch.cat([doubled + torch.tensor(step) for step in steps])


def _peak(symbols: Symbols, conv: Conv, axes: list[int]) -> float:
    """About the largest eigenvalue of all Gram matrices, from below: the highest places of the landscape."""
    sizes = [LANDSCAPE if axis in axes else 1 for axis in range(len(conv.stride))]
    heights = landscape(conv, sizes, steps=STEPS).amax(0)
    places = heights.flatten().topk(min(_PLACES, heights.numel())).indices
    index = 2 * torch.stack(torch.unravel_index(places, heights.shape), dim=1)
    return largest_eigenvalue(GramMatrices(symbols, index, sizes), torch.arange(len(index), device=symbols.device))
