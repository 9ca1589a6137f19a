"""Attacks of the Adversarial Robustness Toolbox (ART). It takes seconds to import, so functions import it.

To add one: a function of its parameters below `@attack(...)` and `@evasion(NAME)`, its name in ART.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipaudit.crosscheck.registry import ART, Batch, Passes, Run, attack
from lipaudit.crosscheck.unit_box import UnitBox
from lipaudit.crosscheck.verification import ORDER
from lipaudit.results.threat import NORMS, Norm, spoken

DEEPFOOL_STEPS, DEEPFOOL_CLASSES = 20, 10
PGD_STEPS = 40
LONG_STEPS = 100
SQUARE_QUERIES, SQUARE_SIDE, SQUARE_AREA = 1000, 10, 0.8
SMALL_INPUT = 1024
"""Numbers in an input up to which the overhead of a pass outweighs its arithmetic."""


CW_SEARCHES, CW_STEPS, CW_LINE = 10, 10, 10
EAD_SEARCHES, EAD_STEPS = 9, 100
HOPS, HOP_QUERIES, HOP_STARTS = 10, 100, 100
LABELS = 16
"""ART takes one backward pass of the whole batch per class that occurs in it: so many, or all classes."""


class _Strongest(nn.Module):
    """The network, cut down to its strongest logits at one input.

    ART's DeepFool can restrict itself to some classes, but then compares with the logit of a wrong one
    (it takes a position in its list of classes for a class). So it gets a network with fewer classes.
    """

    def __init__(self, network: UnitBox, point: Tensor) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            strongest = network(point)[0].topk(min(DEEPFOOL_CLASSES, network.classes))
        self.columns = strongest.indices.sort().values

    def forward(self, unit: Tensor) -> Tensor:
        return self.network(unit)[:, self.columns]


def classifier(model: nn.Module, network: UnitBox, classes: int, kind: Any = None, **more: Any) -> Any:
    """The network, cut down or not, as ART sees it: a `PyTorchClassifier`, or another `kind` with `more` arguments."""
    # ART is untyped. No preprocessing: normalisation is inside the network, as everywhere in lipaudit.
    from art.estimators.classification import PyTorchClassifier

    return (kind or PyTorchClassifier)(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=network.shape,
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if network.device.type == "cuda" else "cpu",
        **more,
    )


def one_hot(labels: Tensor, classes: int) -> np.ndarray:
    """Labels in the only form that all attacks of ART take."""
    # With two classes, ART takes integer labels for scores of a single output.
    return nn.functional.one_hot(labels, classes).float().cpu().numpy()


def _generated(name: str, model: Any, inputs: Tensor, parameters: Mapping[str, Any], *labels: Any, **start: Any) -> Any:
    """What the attack of that name in ART makes of the inputs, as many at a time as there are unless it is told."""
    method = getattr(importlib.import_module("art.attacks.evasion"), name)
    made = method(model, **{"batch_size": len(inputs), "verbose": False, **parameters})
    return torch.from_numpy(made.generate(inputs.cpu().numpy(), *labels, **start)).to(inputs.device)


def evasion(name: str) -> Callable[[Callable[[Batch], dict[str, Any]]], Run]:
    """Decorator: an attack of ART, by its name there; the function below it gives its parameters for a batch."""

    def make(parameters: Callable[[Batch], dict[str, Any]]) -> Run:
        @functools.wraps(parameters)
        def run(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
            model, labels = classifier(network, network, network.classes), one_hot(batch.labels, network.classes)
            yield _generated(name, model, batch.inputs, parameters(batch), labels)

        return run

    return make


def _eps(batch: Batch) -> float:
    assert batch.budget is not None
    return float(batch.budget[0])


@attack(
    "deepfool",
    library=ART,
    aim="closest",
    norms=("l2",),
    settings=lambda classes, _: (
        f"at most {DEEPFOOL_STEPS} steps, {min(DEEPFOOL_CLASSES, classes)} classes, overshoot 0.02"
    ),
    passes=lambda classes: Passes(
        forward=2 * (DEEPFOOL_STEPS + 1) + 1, backward=(DEEPFOOL_STEPS + 1) * min(DEEPFOOL_CLASSES, classes)
    ),
)
def deepfool(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Walks to the nearest linearised decision boundary until the prediction changes.

    Source: Moosavi-Dezfooli et al., "DeepFool", CVPR 2016.
    """
    # A batch goes on until its slowest sample is done, so one sample at a time, unless a pass costs next to nothing.
    together = network.classes <= DEEPFOOL_CLASSES and batch.inputs[0].numel() <= SMALL_INPUT
    found = []
    for points in batch.inputs.split(len(batch.inputs) if together else 1):
        strongest = _Strongest(network, points)
        classes = len(strongest.columns)
        parameters = {"max_iter": DEEPFOOL_STEPS, "epsilon": 0.02, "nb_grads": classes}
        found.append(_generated("DeepFool", classifier(strongest, network, classes), points, parameters))
    yield torch.cat(found)


@attack(
    "pgd-at-radius",
    library=ART,
    aim="radius",
    norms=("l2", "linf"),
    settings=lambda *_: f"{PGD_STEPS} steps from the input, step radius/10, cross-entropy",
    passes=lambda _: Passes(forward=PGD_STEPS + 3, backward=PGD_STEPS),
)
@evasion("ProjectedGradientDescent")
def pgd_at_radius(batch: Batch) -> dict[str, Any]:
    """Searches the ball that the certificate calls safe, each sample with its own radius, by gradient ascent.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
    """
    assert batch.budget is not None
    # ART's projection overshoots by up to 1e-6 of the radius; the judge draws the point in and measures it.
    radius = batch.budget.cpu().numpy().reshape(-1, *[1] * (batch.inputs.ndim - 1))
    return {"norm": ORDER[batch.norm], "eps": radius, "eps_step": radius / 10, "max_iter": PGD_STEPS}


@attack(
    "pgd",
    library=ART,
    aim="eps",
    norms=NORMS,
    settings=lambda *_: f"{LONG_STEPS} steps, 1 random start, step eps/10, cross-entropy",
    passes=lambda _: Passes(forward=LONG_STEPS + 4, backward=LONG_STEPS),
)
@evasion("ProjectedGradientDescent")
def pgd(batch: Batch) -> dict[str, Any]:
    """Searches the ball of radius eps by gradient ascent on the cross-entropy, with steps of one length.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
    """
    eps = _eps(batch)
    return {"norm": ORDER[batch.norm], "eps": eps, "eps_step": eps / 10, "max_iter": LONG_STEPS, "num_random_init": 1}


@attack(
    "art-apgd",
    library=ART,
    aim="eps",
    norms=NORMS,
    settings=lambda *_: f"{LONG_STEPS} steps, 1 random start, cross-entropy",
    passes=lambda _: Passes(forward=2 * LONG_STEPS + 4, backward=LONG_STEPS),
)
@evasion("AutoProjectedGradientDescent")
def art_apgd(batch: Batch) -> dict[str, Any]:
    """Searches the ball of radius eps as APGD-CE does, in ART's own implementation.

    Source: Croce & Hein, "Reliable evaluation of adversarial robustness", ICML 2020.
    """
    return _auto_pgd(batch, "cross_entropy")


@attack(
    "art-apgd-dlr",
    library=ART,
    aim="eps",
    norms=NORMS,
    settings=lambda *_: f"{LONG_STEPS} steps, 1 random start, DLR loss",
    passes=lambda _: Passes(forward=2 * LONG_STEPS + 4, backward=LONG_STEPS),
    least_classes=3,
)
@evasion("AutoProjectedGradientDescent")
def art_apgd_dlr(batch: Batch) -> dict[str, Any]:
    """Searches the ball of radius eps by gradient ascent on a ratio of logit differences, in ART's own implementation.

    The ratio is that of the DLR loss, which needs three classes. Source: Croce & Hein, ICML 2020.
    """
    return _auto_pgd(batch, "difference_logits_ratio")


def _auto_pgd(batch: Batch, loss: str) -> dict[str, Any]:
    eps = _eps(batch)
    steps = {"eps_step": 2 * eps, "max_iter": LONG_STEPS, "nb_random_init": 1}
    return {"norm": ORDER[batch.norm], "eps": eps, "loss_type": loss, **steps}


def _squares_fit(height: int, width: int, norm: Norm) -> bool:
    """Whether ART's squares stay within the image: one of 0.8 of the area, and in L2 first five tiles of a fifth of the
    height."""
    side = round(math.sqrt(SQUARE_AREA * height * width))
    if norm == "linf":
        return side < min(height, width)
    return 5 * (height // 5) <= width and side + (side % 2 == 0) < min(height, width)


@attack(
    "art-square",
    library=ART,
    aim="eps",
    norms=("l2", "linf"),
    settings=lambda *_: f"{SQUARE_QUERIES} queries, 1 restart",
    passes=lambda _: Passes(forward=3 * SQUARE_QUERIES + 5, backward=0),
    least_side=SQUARE_SIDE,
    fits=_squares_fit,
)
@evasion("SquareAttack")
def art_square(batch: Batch) -> dict[str, Any]:
    """Searches the ball of radius eps by random square patches, in ART's own implementation.

    Its first step lays five by five tiles over the image, each of at least two pixels. Source: Andriushchenko et al.,
    "Square Attack", ECCV 2020.
    """
    return {"norm": ORDER[batch.norm], "eps": _eps(batch), "max_iter": SQUARE_QUERIES, "nb_restarts": 1}


@attack(
    "cw",
    library=ART,
    aim="closest",
    norms=("l2",),
    settings=lambda *_: f"{CW_SEARCHES} constants, {CW_STEPS} steps each with line search, confidence 0",
    passes=lambda classes: Passes(
        forward=CW_SEARCHES * (CW_STEPS * (2 + CW_LINE) + 1) + 1,
        backward=CW_SEARCHES * CW_STEPS * 2 * min(classes, LABELS),
    ),
)
@evasion("CarliniL2Method")
def cw(batch: Batch) -> dict[str, Any]:
    """Minimises the distance plus a constant times the margin, and searches for the constant (C&W L2).

    Source: Carlini & Wagner, "Towards evaluating the robustness of neural networks", S&P 2017.
    """
    del batch
    line = {"max_halving": CW_LINE // 2, "max_doubling": CW_LINE // 2}
    search = {"binary_search_steps": CW_SEARCHES, "max_iter": CW_STEPS, "initial_const": 0.01}
    return {"confidence": 0.0, "learning_rate": 0.01, **search, **line}


@attack(
    "elasticnet",
    library=ART,
    aim="closest",
    norms=("l2", "l1"),
    settings=lambda _, norm: (
        f"{EAD_SEARCHES} constants, {EAD_STEPS} steps each, {spoken(norm)} rule, beta {_beta(norm):g}"
    ),
    passes=lambda classes: Passes(
        forward=EAD_SEARCHES * EAD_STEPS * 4 + 2, backward=EAD_SEARCHES * EAD_STEPS * 2 * min(classes, LABELS)
    ),
)
@evasion("ElasticNet")
def elasticnet(batch: Batch) -> dict[str, Any]:
    """Minimises L2 and a little L1 distance plus a constant times the margin, and searches for the constant (EAD).

    In L1 with more of it, and the closest in L1 is kept. Source: Chen et al., "EAD: elastic-net attacks to deep neural
    networks", AAAI 2018.
    """
    search = {"binary_search_steps": EAD_SEARCHES, "max_iter": EAD_STEPS, "initial_const": 0.01}
    rule = {"beta": _beta(batch.norm), "decision_rule": spoken(batch.norm)}
    return {"confidence": 0.0, "learning_rate": 0.05, **rule, **search}


def _beta(norm: Norm) -> float:
    """Weight of the L1 distance; the two of the paper."""
    return 1e-2 if norm == "l1" else 1e-3


def _starts(network: UnitBox, batch: Batch) -> tuple[Tensor, Tensor]:
    """A misclassified random input for each sample, and for which samples one was found."""
    starts, open_rows = batch.inputs.clone(), torch.ones(len(batch.inputs), dtype=torch.bool, device=network.device)
    with torch.no_grad():
        for _ in range(HOP_STARTS):
            drawn = torch.from_numpy(np.random.rand(*batch.inputs.shape)).to(batch.inputs)  # noqa: NPY002
            hit = open_rows & (network(drawn).argmax(1) != batch.labels)
            starts[hit] = drawn[hit]
            open_rows &= ~hit
            if not bool(open_rows.any()):
                break
    return starts, ~open_rows


@attack(
    "hopskipjump",
    library=ART,
    aim="closest",
    norms=("l2", "linf"),
    settings=lambda *_: f"{HOPS} iterations, {HOP_QUERIES} queries in the first, from random inputs",
    passes=lambda _: Passes(
        forward=HOP_STARTS + sum(int(HOP_QUERIES * math.sqrt(i + 1)) for i in range(HOPS)) + HOPS * 30 + 3, backward=0
    ),
)
def hopskipjump(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Walks along the decision boundary towards the input, with nothing but predictions to go by.

    ART mixes float64 into its queries, which `UnitBox` casts to the network's own dtype; and it draws its starting
    points from an unseeded generator, so they are drawn here. Source: Chen, Jordan & Wainwright, S&P 2020.
    """
    starts, found = _starts(network, batch)
    claims = batch.inputs.clone()
    if bool(found.any()):
        queries = {"max_iter": HOPS, "init_eval": HOP_QUERIES, "init_size": HOP_STARTS}
        parameters = {"batch_size": 64, "norm": ORDER[batch.norm], **queries}
        labels, first = one_hot(batch.labels[found], network.classes), starts[found].cpu().numpy()
        model = classifier(network, network, network.classes)
        points = _generated("HopSkipJump", model, batch.inputs[found], parameters, labels, x_adv_init=first)
        claims[found] = points.to(claims)
    yield claims
