"""Grid bounds: the symbol on a few frequencies, times a factor for what lies between them.

Note [Riesz factor]
    Let k be the number of taps along an axis and p(t) = Re(u^* F(t) v exp(i (k - 1) t / 2)) for unit vectors u, v
    (any phase may be put into u): a real function of exponential type D = (k - 1) / 2. M. Riesz: where such a p
    peaks at M = sup |p|, it stays at least M cos(D t) within t <= pi / D of the peak. The nearest of N equally
    spaced points is at most pi / N away, so the largest value on them, wherever they start, is at least
    M cos(pi (k - 1) / (2 N)) if N > k - 1. Axis by axis, with u, v of the true peak,
        sup ||F|| <= max over the grid of ||F|| / product over the axes of cos(pi (k - 1) / (2 N)).
    The grid does not depend on the image, nor does the bound: it is one of the norm on the lattice.

Note [LipGrid factor]
    The published factor is 1 / sqrt(1 - (k - 1) / N) per axis. For N >= 2 (k - 1) it is not smaller than the one
    above, since cos(pi x / 2)^2 = (1 + cos(pi x)) / 2 >= 1 - x on [0, 1/2]; this proves it for even kernels too.

Source: A. Araujo et al., On Lipschitz Regularization of Convolutional Layers using Toeplitz Matrix Theory, AAAI 2021
(arXiv 2006.08391); the sharper factor is our own. Their Frobenius norm costs up to sqrt(channels), the spectral norm
does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lipaudit.norms.lattice import (
    autocorrelation,
    autocorrelation_error,
    autocorrelation_flops,
    kernel,
    reduced,
    shape,
    smaller_side,
)
from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.symbol import PHASE_ERROR, Symbols
from lipaudit.norms.torus import best_class
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, gamma, up

POINTS = 16
"""Grid points per axis, unless the kernel needs more: a factor of 1.04 for 3x3 kernels."""


def riesz_bound(conv: Conv) -> Upper:
    """||conv|| <= the largest symbol norm on a grid / product of cos(pi (k - 1) / (2 N)), for any input size."""
    conv, copies = reduced(conv)
    points, factor = _grid(shape(conv)), 1.0
    for k, n in zip(shape(conv)[3:], points, strict=True):
        factor = up(factor / (math.cos(math.pi * (k - 1) / (2 * n)) * (1 - 1e-15)))
    symbols = Symbols(conv)
    if symbols.zero:
        return Upper(0.0, "riesz-grid", "zero kernel")
    index, _ = best_class(symbols, conv, points)  # every shift of the grid gives a bound
    norm = symbols.unscale(symbols.largest_norm(index, points))
    because = f"largest symbol norm on a grid of {_spell(points)}, times {factor:.4f} for what lies between"
    value = up(up(norm * factor) * up(math.sqrt(copies)))
    return Upper(value, "riesz-grid", because)


def lipgrid_bound(conv: Conv) -> Upper:
    """||conv|| <= the largest Frobenius norm of the symbol on a grid / root of the product of 1 - (k - 1) / N."""
    whole = kernel(conv)
    points, factor = _grid(whole.taps.shape), 1.0
    for k, n in zip(whole.size, points, strict=True):
        factor = up(factor / (math.sqrt(1 - (k - 1) / n) * (1 - 1e-15)))
    norm = up(up(math.sqrt(_largest_square(whole.taps, points))) * factor)
    because = f"largest Frobenius norm of the symbol on a grid of {_spell(points)}, times {factor:.4f}"
    return Upper(whole.upper(norm), "lipgrid", because)


def _largest_square(taps: torch.Tensor, points: Sequence[int]) -> float:
    """Bound of the largest squared Frobenius norm of the symbols on the grid, over all groups.

    It is a cosine polynomial of the shift, whose coefficients are the autocorrelation of all entries together.
    """
    rows = taps.flatten(1, 2)[:, None]
    axes = [torch.arange(n, device=taps.device) for n in points]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(points))
    moduli = torch.tensor(points, device=taps.device)
    squares, sizes, shifts = torch.zeros(len(taps), len(grid), dtype=taps.dtype, device=taps.device), torch.zeros(()), 0
    for shift, coefficient in autocorrelation(rows):
        turns = (grid * torch.tensor(shift, device=taps.device)) % moduli
        wave = torch.cos((turns * (2 * math.pi / moduli.double())).sum(-1))
        weight = coefficient.reshape(-1, 1) * (2 if any(shift) else 1)
        squares, sizes, shifts = squares + weight * wave, sizes + weight.abs(), shifts + 1
    largest, total = float(squares.max()), float(sizes.max())
    error = (PHASE_ERROR + gamma(shifts + 4)) * total * (1 + gamma(shifts + 4))
    return (max(largest, 0.0) + error + float(autocorrelation_error(rows).max())) * (1 + 8 * UNIT)


def riesz_flops(conv: Conv) -> float:
    """Cost of a Gram matrix and a Cholesky factor at each frequency."""
    groups, side, inner, *size = smaller_side(shape(conv))
    points = math.prod(n for k, n in zip(size, _grid(shape(conv)), strict=True) if k > 1)
    return groups * (points / 2 + 1) * 8.0 * side * side * (inner + side)


def lipgrid_flops(conv: Conv) -> float:
    """Cost of the autocorrelation of all entries together, and of the cosines."""
    groups, out, inputs, *size = shape(conv)
    shifts = math.prod(2 * k - 1 for k in size)
    frequencies = math.prod(_grid(shape(conv)))
    return autocorrelation_flops((groups, 1, out * inputs, *size)) + 32.0 * shifts * frequencies * groups


def _grid(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(POINTS, 2 * k) for k in shape[3:])


def _spell(points: Sequence[int]) -> str:
    return "x".join(map(str, points))
