"""Projecting a trained network: what the audit finds afterwards, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipaudit
from lipaudit.nn import AOLLinear, spectral_rescale_


def trained() -> nn.Sequential:
    """Batch norms that have seen data, strides, dilation, groups, circular padding; on (n, 2, 9, 9)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(6, 4, (2, 3), stride=2, dilation=2), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 1, padding_mode="circular"), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model(torch.randn(50, 2, 9, 9))
    return model.eval()


@pytest.mark.parametrize("target", [0.7, 1.0, 3.0])
def test_no_layer_is_above_the_target_afterwards(target: float) -> None:
    model = trained()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = spectral_rescale_(model, (2, 9, 9), target)
    bound = lipaudit.bound(model, (2, 9, 9))
    counts = [sum("conv" in part or "linear" in part for part in line.op.split(" + ")) for line in bound.layers]
    assert sum(counts) == len(before) == 6
    # Two layers that are bounded together have at most the product of their norms.
    rounded = 1 + 1e-12
    assert all(
        line.upper.value <= target**count * rounded ** (count - 1)
        for line, count in zip(bound.layers, counts, strict=True)
        if count
    )
    assert list(before) == ["0", "3", "5", "8", "10", "12"]
    # Only what was above is touched, and no more than needed.
    kept = [path for path, norm in before.items() if norm <= target]
    for path in kept:
        assert torch.equal(model.get_submodule(path).weight, weights[f"{path}.weight"])
    again = spectral_rescale_(model, (2, 9, 9), target)
    assert all(again[path] == pytest.approx(target, rel=1e-5) for path in before if path not in kept)
    assert all(norm <= target for norm in again.values())


def test_the_batch_norm_carries_the_factor() -> None:
    model = trained()
    weight, scale = model[0].weight.detach().clone(), model[1].weight.detach().clone()
    before = spectral_rescale_(model, (2, 9, 9))
    assert before["0"] > 1
    assert torch.equal(model[0].weight, weight)
    torch.testing.assert_close(model[1].weight, scale / before["0"])


def test_what_cannot_be_projected_is_refused() -> None:
    with pytest.raises(ValueError, match="plain weight in 0, got a parametrised one"):
        spectral_rescale_(nn.Sequential(AOLLinear(4, 3)), (4,))
    with pytest.raises(ValueError, match="target above 0"):
        spectral_rescale_(nn.Sequential(nn.Linear(4, 3)), (4,), 0.0)
    reflecting = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten())
    with pytest.raises(ValueError, match="expected zero or circular padding, got 'reflect'"):
        spectral_rescale_(reflecting, (1, 4, 4))
    bare = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False), nn.Flatten())
    with pytest.raises(ValueError, match="plain weight in 0, got no weight"):
        spectral_rescale_(bare.eval(), (1, 4, 4))
