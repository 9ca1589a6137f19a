"""A bound that is too small: every attack, alone, makes the verdict INVALID as soon as it can reach that far.

Attacks refute only what reaches as far as they do. The closest adversarial examples of the bundled digits-aol lie 1.05
to 1.3 times its certified radii away: a bound that is wrong by 1.5 is refuted by every attack that follows gradients or
the boundary; random patches need more, a bound wrong by 10. On digits-cnn, whose global radii are 60 times below what
attacks find, a bound that is wrong by 10 is refuted by none of them: that is the limit of evidence from below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from crosscheck_nets import labelled, linear, samples
from torch import Tensor, nn

import lipaudit
from lipaudit.certification.certificates import certify_with
from lipaudit.certification.network_bound import Composition, compose
from lipaudit.crosscheck import ATTACKS, art, autoattack
from lipaudit.loading.datasets import open_dataset, read_images
from lipaudit.loading.models import load_model
from lipaudit.results.audit import Audit
from lipaudit.runs import audit as pipeline

pytestmark = pytest.mark.slow
PATCHES = ("square", "square-5000", "art-square")


@dataclass(frozen=True)
class Case:
    """A network, three images, and the largest of their radii."""

    network: nn.Module
    inputs: Tensor
    labels: Tensor
    composition: Composition
    largest: float

    def audit(self, name: str, factor: float) -> Audit:
        eps = factor * self.largest
        return lipaudit.audit(self.network, self.inputs, self.labels, attacks=(name,), eps=(eps,), local="off")


def bundled(name: str) -> Case:
    model = load_model(name, dataset="digits")
    images = read_images(open_dataset("digits"), "digits", samples=3, seed=0, input_shape=model.facts.input_shape)
    inputs, labels = images.inputs, torch.as_tensor(images.labels)
    return case(model.module, inputs, labels)


def case(network: nn.Module, inputs: Tensor, labels: Tensor) -> Case:
    composition = compose(network, tuple(inputs.shape[1:]), domain=(0.0, 1.0))
    radii = certify_with(composition, inputs, labels.tolist()).radius
    assert radii.min() > 0
    return Case(network, inputs, labels, composition, float(radii.max()))


@pytest.fixture(scope="module")
def digits() -> Case:
    return bundled("digits-aol")


@pytest.fixture(scope="module")
def larger() -> Case:
    """Images that are large enough for ART's Square."""
    network, inputs = linear(5, shape=(1, 10, 10)), samples(3, shape=(1, 10, 10))
    labels = labelled(network, inputs)
    return case(network, inputs, labels)


def lie(monkeypatch: pytest.MonkeyPatch, case: Case, factor: float) -> None:
    """From here on, every class-pair bound of the case is too small by a factor."""
    network = case.composition.network
    pairwise = tuple(tuple(value / factor for value in row) for row in network.pairwise)
    lying = replace(case.composition, network=replace(network, pairwise=pairwise))
    monkeypatch.setattr(pipeline, "compose", lambda *_, **__: lying)
    monkeypatch.setattr(autoattack, "MANY_QUERIES", 1200)
    monkeypatch.setattr(art, "EAD_SEARCHES", 4)


def states(audit: Audit) -> dict[str, str]:
    return {finding.id: finding.state for finding in audit.findings}


@pytest.mark.parametrize("name", [name for name in ATTACKS if "l2" in ATTACKS[name].norms])
def test_each_attack_alone_refutes_a_wrong_bound(
    name: str, digits: Case, larger: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, factor = larger if name == "art-square" else digits, 10.0 if name in PATCHES else 1.5
    lie(monkeypatch, case, factor)
    result = case.audit(name, factor)

    (record,) = result.attacks
    assert (record.status, record.attacked) == ("done", 3)
    assert states(result)["LA001"] == "fail"
    assert (result.verdict.integrity, result.exit_code, result.status) == ("INVALID", 4, "invalid")
    assert result.certified == ()


def test_none_refutes_what_is_true(digits: Case) -> None:
    result = digits.audit("standard", 1.0)

    assert result.samples.attacked == (True,) * 3
    assert states(result)["LA001"] == "pass"
    assert result.verdict.integrity == "SOUND"


def test_where_bounds_are_slack_attacks_do_not_see_a_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    digits_cnn = bundled("digits-cnn")
    lie(monkeypatch, digits_cnn, 10.0)
    result = digits_cnn.audit("standard", 10.0)

    assert states(result)["LA001"] == "pass"
