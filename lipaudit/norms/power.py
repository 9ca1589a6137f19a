"""From below: power iteration with the padding and stride that really run. Never a certificate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from lipaudit.norms.maps import Conv, LinearMap

_ROUND_DOWN = 1 - 1e-9
"""Covers the rounding of one application and two norms, far below 1e-9 for maps up to a million terms."""
_LANDSCAPE_STEPS = 5
_DROWNED = 1e-10
"""Frequencies with less than this share of the largest energy are lost in the rounding of single precision."""


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


def landscape(conv: Conv, sizes: Sequence[int]) -> torch.Tensor:
    """About ||F(2 pi j / size)|| for every frequency j of a torus, (groups, *sizes): a few per cent too small.

    One power iteration in single precision on images of the whole torus: the convolution is block diagonal there,
    so it iterates on every frequency at once, for the price of a few convolutions. Proves nothing: it says where
    to look first.
    """
    axes = tuple(range(-len(sizes), 0))
    image = tuple(n * s for n, s in zip(sizes, conv.stride, strict=True))
    largest = float(conv.weight.abs().max())
    weight = conv.weight / max(largest, 1e-290)
    circular = replace(conv, weight=weight.float(), input_size=image, padding=((0, 0),) * len(image))
    sources = [
        torch.arange(n + d * (k - 1), device=weight.device) % n
        for n, d, k in zip(image, conv.dilation, conv.kernel_size, strict=True)
    ]

    def around(x: torch.Tensor) -> torch.Tensor:
        for axis, source in zip(axes, sources, strict=True):
            x = x.index_select(axis, source)
        return replace(circular, padding_mode="zeros").apply(x)

    def sizes_of(y: torch.Tensor) -> torch.Tensor:
        """The squared size of each frequency of each group."""
        waves = torch.fft.fftn(y[0].unflatten(0, (conv.groups, -1)), dim=axes)
        return waves.abs().square().sum(1)

    generator = torch.Generator().manual_seed(0)
    y, transpose = torch.func.vjp(around, torch.randn(circular.input_shape, generator=generator).to(weight.device))
    heights = torch.zeros(conv.groups, *sizes, dtype=torch.float64, device=weight.device)
    for _ in range(_LANDSCAPE_STEPS):
        before = y / torch.linalg.vector_norm(y).clamp_min(1e-30)
        y, transpose = torch.func.vjp(around, transpose(before)[0])
        energies = sizes_of(before)
        heard = energies > _DROWNED * energies.max()
        growth = (sizes_of(y) / energies.clamp_min(1e-30)) ** 0.25
        heights = torch.where(heard, growth.double() * largest, heights)
    return heights
