"""The almost-orthogonal bound: absolute sums of the autocorrelation of the kernel.

Note [Absolute Gram matrix]
    T^* T on the lattice is a convolution, with kernel C; let S_ij = sum over all shifts d of |C_ij(d)|. Taking
    absolute values and dropping the phases of the symbol can only raise a norm, so ||T||^2 = ||T^* T|| <= ||S||_2,
    and S is nonnegative and symmetric: ||S||_2 is its spectral radius, at most max_i (S q)_i / q_i for any q > 0
    (Collatz and Wielandt). The published bound has q = 1. Replacing q by S q never raises the ratio and ends at
    the spectral radius. The same holds for T T^*, so the smaller of the two is taken, group by group.

Note [Rounding of the autocorrelation]
    Each C_ij(d) is a sum of at most n = out * taps products, so it errs by at most gamma(n) times the same sum of
    absolute values; all these errors together are a convolution of norm at most gamma(n) || |T| ||^2.

Tight: for orthogonal layers and for those trained with this rescaling; two to five times the norm for others.
Source: B. Prach and C. Lampert, Almost-Orthogonal Layers, ECCV 2022 (arXiv 2208.03160); the weighting is our own.
"""

from __future__ import annotations

import math

import torch

from lipaudit.norms.lattice import BUDGET, absolute_norms, autocorrelation, autocorrelation_flops, kernel
from lipaudit.norms.maps import Conv, Dense
from lipaudit.results import Upper
from lipaudit.rounding import TINY, UNIT, gamma, up

PERRON_STEPS = 30
_FLOOR = 1e-10
"""Weights stay above this share of the largest one, so that dividing by them is harmless."""


def aol_plain_bound(linear: Conv | Dense) -> Upper:
    """||A||^2 <= the largest sum, over input channels and shifts, of |A^T A| (almost-orthogonal bound as published)."""
    whole = kernel(linear)
    square = float(_squared(whole.taps.transpose(1, 2), weighted=False).max())
    because = "root of the largest absolute row sum of the autocorrelation"
    return Upper(whole.upper(up(math.sqrt(square))), "aol-plain", because)


def aol_bound(linear: Conv | Dense) -> Upper:
    """||A||^2 <= max_i (S q)_i / q_i for S the absolute sums of A^T A or A A^T and any weights q > 0."""
    whole = kernel(linear)
    sides = [whole.taps.transpose(1, 2), whole.taps]
    sides.sort(key=autocorrelation_flops)
    both = sum(map(autocorrelation_flops, sides)) <= BUDGET
    squares = torch.stack([_squared(side, weighted=True) for side in (sides if both else sides[:1])])
    square = float(squares.amin(0).max())
    because = f"root of the weighted absolute row sums of the autocorrelation, {'both sides' if both else 'one side'}"
    return Upper(whole.upper(up(math.sqrt(square))), "aol", because)


def aol_flops(linear: Conv | Dense) -> float:
    """Cost of the cheaper side."""
    taps = kernel(linear).taps
    return min(autocorrelation_flops(taps), autocorrelation_flops(taps.transpose(1, 2)))


def _squared(taps: torch.Tensor, weighted: bool) -> torch.Tensor:
    """For each group a bound of ||T||^2 from the absolute sums of T T^*; see Note [Absolute Gram matrix]."""
    sums: torch.Tensor | None = None
    shifts = 0
    for _, product in autocorrelation(taps):
        size = product.abs()
        sums = size if sums is None else sums + size + size.mT
        shifts += 2
    assert sums is not None
    radius = perron(sums, PERRON_STEPS if weighted else 0) * (1 + gamma(shifts + 2))
    return with_rounding(radius, taps)


def with_rounding(norm: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """The bound for the exact autocorrelation of `taps`, from one for the computed; one number for each group."""
    terms = math.prod(taps.shape[2:])
    error = gamma(terms + 4) * absolute_norms(taps).to(norm.device).square()
    return (norm + error) * (1 + 4 * UNIT) + TINY


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
