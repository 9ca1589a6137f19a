"""A bound that is wrong by a factor of ten: every attack, alone, makes the verdict INVALID where it can.

Attacks refute only what reaches as far as they do. Of the bundled digits-cnn, whose global radii are 5 to 10 times
below the closest adversarial examples found, radii twice as large as proved are refuted by nobody, ten times as large
by all attacks that follow gradients or the boundary. Random patches need more: they get a bound that is wrong by 100.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from crosscheck_nets import labelled, linear, samples
from torch import Tensor, nn

import lipaudit
from lipaudit import pipeline
from lipaudit.crosscheck import ATTACKS, autoattack
from lipaudit.datasets import open_dataset, read_images
from lipaudit.models import load_model
from lipaudit.results import Audit

pytestmark = pytest.mark.slow
PATCHES = ("square", "square-5000", "art-square")


@dataclass(frozen=True)
class Case:
    """A network and its images with the largest radii for their distance."""

    network: nn.Module
    inputs: Tensor
    labels: Tensor
    largest: float

    def audit(self, name: str, factor: float) -> Audit:
        eps = min(2.0, factor * self.largest)
        return lipaudit.audit(self.network, self.inputs, self.labels, attacks=(name,), eps=(eps,), local="off")


@pytest.fixture(scope="module")
def digits() -> Case:
    model = load_model("digits-cnn", dataset="digits")
    images = read_images(open_dataset("digits"), "digits", samples=100, seed=0, input_shape=model.facts.input_shape)
    inputs, labels = images.inputs, torch.as_tensor(images.labels)
    found = lipaudit.audit(model.module, inputs, labels, attacks=("deepfool",), local="off").samples
    pairs = zip(found.distance, found.radius, strict=True)
    ratios = {row: distance / radius for row, (distance, radius) in enumerate(pairs) if distance and radius}
    rows = sorted(ratios, key=lambda row: ratios[row])[:3]
    assert 5 < ratios[rows[0]] < ratios[rows[2]] < 9
    return Case(model.module, inputs[rows], labels[rows], max(found.radius[row] for row in rows))


@pytest.fixture(scope="module")
def larger() -> Case:
    """Images that are large enough for ART's Square."""
    network, inputs = linear(5, shape=(1, 10, 10)), samples(3, shape=(1, 10, 10))
    labels = labelled(network, inputs)
    radii = lipaudit.audit(network, inputs, labels, attacks="none", local="off").samples.radius
    return Case(network, inputs, labels, max(radii))


def lie(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """From here on, every class-pair bound is too small by a factor."""
    honest = pipeline.compose

    def lying(*args: Any, **kwargs: Any) -> Any:
        composition = honest(*args, **kwargs)
        pairwise = tuple(tuple(value / factor for value in row) for row in composition.network.pairwise)
        return replace(composition, network=replace(composition.network, pairwise=pairwise))

    monkeypatch.setattr(pipeline, "compose", lying)
    monkeypatch.setattr(autoattack, "MANY_QUERIES", 1200)


def states(audit: Audit) -> dict[str, str]:
    return {finding.id: finding.state for finding in audit.findings}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_each_attack_alone_refutes_a_wrong_bound(
    name: str, digits: Case, larger: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, factor = larger if name == "art-square" else digits, 100.0 if name in PATCHES else 10.0
    lie(monkeypatch, factor)
    result = case.audit(name, factor)

    (record,) = result.attacks
    assert (record.status, record.attacked) == ("done", 3)
    assert states(result)["LA001"] == "fail"
    assert (result.verdict.integrity, result.exit_code, result.status) == ("INVALID", 4, "invalid")
    assert result.proved == ()


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_none_refutes_what_is_true_or_nearly(factor: float, digits: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of all evidence from below: a bound that is wrong by two goes unseen here."""
    lie(monkeypatch, factor)
    result = digits.audit("standard", factor)

    assert result.samples.attacked == (True,) * 3
    assert states(result)["LA001"] == "pass"
