"""Layers whose norm is known: the bound is that number, to nine digits, and never less."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import layer, truth

from lipaudit import conv_norm, dense_norm
from lipaudit.errors import LipauditError
from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.methods import CONV_METHODS


def _orthogonal(n: int, seed: int = 0) -> torch.Tensor:
    matrix = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(matrix)[0]


def _orthogonal_kernel(channels: int) -> torch.Tensor:
    """A 2x2 kernel, orthogonal on a circle: shifts of orthogonal subspaces, after Xiao et al. 2018."""
    kernel = torch.zeros(channels, channels, 2, 2, dtype=torch.float64)
    halves = []
    for seed in (1, 2):
        q = _orthogonal(channels, seed)[:, : channels // 2]
        halves.append(q @ q.T)
    rest = [torch.eye(channels, dtype=torch.float64) - half for half in halves]
    for i, first in enumerate((halves[0], rest[0])):
        for j, second in enumerate((halves[1], rest[1])):
            kernel[:, :, i, j] = first @ second
    return kernel


def _hadamard(n: int) -> torch.Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(n)


DIRAC = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
torch.nn.init.dirac_(DIRAC)
PERMUTATION = torch.eye(5, dtype=torch.float64)[torch.tensor([3, 0, 4, 1, 2])]
KNOWN = {
    "delta": (DIRAC, {"padding": 1}, 1.0),
    "permutation of channels": (PERMUTATION[:, :, None, None], {}, 1.0),
    "orthogonal 1x1": (_orthogonal(6)[:, :, None, None], {}, 1.0),
    "hadamard 1x1": (_hadamard(8)[:, :, None, None], {}, 1.0),
    "orthogonal kernel, circular": (_orthogonal_kernel(6), {"padding": 1, "padding_mode": "circular"}, None),
    "average of disjoint windows": (torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64), {"stride": 2}, 0.5),
    "depthwise averages": (torch.full((4, 1, 3, 3), 1 / 9, dtype=torch.float64), {"stride": 3, "groups": 4}, 1 / 3),
    "space to depth": (torch.eye(4, dtype=torch.float64).reshape(4, 1, 2, 2), {"stride": 2}, 1.0),
}


@pytest.mark.parametrize("method", ["best", "torus", "tight", "all"])
@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name: str, method: str) -> None:
    weight, settings, norm = KNOWN[name]
    bound = conv_norm(weight, input_size=(6, 6), method=method, **settings).value
    if norm is None:  # the border of an even kernel is not circular of the same size: copies
        norm = truth(Conv(weight, (6, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "circular"))
        assert norm <= bound <= 2 * norm
    else:
        assert norm * (1 - 1e-15) <= bound <= norm * (1 + 1e-9)


def test_orthogonal_kernels_have_norm_one_on_the_torus() -> None:
    bound = conv_norm(_orthogonal_kernel(6), input_size=(40, 40), padding=1)
    assert bound.value * (1 + 1e-12) >= 1.0
    assert bound.value <= 1 + 1e-9


@pytest.mark.parametrize("matrix", [torch.eye(7), PERMUTATION, _hadamard(16), _orthogonal(9)])
def test_dense_isometries(matrix: torch.Tensor) -> None:
    assert 1 - 1e-15 <= dense_norm(matrix).value <= 1 + 1e-9


def test_overlapping_averages_are_above_those_without() -> None:
    average = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
    assert 1 / 3 < conv_norm(average, input_size=(9, 9)).value <= 1.0


@pytest.mark.parametrize("method", [*CONV_METHODS, "best"])
@pytest.mark.parametrize("power", [-20, 20])
def test_powers_of_two_scale_exactly(method: str, power: int) -> None:
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = conv_norm(weight, input_size=(5, 4), padding=1, method=method).value
    assert conv_norm(weight * 2.0**power, input_size=(5, 4), padding=1, method=method).value == norm * 2.0**power


def test_an_adjoint_has_the_same_norm() -> None:
    """Channels swapped and taps turned around: the transposed convolution, of stride 1 and the same border."""
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = weight.transpose(0, 1).flip(2, 3).contiguous()
    first = conv_norm(weight, input_size=(5, 4), padding=1).value
    assert conv_norm(turned, input_size=(5, 4), padding=1).value == pytest.approx(first, rel=1e-8)


def test_flushed_denormals_are_refused() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    try:
        with pytest.raises(LipauditError, match="flush"):
            dense_norm(torch.eye(2))
    finally:
        torch.set_flush_denormal(False)


def test_bordering_ones_is_exact_in_tight_mode() -> None:
    conv = layer([[[1.0, 1, 1]]], (5,), padding=1)
    assert conv_norm(conv.weight, input_size=(5,), padding=1, method="tight").value == pytest.approx(
        1 + 2 * math.cos(math.pi / 6), rel=1e-8
    )
