"""The largest singular value of a batch of matrices: guessed cheaply, then proved by Cholesky.

Note [Guess, then verify]
    ||A||_2^2 <= rho  if and only if  rho I - A A^H is positive semidefinite, and a Cholesky factorisation that
    runs to completion in floating point proves that up to a known error. So any guess of the largest eigenvalue
    will do: a wrong one can only make the factorisation fail, never the bound wrong.
    Source: S. M. Rump, Verified bounds for singular values, BIT 51 (2011) 367-384.

The error terms, for an r x q matrix A with Gram matrix G (r x r), complex entries counted as two real products:
    computing G:            |fl(G) - A A^H| <= sqrt(2) gamma_2q |A| |A|^H, of norm <= sqrt(2) gamma_2q ||A||_F^2
    forming rho I - G:      <= u (rho + max g_ii) <= 2 u rho
    Cholesky:               |R^H R - M| <= sqrt(2) gamma_2(r+2) |R^H| |R|, of norm <= sqrt(2) gamma_2(r+2) tr(M),
                            tr(M) <= r rho
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from lipaudit.rounding import TINY, UNIT, gamma, up

_POWER_STEPS = 24
_ESTIMATE_STEPS = 8
_CANDIDATES = 16
"""How many of the most promising matrices get exact eigenvalues for the guess."""
_CHUNK_BYTES = 256 * 2**20


def largest_singular_value(
    matrices: Callable[[slice], torch.Tensor], count: int, shape: tuple[int, int], complex_: bool
) -> float:
    """Upper bound of max_f ||A_f||_2 over `count` matrices of one shape, rounding included.

    `matrices(slice)` returns that part of the batch, float64 or complex128, with entries of moderate size (the
    caller scales them); it is asked for each part once or twice, so that only a part is in memory at a time.
    """
    rows, columns = shape
    side, inner = min(shape), max(shape)
    if count == 0 or side == 0:
        return 0.0
    step = max(1, _CHUNK_BYTES // (16 * (rows * columns + 3 * side * side)))
    chunks = [slice(a, min(a + step, count)) for a in range(0, count, step)]
    grams = _Grams(matrices, rows <= columns, keep=len(chunks) == 1)

    rho = max(_guess(grams(chunk)) for chunk in chunks)
    largest_square = 0.0
    for chunk in chunks:
        gram = grams(chunk)
        if not bool(torch.isfinite(gram).all()):
            raise ValueError("expected finite matrices, got NaN or inf in a Gram matrix")
        trace = gram.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        largest_square = max(largest_square, float(trace.max()))
        rho = _raise_until_proved(gram, rho)
    words = 2 if complex_ else 1
    error = (
        1.5 * gamma(words * inner + 2) * largest_square * (1 + 1e-6)
        + 2.1 * UNIT * rho
        + 1.5 * gamma(words * (side + 2)) * 1.001 * side * rho
    )
    return up(math.sqrt((rho + error) * (1 + 4 * UNIT))) + (TINY if rho else 0.0)


def estimate(matrices: Callable[[slice], torch.Tensor], count: int, shape: tuple[int, int]) -> float:
    """About max_f ||A_f||_2, cheaply: power iteration in single precision, without Gram matrices. Proves nothing."""
    step = max(1, _CHUNK_BYTES // (16 * shape[0] * shape[1]))
    largest = 0.0
    for first in range(0, count, step):
        a = matrices(slice(first, min(first + step, count))).to(torch.complex64)
        transposed = a.mH.resolve_conj()  # once: a product with a lazy conjugate copies it each time
        v = _start(shape[1], a)
        for _ in range(_ESTIMATE_STEPS):
            v = transposed @ (a @ v)
            v = v / v.norm(dim=1, keepdim=True).clamp_min(1e-30)
        largest = max(largest, float((a @ v).norm(dim=1).max()))
    return largest


def _start(side: int, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(side, 1, dtype=torch.float64, generator=generator)
    return start.to(like).expand(len(like), side, 1)


class _Grams:
    """The smaller Gram matrices of a part of the batch; remembered when the batch is a single part."""

    def __init__(self, matrices: Callable[[slice], torch.Tensor], rows_side: bool, keep: bool) -> None:
        self.matrices, self.rows_side, self.keep = matrices, rows_side, keep
        self.kept: torch.Tensor | None = None

    def __call__(self, part: slice) -> torch.Tensor:
        if self.kept is not None:
            return self.kept
        a = self.matrices(part)
        gram = a @ a.mH if self.rows_side else a.mH @ a
        if self.keep:
            self.kept = gram
        return gram


def _guess(gram: torch.Tensor) -> float:
    """An eigenvalue close to the largest of the batch: power iteration picks who gets exact eigenvalues."""
    side = gram.shape[-1]
    if len(gram) > _CANDIDATES and side > 1:
        v = _start(side, gram)
        for _ in range(_POWER_STEPS):
            v = gram @ v
            v = v / v.norm(dim=1, keepdim=True).clamp_min(1e-300)
        quotient = (gram @ v).norm(dim=1).squeeze(-1)
        gram = gram[quotient.topk(_CANDIDATES).indices]
    return float(torch.linalg.eigvalsh(gram)[:, -1].max()) * (1 + 1e-10)


def _raise_until_proved(gram: torch.Tensor, rho: float) -> float:
    """The least rho >= the given one, up to 1e-10, for which Cholesky of rho I - G completes on all of `gram`."""
    if rho == 0.0:  # a positive start, so that only zero matrices pass with zero
        rho = float(torch.linalg.eigvalsh(gram)[:, -1].max())
        if rho <= 0.0 and not bool(gram.any()):
            return 0.0
        rho = max(rho, TINY)
    pending = gram
    for attempt in range(60):
        shifted = -pending
        shifted.diagonal(dim1=-2, dim2=-1).add_(rho)
        factor, info = torch.linalg.cholesky_ex(shifted)
        failed = (info != 0) | ~torch.isfinite(factor.abs().sum((-2, -1)))
        if not bool(failed.any()):
            return rho
        pending = pending[failed]
        exact = float(torch.linalg.eigvalsh(pending)[:, -1].max())
        rho = max(exact, rho) * (1 + 1e-10 * 4.0**attempt)
    raise ValueError("expected a Cholesky proof of the norm, got none: the matrices are not finite")
