"""The tight mode: small maps are bounded with their real borders, not on a torus.

Note [Exact borders]
    Along the axes that are kept exact, a convolution is a matrix of blocks K_a, and its Gram matrix has the blocks
        (T T^*)[i, i'] = sum of K_a K_b^* over all taps a, b through which the outputs i and i' read the same entry
    of the image, (T^* T)[j, j'] = sum of K_a^* K_b over those that bring the inputs j and j' to the same output. So the
    products of taps are formed once and added where they belong: nothing is ever as large as the matrix itself.
    With all axes exact this is the norm. Larger maps keep the first axis exact and put the others on a twisted torus
    (Note [Parity torus] in `torus.py`, which needs nothing of the other axes), where K_a becomes the symbol K_a(theta)
    along them; either axis may come first. The guess comes from Lanczos iteration, the proof from Cholesky.

Tight: exact, or off by about half of what the torus is off by. Source: our own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.power_iteration import Torus, lanczos
from lipaudit.norms.symbol import PHASE_ERROR, Symbols, half_grid
from lipaudit.norms.torus import torus, torus_bound
from lipaudit.norms.verified_eigenvalues import holds, proof_error, prove
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
_SLACKS = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def tight_bound(conv: Conv) -> Upper:
    """||conv|| exactly where its map is small, with one exact axis where that is affordable, else on the torus."""
    inner, sizes, copies = torus(conv)
    if inner.padding_mode == "circular" or math.prod(inner.kernel_size) == 1 or not bool(inner.weight.any()):
        return torus_bound(conv)
    axes = range(len(inner.input_size))
    if _side(inner, tuple(axes)) <= DENSE_SIDE:
        found = [_bound(inner, sizes, tuple(axes))]
    else:
        found = [_bound(inner, sizes, (axis,)) for axis in axes if _worthwhile(inner, axis)]
    if not found:
        return torus_bound(conv)
    norm, because = min(found)
    if copies > 1:
        norm, because = up(norm * up(math.sqrt(copies))), f"{because}; {conv.padding_mode} padding: {copies} copies"
    return Upper(norm, "tight", because)


def tight_flops(conv: Conv) -> float:
    """Cost of the Cholesky factors."""
    inner, sizes, _ = torus(conv)
    axes = range(len(inner.input_size))
    side = _side(inner, tuple(axes))
    if side <= DENSE_SIDE:
        return inner.groups * side**3 / 3.0
    costs = []
    for axis in axes:
        side = _side(inner, (axis,))
        if _worthwhile(inner, axis):
            costs.append(inner.groups * (math.prod(sizes) / sizes[axis] / 2 + 1) * 4.0 * side**3 / 3.0)
    return sum(costs) if costs else math.inf


def _worthwhile(conv: Conv, axis: int) -> bool:
    """Whether the borders of that axis matter and its Gram matrices are affordable."""
    return conv.output_size[axis] <= LARGEST_MAP and _side(conv, (axis,)) <= ROWS_SIDE


def _side(conv: Conv, exact: tuple[int, ...]) -> int:
    """The side of the smaller Gram matrix, at most."""
    outputs = conv.weight.shape[0] // conv.groups * math.prod(conv.output_size[axis] for axis in exact)
    phases = math.prod(s for axis, s in enumerate(conv.stride) if axis not in exact)
    inputs = conv.weight.shape[1] * phases * math.prod(conv.input_size[axis] for axis in exact)
    return min(outputs, inputs)


def _bound(conv: Conv, sizes: list[int], exact: tuple[int, ...]) -> tuple[float, str]:
    """The norm with these axes exact and the others on the twisted torus whose estimate is smallest."""
    others = [axis for axis in range(len(sizes)) if axis not in exact]
    largest = float(conv.weight.abs().max())
    exponent = min(1000, max(-1000, math.frexp(largest)[1]))
    conv = replace(conv, weight=conv.weight * 2.0 ** (-exponent // 2) * 2.0 ** (-exponent - (-exponent // 2)))
    largest = float(conv.weight.abs().max())
    guessed = replace(conv, weight=conv.weight / largest)
    twists = {
        twist: largest * lanczos(Torus(guessed, sizes, others, twist), _LANCZOS_STEPS) for twist in _twists(others)
    }
    twist = min(twists, key=twists.__getitem__)
    batch = _BorderedGrams(conv, sizes, exact, twist)
    numbers = torch.arange(batch.count, device=conv.weight.device)
    rho = _proved(batch, numbers, twists[twist])
    norm = up(math.sqrt((rho + proof_error(batch.shape[-1], rho) + batch.error) * (1 + 4 * UNIT)))
    norm = up(up(norm + batch.inexact) * 2.0**exponent) + TINY
    axis = "all borders exact" if not others else f"borders of axis {exact[0] + 1} exact, torus of twist "
    return norm, f"{axis}{''.join('-' if bit else '+' for bit in twist)}, proved by Cholesky"


def _proved(batch: _BorderedGrams, numbers: torch.Tensor, guess: float) -> float:
    """A rho for which Cholesky of rho I - G completes for all: by eigenvalues if small, else from the guess upwards."""
    if batch.shape[-1] <= _EIGENVALUES:
        return prove(batch, numbers)
    for slack in _SLACKS:
        rho = max(guess**2 * (1 + slack), TINY)
        if all(bool(holds(batch, number, rho)) for number in numbers.split(1)):
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
        outputs = self.out * math.prod(conv.output_size[axis] for axis in exact)
        inputs = self.symbols.columns * math.prod(conv.input_size[axis] for axis in exact)
        self.rows, self.shape = outputs <= inputs, (min(outputs, inputs),) * 2
        grid = [sizes[axis] for axis in others] or [1]
        self.sizes, self.index = grid, half_grid(grid, twist or (0,)).to(conv.weight.device)
        self.dtype = torch.complex128 if others else torch.float64
        self.inexact = self._absolute * conv.relative_error
        self.count = conv.groups * len(self.index)

    @property
    def _absolute(self) -> float:
        """Bound of the norm of the map of absolute values: the sum over the exact taps of those of each."""
        sums = self.symbols.taps
        total = sum(phase.weights.abs().sum(1) for phase in sums) if sums else torch.zeros(1)
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
        for place, number in enumerate(numbers.tolist()):
            frequency, group = divmod(number, self.conv.groups)
            symbol = self.symbols.symbols(self.index[frequency : frequency + 1], self.sizes)[0, group]
            symbol = symbol if self.dtype.is_complex else symbol.real
            self._add_products(symbol.reshape(self.out, len(self.taps), -1).transpose(0, 1), out[place])

    def _add_products(self, blocks: torch.Tensor, out: torch.Tensor) -> None:
        """Each product of two taps, where two positions meet through them."""
        positions = self.conv.output_size if self.rows else self.conv.input_size
        number = math.prod(positions[axis] for axis in self.exact)
        width = len(out) // number
        square = out.zero_().view(number, width, number, width)
        for (k, a), (j, b) in itertools.product(enumerate(self.taps), repeat=2):
            pairs = self._meetings(a, b)
            if pairs:
                product = blocks[k] @ blocks[j].mH if self.rows else blocks[k].mH @ blocks[j]
                first, second = torch.tensor(pairs, device=out.device).T
                square[first, :, second, :] += product

    def _meetings(self, a: tuple[int, ...], b: tuple[int, ...]) -> list[tuple[int, int]]:
        """The pairs of positions (numbered over the exact axes) that taps a and b bring together."""
        pairs = [(0, 0)]
        for axis, first, second in zip(self.exact, a, b, strict=True):
            n, m = self.conv.input_size[axis], self.conv.output_size[axis]
            s, d, p = self.conv.stride[axis], self.conv.dilation[axis], self.conv.padding[axis][0]
            reads = [(i, s * i + d * first - p) for i in range(m)]
            if self.rows:  # outputs i, i' that read the entry x
                met = [(i, (x + p - d * second) // s) for i, x in reads if 0 <= x < n and (x + p - d * second) % s == 0]
                met, count = [(i, j) for i, j in met if 0 <= j < m], m
            else:  # inputs x, x' of the output i
                met = [(x, s * i + d * second - p) for i, x in reads]
                met, count = [(x, y) for x, y in met if 0 <= x < n and 0 <= y < n], n
            pairs = [(i * count + x, j * count + y) for i, j in pairs for x, y in met]
        return pairs
