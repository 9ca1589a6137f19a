"""Attacks of ART that look for the closest adversarial example for long, and are in no preset."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lipaudit.crosscheck.art import classifier, one_hot
from lipaudit.crosscheck.registry import ART, Batch, Passes, attack
from lipaudit.crosscheck.unit_box import UnitBox

CW_SEARCHES, CW_STEPS, CW_LINE = 10, 10, 10
EAD_SEARCHES, EAD_STEPS = 9, 100
HOPS, HOP_QUERIES, HOP_STARTS = 10, 100, 100
LABELS = 16
"""ART takes one backward pass of the whole batch per class that occurs in it: so many, or all classes."""


@attack(
    "cw",
    library=ART,
    aim="closest",
    settings=lambda _: f"{CW_SEARCHES} constants, {CW_STEPS} steps each with line search, confidence 0",
    passes=lambda classes: Passes(
        forward=CW_SEARCHES * (CW_STEPS * (2 + CW_LINE) + 1) + 1,
        backward=CW_SEARCHES * CW_STEPS * 2 * min(classes, LABELS),
    ),
)
def cw(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Minimises the distance plus a constant times the margin, and searches for the constant (C&W L2).

    Source: Carlini & Wagner, "Towards evaluating the robustness of neural networks", S&P 2017.
    """
    from art.attacks.evasion import CarliniL2Method

    method = CarliniL2Method(
        classifier(network, network, network.classes),
        confidence=0.0,
        learning_rate=0.01,
        binary_search_steps=CW_SEARCHES,
        max_iter=CW_STEPS,
        initial_const=0.01,
        max_halving=CW_LINE // 2,
        max_doubling=CW_LINE // 2,
        batch_size=len(batch.inputs),
        verbose=False,
    )
    found = method.generate(batch.inputs.cpu().numpy(), one_hot(batch.labels, network.classes))
    yield torch.from_numpy(found).to(network.device)


@attack(
    "elasticnet",
    library=ART,
    aim="closest",
    settings=lambda _: f"{EAD_SEARCHES} constants, {EAD_STEPS} steps each, L2 rule, beta 0.001",
    passes=lambda classes: Passes(
        forward=EAD_SEARCHES * EAD_STEPS * 4 + 2, backward=EAD_SEARCHES * EAD_STEPS * 2 * min(classes, LABELS)
    ),
)
def elasticnet(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Minimises L2 and a little L1 distance plus a constant times the margin, and searches for the constant (EAD).

    Source: Chen et al., "EAD: elastic-net attacks to deep neural networks", AAAI 2018.
    """
    from art.attacks.evasion import ElasticNet

    method = ElasticNet(
        classifier(network, network, network.classes),
        confidence=0.0,
        learning_rate=0.05,
        binary_search_steps=EAD_SEARCHES,
        max_iter=EAD_STEPS,
        beta=1e-3,
        initial_const=0.01,
        batch_size=len(batch.inputs),
        decision_rule="L2",
        verbose=False,
    )
    found = method.generate(batch.inputs.cpu().numpy(), one_hot(batch.labels, network.classes))
    yield torch.from_numpy(found).to(network.device)


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
    settings=lambda _: f"{HOPS} iterations, {HOP_QUERIES} queries in the first, from random inputs",
    passes=lambda _: Passes(
        forward=HOP_STARTS + sum(int(HOP_QUERIES * math.sqrt(i + 1)) for i in range(HOPS)) + HOPS * 30 + 3, backward=0
    ),
)
def hopskipjump(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Walks along the decision boundary towards the input, with nothing but predictions to go by.

    ART mixes float64 into its queries, which `UnitBox` casts to the network's own dtype; and it draws its starting
    points from an unseeded generator, so they are drawn here. Source: Chen, Jordan & Wainwright, S&P 2020.
    """
    from art.attacks.evasion import HopSkipJump

    starts, found = _starts(network, batch)
    claims = batch.inputs.clone()
    if bool(found.any()):
        walk = HopSkipJump(
            classifier(network, network, network.classes),
            batch_size=64,
            norm=2,
            max_iter=HOPS,
            init_eval=HOP_QUERIES,
            init_size=HOP_STARTS,
            verbose=False,
        )
        labels = one_hot(batch.labels[found], network.classes)
        points = walk.generate(batch.inputs[found].cpu().numpy(), labels, x_adv_init=starts[found].cpu().numpy())
        claims[found] = torch.from_numpy(points).to(claims)
    yield claims
