"""Small networks whose adversarial distances are known, for the tests of the cross-check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from lipaudit.crosscheck.registry import ART, Aim, Attack, Batch, Passes
from lipaudit.crosscheck.unit_box import UnitBox
from lipaudit.results.bounds import Witness
from lipaudit.results.threat import NORMS, Norm

SHAPE = (2, 5, 5)


def linear(classes: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> nn.Sequential:
    """A linear classifier: the smallest perturbation to class j is margin / ||w_y - w_j||."""
    generator = torch.Generator().manual_seed(seed)
    size = int(np.prod(shape))
    layer = nn.Linear(size, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, size, generator=generator))
        # The centre of the box is nearly tied, so decision boundaries pass well inside the box.
        layer.bias.copy_(-0.5 * layer.weight.sum(1) + 0.3 * torch.randn(classes, generator=generator))
    return nn.Sequential(nn.Flatten(), layer).eval()


def samples(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """float32 inputs in the middle of the unit box."""
    generator = torch.Generator().manual_seed(seed + 100)
    return 0.5 + 0.1 * torch.randn(count, *shape, generator=generator).clamp(-3, 3)


def labelled(network: nn.Module, inputs: Tensor) -> Tensor:
    """The network's own predictions, so that every sample counts as correct."""
    with torch.no_grad():
        return network(inputs).argmax(1)


def exact_distance(network: nn.Sequential, point: Tensor, label: int, norm: Norm) -> Fraction:
    """The exact distance from a point to the nearest decision boundary of a linear classifier; in L2 squared."""
    layer = network[1]
    assert isinstance(layer, nn.Linear)
    weights = [[Fraction(value) for value in row] for row in layer.weight.double().tolist()]
    biases = [Fraction(value) for value in layer.bias.double().tolist()]
    values = [Fraction(value) for value in point.double().flatten().tolist()]
    nearest = None
    for other in range(len(weights)):
        if other == label:
            continue
        normal = [a - b for a, b in zip(weights[label], weights[other], strict=True)]
        dot = sum(n * v for n, v in zip(normal, values, strict=True))
        margin = dot + biases[label] - biases[other]
        sizes = [abs(n) for n in normal]
        if norm == "l2":
            distance = margin * margin / sum(size * size for size in sizes)
        else:
            distance = margin / (sum(sizes) if norm == "linf" else max(sizes))
        nearest = distance if nearest is None else min(nearest, distance)
    assert nearest is not None
    return nearest


def exact_distances(network: nn.Sequential, inputs: Tensor, labels: Tensor, norm: Norm = "l2") -> np.ndarray:
    """Distances to the nearest decision boundary, correct to float64."""
    pairs, power = zip(inputs, labels.tolist(), strict=True), 0.5 if norm == "l2" else 1
    return np.array([float(exact_distance(network, point, label, norm)) ** power for point, label in pairs])


def never_too_close(
    network: nn.Sequential, inputs: Tensor, labels: Tensor, found: tuple[Witness, ...], norm: Norm = "l2"
) -> None:
    """Asserts, in exact arithmetic, that no witness is closer than the decision boundary."""
    for witness in found:
        truth = exact_distance(network, inputs[witness.sample], int(labels[witness.sample]), norm)
        assert Fraction(witness.distance) ** (2 if norm == "l2" else 1) >= truth, witness


def planted(run: Callable[[UnitBox, Batch], Iterator[Tensor]], aim: Aim = "closest") -> Attack:
    """A line for the table of attacks that runs `run(network, batch)`, a generator function."""
    run.__doc__ = "Does what the test tells it to."
    return Attack("planted", ART, aim, NORMS, lambda *_: "none", lambda _: Passes(1, 1, claims=2), run)


def unchanged(batch: Batch) -> Tensor:
    return batch.inputs.clone()


class Recorder:
    """A Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object]] = []

    def start(self, stage: str, total: int | None = None) -> None:
        self.heard.append(("start", (stage, total)))

    def advance(self, units: int = 1, note: str = "") -> None:
        del note
        self.heard.append(("advance", units))

    def finish(self, note: str = "") -> None:
        self.heard.append(("finish", note))

    def say(self, text: str) -> None:
        self.heard.append(("say", text))
