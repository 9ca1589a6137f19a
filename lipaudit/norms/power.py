"""From below: power iteration with the padding and stride that really run. Never a certificate."""

from __future__ import annotations

import math

import torch

from lipaudit.norms.maps import LinearMap

_ROUND_DOWN = 1 - 1e-9
"""Covers the rounding of one application and two norms, far below 1e-9 for maps up to a million terms."""


def lower_bound(linear: LinearMap, *, steps: int = 12, device: torch.device | None = None) -> float:
    """||A v|| / ||v|| for a v that power iteration on A^T A has turned towards the top singular vector.

    At most the spectral norm, rounded down; `steps` products with A and A^T each.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(linear.input_shape, dtype=torch.float64, generator=generator).to(device)
    best = 0.0
    for _ in range(steps):
        norm = float(torch.linalg.vector_norm(v))
        if not (math.isfinite(norm) and norm > 1e-290):
            break
        image, transpose = torch.func.vjp(linear.apply, v / norm)
        best = max(best, float(torch.linalg.vector_norm(image)))
        v = transpose(image)[0]
    return best * _ROUND_DOWN
