"""The hook for training loops: right numbers, at the right epochs, and training does not notice."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipaudit
from lipaudit.errors import BadThreat, LipauditError, LoadError
from lipaudit.integrations.training import CertificateLog

TAGS = ("certified_accuracy", "clean_accuracy", "lipschitz_bound", "log10_lipschitz_bound")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )


def data(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return x, (x.flatten(1).sum(1) > 18).long()


class Writer:
    """As TensorBoard's SummaryWriter."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(
        self, tag: str, scalar_value: float, global_step: int | None = None, walltime: float | None = None
    ) -> None:
        assert walltime is None
        self.seen.append((tag, scalar_value, global_step))


def test_scalars_every_few_epochs() -> None:
    model, writer = network(), Writer()
    log = CertificateLog(model, data(), writer.add_scalar, eps=0.01, every=2)

    said = [log(epoch) for epoch in range(4)]

    assert [scalars is None for scalars in said] == [False, True, False, True]
    assert [(tag, step) for tag, _, step in writer.seen] == [(f"lipaudit/{tag}", e) for e in (0, 2) for tag in TAGS]
    assert {tag: value for tag, value, step in writer.seen if step == 2} == said[2]
    x, y = data()
    certificates = lipaudit.certify(model.eval(), x, y, local="off")
    assert said[0]["lipaudit/certified_accuracy"] == np.mean(certificates.radius > 0.01)
    assert said[0]["lipaudit/clean_accuracy"] == float((model(x).argmax(1) == y).float().mean())
    assert said[0]["lipaudit/lipschitz_bound"] == lipaudit.bound(model, (1, 6, 6)).value
    assert said[0]["lipaudit/log10_lipschitz_bound"] == pytest.approx(np.log10(said[0]["lipaudit/lipschitz_bound"]))


def train(log: Any, epochs: int = 3) -> list[torch.Tensor]:
    """Dropout, batch statistics, shuffles by all three generators, gradients that accumulate over the call."""
    model = network().train()
    hook = log(model)
    x, y = data()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(epochs):
        order = np.random.permutation(len(x))  # noqa: NPY002  the generator that many loops use
        weight = random.random()
        optimiser.zero_grad()
        (weight * nn.functional.cross_entropy(model(x[order]), y[order])).backward()
        hook(epoch)
        assert all(module.training for module in model.modules())
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return [value.detach().clone() for value in model.state_dict().values()]


def test_training_does_not_notice() -> None:
    ends = []
    for log in (lambda model: lambda epoch: None, lambda model: CertificateLog(model, data(), lambda *_: None)):  # noqa: ARG005
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        ends.append(train(log))

    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_each_module_keeps_its_own_mode() -> None:
    """As in fine-tuning with frozen batch statistics."""
    model = network().train()
    model[1].eval()
    CertificateLog(model, data(), lambda *_: None)(0)

    assert [module.training for module in model] == [True, False, True, True, True, True]


def test_normalisation_and_another_range() -> None:
    x, y = data()
    given: list[float] = []

    def keep(tag: str, value: float, step: int) -> None:
        del step
        if tag.endswith("/lipschitz_bound"):
            given.append(value)

    CertificateLog(network(), (x, y), keep, mean=(0.5,), std=(0.25,))(0)
    CertificateLog(network(), (2 * x - 1, y), keep, domain=(-1, 1))(0)
    assert given[0] == pytest.approx(4 * given[1], rel=1e-4)


def test_what_cannot_be_logged_is_an_error_and_leaves_the_modes() -> None:
    model = network().train()
    log = CertificateLog(model, data(), lambda *_: None, samples=2)
    model[-1].weight.data.fill_(torch.nan)

    with pytest.raises(LipauditError):
        log(0)
    assert model.training
    with pytest.raises(LoadError, match=r"nn\.Module that is trained, got str"):
        CertificateLog("digits-aol", data(), print)
    with pytest.raises(BadThreat, match="every to be 1 or more"):
        CertificateLog(model, data(), print, every=0)
    with pytest.raises(BadThreat, match="eps above 0"):
        CertificateLog(model, data(), print, eps="none")
    with pytest.raises(BadThreat, match=r"inputs in \[0, 1\]"):
        CertificateLog(model, (2 * data()[0], data()[1]), print)
