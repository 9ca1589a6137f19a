"""The cell-by-cell norm on the lattice, against fine grids of frequencies."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from oracles import convolutions, layer, truth
from oracles import lattice_norm as on_a_grid

from lipaudit.norms import frequency_cells, torus
from lipaudit.norms.frequency_cells import lattice_norm
from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.power_iteration import landscape
from lipaudit.norms.symbol import GramMatrices, Symbols


@settings(max_examples=60, deadline=None)
@given(convolutions(modes=("zeros",)))
def test_never_below_any_frequency_nor_the_dense_norm(conv: Conv) -> None:
    bound = lattice_norm(conv, most=20_000)
    if bound is not None:
        assert bound >= truth(conv)
        assert bound * (1 + 1e-12) >= on_a_grid(conv)


@pytest.mark.parametrize("wrong", [0.3, 0.9, 1.0])
def test_close_to_the_largest_frequency_wherever_the_search_begins(
    monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    torch.manual_seed(0)
    conv = Conv(torch.randn(6, 5, 3, 4).double(), (64, 64), (1, 1), ((1, 1), (1, 1)), (1, 1))
    search = frequency_cells._peak
    monkeypatch.setattr(frequency_cells, "_peak", lambda *where: wrong * search(*where))
    assert on_a_grid(conv, 256) <= lattice_norm(conv, most=10_000) <= on_a_grid(conv, 256) * 1.001


@pytest.mark.parametrize("size", [(2,), (3,), (5,), (2, 2), (3, 3), (1, 4), (2, 2, 2)])
def test_a_peak_between_cells_is_not_missed(monkeypatch: pytest.MonkeyPatch, size: tuple[int, ...]) -> None:
    """The symbol of a constant kernel falls off as fast as any, from a corner where cells meet."""
    ones = torch.ones(1, 1, *size, dtype=torch.float64)
    axes = len(size)
    conv = Conv(ones, (64,) * axes, (1,) * axes, ((0, 0),) * axes, (1,) * axes)
    peak = (ones.numel() * 2.0 ** -Symbols(conv).exponent) ** 2
    for guess in torch.linspace(0.6, 1.0, 41).tolist():
        monkeypatch.setattr(frequency_cells, "_peak", lambda *_, g=guess: g * peak)
        assert lattice_norm(conv, most=100_000) >= ones.numel()


def test_a_symbol_of_constant_norm_takes_too_many_cells() -> None:
    conv = layer([[[[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]]], (64, 64), padding=1)
    assert lattice_norm(conv, most=2000) is None
    assert torus.torus_bound(conv).value == pytest.approx(1.0, rel=1e-9)


def test_large_maps_are_bounded_cell_by_cell() -> None:
    torch.manual_seed(0)
    conv = Conv(torch.randn(4, 4, 3, 3).double(), (64, 64), (1, 1), ((1, 1), (1, 1)), (1, 1))
    bound = torus.torus_bound(conv)
    assert "cell by cell" in bound.because
    assert bound.value <= 1.002 * on_a_grid(conv, 130)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(3, 4, 3, 3), (8, 3, 3, 2), (2, 2, 1, 5)])
def test_gram_matrices_from_the_autocorrelation(shape: tuple[int, ...], stride: int) -> None:
    """Made without any symbol, they are those of the symbols."""
    torch.manual_seed(0)
    conv = Conv(torch.randn(shape).double(), (16, 16), (stride, stride), ((1, 1), (1, 1)), (1, 2))
    symbols = Symbols(conv)
    index = symbols.index((16, 12), (0, 1))
    batch = GramMatrices(symbols, index, (16, 12))
    assert not batch.direct
    gram = torch.empty(len(index), *batch.shape, dtype=batch.dtype)
    batch.fill(torch.arange(len(index)), gram)
    f = symbols.symbols(index, (16, 12))
    exact = f @ f.mH if symbols.out <= symbols.columns else f.mH @ f
    assert torch.linalg.matrix_norm(gram - exact, ord=2).max() <= symbols.gram_error


def test_the_landscape_shows_where_the_symbol_is_large() -> None:
    torch.manual_seed(0)
    conv = Conv(torch.rand(4, 3, 3, 3).double() * 1e200, (8, 8), (2, 2), ((1, 1), (1, 1)), (1, 1))
    heights = landscape(conv, (8, 8), steps=6)[0]
    symbols = Symbols(conv)
    index = torch.cartesian_prod(torch.arange(0, 16, 2), torch.arange(0, 16, 2))
    norms = torch.linalg.matrix_norm(symbols.symbols(index, (8, 8))[:, 0], ord=2).reshape(8, 8)
    assert int(heights.argmax()) == int(norms.argmax()) == 0
    assert math.isclose(float(heights.max()), symbols.unscale(float(norms.max())), rel_tol=1e-4)


@pytest.mark.parametrize(("out", "groups"), [(6, 1), (12, 3), (40, 1)])
def test_the_landscape_is_the_norm_where_channels_are_few_and_close_where_many(out: int, groups: int) -> None:
    torch.manual_seed(1)
    conv = Conv(torch.randn(out, 12, 3, 2).double(), (9, 7), (1, 1), ((1, 1), (1, 0)), (1, 1), groups)
    heights = landscape(conv, (9, 7), steps=12)
    symbols = Symbols(conv)
    index = torch.cartesian_prod(torch.arange(0, 18, 2), torch.arange(0, 14, 2))
    norms = torch.linalg.matrix_norm(symbols.symbols(index, (9, 7)), ord=2).T.reshape(groups, 9, 7)
    ratio = heights / (norms * 2.0**symbols.exponent)
    assert ratio.max() <= 1 + 1e-5
    assert ratio.min() >= (1 - 1e-4 if out < 40 else 0.97)
