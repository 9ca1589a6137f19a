"""Orthogonal convolutions and potential steps: orthogonal on a circle, never expanding, and audited by itself at 1."""

from __future__ import annotations

import pytest
import torch
from quick import mostly_slow
from torch import nn

import lipaudit
from lipaudit.nn import MaxMin, NormalisedLinear, OrthogonalConv2d, PotentialConv2d, PotentialLinear, export


def rows(layer: nn.Module, shape: tuple[int, ...], x: torch.Tensor | None = None) -> torch.Tensor:
    """The Jacobian in float64, of the weights that run."""
    double = export(layer).double().requires_grad_(False)
    at = torch.zeros(shape, dtype=torch.float64) if x is None else x
    return torch.func.jacrev(lambda z: double(z[None])[0].flatten())(at).flatten(1)


def stir(layer: nn.Module, seed: int) -> nn.Module:
    """Weights as training might leave them, or worse: also of rank one and far too large."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * (0.0, 1.0, 1e4)[seed % 3])
            if seed == 3:
                weight.fill_(1.0)
    return layer


@pytest.mark.parametrize("seed", mostly_slow(range(4), 1))
@pytest.mark.parametrize(("ins", "outs"), [(4, 4), (3, 5), (5, 2), (1, 1)])
@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_orthogonal_convolutions_keep_every_norm_on_a_circle(ins: int, outs: int, mode: str, seed: int) -> None:
    torch.manual_seed(seed)
    layer = stir(OrthogonalConv2d(ins, outs, (3, 5, 1, 3)[seed], bias=False, padding_mode=mode), seed)
    shape = (ins, 6, 7)
    values = torch.linalg.svdvals(rows(layer, shape))
    assert float(values[0]) <= 1.0
    if mode == "circular":
        assert float(values[min(len(values), min(ins, outs) * 42) - 1]) >= 1 - 1e-5
    bound = lipaudit.bound(nn.Sequential(layer, nn.Flatten()).eval(), shape).value
    assert float(values[0]) <= bound <= 1.0


def test_strange_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="odd kernel_size, got 4"):
        OrthogonalConv2d(2, 2, 4)
    with pytest.raises(ValueError, match="'reflect'"):
        OrthogonalConv2d(2, 2, 3, padding_mode="reflect")
    with pytest.raises(ValueError, match="odd kernel_size, got 2"):
        PotentialConv2d(2, kernel_size=2)


@pytest.mark.parametrize("seed", mostly_slow(range(4), 2))
def test_potential_steps_never_expand(seed: int) -> None:
    torch.manual_seed(seed)
    for layer, shape in ((PotentialConv2d(3, 5), (3, 5, 6)), (PotentialLinear(6, 9), (6,))):
        stir(layer, seed).eval()
        bound = lipaudit.bound(nn.Sequential(layer, nn.Flatten()).eval(), shape).value
        steepest = max(
            float(torch.linalg.matrix_norm(rows(layer, shape, torch.randn(shape).double() * scale), 2))
            for scale in (0.01, 1.0, 100.0)
        )
        assert steepest <= bound <= 1 + 1e-9


def test_a_network_of_them_trains_and_is_audited_at_one() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        OrthogonalConv2d(1, 6), MaxMin(), PotentialConv2d(6), OrthogonalConv2d(6, 4, padding_mode="zeros"),
        nn.Flatten(), PotentialLinear(64), NormalisedLinear(64, 3),
    )  # fmt: skip
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    x, y = torch.rand(12, 1, 4, 4), torch.arange(12) % 3
    before = {name: p.clone() for name, p in network.named_parameters()}
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(10 * network(x), y).backward()
        optimiser.step()
    assert all(bool(torch.isfinite(p).all()) and not torch.equal(p, before[n]) for n, p in network.named_parameters())
    network.eval()
    plain = export(network)
    assert type(plain[0]) is nn.Conv2d
    assert torch.equal(plain(x), network(x))
    assert lipaudit.bound(plain[:-1].eval(), (1, 4, 4)).value <= 1 + 1e-9
