"""Layer norms to train with: the bounds of `lipaudit.norms` in plain automatic differentiation.

Every function takes weights (layers, out, in / groups, *kernel): layers of one shape together, one layer as
`weight[None]`, a dense layer without kernel axes. It returns one number for each layer, in the weights' dtype, at least
the norm in exact arithmetic for zero padding and any input size. Rounding is not accounted for: what is to be proved
goes through `lipaudit.conv_norm` or `lipaudit.bound`.

Note [Gradients at zero]
    Weights are divided by their largest entry, a constant for the gradient (the norm is homogeneous, so nothing is
    lost), and sums of squares stay above a floor before their root is taken. A zero kernel has norm zero and gradient
    zero, and a symbol that vanishes at some frequency does no harm.

Note [One frequency]
    The largest value on a grid has the gradient of that one value. So the grid is looked at without a gradient, and
    its highest frequency once more with one: the result is the same, and a third of the work and most of the memory
    are saved. From one step of training to the next the highest frequency seldom moves: `Places` keeps it for
    `refresh` calls, in which the grid is not looked at. Then the value is that of one frequency, and no bound. The
    same goes for the smallest of the four bounds, each of which is a bound whenever it was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipaudit.norms.four_bounds import reshapings
from lipaudit.norms.lattice import autocorrelation, polyphase
from lipaudit.registry import Registry

FLOOR = 1e-30
"""Of sums of squares of entries of order one."""

NORMS: Registry[Callable[..., Tensor]] = Registry("differentiable norm")


@dataclass
class Places:
    """What decided the norm of each block at the last look: frequency or matrix; see Note [One frequency]."""

    refresh: int = 1
    calls: int = 0
    index: Tensor | None = None

    def due(self, count: int) -> bool:
        """Whether this call has to look at all of them."""
        stale = self.index is None or len(self.index) != count or self.calls % self.refresh == 0
        self.calls = 1 if stale else self.calls + 1
        return stale


@NORMS.register("gram")
def gram_norm(
    weight: Tensor,
    *,
    steps: int = 5,
    points: int = 8,
    stride: int | Sequence[int] = 1,
    groups: int = 1,
    places: Places | None = None,
) -> Tensor:
    """Largest ||F_t||_F^(2^-t) over a grid of frequencies, F_{k+1} = F_k F_k^H, times the Riesz factor.

    `points` per axis, at least twice the taps. Source: Delattre et al. 2023; see `norms/gram.py`, `norms/lipgrid.py`.
    """

    def norm(blocks: Tensor) -> Tensor:
        sizes = _grid(blocks, points)
        factor = math.prod(math.cos(math.pi * (k - 1) / (2 * n)) for k, n in zip(blocks.shape[3:], sizes, strict=True))
        return _highest(blocks, sizes, lambda symbols: gram_iteration(symbols, steps), places) / factor

    return _per_layer(norm, weight, stride, groups)


@NORMS.register("lipgrid")
def lipgrid_norm(weight: Tensor, *, points: int = 16, stride: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """Largest Frobenius norm of the symbol on a grid of frequencies, times 1 / sqrt(1 - (k - 1) / N) per axis.

    Its square is a cosine polynomial, whose coefficients are the autocorrelation of all entries together. `points` per
    axis, at least twice the taps. Source: Araujo et al. 2021; see `norms/lipgrid.py`.
    """

    def norm(blocks: Tensor) -> Tensor:
        sizes = _grid(blocks, points)
        factor = math.prod(math.sqrt(1 - (k - 1) / n) for k, n in zip(blocks.shape[3:], sizes, strict=True))
        axes = [torch.arange(n, device=blocks.device) for n in sizes]
        grid = torch.cartesian_prod(*axes).reshape(-1, len(axes)) if axes else torch.zeros(1, 0, device=blocks.device)
        squares = torch.zeros((), dtype=blocks.dtype, device=blocks.device)
        for shift, coefficient in autocorrelation(blocks.flatten(1, 2)[:, None]):
            angle = _turns(grid, torch.tensor([shift], device=blocks.device), sizes, blocks.dtype)
            wave = angle.cos() * (2 if any(shift) else 1)
            squares = squares + coefficient.reshape(-1, 1) * wave.reshape(1, -1)
        return squares.amax(1).clamp_min(FLOOR).sqrt() / factor

    return _per_layer(norm, weight, stride, groups)


@NORMS.register("four")
def four_norm(
    weight: Tensor,
    *,
    steps: int = 5,
    stride: int | Sequence[int] = 1,
    groups: int = 1,
    places: Places | None = None,
) -> Tensor:
    """Root of the number of taps times the smallest Gram-iterated norm of the kernel reshaped to a matrix.

    With `places`, of the matrix that was smallest at the last look: a bound as well. Source: Singla and Feizi 2021; see
    `norms/four_bounds.py`.
    """

    def norm(blocks: Tensor) -> Tensor:
        kept = places or Places()
        index = kept.index
        if kept.due(len(blocks)) or index is None:
            with torch.no_grad():
                norms = torch.stack([gram_iteration(matrix, steps) for matrix in reshapings(blocks.detach())])
                index = kept.index = norms.argmin(0)
        found, order = [], []
        for number, matrices in enumerate(reshapings(blocks)):
            members = (index == number).nonzero().flatten()
            if len(members):
                found.append(gram_iteration(matrices[members], steps))
                order.append(members)
        return torch.cat(found)[torch.cat(order).argsort()] * math.sqrt(math.prod(blocks.shape[3:]))

    return _per_layer(norm, weight, stride, groups)


@NORMS.register("aol")
def aol_norm(weight: Tensor, *, stride: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """Root of the largest absolute row sum of the autocorrelation, on the side with fewer channels.

    Source: Prach and Lampert 2022; see `norms/aol.py`.
    """

    def norm(blocks: Tensor) -> Tensor:
        side = blocks if blocks.shape[1] <= blocks.shape[2] else blocks.transpose(1, 2)
        sums = torch.zeros((), dtype=blocks.dtype, device=blocks.device)
        for shift, product in autocorrelation(side):
            sums = sums + product.abs().sum(2) + (product.abs().sum(1) if any(shift) else 0.0)
        return sums.amax(1).clamp_min(FLOOR).sqrt()

    return _per_layer(norm, weight, stride, groups)


def gram_iteration(matrices: Tensor, steps: int) -> Tensor:
    """||A_t||_F^(2^-t) with A_{k+1} = A_k A_k^H: at least ||A|| (..., rows, columns), overshoot a root of the rank."""
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.mT
    size = _frobenius(matrices)
    logarithm = size.log()
    for step in range(1, steps + 1):
        matrices = matrices / size[..., None, None]
        matrices = matrices @ matrices.mH
        size = _frobenius(matrices)
        logarithm = logarithm + 0.5**step * size.log()
    return logarithm.exp()


def _per_layer(norm: Callable[[Tensor], Tensor], weight: Tensor, stride: int | Sequence[int], groups: int) -> Tensor:
    """The norm of each layer from that of kernel blocks (number, out, in * phases, *taps) of order one."""
    layers, axes = weight.shape[0], weight.ndim - 3
    if axes < 0 or weight.shape[1] % groups:
        raise ValueError(
            f"expected weights (layers, out, in / groups, *kernel) with out a multiple of the groups, got shape "
            f"{tuple(weight.shape)} and {groups} groups; pass one layer as weight[None]"
        )
    strides = (stride,) * axes if isinstance(stride, int) else tuple(stride)
    peak = weight.detach().abs().flatten(1).amax(1)
    unit = weight / torch.where(peak > 0, peak, 1.0).reshape(-1, *(1,) * (weight.ndim - 1))
    blocks = polyphase(unit.flatten(0, 1), strides, layers * groups)
    return peak * norm(blocks).reshape(layers, groups).amax(1)


def _grid(blocks: Tensor, points: int) -> tuple[int, ...]:
    return tuple(max(points, 2 * k) if k > 1 else 1 for k in blocks.shape[3:])


def _highest(blocks: Tensor, sizes: Sequence[int], height: Callable[[Tensor], Tensor], places: Places | None) -> Tensor:
    """The largest height of the symbol of each block on the grid; see Note [One frequency]."""
    if not sizes:
        return height(blocks)
    places = places or Places()
    index = places.index
    if places.due(len(blocks)) or index is None:
        with torch.no_grad():
            symbols = torch.fft.rfftn(blocks.detach(), s=tuple(sizes), dim=tuple(range(3, blocks.ndim)))
            heights = height(symbols.movedim((1, 2), (-2, -1)))
            flat = heights.reshape(len(blocks), -1).argmax(1)
            index = places.index = torch.stack(torch.unravel_index(flat, heights.shape[1:]), dim=1)
    return height(_symbols_at(blocks, index, sizes))


def _symbols_at(blocks: Tensor, index: Tensor, sizes: Sequence[int]) -> Tensor:
    """Each block's symbol at its own frequency 2 pi index / size: (number, out, in, *taps) to (number, out, in)."""
    axes = [torch.arange(k, device=blocks.device) for k in blocks.shape[3:]]
    taps = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    angle = _turns(index, taps, sizes, blocks.dtype)[:, :, None]
    parts = blocks.flatten(3).flatten(1, 2) @ torch.cat([angle.cos(), -angle.sin()], 2)
    return torch.view_as_complex(parts.contiguous()).reshape(blocks.shape[:3])


def _turns(index: Tensor, places: Tensor, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """places . (2 pi index / size), each axis reduced exactly: (frequencies, axes), (places, axes) to (.., ..)."""
    moduli = torch.tensor(sizes, device=index.device)
    turns = (index[:, None, :] * places[None]) % moduli / moduli.to(dtype)
    return 2 * math.pi * turns.sum(2)


def _frobenius(matrices: Tensor) -> Tensor:
    real = torch.view_as_real(matrices.resolve_conj()) if matrices.is_complex() else matrices[..., None]
    return real.square().sum((-3, -2, -1)).clamp_min(FLOOR).sqrt()
