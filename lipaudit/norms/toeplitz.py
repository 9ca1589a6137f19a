"""Grid bounds: the symbol on a few frequencies, times a factor for what lies between them.

Note [Riesz factor]
    Let k be the number of taps along an axis and p(t) = Re(u^* F(t) v exp(i (k - 1) t / 2)) for unit vectors u, v
    (any phase may be put into u): a real function of exponential type D = (k - 1) / 2. M. Riesz: where such a p
    peaks at M = sup |p|, it stays at least M cos(D t) within t <= pi / D of the peak. The nearest of N equally
    spaced points is at most pi / N away, so the largest value on them, wherever they start, is at least
    M cos(pi (k - 1) / (2 N)) if N > k - 1. Axis by axis, with u, v of the true peak,
        sup ||F|| <= max over the grid of ||F|| / product over the axes of cos(pi (k - 1) / (2 N)).
    The grid does not depend on the image, nor does the bound: it is one of the norm on the lattice.

Note [LipGrid factor]
    The published factor is 1 / sqrt(1 - (k - 1) / N) per axis. For N >= 2 (k - 1) it is not smaller than the one
    above, since cos(pi x / 2)^2 = (1 + cos(pi x)) / 2 >= 1 - x on [0, 1/2]; this proves it for even kernels too.

Source: A. Araujo et al., On Lipschitz Regularization of Convolutional Layers using Toeplitz Matrix Theory, AAAI 2021
(arXiv 2006.08391); the sharper factor is our own. Their Frobenius norm costs up to sqrt(channels); the spectral does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch

from lipaudit.norms.lattice import reduced
from lipaudit.norms.maps import Conv
from lipaudit.norms.torus import _Symbols
from lipaudit.results import Upper
from lipaudit.rounding import TINY, gamma, up

POINTS = 16
"""Grid points per axis, unless the kernel needs more: a factor of 1.04 for 3x3 kernels."""
_CHUNK_ENTRIES = 2**22


def riesz_bound(conv: Conv) -> Upper:
    """||conv|| <= the largest symbol norm on a grid / product of cos(pi (k - 1) / (2 N)), for any input size."""
    conv, copies = reduced(conv)
    points, factor = _grid(conv), 1.0
    for k, n in zip(_taps(conv), points, strict=True):
        factor = up(factor / (math.cos(math.pi * (k - 1) / (2 * n)) * (1 - 1e-15)))
    symbols = _Symbols(conv)
    # Every shift of the grid gives a bound, so only the one that promises to be the smallest is proved.
    parities = itertools.product((0, 1), repeat=len(points))
    best = min(parities, key=lambda parity: symbols.estimate(points, parity))
    norm = symbols.largest_norm(points, best)
    because = f"largest symbol norm on a grid of {_spell(points)}, times {factor:.4f} for what lies between"
    return Upper(_product(norm, factor, copies), "riesz-grid", because)


def lipgrid_bound(conv: Conv) -> Upper:
    """||conv|| <= the largest Frobenius norm of the symbol on a grid / root of the product of 1 - (k - 1) / N."""
    conv, copies = reduced(conv)
    points, factor = _grid(conv), 1.0
    for k, n in zip(_taps(conv), points, strict=True):
        factor = up(factor / (math.sqrt(1 - (k - 1) / n) * (1 - 1e-15)))
    symbols = _Symbols(conv)
    square = 0.0
    if not symbols.zero:
        for part in symbol_parts(symbols, points, (0,) * len(points)):
            entries = torch.view_as_real(part).flatten(1)
            square = max(square, float(entries.square().sum(1).max()) * (1 + 2 * gamma(entries.shape[1] + 2)))
    because = f"largest Frobenius norm of the symbol on a grid of {_spell(points)}, times {factor:.4f}"
    norm = scaled_back(symbols, up(math.sqrt(square + TINY)))
    return Upper(_product(norm, factor, copies), "lipgrid", because)


def riesz_flops(conv: Conv) -> float:
    """Cost of a Gram matrix and a Cholesky factor at each frequency."""
    conv, _ = reduced(conv)
    side, inner = sorted(_shape(conv))
    return _frequencies(conv) * 8.0 * (side * side * inner + side**3)


def lipgrid_flops(conv: Conv) -> float:
    """Cost of the symbol at each frequency."""
    conv, _ = reduced(conv)
    return _frequencies(conv) * 4.0 * math.prod(_shape(conv)) * math.prod(_taps(conv))


def symbol_parts(symbols: _Symbols, sizes: Sequence[int], parity: Sequence[int]) -> Iterator[torch.Tensor]:
    """The symbols of all groups and frequencies, so many at a time: complex (number, out, inputs)."""
    index = symbols._index(sizes, parity)
    count = symbols.groups * len(index)
    step = max(1, _CHUNK_ENTRIES // (symbols.out * symbols.inputs * len(symbols.taps)))
    for first in range(0, count, step):
        yield symbols._batch(index, sizes, slice(first, min(first + step, count)))


def scaled_back(symbols: _Symbols, norm: float) -> float:
    """From a bound for the computed symbols to one for the exact ones, in the units of the weights."""
    return 0.0 if symbols.zero else up(up(norm + symbols.error) * 2.0**symbols.exponent) + TINY


def _taps(conv: Conv) -> tuple[int, ...]:
    """Taps per axis on the coarse lattice."""
    return tuple(-(-k // s) for k, s in zip(conv.kernel_size, conv.stride, strict=True))


def _grid(conv: Conv) -> tuple[int, ...]:
    return tuple(max(POINTS, 2 * k) for k in _taps(conv))


def _shape(conv: Conv) -> tuple[int, int]:
    """Of the symbol of one group."""
    phases = math.prod(min(s, k) for s, k in zip(conv.stride, conv.kernel_size, strict=True))
    return conv.weight.shape[0] // conv.groups, conv.weight.shape[1] * phases


def _frequencies(conv: Conv) -> float:
    """How many symbols are formed: half of the grid for each group."""
    points = math.prod(n if k > 1 else 1 for k, n in zip(_taps(conv), _grid(conv), strict=True))
    return conv.groups * (points / 2 + 1)


def _product(norm: float, factor: float, copies: int) -> float:
    return up(up(norm * factor) * up(math.sqrt(copies))) if norm else 0.0


def _spell(points: Sequence[int]) -> str:
    return "x".join(map(str, points))
