"""The largest eigenvalue of a batch of Gram matrices: guessed cheaply, then proved by Cholesky.

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

import functools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

from lipaudit.rounding import TINY, UNIT, gamma, up

_CHUNK_BYTES, _CHUNK_BYTES_GPU = 2**25, 2**29
"""Memory of one part of a batch: little enough for the caches of a CPU, enough to keep a GPU busy."""
_ESTIMATE_STEPS = 8
_LARGE_SIDE = 256
_LANCZOS_STEPS = 28
_HUGE_SIDE = 1024
_MOST_STEPS = 400
"""For matrices of a larger side than that, whose eigenvalues take minutes."""
_STRIP = 512


class Batch(Protocol):
    """Gram matrices by number, made part by part into memory that is used again: fresh memory costs more."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., side, side) of what belongs to one number."""

    @property
    def dtype(self) -> torch.dtype: ...

    def fill(self, numbers: torch.Tensor, out: torch.Tensor) -> None:
        """Write the matrices of those numbers into `out`, (numbers, *shape)."""


def largest_singular_value(matrices: torch.Tensor) -> float:
    """Upper bound of max_f ||A_f||_2 over a batch (count, rows, columns), rounding included.

    Entries of moderate size are expected (the caller scales them), float64 or complex128. Raises `ValueError` for
    NaN or inf.
    """
    count, rows, columns = matrices.shape
    side, inner = min(rows, columns), max(rows, columns)
    if count == 0 or side == 0:
        return 0.0
    squares = torch.linalg.vector_norm(matrices, dim=(1, 2)).square()
    largest_square = float(squares.max()) * (1 + 2 * gamma(rows * columns + 8))
    if not math.isfinite(largest_square):
        raise ValueError("expected finite matrices, got NaN or inf")

    if largest_square == 0.0:
        return 0.0
    rho = prove(_Products(matrices), squares.argsort(descending=True))
    words = 2 if matrices.is_complex() else 1
    error = 1.5 * gamma(words * inner + 2) * largest_square * (1 + 1e-6) + proof_error(side, rho)
    return up(math.sqrt((rho + error) * (1 + 4 * UNIT))) + TINY


def proof_error(side: int, rho: float) -> float:
    """How far eigenvalues may be above rho although Cholesky of rho I - G ran to completion."""
    return 2.1 * UNIT * rho + 1.5 * gamma(2 * (side + 2)) * 1.001 * side * rho


def prove(batch: Batch, numbers: torch.Tensor, rho: float = 0.0) -> float:
    """The least rho >= the given one, up to 1e-10, for which Cholesky of rho I - G completes for all `numbers`.

    Quick if the largest come first: where the proof fails, the eigenvalue of the first that failed is the next rho.
    """
    slack, tries = 1e-10, 60 + len(numbers)
    if rho == 0.0:  # a positive start, so that only zero matrices pass with zero
        rho = max(largest_eigenvalue(batch, numbers[:1], quickly=True) * (1 + slack), TINY)
    while len(numbers) and tries:
        numbers = numbers[~holds(batch, numbers, rho)]
        if len(numbers):
            exact = largest_eigenvalue(batch, numbers[:1])
            slack = slack if exact > rho else 4 * slack  # a failure by rounding alone
            rho, tries = max(exact, rho) * (1 + slack), tries - 1
    if not tries:
        raise ValueError("expected a Cholesky proof of the norm, got none: the matrices are not finite")
    return rho


def holds(batch: Batch, numbers: torch.Tensor, rho: float) -> torch.Tensor:
    """For each number, whether Cholesky of rho I - G completes (of side 1: whether G <= rho)."""

    def completes(chosen: torch.Tensor) -> torch.Tensor:
        gram, factor, info = _memory(len(chosen), batch, chosen.device)
        batch.fill(chosen, gram)
        if gram.shape[-1] == 1:
            return (gram.real <= rho).flatten(1).all(1)
        gram.neg_().diagonal(dim1=-2, dim2=-1).add_(rho)
        torch.linalg.cholesky_ex(gram, out=(factor, info))
        # A factor that is not finite would prove nothing; every row ends in its diagonal entry, which it would reach.
        complete = (info == 0) & torch.isfinite(factor.diagonal(dim1=-2, dim2=-1).real.sum(-1))
        return complete.flatten(1).all(1) if complete.ndim > 1 else complete

    on_cpu = numbers.device.type == "cpu"
    largest = max(1, (_CHUNK_BYTES if on_cpu else _CHUNK_BYTES_GPU) // (16 * math.prod(batch.shape)))
    workers = torch.get_num_threads() if on_cpu else 1
    rounds = -(-len(numbers) // (largest * workers))
    parts = numbers.chunk(max(1, rounds * workers))  # of one size, so that all workers end together
    if workers == 1 or len(numbers) <= 1:
        return torch.cat([completes(part) for part in parts])
    # LAPACK factorises the matrices of a batch one after the other in one thread, so the parts go to several.
    done = torch.cat(list(_pool(workers).map(completes, parts)))
    torch.set_num_threads(workers)  # what the workers set is also the default of threads to come
    return done


def factor_flops(side: int, real: bool) -> float:
    """The cost of a Cholesky factorisation in operations of a fast matrix product: small ones are slow."""
    return (1.0 if real else 4.0) * (side**3 / 3 + 80.0 * side**2)


def eigenvalue_flops(side: int, real: bool, *, quickly: bool) -> float:
    """The same of `largest_eigenvalue` of one matrix."""
    if quickly and side >= _LARGE_SIDE:
        return _LANCZOS_STEPS * (20.0 if real else 40.0) * side**2 + 3e7
    return 6 * factor_flops(side, real) + 4e4


def largest_eigenvalue(batch: Batch, numbers: torch.Tensor, *, quickly: bool = False) -> float:
    """About the largest eigenvalue of the matrices of those numbers; `quickly`: or one below it. Proves nothing."""
    gram = torch.empty(len(numbers), *batch.shape, dtype=batch.dtype, device=numbers.device)
    batch.fill(numbers, gram)
    if quickly and gram.shape[-1] >= _LARGE_SIDE:
        found = [_by_lanczos(matrix) for matrix in gram.flatten(0, -3)]
        if all(value is not None for value in found):
            return max(value for value in found if value is not None)
    return float(torch.linalg.eigvalsh(gram)[..., -1].max())


def _by_lanczos(gram: torch.Tensor) -> float | None:
    """An eigenvalue near the top, by Lanczos iteration kept orthogonal; None if it takes too many steps."""
    huge = len(gram) > _HUGE_SIDE
    # An eigenvalue errs by the square of the residual over the gap: 1e-7 is plenty where few steps are not the point.
    steps, small = (_MOST_STEPS, 1e-7) if huge else (_LANCZOS_STEPS, 1e-10)
    basis = gram.new_empty(steps + 1, len(gram))
    basis[0] = _start(len(gram), gram[None])[0, :, 0]
    basis[0] /= torch.linalg.vector_norm(basis[0])
    tridiagonal = torch.zeros(steps + 1, steps + 1, dtype=torch.float64)
    for step in range(steps):
        new = gram @ basis[step]
        tridiagonal[step, step] = float(torch.vdot(basis[step], new).real)
        for _ in range(2):  # twice is enough
            new -= (basis[: step + 1].conj() @ new) @ basis[: step + 1]
        beta = float(torch.linalg.vector_norm(new))
        if step % 4 == 3 or beta == 0.0:
            values, vectors = torch.linalg.eigh(tridiagonal[: step + 1, : step + 1])
            if beta * float(vectors[-1, -1].abs()) <= small * float(values[-1]):
                return float(values[-1])
        basis[step + 1] = new / beta
        tridiagonal[step, step + 1] = tridiagonal[step + 1, step] = beta
    return None


class _Products:
    """The smaller Gram matrices of matrices (count, rows, columns)."""

    def __init__(self, matrices: torch.Tensor) -> None:
        self.matrices, self.dtype = matrices, matrices.dtype
        self.shape = (min(matrices.shape[1:]),) * 2
        self.only = self._products(matrices) if len(matrices) == 1 else None  # made once, for the guess and the proof

    def fill(self, numbers: torch.Tensor, out: torch.Tensor) -> None:
        if self.only is None:
            self._products(self.matrices[numbers], out)
        else:
            out.copy_(self.only[numbers])

    def _products(self, a: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        a = a if a.shape[1] <= a.shape[2] else a.mH
        if a.shape[1] <= _HUGE_SIDE:
            return torch.matmul(a, a.mH, out=out)
        # Half of a Hermitian matrix is enough: a strip of columns from the diagonal on, and its mirror image.
        out = a.new_empty(len(a), *self.shape) if out is None else out
        for first in range(0, a.shape[1], _STRIP):
            strip = a[:, first:] @ a[:, first : first + _STRIP].mH
            out[:, first:, first : first + _STRIP] = strip
            out[:, first : first + _STRIP, first:] = strip.mH
        return out


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that keep their memory."""
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
_LOCAL = threading.local()


def _memory(count: int, batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Room for so many matrices and, column by column as LAPACK has them, for their factors."""
    shape, kind = (count, *batch.shape), (batch.shape, batch.dtype, device)
    if getattr(_LOCAL, "kind", None) != kind or len(_LOCAL.room[0]) < count:
        with torch.inference_mode(False):  # what is made inside cannot be written to outside
            _LOCAL.kind, _LOCAL.room = kind, [torch.empty(shape, dtype=batch.dtype, device=device) for _ in range(2)]
    gram, factor = (room[:count] for room in _LOCAL.room)
    return gram, factor.mT, torch.empty(shape[:-2], dtype=torch.int32, device=device)


def estimate(matrices: Callable[[slice], torch.Tensor], count: int, shape: tuple[int, int]) -> float:
    """About max_f ||A_f||_2, cheaply: power iteration in single precision, without Gram matrices. Proves nothing."""
    step = max(1, 2**28 // (16 * shape[0] * shape[1]))
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
