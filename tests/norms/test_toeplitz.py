"""Grid bounds against what the symbol does between the grid points."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import convolutions, lattice_norm, layer

from lipaudit.norms import lipgrid
from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.lipgrid import lipgrid_bound, riesz_bound
from lipaudit.norms.torus import torus_bound


@pytest.fixture
def coarse_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only as many points as the kernel needs, so that the factor has to carry the bound."""
    monkeypatch.setattr(lipgrid, "POINTS", 1)


@pytest.mark.usefixtures("coarse_grid")
def test_never_below_the_lattice() -> None:
    @settings(max_examples=80, deadline=None)
    @given(convolutions(modes=("zeros",)))
    def holds(conv: Conv) -> None:
        exact = lattice_norm(conv, 61 if len(conv.stride) < 3 else 9)
        assert riesz_bound(conv).value >= exact
        assert lipgrid_bound(conv).value >= exact

    holds()


@pytest.mark.usefixtures("coarse_grid")
@pytest.mark.parametrize("taps", [2, 3, 4, 7])
def test_a_peak_between_the_grid_points_needs_the_factor(taps: int) -> None:
    # A pure wave of the highest frequency, one tap at each end: |symbol| = |1 + exp(i t (k - 1))| times a turn.
    at = st.integers(0, 1000)

    @settings(max_examples=30, deadline=None)
    @given(at)
    def holds(turn: int) -> None:
        angle = torch.arange(taps, dtype=torch.float64) * (2 * math.pi * turn / 1000)
        # cos and sin as two output channels: the symbol's norm peaks where the wave does
        conv = Conv(torch.stack([angle.cos(), angle.sin()])[:, None], (50,), (1,), ((0, 0),), (1,))
        exact = lattice_norm(conv, 1000)
        assert riesz_bound(conv).value >= exact
        assert lipgrid_bound(conv).value >= exact

    holds()


def test_lipgrid_is_the_frobenius_norm_on_the_grid_with_the_published_factor() -> None:
    torch.manual_seed(0)
    conv = Conv(torch.randn(4, 3, 3, 3).double(), (8, 8), (1, 1), ((1, 1), (1, 1)), (1, 1))
    symbol = torch.fft.fft2(conv.weight, s=(16, 16))
    frobenius = float(symbol.abs().square().sum((0, 1)).max().sqrt())
    alpha = 1 / (1 - 2 * 1 / 16)  # degree 1 on 16 points, in two dimensions

    assert lipgrid_bound(conv).value == pytest.approx(alpha * frobenius, rel=1e-9)
    assert riesz_bound(conv).value < lipgrid_bound(conv).value


def test_close_to_the_torus_on_large_maps() -> None:
    torch.manual_seed(0)
    conv = Conv(torch.randn(6, 5, 3, 3).double(), (40, 40), (1, 1), ((1, 1), (1, 1)), (1, 1))
    assert 0.999 * torus_bound(conv).value <= riesz_bound(conv).value <= 1.05 * torus_bound(conv).value


def test_a_grid_that_avoids_the_peak_of_a_positive_kernel_wins() -> None:
    peak_at_zero = layer([[[1.0, 2.0, 1.0]]], (100,), padding=1)
    factor = 1 / math.cos(math.pi / 16)
    assert riesz_bound(peak_at_zero).value < 4 * factor * 0.999


def test_the_input_size_does_not_matter() -> None:
    small, large = (layer([[[1.0, 2.0, -1.0]]], (n,), padding=1) for n in (4, 400))
    assert riesz_bound(small).value == riesz_bound(large).value
    assert lipgrid_bound(small).value == lipgrid_bound(large).value
