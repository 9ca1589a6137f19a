"""The almost-orthogonal bound: absolute sums of the autocorrelation of the kernel.

Note [Absolute Gram matrix]
    T^* T on the lattice is a convolution, with kernel C; let S_ij = sum over all shifts d of |C_ij(d)|. Taking
    absolute values and dropping the phases of the symbol can only raise a norm, so ||T||^2 = ||T^* T|| <= ||S||_2,
    and S is nonnegative and symmetric: ||S||_2 is its spectral radius, at most max_i (S q)_i / q_i for any q > 0
    (Collatz and Wielandt). The published bound has q = 1. Replacing q by S q never raises the ratio and ends at
    the spectral radius. The same holds for T T^*, so the smaller of the two is taken, group by group.

Tight: for orthogonal layers and for those trained with this rescaling; several times the norm for others.
Source: B. Prach and C. Lampert, Almost-Orthogonal Layers, ECCV 2022 (arXiv 2208.03160); the weighting is our own.
"""

from __future__ import annotations

import math

import torch

from lipaudit.norms.lattice import (
    BUDGET,
    autocorrelation,
    autocorrelation_error,
    autocorrelation_flops,
    kernel,
    shape,
    smaller_side,
)
from lipaudit.norms.linear_maps import Conv, Dense
from lipaudit.results.bounds import Upper
from lipaudit.rounding import TINY, UNIT, gamma, up

PERRON_STEPS = 30
_ENTRIES = 2**24
"""The larger Gram matrix is formed only if it has at most so many entries."""
_FLOOR = 1e-10
"""Perron weights stay above this share of the largest one, so that dividing by them is harmless."""


def aol_plain_bound(linear: Conv | Dense) -> Upper:
    """||A||^2 <= the largest sum, over channels and shifts, of |A^T A| or |A A^T|, whichever is the smaller matrix."""
    whole = kernel(linear)
    norm = 0.0 if whole.zero else _root(absolute_square(_sides(whole.taps)[0], steps=0))
    return Upper(whole.upper(norm), "aol-plain", "root of the largest absolute row sum of the autocorrelation")


def aol_bound(linear: Conv | Dense) -> Upper:
    """||A||^2 <= max_i (S q)_i / q_i for S the absolute sums of A^T A or A A^T and any weights q > 0."""
    whole = kernel(linear)
    if whole.zero:
        return Upper(0.0, "aol", "zero weights")
    sides = _sides(whole.taps)
    flops = sum(autocorrelation_flops(side.shape) for side in sides)
    if flops > BUDGET or sides[1].shape[0] * sides[1].shape[1] ** 2 > _ENTRIES:
        sides = sides[:1]
    squares = torch.stack([absolute_square(side) for side in sides]).amin(0)
    because = f"root of the weighted absolute row sums of the autocorrelation, of {len(sides)} side(s)"
    return Upper(whole.upper(_root(squares)), "aol", because)


def aol_flops(linear: Conv | Dense) -> float:
    """Cost of the cheaper side."""
    return autocorrelation_flops(smaller_side(shape(linear)))


def absolute_square(taps: torch.Tensor, steps: int = PERRON_STEPS) -> torch.Tensor:
    """For each group a bound of ||T||^2 from the absolute sums of T T^*; see Note [Absolute Gram matrix]."""
    sums, additions = torch.zeros((), dtype=taps.dtype, device=taps.device), 0
    for shift, product in autocorrelation(taps):
        absolute = product.abs()
        sums = sums + absolute + (absolute.mT if any(shift) else 0.0)
        additions += 2
    radius = perron(sums, steps) * (1 + gamma(additions + 4))
    return (radius + autocorrelation_error(taps)) * (1 + 4 * UNIT)


def perron(nonnegative: torch.Tensor, iterations: int) -> torch.Tensor:
    """Upper bound of the spectral radius of each nonnegative matrix, rounding included: (batch, p, p) to (batch,)."""
    side = nonnegative.shape[-1]
    weights = torch.ones_like(nonnegative[..., :1])
    smallest = torch.full(nonnegative.shape[:1], math.inf, dtype=torch.float64, device=nonnegative.device)
    for _ in range(iterations + 1):
        image = nonnegative @ weights
        ratio = (image / weights).amax((1, 2))
        smallest = torch.minimum(smallest, ratio)
        largest = image.amax(1, keepdim=True)
        weights = (image / torch.where(largest > 0, largest, 1.0)).clamp_min(_FLOOR)
    return smallest * (1 + gamma(side + 4)) + TINY


def _sides(taps: torch.Tensor) -> list[torch.Tensor]:
    """The taps of T and of its transpose, the one with the smaller Gram matrix first."""
    return sorted((taps.transpose(1, 2), taps), key=lambda side: side.shape[1])


def _root(squares: torch.Tensor) -> float:
    return up(math.sqrt(float(squares.max())))
