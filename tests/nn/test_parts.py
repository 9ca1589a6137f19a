"""Householder, channel padding, the normalised head, gated residual blocks: by Jacobians, and by the audit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lipaudit
from lipaudit.domains.graph import evaluate
from lipaudit.graph.capture import capture
from lipaudit.nn import (
    AOLConv2d,
    AOLLinear,
    ChannelPad,
    ConvexResidual,
    GroupSort,
    Householder,
    MaxMin,
    NormalisedLinear,
    SpaceToDepth,
    export,
)


def angles(layer: Householder) -> nn.Parameter:
    return layer.parametrizations.rotation.original


def jacobian(layer: nn.Module, point: Tensor) -> np.ndarray:
    """At a float64 point, of the layer with the tensors that run in float32."""
    plain = export(layer).double().requires_grad_(False)
    return torch.autograd.functional.jacobian(lambda x: plain(x[None])[0], point.double()).flatten(1).numpy()


def norm(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix.reshape(len(matrix), -1), compute_uv=False)[0])


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def network(residual: bool = True) -> nn.Sequential:
    """Every part once, from (n, 1, 8, 8) to 3 logits."""
    branch = nn.Sequential(AOLConv2d(8, 8, 3, padding=1, groups=2), Householder(8), AOLConv2d(8, 8, 3, padding=1))
    return nn.Sequential(
        SpaceToDepth(2), ChannelPad(8), AOLConv2d(8, 8, 3, padding=1, padding_mode="circular"), MaxMin(),
        ConvexResidual(branch, 0.3) if residual else branch, Householder(8), AOLConv2d(8, 8, 2, stride=2),
        GroupSort(4), nn.Flatten(), AOLLinear(32, 12), Householder(12), AOLLinear(12, 3),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_a_network_of_all_parts_is_audited_at_one_or_below(seed: int) -> None:
    torch.manual_seed(seed)
    model = network() if seed % 2 else randomised(network())
    bound = lipaudit.bound(model.eval(), (1, 8, 8))
    assert bound.value <= 1
    assert all(line.upper.value <= 1 for line in bound.layers)
    assert norm(jacobian(model, torch.rand(1, 8, 8)).reshape(3, -1)) <= bound.value


@pytest.mark.parametrize("layer", [SpaceToDepth(2), ChannelPad(5), MaxMin(), GroupSort(4), Householder(4)])
def test_each_part_alone_is_audited_at_one_or_below(layer: nn.Module) -> None:
    bound = lipaudit.bound(nn.Sequential(layer, nn.Flatten()).eval(), (4, 4, 4))
    assert all(line.upper.value <= 1 for line in bound.layers)
    assert bound.log10 < 1e-27  # of 1, rounded up


def test_householder_starts_as_a_sort_and_reflects_at_any_angle() -> None:
    torch.manual_seed(0)
    layer, x = Householder(6), torch.randn(5, 6, 3, 2)
    pairs = x.reshape(5, 3, 2, 3, 2)
    torch.testing.assert_close(layer(x), pairs.sort(dim=2, descending=True).values.reshape(x.shape))

    nn.init.uniform_(angles(layer), -7, 7)
    half = angles(layer).detach()[None, :, None, None, None] / 2
    normal = torch.cat([half.sin(), -half.cos()], 2)
    height = (normal * pairs).sum(2, keepdim=True)
    expected = torch.where(height > 0, pairs, pairs - 2 * height * normal).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert layer(x[:, :, 0, 0]).shape == (5, 6)


def test_householder_never_stretches_and_keeps_gradients() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        layer = Householder(4)
        nn.init.uniform_(angles(layer), -9, 9)
        values = np.linalg.svd(jacobian(layer, torch.randn(4)), compute_uv=False)
        assert 1 - 1e-6 < values[-1] <= values[0] <= 1


def test_householder_angles_have_gradients() -> None:
    torch.manual_seed(0)
    layer, x = Householder(4).double(), torch.randn(3, 4, dtype=torch.float64)
    nn.init.uniform_(angles(layer), -3, 3)

    def call(angle: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"parametrizations.rotation.original": angle}, x)

    assert torch.autograd.gradcheck(call, angles(layer).detach().clone().requires_grad_())


def test_channel_padding_appends_zeros() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(ChannelPad(5)(x), torch.cat([x, torch.zeros(2, 2, 4)], 1))
    assert torch.equal(ChannelPad(3)(x), x)
    assert str(ChannelPad(5)) == "ChannelPad(channels=5)"


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-30, 1.0, 1e30])
def test_rows_of_the_normalised_head(scale: float) -> None:
    torch.manual_seed(0)
    for inputs, classes in itertools.product((1, 7, 300), (2, 10)):
        layer = NormalisedLinear(inputs, classes)
        stored = layer.parametrizations.weight.original
        with torch.no_grad():
            stored.normal_().mul_(scale)
        lengths = layer.weight.detach().double().square().sum(1).sqrt()
        assert float(lengths.max()) <= 1
        assert scale < 1e-35 or float(lengths.min()) > 1 - 1e-6
        layer(torch.randn(2, inputs)).sum().backward()
        assert scale == 1e-40 or bool(stored.grad.isfinite().all())  # 1 / scale overflows there
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert float(layer.weight.detach().double().square().sum(1).max()) <= 1


def test_differences_of_normalised_logits_are_at_most_two() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), AOLLinear(16, 8), MaxMin(), randomised(NormalisedLinear(8, 5)))
    pairs = np.array(lipaudit.bound(model.eval(), (1, 4, 4)).pairwise)
    assert pairs.max() <= 2
    start = nn.Sequential(nn.Flatten(), NormalisedLinear(16, 5))
    pairs = np.array(lipaudit.bound(start.eval(), (1, 4, 4)).pairwise)
    np.testing.assert_allclose(pairs[~np.eye(5, dtype=bool)], math.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("stored", [-200.0, -30.0, -3.0, 0.0, 1e-5, 0.7, 20.0, 200.0])
def test_the_gate_adds_up_to_at_most_one(stored: float) -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        block = ConvexResidual(nn.Identity()).to(dtype)
        block.parametrizations.gate.original.data.fill_(stored)
        keep, take = block.gate.double().tolist()
        assert keep >= 0
        assert take >= 0
        assert 0.99 < keep + take <= 1


def test_a_gate_starts_where_it_is_told_and_is_trained() -> None:
    block = ConvexResidual(AOLLinear(4, 4), 0.2)
    assert block.gate[1].item() == pytest.approx(0.2, rel=1e-5)
    block(torch.randn(3, 4)).square().sum().backward()
    assert block.parametrizations.gate.original.grad.isfinite()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="even number of channels, got 3"):
        Householder(3)
    with pytest.raises(ValueError, match=r"expected 4 channels, got an input of \(1, 6\)"):
        Householder(4)(torch.zeros(1, 6))
    with pytest.raises(ValueError, match=r"at most 2 channels, got an input of \(1, 3\)"):
        ChannelPad(2)(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        ConvexResidual(nn.Identity(), 1)


def test_export_bakes_everything_in_and_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    model = randomised(network())
    model.append(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = export(model)
    assert not any(hasattr(module, "parametrizations") for module in plain.modules())
    assert {type(m) for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)} == {nn.Conv2d, nn.Linear}
    assert not any(module.training for module in plain.modules())
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.requires_grad for p in plain.parameters())

    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert hasattr(model[2], "parametrizations")
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(plain(x), model.eval()(x))
    model(x).sum().backward()  # still trains


def test_what_is_exported_is_what_was_audited() -> None:
    """The graph that the audit takes from the parametrised model, in float64, is the exported model in float64."""
    torch.manual_seed(0)
    model = randomised(network()).eval()
    plain, x = export(model), torch.rand(1, 1, 8, 8, dtype=torch.float64)
    audited = evaluate(capture(model, (1, 8, 8)), x[0])
    torch.testing.assert_close(audited[None], plain.double()(x), rtol=1e-13, atol=1e-15)
    assert lipaudit.bound(model, (1, 8, 8)).value == lipaudit.bound(export(model), (1, 8, 8)).value
