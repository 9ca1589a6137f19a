"""Differentiable norms: never below the exact norm, equal to their proved twins, gradients right and finite."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipaudit.errors import RuleError
from lipaudit.nn.differentiable_norms import NORMS, Places, aol_norm, four_norm, gram_iteration, gram_norm, lipgrid_norm
from lipaudit.norms.four_bounds import reshapings
from lipaudit.norms.linear_maps import Conv, dense
from lipaudit.norms.methods import CONV_METHODS


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def as_conv(weight: torch.Tensor, size: int = 7, stride: int = 1, groups: int = 1) -> Conv:
    axes = weight.ndim - 2
    pads = tuple((k // 2, k // 2) for k in weight.shape[2:])
    return Conv(weight, (size,) * axes, (stride,) * axes, pads, (1,) * axes, groups)


@settings(max_examples=60, deadline=None)
@given(
    axes=st.sampled_from([0, 1, 2]),
    stride=st.integers(1, 3),
    groups=st.integers(1, 2),
    taps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 10**6),
)
def test_never_below_the_dense_norm(axes: int, stride: int, groups: int, taps: tuple[int, int], seed: int) -> None:
    weights = rand(2, 2 * groups, 3, *taps[:axes], seed=seed)
    if axes:
        maps = [dense(as_conv(weight, 6, stride, groups)) for weight in weights]
    else:
        maps = [torch.block_diag(*weight.chunk(groups)) for weight in weights]
    exact = torch.stack([torch.linalg.svdvals(matrix)[0] for matrix in maps])
    for name in NORMS:
        norms = NORMS[name](weights, stride=stride, groups=groups)
        assert norms.shape == (2,)
        assert bool((norms >= exact * (1 - 1e-12)).all()), name


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (4, 6, 5), (3, 2, 2, 3), (5, 4, 1, 1)])
def test_twins_of_the_proved_bounds(shape: tuple[int, ...], stride: int) -> None:
    weight = rand(*shape)
    proved = {name: CONV_METHODS[name](as_conv(weight, 9, stride)).value for name in CONV_METHODS}

    assert lipgrid_norm(weight[None], stride=stride).item() == pytest.approx(proved["lipgrid"], rel=1e-9)
    assert aol_norm(weight[None], stride=stride).item() == pytest.approx(proved["aol-plain"], rel=1e-9)
    assert four_norm(weight[None], stride=stride, steps=14).item() == pytest.approx(proved["four-bounds"], rel=1e-4)
    assert gram_norm(weight[None], stride=stride, points=32).item() >= proved["torus"] * 0.99
    assert gram_norm(weight[None], stride=stride, points=64, steps=10).item() <= proved["torus"] * 1.25


@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 3), (2, 4, 3), (1, 2, 3, 4)])
@pytest.mark.parametrize("name", NORMS)
def test_gradients(name: str, shape: tuple[int, ...]) -> None:
    weight = rand(*shape).requires_grad_()
    assert torch.autograd.gradcheck(NORMS[name], weight)
    options = {"stride": 2} if len(shape) > 3 else {}
    assert torch.autograd.gradcheck(lambda w: NORMS[name](w, **options), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e19])
@pytest.mark.parametrize("name", NORMS)
def test_zero_kernels_zero_symbols_and_scales(name: str, scale: float, dtype: torch.dtype) -> None:
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=dtype)[None, None]
    weights = torch.stack([torch.zeros_like(sobel), sobel * scale, torch.ones_like(sobel) * scale]).requires_grad_()
    norms = NORMS[name](weights)
    norms.sum().backward()

    assert norms[0] == 0
    assert bool((norms[1:] >= torch.tensor([8, 9], dtype=dtype) * scale * (1 - 1e-5)).all())
    assert bool(torch.isfinite(weights.grad).all())
    assert not bool(weights.grad[0].any())
    # Euler: the norm is homogeneous, so <gradient, weight> is the norm.
    euler = (weights.grad * (weights.detach() / scale)).flatten(1).sum(1)
    torch.testing.assert_close(euler, norms.detach() / scale, rtol=1e-4, atol=1e-6)


def test_layers_do_not_mix() -> None:
    weights = rand(3, 4, 2, 3, 3)
    for name in NORMS:
        alone = torch.cat([NORMS[name](weight[None]) for weight in weights])
        torch.testing.assert_close(NORMS[name](weights), alone, rtol=1e-12, atol=0)


def test_one_frequency_is_the_whole_grid_until_the_peak_moves() -> None:
    """The highest place of a grid found by hand; between two looks the value is that of the place kept."""
    weight, places, norm = rand(2, 3, 2, 3, 2), Places(refresh=3), gram_norm
    first = norm(weight, places=places)
    assert torch.equal(norm(weight), first)
    grid = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    taps = torch.cartesian_prod(torch.arange(3), torch.arange(2))
    wave = torch.exp(-2j * math.pi * (grid @ taps.T) / 8).to(torch.complex128)
    symbols = torch.einsum("loit,ft->lfoi", weight.flatten(3).to(torch.complex128), wave)
    heights = gram_iteration(symbols, 5) / math.cos(math.pi * 2 / 16) / math.cos(math.pi / 16)
    torch.testing.assert_close(first, heights.amax(1))

    other = rand(2, 3, 2, 3, 2, seed=1)
    whole = norm(other)
    kept = [norm(other, places=places) for _ in range(3)]
    assert torch.equal(kept[0], kept[1])
    assert bool((kept[0] <= whole).all())
    assert not torch.equal(kept[0], whole)
    assert torch.equal(kept[2], whole)  # the fourth call looks again


def test_the_four_bounds_take_the_smallest_matrix_of_each_layer_and_keep_to_it() -> None:
    weights = rand(3, 3, 3, 3, 2)
    weights[0, 1:] = 0
    weights[1, :, 1:] = 0
    every = torch.stack([gram_iteration(matrix, 5) for matrix in reshapings(weights)])
    torch.testing.assert_close(four_norm(weights), every.amin(0) * math.sqrt(6))
    assert len(every.argmin(0).unique()) > 1
    places = Places(refresh=5)
    four_norm(weights, places=places)
    for seed in range(4):
        other = rand(3, 3, 3, 3, 2, seed=seed)
        kept = four_norm(other, places=places)
        assert bool((kept >= four_norm(other) * (1 - 1e-12)).all())


def test_gram_iteration_of_many_steps_does_not_overflow() -> None:
    matrix = rand(2, 6, 5)
    torch.testing.assert_close(gram_iteration(matrix, 150), torch.linalg.matrix_norm(matrix, 2))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"weight\[None\]"):
        gram_norm(rand(3, 4))
    with pytest.raises(ValueError, match="groups"):
        aol_norm(rand(1, 3, 2, 3), groups=2)
    with pytest.raises(RuleError, match="lipgrid"):
        NORMS["power"](rand(1, 3, 2))
