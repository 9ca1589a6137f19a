"""The tight mode: small maps are bounded with their real borders, not on a torus.

Note [Exact borders]
    Along the axes that are kept exact, a convolution is a matrix of blocks K_a, and its Gram matrix has the blocks
        (T T^*)[i, i'] = sum of K_a K_b^* over all taps a, b through which the outputs i and i' read the same entry
    of the image, (T^* T)[j, j'] = sum of K_a^* K_b over those that bring the inputs j and j' to the same output. So the
    products of taps are formed once and added where they belong: nothing is ever as large as the matrix itself. Where
    channels are few and taps are many that is slow; then the matrices are written out and multiplied. Their zeros round
    nothing, so one bound of the error holds for both. Groups and frequencies go in batches either way.
    With all axes exact this is the norm. Larger maps keep the first axis exact and put the others on a twisted torus
    (Note [Parity torus] in `torus.py`, which needs nothing of the other axes), where K_a becomes the symbol K_a(theta)
    along them; either axis may come first. The guess comes from a few eigenvalues or, for large matrices, from Lanczos
    iteration, the proof from Cholesky of every one of them.

Tight: exact, or off by about half of what the torus is off by. Source: our own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from lipaudit.norms.lattice import CALL, ENTRY, product_flops
from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.power_iteration import Torus, lanczos
from lipaudit.norms.symbol import PHASE_ERROR, Symbols, half_grid
from lipaudit.norms.torus import torus, torus_bound
from lipaudit.norms.verified_eigenvalues import (
    eigenvalue_flops,
    factor_flops,
    holds,
    largest_eigenvalue,
    proof_error,
    prove,
)
from lipaudit.results.bounds import Upper
from lipaudit.rounding import TINY, UNIT, gamma, up

DENSE_SIDE = 8192
"""Largest side of a Gram matrix with all axes exact (Cholesky in float64: half a gigabyte, seconds)."""
ROWS_SIDE = 4096
"""The same with one axis exact: complex, one for each frequency of the other axes."""
LARGEST_MAP = 16
"""Along one axis; on larger maps the torus is off by a few parts in a thousand."""
_LANCZOS_STEPS = 80
_EIGENVALUES = 512
_SAMPLE = 16
"""One matrix of so many is looked at for the first guess of the largest eigenvalue."""
_MATRIX_ENTRIES = 2**22
"""Of the matrices that are in memory at once, besides their Gram matrices."""
_SLACKS = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def tight_bound(conv: Conv) -> Upper:
    """||conv|| exactly where its map is small, with one exact axis where that is affordable, else on the torus."""
    inner, sizes, copies = torus(conv)
    found = [_bound(inner, sizes, exact) for exact in _choices(inner, sizes)] if bool(inner.weight.any()) else []
    if not found:
        return torus_bound(conv)
    norm, because = min(found)
    if copies > 1:
        norm, because = up(norm * up(math.sqrt(copies))), f"{because}; {conv.padding_mode} padding: {copies} copies"
    return Upper(norm, "tight", because)


def tight_flops(conv: Conv) -> float:
    """What `tight_bound` takes, from shapes alone; infinite where it has nothing to say beyond the torus."""
    inner, sizes, _ = torus(conv)
    return sum(_Size(inner, sizes, exact).flops for exact in _choices(inner, sizes)) or math.inf


def _choices(conv: Conv, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """The axes to keep exact: all or, where those are too many, one or the other; none if the torus is exact."""
    windows = zip(conv.dilation, conv.kernel_size, conv.stride, conv.padding, strict=True)
    apart = all(d * (k - 1) < s and not any(p) for d, k, s, p in windows)
    if conv.padding_mode == "circular" or math.prod(conv.kernel_size) == 1 or apart:
        return []
    axes = range(len(conv.input_size))
    if _Size(conv, sizes, tuple(axes)).side <= DENSE_SIDE:
        return [tuple(axes)]
    small = [axis for axis in axes if conv.output_size[axis] <= LARGEST_MAP]  # where borders matter
    return [(axis,) for axis in small if _Size(conv, sizes, (axis,)).side <= ROWS_SIDE]


class _Size:
    """The sizes of the Gram matrices with these axes exact, and what they cost."""

    def __init__(self, conv: Conv, sizes: Sequence[int], exact: tuple[int, ...]) -> None:
        others = [axis for axis in range(len(conv.input_size)) if axis not in exact]
        phases = [len({conv.dilation[x] * tap % conv.stride[x] for tap in range(conv.kernel_size[x])}) for x in others]
        self.conv, self.real = conv, not others
        self.beside = math.prod(sizes[axis] for axis in others)
        self.taps = math.prod(conv.kernel_size[axis] for axis in exact)
        self.places = [math.prod(size[axis] for axis in exact) for size in (conv.output_size, conv.input_size)]
        self.channels = [conv.weight.shape[0] // conv.groups, conv.weight.shape[1] * math.prod(phases)]
        sides = [places * channels for places, channels in zip(self.places, self.channels, strict=True)]
        self.rows, self.side, self.longer = sides[0] <= sides[1], min(sides), max(sides)
        self.twists = 2 ** len(others)
        self.count = conv.groups * (self.beside // 2 + 1 if others else 1)
        self.meetings = self.places[0] * self.taps**2 / (math.prod(conv.stride[x] for x in exact) if self.rows else 1)

    @property
    def by_products(self) -> float:
        """Cost of the Gram matrices by products of taps, each added where its taps meet."""
        width, inner = self.channels[not self.rows], self.channels[self.rows]
        products = self.taps**2 * product_flops(width, inner, width, self.real)
        return self.count * (products + ENTRY * self.meetings * (3 * width + 7) * width) + 8 * CALL * self.taps**2

    @property
    def by_matrices(self) -> float:
        """The same as products of the matrices themselves."""
        moved = 3 * ENTRY * self.side * self.longer
        return self.count * (product_flops(self.side, self.longer, self.side, self.real) + moved)

    @property
    def flops(self) -> float:
        """Of all that `_bound` does."""
        made, factor = min(self.by_products, self.by_matrices), factor_flops(self.side, self.real)
        passes = 1 if self.count == 1 else 2  # some fail at first
        proof = passes * (made + self.count * factor) + 500 * CALL
        if self.side <= _EIGENVALUES:
            guess = eigenvalue_flops(self.side, self.real, quickly=self.count == 1)
            return self.twists * (proof + made + (3 * passes - 2 + self.count / _SAMPLE) * guess)
        inputs, outputs = (n * c * self.beside for n, c in zip(self.places, self.channels, strict=True))
        step = 2 * 2 * self.conv.weight.numel() * self.places[0] * self.beside + 20 * CALL
        basis = 2 * _LANCZOS_STEPS * ENTRY * self.conv.groups * (inputs + outputs)
        return proof + self.twists * _LANCZOS_STEPS * (step + basis)


def _bound(conv: Conv, sizes: list[int], exact: tuple[int, ...]) -> tuple[float, str]:
    """The norm with these axes exact and the others on the twisted torus that makes it smallest, or seems to."""
    others = [axis for axis in range(len(sizes)) if axis not in exact]
    largest = float(conv.weight.abs().max())
    exponent = min(1000, max(-1000, math.frexp(largest)[1]))
    conv = replace(conv, weight=conv.weight * 2.0 ** (-exponent // 2) * 2.0 ** (-exponent - (-exponent // 2)))
    guesses = dict.fromkeys(_twists(others), 0.0)
    if _Size(conv, sizes, exact).side > _EIGENVALUES:  # then only the twist whose estimate is smallest
        largest = float(conv.weight.abs().max())
        guessed = replace(conv, weight=conv.weight / largest)
        for twist in guesses:
            guesses[twist] = largest * lanczos(Torus(guessed, sizes, others, twist), _LANCZOS_STEPS)
        least = min(guesses, key=guesses.__getitem__)
        guesses = {least: guesses[least]}
    norm, twist = min(
        (_norm(_BorderedGrams(conv, sizes, exact, twist), guess), twist) for twist, guess in guesses.items()
    )
    axis = "all borders exact" if not others else f"borders of axis {exact[0] + 1} exact, torus of twist "
    norm = up(norm * 2.0**exponent) + TINY
    return norm, f"{axis}{''.join('-' if bit else '+' for bit in twist)}, proved by Cholesky"


def _norm(batch: _BorderedGrams, guess: float) -> float:
    """A bound of the norm of the scaled map: what is proved of the Gram matrices, and all errors."""
    rho = _proved(batch, torch.arange(batch.count, device=batch.conv.weight.device), guess)
    norm = up(math.sqrt((rho + proof_error(batch.shape[-1], rho) + batch.error) * (1 + 4 * UNIT)))
    return up(norm + batch.inexact)


def _proved(batch: _BorderedGrams, numbers: torch.Tensor, guess: float) -> float:
    """A rho for which Cholesky of rho I - G completes for all: by eigenvalues if small, else from the guess upwards."""
    if batch.shape[-1] <= _EIGENVALUES:
        most = max(1, min(len(numbers) // _SAMPLE, _MATRIX_ENTRIES // batch.shape[-1] ** 2))
        some = numbers[:: -(-len(numbers) // most)]
        return prove(batch, numbers, largest_eigenvalue(batch, some, quickly=True) * (1 + 1e-10))
    for slack in _SLACKS:
        rho = max(guess**2 * (1 + slack), TINY)
        numbers = numbers[~holds(batch, numbers, rho)]
        if not len(numbers):
            return rho
    raise ValueError("expected a Cholesky proof of the norm, got none: the estimate is far too small")


def _twists(others: list[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product((0, 1), repeat=len(others))


class _BorderedGrams:
    """The smaller Gram matrix of each group and frequency, with exact borders along some axes, as a `Batch`."""

    def __init__(self, conv: Conv, sizes: list[int], exact: tuple[int, ...], twist: tuple[int, ...]) -> None:
        others = [axis for axis in range(len(sizes)) if axis not in exact]
        self.conv, self.exact = conv, exact
        self.taps = list(itertools.product(*(range(conv.kernel_size[axis]) for axis in exact)))
        self.out, self.inputs = conv.weight.shape[0] // conv.groups, conv.weight.shape[1]
        # The taps of the exact axes become outputs of a convolution along the others.
        order = (0, *(2 + axis for axis in exact), 1, *(2 + axis for axis in others))
        weight = conv.weight.permute(order).reshape(-1, self.inputs, *(conv.kernel_size[axis] for axis in others))
        flat = Conv(
            weight=weight if others else weight[..., None],
            input_size=tuple(conv.input_size[axis] for axis in others) or (1,),
            stride=tuple(conv.stride[axis] for axis in others) or (1,),
            padding=((0, 0),) * max(1, len(others)),
            dilation=tuple(conv.dilation[axis] for axis in others) or (1,),
            groups=conv.groups,
        )
        self.symbols = Symbols(flat)
        grid = [sizes[axis] for axis in others] or [1]
        self.sizes, self.index = grid, half_grid(grid, twist or (0,)).to(conv.weight.device)
        self.count = conv.groups * len(self.index)
        size = _Size(conv, sizes, exact)
        self.rows, self.shape = size.rows, (size.side, size.side)
        self.whole = size.by_matrices <= size.by_products
        self.at_once = max(1, _MATRIX_ENTRIES // (size.side * size.longer))
        self.dtype = torch.complex128 if others else torch.float64
        self.inexact = self._absolute * conv.relative_error

    @cached_property
    def _absolute(self) -> float:
        """Bound of the norm of the map of absolute values: the sum over the exact taps of those of each."""
        total = sum((phase.weights.abs().sum(1) for phase in self.symbols.taps), torch.zeros(()))
        whole = total.reshape(self.conv.groups, self.out, len(self.taps), self.inputs).sum(2)
        return float(whole.square().sum((1, 2)).max().sqrt()) * (1 + 1e-9)

    @property
    def error(self) -> float:
        """Bound of || computed - exact Gram matrix ||, as in Note [Gram matrices without symbols] of `symbol.py`."""
        count = math.prod(self.conv.kernel_size)
        terms = 2 * max(self.out, self.inputs * math.prod(self.conv.stride)) * len(self.taps) + len(self.taps) ** 2
        relative = 1.5 * gamma(terms + 8) + 4 * (PHASE_ERROR + gamma(count + 4))
        return relative * self._absolute**2 * (1 + 1e-6) + TINY

    def fill(self, numbers: torch.Tensor, out: torch.Tensor) -> None:
        frequencies, groups = numbers // self.conv.groups, numbers % self.conv.groups
        symbols = self.symbols.selected(groups, self.index[frequencies], self.sizes)
        symbols = symbols if self.dtype.is_complex else symbols.real
        blocks = symbols.unflatten(1, (self.out, len(self.taps))).transpose(1, 2)
        if not self.whole:
            self._add_products(blocks, out)
            return
        for some, part in zip(blocks.split(self.at_once), out.split(self.at_once), strict=True):
            matrix = self._matrices(some)
            torch.matmul(*((matrix, matrix.mH) if self.rows else (matrix.mH, matrix)), out=part)

    def _matrices(self, blocks: torch.Tensor) -> torch.Tensor:
        """The matrices themselves, position by position."""
        padded = torch.cat([blocks, torch.zeros_like(blocks[:, :1])], dim=1)
        return padded[:, self._table].transpose(2, 3).flatten(3, 4).flatten(1, 2)

    @cached_property
    def _table(self) -> torch.Tensor:
        """The tap between each output and each input, (outputs, inputs), numbered over the exact axes; -1 for none."""
        table = torch.zeros(1, 1, dtype=torch.int64)
        for axis in self.exact:
            n, m, k = self.conv.input_size[axis], self.conv.output_size[axis], self.conv.kernel_size[axis]
            s, d, p = self.conv.stride[axis], self.conv.dilation[axis], self.conv.padding[axis][0]
            along = torch.full((m, n), -1)
            for tap, output in itertools.product(range(k), range(m)):
                if 0 <= (read := s * output + d * tap - p) < n:
                    along[output, read] = tap
            before, behind = table[:, None, :, None], along[None, :, None, :]
            table = torch.where((before < 0) | (behind < 0), -1, before * k + behind).flatten(2, 3).flatten(0, 1)
        return table.to(self.conv.weight.device)

    def _add_products(self, blocks: torch.Tensor, out: torch.Tensor) -> None:
        """Each product of two taps, where two positions meet through them."""
        places = [(self.conv.output_size if self.rows else self.conv.input_size)[axis] for axis in self.exact]
        square = out.zero_().unflatten(2, (*places, -1)).unflatten(1, (*places, -1))
        for (k, a), (j, b) in itertools.product(enumerate(self.taps), repeat=2):
            where = self._meetings(square, a, b)
            if where is not None:
                product = blocks[:, k] @ blocks[:, j].mH if self.rows else blocks[:, k].mH @ blocks[:, j]
                where += product[(..., *(None,) * len(self.exact))]

    def _meetings(self, square: torch.Tensor, a: tuple[int, ...], b: tuple[int, ...]) -> torch.Tensor | None:
        """Of the blocks (.., *places, width, *places, width), those of positions that taps a and b bring together."""
        for left, axis, first, second in zip(range(len(a), 0, -1), self.exact, a, b, strict=True):
            n, m = self.conv.input_size[axis], self.conv.output_size[axis]
            s, d, p = self.conv.stride[axis], self.conv.dilation[axis], self.conv.padding[axis][0]
            # The outputs whose tap `first` reads an entry of the image.
            low, high = -((d * first - p) // s), (n - 1 + p - d * first) // s
            if self.rows:  # outputs i and i + ahead read the same entry
                ahead, rest = divmod(d * (first - second), s)
                low, high, place, step = max(low, -ahead), min(high, m - 1 - ahead), 0, 1
                if rest:
                    return None
            else:  # inputs x and x + ahead are read by the same output
                ahead, place, step = d * (second - first), d * first - p, s
                low, high = max(low, -((d * second - p) // s)), min(high, (n - 1 + p - d * second) // s)
            low, high = max(low, 0), min(high, m - 1)
            if low > high:
                return None
            # Of the positions along a diagonal, which begins at position max(0, -ahead).
            begin = place + step * low - max(0, -ahead)
            square = square.diagonal(ahead, 1, 2 + left)[..., begin : begin + step * (high - low) + 1 : step]
        return square
