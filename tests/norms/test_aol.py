"""The almost-orthogonal bound: exact where layers are orthogonal, its weighting never worse than the plain sums."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import convolutions, exact_norm, lattice_norm

from lipaudit import conv_norm, dense_norm, nn
from lipaudit.norms import aol
from lipaudit.norms.aol import aol_bound, aol_plain_bound, perron
from lipaudit.norms.lattice import kernel
from lipaudit.norms.linear_maps import Conv


@settings(max_examples=80, deadline=None)
@given(convolutions(modes=("zeros",)))
def test_never_below_the_lattice_and_weights_only_help(conv: Conv) -> None:
    weighted, plain = aol_bound(conv).value, aol_plain_bound(conv).value
    assert lattice_norm(conv, 16 if len(conv.stride) < 3 else 6) <= weighted <= plain * (1 + 1e-12)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_dense_never_below_forty_digits(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for method in ("aol", "aol-plain"):
        assert dense_norm(matrix, method=method).value >= exact_norm(matrix)


def test_the_published_sums() -> None:
    # out 1, in 2, taps 2: |A A^T| has 1 + 4 + 0.25 + 1 at shift 0 and |-2 + 0.5| at shifts 1 and -1.
    kernel = torch.tensor([[[1.0, -2.0], [0.5, 1.0]]], dtype=torch.float64)
    for weight in (kernel, kernel.transpose(0, 1)):
        assert conv_norm(weight, input_size=(9,), method="aol-plain").value ** 2 == pytest.approx(6.25 + 2 * 1.5)


def test_orthogonal_layers_and_layers_made_almost_orthogonal() -> None:
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    permutation = torch.eye(5, dtype=torch.float64)[[2, 0, 4, 1, 3]]
    dirac = torch.nn.init.dirac_(torch.zeros(3, 3, 3, 3))
    trained = nn.AOLConv2d(4, 6, 3, padding=1, stride=2)
    torch.nn.init.normal_(trained.parametrizations.weight.original)
    with torch.no_grad():
        rescaled = conv_norm(trained.weight, input_size=(8, 8), padding=1, stride=2, method="aol").value

    assert 1 <= dense_norm(q, method="aol").value <= 1 + 1e-9
    assert 1 <= dense_norm(permutation, method="aol").value <= 1 + 1e-12
    assert 1 <= conv_norm(dirac, input_size=(5, 5), padding=1, method="aol").value <= 1 + 1e-12
    assert 0.8 <= rescaled <= 1.0  # with weights: the plain sums of the rescaled kernel exceed one


def test_groups_are_a_maximum_and_the_better_side_is_taken_in_each() -> None:
    q, _ = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    columns = torch.nn.functional.pad(q, (0, 3))  # orthonormal: exact from A^T A alone
    blocks = [columns, columns.T, 0.5 * columns]
    one = conv_norm(columns[..., None], input_size=(3,), method="aol").value
    all_three = conv_norm(torch.cat(blocks)[..., None], input_size=(3,), groups=3, method="aol").value

    assert float(torch.linalg.eigvalsh((q @ q.T).abs())[-1]) > 1.1
    assert 1 <= one <= 1 + 1e-9
    assert 1 <= all_three <= 1 + 1e-9


@pytest.mark.parametrize("entry", [0.1, 0.3, 0.7, 1 / 3])
def test_sums_that_round_one_way(entry: float) -> None:
    """The many roundings of a long sum of equal terms add up instead of cancelling."""
    row = torch.full((1, 30001), entry, dtype=torch.float64)
    assert Fraction(dense_norm(row, method="aol").value) ** 2 >= 30001 * Fraction(entry) ** 2


def test_weighting_ends_at_the_spectral_radius_also_of_reducible_matrices() -> None:
    torch.manual_seed(0)
    positive = torch.rand(3, 5, 5, dtype=torch.float64)
    reducible = torch.block_diag(torch.tensor([[1.0, 3], [3, 1]]), torch.tensor([[2.0]]), torch.zeros(2, 2)).double()
    batch = torch.cat([positive + positive.mT, reducible[None], torch.zeros(1, 5, 5, dtype=torch.float64)])
    radius = torch.linalg.eigvalsh(batch)[:, -1]
    bound = perron(batch, 60)

    assert bool((bound >= radius * (1 - 1e-14)).all())
    torch.testing.assert_close(bound, radius, rtol=1e-6, atol=1e-6)


def test_one_side_is_enough_when_two_cost_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv = Conv(torch.randn(2, 5, 3).double(), (9,), (2,), ((1, 1),), (1,))
    both = aol_bound(conv)
    monkeypatch.setattr(aol, "BUDGET", 0.0)
    one = aol_bound(conv)

    assert "2 side" in both.because
    assert "1 side" in one.because
    assert lattice_norm(conv) <= both.value <= one.value
    assert kernel(conv).taps.shape == (1, 2, 10, 2)
