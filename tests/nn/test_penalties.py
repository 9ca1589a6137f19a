"""Penalties over a network: against the audit's proof, for chains and residual networks, with batch norms."""

from __future__ import annotations

import functools
import gc
import itertools
import math
import weakref

import pytest
import torch
from quick import mostly_slow
from torch import Tensor, nn

import lipaudit
from lipaudit import zoo
from lipaudit.errors import LipauditError, RuleError
from lipaudit.nn import bound_replay as planning
from lipaudit.nn import log_lipschitz, spectral_penalty
from lipaudit.nn.bound_replay import Factor, plan
from lipaudit.nn.differentiable_norms import NORMS

SHAPE = (2, 8, 8)
METHODS = ["gram", "lipgrid", "four", "aol"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.norm(self.first(x))))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Residual(), nn.ReLU(), Residual(),
        nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.running_var, 0.1, 2.0)
    return model


@functools.cache
def proved() -> float:
    """log10 of the audited bound of `network`."""
    return lipaudit.bound(network().eval(), SHAPE, global_method="product").log10


@pytest.mark.parametrize("method", METHODS)
def test_the_replayed_bound_is_above_the_audited_one_and_near(method: str) -> None:
    model = network().eval()
    replayed = log_lipschitz(model, SHAPE, method=method).item() / math.log(10)
    assert proved() - 1e-6 <= replayed <= proved() + 2.0
    if method == "gram":
        tight = log_lipschitz(model, SHAPE, method=method, points=48, steps=12).item() / math.log(10)
        assert proved() - 1e-6 <= tight <= proved() + 0.3


def test_of_one_layer_it_is_the_norm_and_of_residual_blocks_the_sum() -> None:
    model = network().eval()
    found = {factor.layer: factor for factor in plan(model, SHAPE).factors}
    assert list(found) == ["0", "3.first", "3.second", "5.first", "5.second", "8", "10"]
    assert found["0"] == Factor("0", "1")
    assert found["3.first"].scaling == "3.norm"
    assert plan(model, SHAPE).scalings == ("6",)

    def norm(path: str) -> float:
        stride, groups = found[path].geometry(model)
        return NORMS["gram"](found[path].weight(model)[None], stride=stride, groups=groups).item()

    blocks = [1 + norm(f"{k}.first") * norm(f"{k}.second") for k in (3, 5)]
    alone = (model[6].weight / (model[6].running_var + model[6].eps).sqrt()).abs().max().item()
    expected = norm("0") * blocks[0] * blocks[1] * alone * 0.5 * norm("8") * norm("10")
    assert log_lipschitz(model, SHAPE).exp().item() == pytest.approx(expected, rel=1e-5)
    body = log_lipschitz(model, SHAPE, body=True).exp().item()
    assert body == pytest.approx(expected / norm("10"), rel=1e-5)

    logs = [math.log(norm(path)) for path in found] + [math.log(alone)]
    for target in (0.5, 1.0, 2.0):
        hinge = sum(max(0.0, value - math.log(target)) for value in logs)
        assert spectral_penalty(model, SHAPE, target=target).item() == pytest.approx(hinge, rel=1e-5)


def test_the_batch_norm_is_that_of_evaluation_and_gets_gradients() -> None:
    model = network().train()
    value = log_lipschitz(model, SHAPE)
    assert value.item() == pytest.approx(log_lipschitz(model.eval(), SHAPE).item(), rel=1e-6)
    value.backward()
    assert all(bool(layer.weight.grad.any()) for layer in model.modules() if hasattr(layer, "weight"))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", mostly_slow(METHODS, 1))
def test_gradients(method: str) -> None:
    model = network().double()
    names = ["3.first.weight", "3.norm.weight", "10.weight"]
    held = {name: p.detach() for name, p in model.named_parameters() if name not in names}

    class Wrapped(nn.Module):
        def forward(self, *some: Tensor) -> Tensor:
            own = {**held, **dict(zip(names, some, strict=True))}
            for path, tensor in own.items():
                owner, _, leaf = path.rpartition(".")
                module = model.get_submodule(owner)
                module._parameters.pop(leaf, None)
                module.__dict__.pop(leaf, None)
                object.__setattr__(module, leaf, tensor)
            return log_lipschitz(model, SHAPE, method=method)

    start = [p.detach().clone().requires_grad_() for name, p in model.named_parameters() if name in names]
    plan(model, SHAPE)
    order = [name for name, _ in model.named_parameters() if name in names]
    assert order == names
    assert torch.autograd.gradcheck(Wrapped(), tuple(start), atol=1e-6)


@pytest.mark.parametrize("method", mostly_slow(METHODS, 2))
def test_training_on_the_penalty_lowers_the_audited_bound(method: str) -> None:
    model = network().eval()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    values = []
    for _ in range(20):
        optimiser.zero_grad()
        penalty = log_lipschitz(model, SHAPE, method=method, **({"refresh": 4} if method == "gram" else {}))
        penalty.backward()
        optimiser.step()
        values.append(penalty.item())
    assert values[-1] < values[0] - 0.5
    assert lipaudit.bound(model, SHAPE, global_method="product").log10 < proved() - 0.2


def test_the_bundled_residual_network() -> None:
    model = zoo.load("digits-cnn")
    audited = lipaudit.bound(model, (1, 8, 8), global_method="product").log10
    assert audited <= log_lipschitz(model, (1, 8, 8)).item() / math.log(10) <= audited + 1


def test_the_plan_is_made_once_and_anew_when_the_layers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = network(), []
    make = planning._make
    monkeypatch.setattr(planning, "_make", lambda *arguments: made.append(1) or make(*arguments))
    for _ in range(3):
        spectral_penalty(model, SHAPE)
    model.load_state_dict(network().state_dict())
    spectral_penalty(model, SHAPE)
    assert len(made) == 1
    model.append(nn.Linear(3, 2))
    assert "11" in [factor.layer for factor in plan(model, SHAPE).factors]
    assert len(made) == 2
    dead = weakref.ref(model)
    del model
    gc.collect()
    assert dead() is None


def test_making_the_plan_leaves_the_model_alone() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spectral_penalty(model, SHAPE)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="convolutions or dense layers, got none in Sequential"):
        spectral_penalty(nn.Sequential(nn.ReLU()), (3,))
    with pytest.raises(RuleError, match="lipgrid"):
        spectral_penalty(nn.Sequential(nn.Linear(2, 2)), (2,), method="power")
    with pytest.raises(ValueError, match="target above 0"):
        spectral_penalty(nn.Sequential(nn.Linear(2, 2)), (2,), target=0)
    with pytest.raises(ValueError, match="refresh of at least 1"):
        spectral_penalty(nn.Sequential(nn.Linear(2, 2)), (2,), refresh=0)
    with pytest.raises(ValueError, match="ends in a linear layer"):
        log_lipschitz(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), (2,), body=True)
    with pytest.raises(LipauditError, match="floor"):
        log_lipschitz(nn.Sequential(nn.Linear(2, 2), Floor()), (2,))


class Floor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.floor()


def test_values_fall_step_by_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    optimiser, values = torch.optim.SGD(model.parameters(), lr=0.01), []
    for _ in range(5):
        optimiser.zero_grad()
        penalty = spectral_penalty(model, SHAPE, target=0.1, points=8, steps=4)
        penalty.backward()
        optimiser.step()
        values.append(penalty.item())
    assert all(later < earlier for earlier, later in itertools.pairwise(values))
