"""Complex tensors between a Fourier transform and the way back: for each frequency a matrix; see fourier.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from lipaudit.errors import UnsupportedOp
from lipaudit.norms.verified_eigenvalues import largest_singular_value
from lipaudit.rounding import UNIT, gamma, norm_up, up

_ROW_ENTRIES = 2**26
"""Largest number of entries of all matrices A_f (1 GiB)."""


@dataclass(frozen=True, eq=False)
class Base:
    """A spectrum X that follows a real tensor: ||X||_weights <= gain ||what `source` moves||."""

    source: str
    gain: float
    weights: torch.Tensor
    """Of each frequency."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A complex tensor each entry of which is a sum of entries of one frequency of X times constants."""

    base: Base
    place: torch.Tensor
    """Of each entry: the frequency."""
    rows: torch.Tensor
    """(*shape, entries of X of one frequency)."""
    sizes: torch.Tensor
    """The same with the absolute values of all constants."""
    roundings: int = 0
    """`rows` is off by at most gamma(roundings) sizes."""
    conjugated: bool = False
    moved: bool = True
    """No more than entries of X, each at most once."""
    axes: tuple[int, ...] | None = None
    """The axes of frequencies, where X itself stands here."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.place.shape)

    @property
    def weights(self) -> torch.Tensor:
        return self.base.weights[self.place]

    def gain(self) -> float:
        """||this||_weights <= gain ||what the source moves||."""
        if self.moved or not self.place.numel():
            return self.base.gain
        order = self.place.flatten().argsort(stable=True)
        _, counts = self.place.flatten()[order].unique_consecutive(return_counts=True)
        group = torch.arange(len(counts), device=order.device).repeat_interleave(counts)
        within = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[group]
        columns = self.rows.shape[-1]
        matrices = self.rows.new_zeros(len(counts), int(counts.max()), columns)
        matrices[group, within] = self.rows.reshape(-1, columns)[order]
        largest = float(self.sizes.max())
        if not math.isfinite(largest):
            raise ValueError("expected finite constants in a Fourier layer, got NaN or inf")
        if largest == 0.0:
            return 0.0
        scale = 2.0 ** -max(-1000, min(1000, math.frexp(largest)[1]))
        squares = self.rows.new_zeros(len(counts), dtype=torch.float64)
        squares.index_add_(0, group, (self.sizes.reshape(-1, columns)[order] * scale).square().sum(1))
        error = gamma(self.roundings) * norm_up(squares.max().sqrt()) * (1 + 1e-6)
        return up(up(up(largest_singular_value(matrices * scale) + error) / scale) * self.base.gain)


def opened(source: str, gain: float, shape: Sequence[int], axes: Iterable[int], weights: torch.Tensor) -> Spectrum:
    """A spectrum with the frequencies along those axes; weights that vary along others are rounded down."""
    axes, shape = tuple(sorted(axes)), tuple(shape)
    others = [axis for axis in range(len(shape)) if axis not in axes]
    columns = math.prod(shape[axis] for axis in others)
    refuse_large(math.prod(shape) * columns)
    frequencies = math.prod(shape[axis] for axis in axes)
    order = [*axes, *others]
    numbers = torch.arange(math.prod(shape), device=weights.device).reshape([shape[axis] for axis in order])
    numbers = numbers.permute([order.index(axis) for axis in range(len(shape))]).contiguous()
    place, column = numbers // max(1, columns), numbers % max(1, columns)
    rows = torch.nn.functional.one_hot(column, max(1, columns)).to(torch.complex128)
    known = weights.permute(order).reshape(frequencies, columns).amin(1)
    return Spectrum(Base(source, gain, known), place, rows, rows.real.clone(), axes=axes)


def chosen(x: Spectrum, chosen: torch.Tensor, once: bool) -> Spectrum:
    """The entries of those numbers."""
    columns = x.rows.shape[-1]
    refuse_large(chosen.numel() * columns)
    rows, sizes = (t.reshape(-1, columns)[chosen.flatten()].reshape(*chosen.shape, -1) for t in (x.rows, x.sizes))
    place = x.place.flatten()[chosen]
    return replace(x, place=place, rows=rows, sizes=sizes, moved=x.moved and once, axes=None)


def broadcast(x: Spectrum, shape: Sequence[int]) -> tuple[Spectrum, float]:
    """The tensor in another shape, and the number of copies of each entry."""
    if x.shape == tuple(shape):
        return x, 1.0
    places = torch.arange(x.place.numel(), device=x.place.device).reshape(x.shape).expand(tuple(shape))
    copies = places.numel() / x.place.numel()
    return chosen(x, places, copies == 1.0), copies


def concatenated(parts: Sequence[Spectrum], places: torch.Tensor) -> Spectrum:
    """The entries of those numbers, of all parts one after the other; each once."""
    if not alike(parts):
        weights = torch.cat([part.weights.flatten() for part in parts])[places]
        return begun_anew(parts, "cat", places.shape, weights)
    both = [(part.rows, part.sizes) for part in parts]
    rows, sizes = (torch.cat([t.flatten(0, -2) for t in some])[places] for some in zip(*both, strict=True))
    place = torch.cat([part.place.flatten() for part in parts])[places]
    roundings = max(part.roundings for part in parts)
    return replace(parts[0], place=place, rows=rows, sizes=sizes, roundings=roundings, moved=False, axes=None)


def begun_anew(parts: Sequence[Spectrum], law: str, shape: Sequence[int], weights: torch.Tensor) -> Spectrum:
    """Several spectra that have no matrices together: by their bounds alone."""
    sources = {part.base.source for part in parts}
    if len(sources) > 1:
        raise UnsupportedOp("expected complex numbers computed from one real tensor, got them from several")
    gains = [part.gain() for part in parts]
    gain = sum(gains) if law == "sum" else math.hypot(*gains)
    gain *= 1 + 4 * len(parts) * UNIT
    return opened(sources.pop(), gain, shape, range(len(shape)), weights)


def varying(weights: torch.Tensor) -> list[int]:
    """The axes along which the weights are not constant."""
    return [k for k in range(weights.ndim) if not torch.equal(weights.amin(k), weights.amax(k))]


def alike(parts: Sequence[Spectrum]) -> bool:
    """Whether all are sums of entries of one spectrum, or all of its conjugate."""
    return len({(id(part.base), part.conjugated) for part in parts}) == 1


def refuse_large(entries: int) -> None:
    if entries > _ROW_ENTRIES:
        raise UnsupportedOp(
            f"expected matrices of at most {_ROW_ENTRIES} entries for all frequencies together, got {entries}"
        )
