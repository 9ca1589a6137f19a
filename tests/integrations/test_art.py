"""Inside ART: an audit as an evaluation, the same radii on every way in, a network on which ART's own proofs fail."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.certification.deep_z import PytorchDeepZ
from art.estimators.certification.interval import PyTorchIBPClassifier
from art.estimators.classification import PyTorchClassifier
from art.evaluations.evaluation import Evaluation
from torch import nn

import lipaudit
from lipaudit import cli
from lipaudit.errors import CaptureError
from lipaudit.integrations.art import LipschitzAudit
from lipaudit.integrations.pytest_plugin import assert_certified
from lipaudit.loading.datasets import load_dataset
from lipaudit.zoo import load


def classifier_of(model: nn.Module, shape: tuple[int, ...], classes: int, **settings: Any) -> PyTorchClassifier:
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=shape, nb_classes=classes, device_type="cpu", **settings
    )


@pytest.mark.parametrize(
    ("name", "local", "samples"),
    [("digits-aol", "off", 12), pytest.param("digits-cnn", "on", 1, marks=pytest.mark.slow)],
)
def test_every_way_in_gives_the_same_radii(
    name: str, local: str, samples: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Command line, library, ART classifier and pytest plugin."""
    data = load_dataset("digits", samples=samples)
    settings = {"attacks": "none", "local": local}

    command = (
        f"run --model {name} --dataset digits --samples {samples} --attacks none --local {local} --format json -o -"
    )
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "-q"])
    assert not ended.value.code
    on_the_command_line = json.loads(capsys.readouterr().out)["samples"]["radius"]

    in_the_library = lipaudit.audit(load(name), data.inputs, data.labels, **settings)
    classifier = classifier_of(load(name), (1, 8, 8), 10, clip_values=(0, 1))
    one_hot = np.eye(10, dtype=np.float32)[data.labels.numpy()]
    in_art = LipschitzAudit(**settings).evaluate(classifier, data.inputs.numpy(), one_hot)
    certified = lipaudit.certify(classifier, data.inputs.numpy(), one_hot, local=local, norms="all")
    in_pytest = assert_certified(load(name), "digits", eps=1e-4, at_least=0.5, samples=samples, local=local)

    assert sum(radius > 0 for radius in on_the_command_line) > samples / 2
    for radii in (in_the_library.samples.radius, in_art.samples.radius, certified.radius, in_pytest.samples.radius):
        assert list(radii) == on_the_command_line


def test_it_is_an_evaluation_whose_settings_can_be_replaced() -> None:
    data = load_dataset("digits", samples=4)
    classifier = classifier_of(load("digits-aol"), (1, 8, 8), 10, clip_values=(0, 1))
    evaluation = LipschitzAudit(eps=(0.1, "36/255"), attacks="none", local="off")

    audit = evaluation.evaluate(classifier, data.inputs.numpy(), data.labels.numpy())
    other = evaluation.evaluate(classifier, data.inputs.numpy(), data.labels.numpy(), eps=(0.2,), attacks="deepfool")

    assert isinstance(evaluation, Evaluation)
    assert audit.threat.eps == ("0.1", "36/255")
    assert not audit.attacks
    assert other.threat.eps == ("0.2",)
    assert [record.name for record in other.attacks] == ["deepfool"]
    assert audit.warnings == ()


def test_defences_are_refused() -> None:
    from art.defences.preprocessor import JpegCompression

    defended = classifier_of(
        load("digits-aol"),
        (1, 8, 8),
        10,
        preprocessing_defences=JpegCompression(clip_values=(0, 1), channels_first=True),
    )
    with pytest.raises(CaptureError, match="JpegCompression"):
        LipschitzAudit().evaluate(defended, np.zeros((1, 1, 8, 8), np.float32), [0])


class ResidualNet(nn.Module):
    """head(x + second(relu(first(x)))): all the information takes the skip, and the branch prefers class 0.

    Over [0, 1]^2, the branch is 0.01 x + (0.1, 0). Read without the skip, as ART's converters read it (they replay the
    modules of a network in the order of their calls), the logits always favour class 0. With it, their difference is
    1.01 (x_0 - x_1) + 0.1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second, self.head = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2)
        for layer, scale in ((self.first, 0.1), (self.second, 0.1), (self.head, 1.0)):
            layer.weight.data = scale * torch.eye(2)
            layer.bias.data.zero_()
        self.second.bias.data[0] = 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.second(self.relu(self.first(x))))


def test_a_residual_network_that_art_certifies_wrongly() -> None:
    """Within the ball that DeepZ and IBP certify there is an adversarial example; lipaudit's radius ends before it."""
    eps = 0.1  # in the maximum norm, as both certify
    x, x_adv = np.array([[0.5, 0.5]], np.float32), np.array([[0.44, 0.56]], np.float32)
    given = {"loss": nn.CrossEntropyLoss(), "input_shape": (2,), "nb_classes": 2, "device_type": "cpu"}
    classifier = classifier_of(ResidualNet().eval(), (2,), 2, clip_values=(0, 1))
    with pytest.warns(UserWarning, match="does not support networks"):
        zonotopes = PytorchDeepZ(ResidualNet().eval(), **given)
    with pytest.warns(UserWarning, match="does not support networks"):
        intervals = PyTorchIBPClassifier(ResidualNet().eval(), **given)

    # ART: certified, and wrong.
    assert classifier.predict(x).argmax() == 0
    assert zonotopes.certify(cent=x, eps=eps * np.eye(2), prediction=0)
    assert intervals.certify(intervals.predict_intervals(x, bounds=eps, limits=[0, 1]), labels=np.array([0])).all()
    assert np.abs(x_adv - x).max() <= eps
    assert classifier.predict(x_adv).argmax() == 1

    # lipaudit: the true radius, 0.1 / (1.01 sqrt(2)), up to float32 weights.
    audit = LipschitzAudit(attacks=("deepfool", "fab-t", "pgd-at-radius")).evaluate(classifier, x, [0])
    radius, distance = audit.samples.radius[0], audit.samples.distance[0]
    assert radius < np.linalg.norm((x_adv - x).astype(np.float64))
    assert 0.06 < radius <= distance
    assert distance == pytest.approx(0.1 / (1.01 * np.sqrt(2)), rel=1e-4)
    assert audit.verdict.integrity == "SOUND"
    for kind in (zonotopes, intervals):
        with pytest.raises(CaptureError, match=f"{type(kind).__name__} computes something else"):
            lipaudit.certify(kind, x)
