"""Gram iteration: repeated squaring, with every rounding error carried back to the norm.

Note [Rigorous Gram iteration]
    B_0 = A and B_{k+1} = fl(B_k B_k^H) 2^-e_k, with e_k such that the entries stay near one (a power of two: exact).
    As || |B| |B|^H ||_F <= ||B||_F^2, the product errs by at most eps_k = gamma(q) f_k^2 in norm, f_k >= ||B_k||_F, so
        ||B_k||^2 <= 2^e_k ||B_{k+1}|| + eps_k.
    From s_t = f_t down to s_0, every operation rounded up, this gives ||A|| <= s_0. The norm is overestimated by at
    most the 2^-(t+1)-th power of the rank, for any t: nothing is accumulated that could overflow.
    Nothing divides by a norm, so zero matrices need no case of their own, and no epsilon is added to any weight.

Note [Gram iteration on the lattice]
    The same with kernels: T_{k+1} = T_k T_k^* 2^-e_k, whose kernel is the autocorrelation of the one before. The error
    of the computed kernel has at most norm gamma(n) w_k^2 with w_k >= || |T_k| ||, and T_t is bounded as in
    Note [Absolute Gram matrix]; t = 1 is that bound. The smaller Gram side is taken, strides are made polyphase,
    groups are kept apart, kernels need not be square.

Source: B. Delattre et al., Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration, ICML 2023
(arXiv 2305.16173), and Spectral Norm of Convolutional Layers with Circular and Zero Paddings, 2024 (arXiv 2402.00240);
the error terms follow J. Tobler, H. Syeda and T. Murray, arXiv 2505.06958, with outward rounding instead of rationals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lipaudit.norms.aol import absolute_square
from lipaudit.norms.lattice import (
    SPARE,
    autocorrelation_error,
    autocorrelation_flops,
    autocorrelation_kernel,
    kernel,
    shape,
    smaller_side,
)
from lipaudit.norms.linear_maps import Conv, Dense
from lipaudit.norms.symbol import Symbols
from lipaudit.norms.torus import best_class, torus
from lipaudit.results.bounds import Upper
from lipaudit.rounding import TINY, gamma, up

DENSE_STEPS = 12
TORUS_STEPS = 7
LATTICE_STEPS = 3
_CHUNK_ENTRIES = 2**22


def gram_bound(dense: Dense, steps: int = DENSE_STEPS) -> Upper:
    """||W|| <= ||W_t||_F^(2^-t) with W_{k+1} = W_k W_k^T, every rounding error carried back."""
    whole = kernel(dense)
    norm = 0.0 if whole.zero else gram_iteration(whole.taps, steps)
    return Upper(whole.upper(norm), "gram", f"{steps} Gram iterations with outward rounding")


def gram_flops(dense: Dense) -> float:
    """Cost of the first product and the squarings."""
    side, inner = sorted(dense.weight.shape)
    return 2.0 * side * side * (inner + DENSE_STEPS * side)


def gram_torus_bound(conv: Conv, steps: int = TORUS_STEPS) -> Upper:
    """||conv|| <= the largest ||F_t||_F^(2^-t) over the frequencies of the twisted torus, F_{k+1} = F_k F_k^H."""
    conv, sizes, copies = torus(conv)
    symbols = Symbols(conv)
    if symbols.zero:
        return Upper(0.0, "gram", "zero kernel")
    index, _ = best_class(symbols, conv, sizes)
    step = max(1, _CHUNK_ENTRIES // (symbols.groups * symbols.out * symbols.columns))
    parts = (symbols.symbols(index[first : first + step], sizes).flatten(0, 1) for first in range(0, len(index), step))
    norm = max(gram_iteration(part, steps) for part in parts)
    value = up(symbols.unscale(up(norm + up(symbols.error + symbols.inexact))) * up(math.sqrt(copies)))
    period = "x".join(str(size * s) for size, s in zip(sizes, conv.stride, strict=True))
    because = f"{steps} Gram iterations with outward rounding at the frequencies of the torus of period {period}"
    return Upper(value, "gram", because)


def gram_torus_flops(conv: Conv) -> float:
    """Cost of the products at half of the frequencies."""
    groups, side, inner, *taps = smaller_side(shape(conv))
    frequencies = math.prod(n for k, n in zip(taps, torus(conv)[1], strict=True) if k > 1) / 2 + 1
    return groups * frequencies * 8.0 * side * side * (inner + TORUS_STEPS * side)


def gram_lattice_bound(conv: Conv, steps: int | None = None) -> Upper:
    """||conv|| <= the absolute sums of the t-th autocorrelation of the kernel, to the power 2^-t, for any input size.

    Without `steps`, t is 3 or 2 if that costs little, else 1, which is the almost-orthogonal bound.
    """
    whole = kernel(conv)
    taps = whole.taps if whole.taps.shape[1] <= whole.taps.shape[2] else whole.taps.transpose(1, 2)
    if steps is None:
        steps = max((t for t in range(2, LATTICE_STEPS + 1) if lattice_flops(taps.shape, t) <= SPARE), default=1)
    norm = 0.0 if whole.zero else _lattice_iteration(taps, steps)
    because = f"weighted absolute sums of the kernel, autocorrelations: {steps}"
    return Upper(whole.upper(norm), "gram-lattice", because)


def gram_lattice_flops(conv: Conv) -> float:
    """Cost of two autocorrelations."""
    return lattice_flops(smaller_side(shape(conv)), 2)


def gram_iteration(matrices: torch.Tensor, steps: int) -> float:
    """Upper bound of the largest spectral norm of the batch (count, rows, columns), real or complex.

    Entries of moderate size are expected (the caller scales them). Raises `ValueError` for NaN or inf.
    See Note [Rigorous Gram iteration].
    """
    if not bool(torch.isfinite(matrices).all()):
        raise ValueError("expected finite matrices, got NaN or inf")
    b = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mH.resolve_conj()
    words = 2 if b.is_complex() else 1
    frobenius = first = _frobenius(b)
    levels = []
    for _ in range(steps):
        error = 1.5 * gamma(words * b.shape[2] + 4) * frobenius.square() + TINY
        product = b @ b.mH.resolve_conj()
        scale = _powers_of_two(product)
        levels.append((scale, error))
        b = product / scale[:, None, None]
        frobenius = _frobenius(b)
    bound = frobenius
    for scale, error in reversed(levels):
        bound = _up(_up(_up(scale * bound) + error).sqrt())
    return float(torch.minimum(bound, first).max())


def _lattice_iteration(taps: torch.Tensor, steps: int) -> float:
    """Bound of the largest norm of the groups on the lattice; see Note [Gram iteration on the lattice]."""
    levels = []
    for _ in range(steps - 1):
        error = _up(autocorrelation_error(taps))
        product = autocorrelation_kernel(taps)
        scale = _powers_of_two(product)
        levels.append((scale, error))
        taps = product / scale.reshape(-1, *(1,) * (taps.ndim - 1))
    bound = _up(absolute_square(taps).sqrt())
    for scale, error in reversed(levels):
        bound = _up(_up(_up(scale * bound) + error).sqrt())
    return float(bound.max())


def lattice_flops(shape: Sequence[int], steps: int) -> float:
    """Cost of so many autocorrelations of taps of this shape."""
    groups, side, inputs, *size = shape
    total = 0.0
    for _ in range(steps):
        total += autocorrelation_flops((groups, side, inputs, *size))
        inputs, size = side, [2 * k - 1 for k in size]
    return total


def _frobenius(matrices: torch.Tensor) -> torch.Tensor:
    """Upper bound of the Frobenius norm of each matrix of the batch."""
    real = torch.view_as_real(matrices) if matrices.is_complex() else matrices
    squares = real.flatten(1).square()
    return _up((squares.sum(1) * (1 + 2 * gamma(squares.shape[1] + 4)) + TINY).sqrt())


def _powers_of_two(batch: torch.Tensor) -> torch.Tensor:
    """For each member of the batch a power of two near its largest entry (one for a zero member)."""
    largest = batch.abs().flatten(1).amax(1).tolist()
    exponents = [min(1000, max(-1000, math.frexp(x)[1])) if x else 0 for x in largest]
    return torch.tensor([2.0**e for e in exponents], dtype=torch.float64, device=batch.device)


def _up(x: torch.Tensor) -> torch.Tensor:
    """The next floats above: rounds the result of one operation outward."""
    return torch.nextafter(x, torch.full_like(x, math.inf))
