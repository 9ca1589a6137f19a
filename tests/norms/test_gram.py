"""Gram iteration with outward rounding: never below, however many iterations and whatever the scale."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import convolutions, exact_norm, lattice_norm, truth

from lipaudit import conv_norm, dense_norm
from lipaudit.norms import gram
from lipaudit.norms.aol import aol_bound
from lipaudit.norms.gram import gram_bound, gram_iteration, gram_lattice_bound, gram_torus_bound
from lipaudit.norms.linear_maps import Conv, Dense
from lipaudit.norms.torus import torus_bound


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def bound(matrix: torch.Tensor, steps: int) -> float:
    return gram_bound(Dense(matrix, (matrix.shape[1],)), steps).value


@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    rank=st.integers(1, 6),
    steps=st.sampled_from([0, 1, 2, 5, 12, 40]),
    exponent=st.sampled_from([-1060, -664, 0, 664]),
    seed=st.integers(0, 10**6),
)
def test_never_below_forty_digits(rows: int, columns: int, rank: int, steps: int, exponent: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (rows, columns))
    matrix = (left @ right.T) * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
    assert bound(matrix, steps) >= exact_norm(matrix)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (64, 64)])
def test_tight_after_twelve_iterations(shape: tuple[int, int]) -> None:
    matrix = rand(*shape)
    assert dense_norm(matrix, method="gram").value <= (1 + 1e-6) * dense_norm(matrix, method="svd").value


def test_more_iterations_never_hurt_and_two_hundred_do_not_overflow() -> None:
    matrix = rand(20, 15)
    bounds = [bound(matrix, steps) for steps in (0, 1, 2, 3, 5, 8, 12, 30, 127, 200)]
    assert all(later <= earlier * (1 + 1e-13) for earlier, later in itertools.pairwise(bounds))
    assert bounds[-1] == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_overshoot_is_a_root_of_the_rank(steps: int) -> None:
    q, _ = torch.linalg.qr(rand(30, 30))  # all singular values alike: the worst case, attained
    assert bound(q, steps) == pytest.approx(30 ** (2.0 ** -(steps + 1)), rel=1e-9)
    assert bound(q, steps) >= 1


def test_a_tiny_weight_is_not_lost_to_an_epsilon() -> None:
    assert bound(torch.tensor([[1e-5]], dtype=torch.float64), 12) >= 1e-5


@pytest.mark.parametrize("entry", [0.1, 0.3, 0.7, 1 / 3])
def test_sums_that_round_one_way(entry: float) -> None:
    """The many roundings of a long sum of equal terms add up instead of cancelling."""
    row = torch.full((1, 30001), entry, dtype=torch.float64)
    for steps in (0, 1, 2):
        assert Fraction(bound(row, steps)) ** 2 >= 30001 * Fraction(entry) ** 2


def test_transposing_changes_nothing() -> None:
    matrix = rand(7, 19)
    assert bound(matrix.T, 6) == pytest.approx(bound(matrix, 6), rel=1e-13)


def test_one_zero_matrix_in_a_batch_does_no_harm() -> None:
    batch = torch.stack([torch.zeros(3, 3), torch.eye(3), torch.full((3, 3), 1e-170)]).to(torch.complex128)
    assert 1 <= gram_iteration(batch, 30) <= 1 + 1e-8


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        gram_iteration(torch.tensor([[[1.0, bad]]], dtype=torch.float64), 3)


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.integers(0, 9))
def test_torus_never_below_the_dense_norm(conv: Conv, steps: int) -> None:
    assert gram_torus_bound(conv, steps).value >= truth(conv)


@settings(max_examples=60, deadline=None)
@given(convolutions(modes=("zeros",)), st.integers(1, 3))
def test_lattice_never_below_the_lattice(conv: Conv, steps: int) -> None:
    exact = lattice_norm(conv, 16 if len(conv.stride) < 3 else 6)
    assert gram_lattice_bound(conv, 1 if len(conv.stride) == 3 else steps).value >= exact


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_torus_agrees_with_the_other_proof(mode: str) -> None:
    conv = Conv(rand(6, 5, 3, 3), (8, 6), (2, 2), ((1, 1), (1, 1)), (1, 1), padding_mode=mode)
    gram_value, cholesky = gram_torus_bound(conv, 12).value, torus_bound(conv).value
    assert gram_value == pytest.approx(cholesky, rel=1e-3)


def test_lattice_iterations_improve_on_the_almost_orthogonal_bound() -> None:
    conv = Conv(rand(8, 6, 3, 3), (30, 30), (1, 1), ((1, 1), (1, 1)), (1, 1))
    bounds = [gram_lattice_bound(conv, steps).value for steps in (1, 2, 3)]

    assert bounds[0] >= aol_bound(conv).value * (1 - 1e-12)
    assert bounds[2] <= bounds[1] <= bounds[0]
    assert lattice_norm(conv) <= bounds[2] <= 1.25 * lattice_norm(conv)


def test_the_smaller_side_is_taken() -> None:
    kernel = rand(16, 2, 3)
    tall = conv_norm(kernel, input_size=(20,), method="gram-lattice").value
    wide = conv_norm(kernel.transpose(0, 1), input_size=(20,), method="gram-lattice").value
    assert tall == pytest.approx(wide, rel=1e-12)


def test_iterations_stop_where_they_cost_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = Conv(rand(4, 4, 3), (9,), (1,), ((1, 1),), (1,))
    assert gram_lattice_bound(conv).because.endswith("3")
    monkeypatch.setattr(gram, "SPARE", gram.gram_lattice_flops(conv))
    assert gram_lattice_bound(conv).because.endswith("2")
    monkeypatch.setattr(gram, "SPARE", 0.0)
    assert gram_lattice_bound(conv).because.endswith("1")
