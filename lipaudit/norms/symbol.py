"""The symbol of a convolution: what it does to one frequency, as a matrix, with a bound of its rounding error.

F(theta) = sum_a K[a] exp(-i a.theta) by direct sums (no vendor's FFT is trusted), on the stride phases of the input.

Note [Gram matrices without symbols]
    F(theta) F(theta)^H = sum_d C_d exp(-i d.theta) with C_d = sum of K[a] K[b]^T over all a - b = d, and C_-d = C_d^T:
    13 matrices for a 3x3 kernel, whatever the number of frequencies, instead of a product for each of them. All
    rounding errors of the C_d together are a convolution of norm at most gamma(n) w^2, n the products summed and
    w >= || sum_a |K[a]| ||; those of the cosines and of the sum over d have norm at most
    (PHASE_ERROR + gamma(shifts + 4)) w^2 for the cosines, and the same for the sines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.verified_eigenvalues import proof_error, prove
from lipaudit.rounding import TINY, UNIT, gamma, norms_up, up

PHASE_ERROR = 2.0**-46
"""Bound of the error of cos and sin at 2 pi j / M in float64, with j reduced exactly: argument and library."""


@dataclass
class _Taps:
    """The kernel taps of one stride phase: their places on the coarse lattice and their weights.

    Places and frequencies are chosen on the CPU; a GPU gets those that it evaluates.
    """

    places: torch.Tensor  # (taps, axes), int64, on the CPU
    weights: torch.Tensor  # (groups, taps, out * in)


class Symbols:
    """The polyphase symbol F(theta) of a convolution, group by group, in float64 with a bound of its error."""

    def __init__(self, conv: Conv) -> None:
        weight, groups = conv.weight, conv.groups
        largest = float(weight.abs().max()) if weight.numel() else 0.0
        if not math.isfinite(largest):
            raise ValueError("expected finite weights, got NaN or inf")
        self.exponent = min(1000, max(-1000, math.frexp(largest)[1])) if largest else 0
        self.zero = largest == 0.0
        # A power of two, applied in two halves so that it cannot overflow itself: exact.
        weight = weight * 2.0 ** (-self.exponent // 2) * 2.0 ** (-self.exponent - (-self.exponent // 2))
        self.out, self.inputs = weight.shape[0] // groups, weight.shape[1]
        blocks = weight.reshape(groups, self.out, self.inputs, -1).permute(0, 3, 1, 2).flatten(2)
        self.taps = _phases(conv, blocks)
        self.groups, self.device = groups, weight.device
        self.columns = self.inputs * len(self.taps)
        self.side = min(self.out, self.columns)
        sums = weight.abs().reshape(groups, self.out, self.inputs, -1).sum(-1)
        count = math.prod(conv.kernel_size)
        self.absolute = (float(norms_up(sums).max()) if sums.numel() else 0.0) * (1 + 2 * gamma(count + 4))
        """Bound of the norm of the map whose weights are the absolute values."""
        self.error = 2 * (PHASE_ERROR + gamma(count + 2)) * self.absolute
        """Bound of || computed F - exact F ||."""
        self.inexact = conv.relative_error * self.absolute
        """Bound of what the weights being inexact themselves adds to ||F||."""

    def largest_norm(self, index: torch.Tensor, sizes: Sequence[int]) -> float:
        """Bound of max ||F(theta)|| over theta = pi index / size and over the groups, of the scaled symbol.

        Quick if frequencies of large norm come first.
        """
        return self.root(prove(GramMatrices(self, index, sizes), torch.arange(len(index), device=self.device)))

    def root(self, rho: float, extra: float = 1.0) -> float:
        """From a proof that rho bounds the computed Gram matrices to a bound of ||F||; `extra` widens the error."""
        error = (proof_error(self.side, rho) + self.gram_error) * extra
        return up(up(math.sqrt((rho + error) * (1 + 4 * UNIT))) + self.inexact)

    def unscale(self, norm: float) -> float:
        """From a bound of the norm of the scaled kernel to one of the kernel itself."""
        return up(norm * 2.0**self.exponent) + TINY

    @cached_property
    def gram_error(self) -> float:
        """Bound of || computed - exact Gram matrix ||; see Note [Gram matrices without symbols]."""
        taps = sum(len(taps.places) for taps in self.taps)
        shifts = gamma(max(self.out, self.inputs) * taps + 4) + 2 * (PHASE_ERROR + gamma(taps**2 + 6))
        direct = 4 * (PHASE_ERROR + gamma(taps + 2)) + 1.5 * gamma(2 * max(self.out, self.columns) + 4)
        return max(shifts, direct) * self.absolute**2 * (1 + 1e-9) + TINY

    @cached_property
    def autocorrelation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The shifts d > 0 (lexicographically), and the rows of which the Gram matrices are made, flat.

        Complex numbers are pairs: C_0, then C_d + C_d^T for each d, then i (C_d^T - C_d). Of a single tap: C_0, real.
        """
        blocks = self._row_products() if self.out <= self.columns else self._column_products()
        centre = blocks.pop((0,) * self.taps[0].places.shape[1])
        shifts = torch.tensor(sorted(blocks), dtype=torch.int64, device="cpu")
        if not blocks:
            return shifts, centre.reshape(1, -1)
        ahead = torch.stack([blocks[shift] for shift in sorted(blocks)])
        rows = centre.new_zeros(1 + 2 * len(blocks), centre.numel(), 2)
        rows[0, :, 0] = centre.flatten()
        rows[1 : 1 + len(blocks), :, 0] = (ahead + ahead.mT).flatten(1)
        rows[1 + len(blocks) :, :, 1] = (ahead.mT - ahead).flatten(1)
        return shifts, rows.flatten(1)

    def _row_products(self) -> dict[tuple[int, ...], torch.Tensor]:
        """C_d = sum of K_a K_b^T over the taps a - b = d >= 0 of each phase: a product of wide matrices for each d."""
        pairs: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for taps in self.taps:
            blocks = taps.weights.unflatten(2, (self.out, self.inputs))
            for (a, first), (b, second) in itertools.product(enumerate(taps.places.tolist()), repeat=2):
                shift = tuple(x - y for x, y in zip(first, second, strict=True))
                if shift >= (0,) * len(shift):
                    pairs.setdefault(shift, []).append((blocks[:, a], blocks[:, b]))
        return {d: torch.cat([a for a, _ in ab], 2) @ torch.cat([b for _, b in ab], 2).mT for d, ab in pairs.items()}

    def _column_products(self) -> dict[tuple[int, ...], torch.Tensor]:
        """C_d has the blocks K_a^T K_b over the taps b - a = d >= 0 of any two phases."""
        blocks: dict[tuple[int, ...], torch.Tensor] = {}
        places = [
            (phase, weight.unflatten(1, (self.out, self.inputs)), place)
            for phase, taps in enumerate(self.taps)
            for weight, place in zip(taps.weights.unbind(1), taps.places.tolist(), strict=True)
        ]
        n = self.inputs
        for (p, left, first), (q, right, second) in itertools.product(places, repeat=2):
            shift = tuple(y - x for x, y in zip(first, second, strict=True))
            if shift >= (0,) * len(shift):
                if shift not in blocks:
                    blocks[shift] = left.new_zeros(self.groups, self.side, self.side)
                blocks[shift][:, p * n : (p + 1) * n, q * n : (q + 1) * n] += left.mT @ right
        return blocks

    def index(self, sizes: Sequence[int], parity: Sequence[int]) -> torch.Tensor:
        """The frequencies that can differ: along an axis where each phase has a single place, one suffices."""
        index = half_grid(sizes, parity)
        for axis, constant in enumerate(self.flat):
            if constant:
                index = index[index[:, axis] == index[0, axis]]
        return index

    @property
    def flat(self) -> tuple[bool, ...]:
        """Per axis, whether each phase has a single place there: then ||F|| does not depend on that frequency."""
        axes = range(self.taps[0].places.shape[1])
        return tuple(all(len(set(t.places[:, axis].tolist())) == 1 for t in self.taps) for axis in axes)

    def symbols(self, index: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """F at the frequencies pi index / size: (frequencies, groups, out, inputs * phases), complex."""
        parts, index = [], index.to(self.device)
        for taps in self.taps:
            angle = angles(index, taps.places, sizes)
            weights = taps.weights  # (groups, taps, out * in)
            real, imag = torch.cos(angle) @ weights, -(torch.sin(angle) @ weights)
            symbol = torch.complex(real, imag).transpose(0, 1)
            parts.append(symbol.reshape(-1, self.groups, self.out, self.inputs))
        return torch.cat(parts, dim=3)

    def selected(self, groups: torch.Tensor, index: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """F of one group at one frequency each: (groups, out, inputs * phases), complex."""
        parts = []
        for taps in self.taps:
            angle, weights = angles(index, taps.places, sizes)[:, None], taps.weights[groups]
            symbol = torch.complex(torch.cos(angle) @ weights, -(torch.sin(angle) @ weights))
            parts.append(symbol.reshape(-1, self.out, self.inputs))
        return torch.cat(parts, dim=2)


class GramMatrices:
    """The smaller Gram matrices at theta = pi index / size, as a `Batch`, each off by `symbols.gram_error` at most."""

    def __init__(self, symbols: Symbols, index: torch.Tensor, sizes: Sequence[int]) -> None:
        self.symbols, self.index, self.sizes = symbols, index.to(symbols.device), sizes
        self.shape = (symbols.groups, symbols.side, symbols.side)
        # A product per frequency, where that is fewer than the shifts of the kernel take.
        self.direct = 8 * len(index) < sum(len(taps.places) for taps in symbols.taps) ** 2
        self.dtype = torch.complex128
        if not self.direct:
            shifts, self.rows = symbols.autocorrelation
            self.shifts = shifts.to(symbols.device)
            self.dtype = torch.complex128 if len(self.shifts) else torch.float64

    def fill(self, numbers: torch.Tensor, out: torch.Tensor) -> None:
        index = self.index[numbers]
        if self.direct:
            f = self.symbols.symbols(index, self.sizes)
            torch.matmul(*((f, f.mH) if self.symbols.out <= self.symbols.columns else (f.mH, f)), out=out)
            return
        one = torch.ones(len(index), 1, dtype=torch.float64, device=out.device)
        if out.is_complex():
            angle = angles(index, self.shifts, self.sizes)
            one, out = torch.cat([one, torch.cos(angle), torch.sin(angle)], dim=1), torch.view_as_real(out)
        torch.mm(one, self.rows, out=out.view(len(index), -1))


def angles(index: torch.Tensor, places: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """places . (pi index / size): (frequencies, places), each axis reduced exactly to [0, 2 pi)."""
    moduli = 2 * torch.tensor(sizes, device=index.device)
    turns = (index[:, None, :] * places.to(index.device)[None]) % moduli
    return (turns * (2 * math.pi / moduli.double())).sum(-1)


def _phases(conv: Conv, blocks: torch.Tensor) -> list[_Taps]:
    """For each phase that a tap reads, the taps whose offset d a is congruent to it modulo the stride; (d a) div s."""
    found: dict[tuple[int, ...], tuple[list[list[int]], list[int]]] = {}
    for number, tap in enumerate(itertools.product(*(range(k) for k in conv.kernel_size))):
        offset = [divmod(d * a, s) for d, a, s in zip(conv.dilation, tap, conv.stride, strict=True)]
        places, chosen = found.setdefault(tuple(phase for _, phase in offset), ([], []))
        places.append([place for place, _ in offset])
        chosen.append(number)
    return [
        _Taps(torch.tensor(places, dtype=torch.int64, device="cpu"), blocks[:, chosen])
        for _, (places, chosen) in sorted(found.items())
    ]


def half_grid(sizes: Sequence[int], parity: Sequence[int]) -> torch.Tensor:
    """Indices j of theta = pi j / size with the given parities, one of each pair j, -j (F(-theta) = conj F)."""
    axes = [torch.arange(bit, 2 * size, 2) for size, bit in zip(sizes, parity, strict=True)]
    grid = torch.cartesian_prod(*axes).reshape(-1, len(sizes))
    moduli = 2 * torch.tensor(sizes)
    code = torch.zeros(len(grid), dtype=torch.int64)
    mirror = torch.zeros(len(grid), dtype=torch.int64)
    for axis in range(len(sizes)):
        code = code * moduli[axis] + grid[:, axis]
        mirror = mirror * moduli[axis] + (-grid[:, axis]) % moduli[axis]
    return grid[code <= mirror]
