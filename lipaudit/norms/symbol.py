"""The symbol of a convolution: what it does to one frequency, as a matrix, with a bound of its rounding error.

F(theta) = sum_a K[a] exp(-i a.theta) by direct sums (no vendor's FFT is trusted), on the stride phases of the input.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lipaudit.norms.maps import Conv
from lipaudit.norms.verified import estimate, largest_singular_value
from lipaudit.rounding import TINY, gamma, norm_up, up

PHASE_ERROR = 2.0**-46
"""Bound of the error of cos and sin at 2 pi j / M in float64, with j reduced exactly: argument and library."""


@dataclass
class _Taps:
    """The kernel taps of one stride phase: their places on the coarse lattice and their weights."""

    places: torch.Tensor  # (taps, axes), int64
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
        phases = itertools.product(*(range(s) for s in conv.stride))
        blocks = weight.reshape(groups, self.out, self.inputs, -1).permute(0, 3, 1, 2).flatten(2)
        taps = [_phase(conv, phase, blocks) for phase in phases]
        self.taps = [phase for phase in taps if len(phase.places)]  # a phase that no tap reads adds nothing
        self.groups, self.device = groups, weight.device
        sums = weight.abs().reshape(groups, self.out, self.inputs, -1).sum(-1)
        total = max((norm_up(block) for block in sums), default=0.0) * (1 + 1e-9)
        count = math.prod(conv.kernel_size)
        self.error = (2 * (PHASE_ERROR + gamma(count + 2)) + conv.relative_error) * total

    def largest_norm(self, sizes: Sequence[int], parity: Sequence[int]) -> float:
        """max over theta = (2 pi j + pi parity) / size, per axis, and over the groups, of ||F(theta)||."""
        if self.zero:
            return 0.0
        index = self.index(sizes, parity)
        columns = self.inputs * len(self.taps)
        if self.out * columns == 1:  # depthwise without stride: every symbol is a number
            values = [self._evaluate(index, sizes, group).abs().max() for group in range(self.groups)]
            largest = float(torch.stack(values).max()) * (1 + 1e-14)
        else:

            def part(piece: slice) -> torch.Tensor:
                return self.batch(index, sizes, piece)

            count = self.groups * len(index)
            largest = largest_singular_value(part, count, (self.out, columns), complex_=True)
        return up(up(largest + self.error) * 2.0**self.exponent) + TINY

    def estimate(self, sizes: Sequence[int], parity: Sequence[int]) -> float:
        """About the same maximum, from below: to choose a parity class, never as a bound."""
        index = self.index(sizes, parity)
        shape = (self.out, self.inputs * len(self.taps))
        return estimate(lambda piece: self.batch(index, sizes, piece), self.groups * len(index), shape)

    def index(self, sizes: Sequence[int], parity: Sequence[int]) -> torch.Tensor:
        """The frequencies that can differ: along an axis where each phase has a single place, one suffices."""
        flat = [all(len(set(t.places[:, axis].tolist())) == 1 for t in self.taps) for axis in range(len(sizes))]
        index = _half_grid(sizes, parity)
        for axis, constant in enumerate(flat):
            if constant:
                index = index[index[:, axis] == index[0, axis]]
        return index.to(self.device)

    def batch(self, index: torch.Tensor, sizes: Sequence[int], piece: slice) -> torch.Tensor:
        """Symbols number `piece` of all (group, frequency) pairs, group by group."""
        blocks, frequencies = [], len(index)
        for group in range(piece.start // frequencies, -(-piece.stop // frequencies)):
            first = max(piece.start - group * frequencies, 0)
            last = min(piece.stop - group * frequencies, frequencies)
            blocks.append(self._evaluate(index[first:last], sizes, group))
        return torch.cat(blocks)

    def _evaluate(self, index: torch.Tensor, sizes: Sequence[int], group: int) -> torch.Tensor:
        """F at the frequencies pi index / size: (frequencies, out, inputs * phases)."""
        moduli = 2 * torch.tensor(sizes, device=self.device)
        blocks = []
        for taps in self.taps:
            turns = (index[:, None, :] * taps.places[None]) % moduli
            angle = (turns * (2 * math.pi / moduli.double())).sum(-1)
            weights = taps.weights[group]
            real, imag = torch.cos(angle) @ weights, -(torch.sin(angle) @ weights)
            blocks.append(torch.complex(real, imag).reshape(len(index), self.out, self.inputs))
        return torch.cat(blocks, dim=2)


def _phase(conv: Conv, phase: Sequence[int], blocks: torch.Tensor) -> _Taps:
    """The taps whose offset d a is congruent to `phase` modulo the stride; place = (d a) div s."""
    places, chosen = [], []
    for number, tap in enumerate(itertools.product(*(range(k) for k in conv.kernel_size))):
        offset = [d * a for d, a in zip(conv.dilation, tap, strict=True)]
        if all(o % s == r for o, s, r in zip(offset, conv.stride, phase, strict=True)):
            places.append([o // s for o, s in zip(offset, conv.stride, strict=True)])
            chosen.append(number)
    where = torch.tensor(places, dtype=torch.int64, device=blocks.device).reshape(-1, len(conv.stride))
    return _Taps(where, blocks[:, chosen])


def _half_grid(sizes: Sequence[int], parity: Sequence[int]) -> torch.Tensor:
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
