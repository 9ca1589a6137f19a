"""Attack libraries change global state; nothing of it may be left behind, and nothing may be printed."""

from __future__ import annotations

import logging
import random
import sys
import threading

import numpy as np
import pytest
import torch
from crosscheck_nets import labelled, linear, samples
from torch import Tensor, nn

from lipaudit.crosscheck import autoattack, cross_check, estimate_seconds, largest_slope
from lipaudit.crosscheck.isolation import FLAGS, sealed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fewer_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "MANY_QUERIES", 1200)


def full(network: nn.Module, inputs: Tensor, **given):
    labels = labelled(network, inputs)
    settings = {"attacks": "full", "eps": [0.05], "radii": np.full(len(inputs), 0.05)} | given
    return cross_check(network, inputs, labels, **settings)


class Dynamic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(5, shape=(1, 10, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            point = inputs.detach().clone().requires_grad_()
            torch.autograd.grad(self.inner(point).sum(), point)
        return self.inner(inputs)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(5, shape=(1, 10, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs) + 0.05 * torch.rand(len(inputs), 5, dtype=inputs.dtype)


class Stepped(nn.Module):
    """Rounds its input: the gradient is zero everywhere, and only attacks without gradients see through it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(5, shape=(1, 10, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner((inputs * 1000).round() / 1000)


@pytest.mark.parametrize("network", [linear(5, shape=(1, 10, 10)), Noisy()], ids=["plain", "random"])
def test_the_random_state_is_as_it_was(network: nn.Module) -> None:
    inputs = samples(3, shape=(1, 10, 10))
    labels = labelled(network, inputs)
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002  the global state is what is tested
    torch.manual_seed(7)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002
    torch.manual_seed(7)
    cross_check(network, inputs, labels, attacks="full", eps=[0.05], radii=np.full(3, 0.05))
    largest_slope(network, inputs, labels)
    estimate_seconds(network, inputs, attacks="full", samples=1, eps=[0.05], classes=5)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected  # noqa: NPY002


def test_the_same_seed_gives_the_same_evidence_whatever_the_global_state() -> None:
    network, inputs = Noisy(), samples(4, shape=(1, 10, 10))
    labels = labelled(linear(5, shape=(1, 10, 10)), inputs)
    given = {"attacks": "full", "eps": [0.05], "radii": np.full(4, 0.05), "seed": 3}
    first = cross_check(network, inputs, labels, **given)
    torch.manual_seed(99)
    np.random.seed(98)  # noqa: NPY002
    second = cross_check(network, inputs, labels, **given)
    assert first.witnesses == second.witnesses
    assert torch.equal(first.perturbed, second.perturbed)


def test_trace_functions_are_put_back() -> None:
    def tracer(*_ignored):
        return None

    before, threads = sys.gettrace(), threading.gettrace()
    sys.settrace(tracer)
    threading.settrace(tracer)
    try:
        full(linear(5), samples(2))
        after = (sys.gettrace(), threading.gettrace())
    finally:
        sys.settrace(before)
        threading.settrace(threads)
    assert after == (tracer, tracer)


def test_nothing_is_printed_or_logged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        full(nn.Sequential(linear(5), nn.Softmax(1)), samples(2))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name.startswith(("art", "auto-attack"))] == []


def test_the_network_and_the_inputs_are_untouched() -> None:
    network = nn.Sequential(linear(5), nn.Dropout(0.5), nn.BatchNorm1d(5))
    network.train()
    network[2].eval()
    network[0][1].bias.requires_grad_(False)
    network[0][1].weight.grad = torch.ones_like(network[0][1].weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    inputs = samples(3)
    labels = torch.zeros(3, dtype=torch.int64)
    copy, labels_copy = inputs.clone(), labels.clone()
    radii = np.full(3, 0.05)
    cross_check(network, inputs, labels, attacks="full", eps=[0.05], radii=radii)
    largest_slope(network, inputs, labels)
    assert [module.training for module in network.modules()] == [True, True, True, True, True, False]
    assert [p.requires_grad for p in network.parameters()] == [True, False, True, True]
    assert torch.equal(network[0][1].weight.grad, torch.ones_like(network[0][1].weight))
    assert all(p.grad is None for p in list(network.parameters())[1:])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(inputs, copy)
    assert torch.equal(labels, labels_copy)
    assert (radii == 0.05).all()
    assert not inputs.requires_grad


def test_a_network_left_in_training_mode_is_audited_in_eval_mode() -> None:
    network = nn.Sequential(linear(4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    inputs = samples(4)
    expected = full(network.eval(), inputs, attacks="quick")
    labels = labelled(network, inputs)
    settings = {"attacks": "quick", "eps": [0.05], "radii": np.full(4, 0.05)}
    assert cross_check(network.train(), inputs, labels, **settings).witnesses == expected.witnesses
    assert largest_slope(network.train(), inputs, labels) == largest_slope(network.eval(), inputs, labels)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_the_caller_has_switched_gradients_off(mode) -> None:
    with mode():
        network, inputs = linear(4), samples(3)
        evidence = full(network, inputs, attacks="quick", eps=[5.0])
        slope = largest_slope(network, inputs, labelled(network, inputs))
    assert [record.status for record in evidence.records][:2] == ["done", "done"]
    assert len(evidence.witnesses) == 3
    assert slope.value > 0


@pytest.mark.parametrize(
    ("network", "part", "attacks"),
    [
        (nn.Sequential(linear(5, shape=(1, 10, 10)), nn.Softmax(1)), "probability distribution", ["fab-t"]),
        (Dynamic(), "dynamic defense", ["fab-t"]),
        (Noisy(), "randomized defense", ["fab-t"]),
        (Stepped(), "zero gradient", ["apgd-t"]),
        (Stepped(), "Square Attack has decreased", ["deepfool", "square"]),
    ],
    ids=["softmax", "dynamic", "random", "zero gradient", "square"],
)
def test_autoattacks_warnings_become_flags(network: nn.Module, part: str, attacks: list[str]) -> None:
    evidence = full(network, samples(4, shape=(1, 10, 10)), attacks=attacks, eps=[0.5])
    assert FLAGS[part] in evidence.flags
    # The check for dynamic networks counts globally: the next, plain network must not inherit the warning.
    assert full(linear(5), samples(2)).flags == ()


def test_the_seal_holds_when_something_raises() -> None:
    logger = logging.getLogger("auto-attack")
    before = (logger.handlers, logger.propagate, logger.level)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    flags: list[str] = []

    def fail() -> None:
        with sealed(0, flags, CPU):
            torch.rand(3)
            logger.warning("something else\nof two lines")
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert flags == ["something else"]
    assert torch.equal(torch.get_rng_state(), state)
    assert (logger.handlers, logger.propagate, logger.level) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_witnesses_are_those_of_the_cpu() -> None:
    network, inputs = linear(5), samples(4)
    here = full(network, inputs, attacks="standard")
    there = full(network.cuda(), inputs.cuda(), attacks="standard")
    assert [record.status for record in there.records] == [record.status for record in here.records]
    assert [w.distance for w in there.witnesses] == pytest.approx([w.distance for w in here.witnesses], rel=0.01)
    assert there.perturbed.device == CPU
    assert largest_slope(network, inputs.cuda(), labelled(network, inputs.cuda())).value > 0
