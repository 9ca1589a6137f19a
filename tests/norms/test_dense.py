"""Dense norms: proved by Cholesky, whatever the guess."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipaudit import dense_norm
from lipaudit.norms import verified_eigenvalues


def exact_norm(matrix: torch.Tensor) -> mpmath.mpf:
    with mpmath.workdps(40):
        return mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False)[0]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    rank=st.integers(1, 7),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-150, 1.0, 1e150]),
)
def test_never_below_forty_digits(rows: int, columns: int, rank: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (rows, columns)]
    matrix = factors[0] @ factors[1].T * scale
    for method in ("svd", "schur"):
        assert mpmath.mpf(dense_norm(matrix, method=method).value) >= exact_norm(matrix)
    assert dense_norm(matrix).value <= float(exact_norm(matrix)) * (1 + 1e-8)


def test_clustered_singular_values_defeat_power_iteration_not_the_proof() -> None:
    q, _ = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert 1.0 <= dense_norm(q * (1 + 1e-15)).value <= 1 + 1e-9


@pytest.mark.parametrize("guess", [0.0, 1e-12, 0.5, 0.999999])
def test_a_wrong_guess_cannot_make_the_bound_wrong(monkeypatch: pytest.MonkeyPatch, guess: float) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(30, 5, 8, dtype=torch.complex128)
    truth = float(torch.linalg.svdvals(matrices).max())
    answers = iter([guess])
    right = verified_eigenvalues.largest_eigenvalue
    monkeypatch.setattr(
        verified_eigenvalues, "largest_eigenvalue", lambda *batch, **how: next(answers, 1.0) * right(*batch, **how)
    )
    assert truth <= verified_eigenvalues.largest_singular_value(matrices) <= truth * (1 + 1e-8)

    monkeypatch.setattr(verified_eigenvalues, "largest_eigenvalue", lambda *batch, **how: guess * right(*batch, **how))
    assert truth <= verified_eigenvalues.largest_singular_value(matrices)


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_of_a_large_batch_agree_with_the_whole(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(50, 4, 3, dtype=torch.complex128)
    whole = verified_eigenvalues.largest_singular_value(matrices)
    before = torch.get_num_threads()
    monkeypatch.setattr(verified_eigenvalues, "_CHUNK_BYTES", 4000)
    try:
        torch.set_num_threads(threads)
        parts = verified_eigenvalues.largest_singular_value(matrices)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)

    assert parts == pytest.approx(whole, rel=1e-9)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="matrix"):
        dense_norm(torch.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        dense_norm(torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="floating-point"):
        dense_norm(torch.zeros(2, 2, dtype=torch.int64))


def test_an_eigenvalue_of_a_large_matrix_is_found_quickly_or_not_at_all() -> None:
    torch.manual_seed(0)
    side = 300
    peaked = torch.randn(side, side, dtype=torch.complex128)
    peaked = peaked @ peaked.mH / side + 20 * torch.eye(side)[:, :1] @ torch.eye(side)[:1]
    flat = torch.diag(torch.linspace(1, 2, side, dtype=torch.complex128))
    found = verified_eigenvalues._by_lanczos(peaked)
    assert found is not None
    assert math.isclose(found, float(torch.linalg.eigvalsh(peaked)[-1]), rel_tol=1e-9)
    assert verified_eigenvalues._by_lanczos(flat) is None
    assert verified_eigenvalues._by_lanczos(torch.eye(side, dtype=torch.complex128)) == pytest.approx(1.0, rel=1e-12)


def test_memory_of_inference_mode_is_not_used_again_outside() -> None:
    matrix = torch.randn(37, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        inside = dense_norm(matrix)
    assert dense_norm(matrix).value == inside.value


@pytest.mark.parametrize("shape", [(70, 90), (90, 70), (64, 64)], ids=str)
def test_a_huge_matrix_in_strips(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    monkeypatch.setattr(verified_eigenvalues, "_LARGE_SIDE", 1)
    monkeypatch.setattr(verified_eigenvalues, "_HUGE_SIDE", 32)
    monkeypatch.setattr(verified_eigenvalues, "_STRIP", 13)
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = float(torch.linalg.svdvals(weight)[0])
    assert exact <= dense_norm(weight).value <= exact * (1 + 1e-9)
    several = torch.stack([weight, 0.5 * weight])
    assert exact <= verified_eigenvalues.largest_singular_value(several) <= exact * (1 + 1e-9)
