"""Bounds from Linf and L1: never below a slope that was seen, 1 for networks that are built to have 1.

`LIPAUDIT_FUZZ_SECONDS` gives the random networks more time, `LIPAUDIT_FUZZ_SEED` another start.
"""

from __future__ import annotations

import itertools
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from unittest import mock

import pytest
import torch
from fuzzed import BLOCKS, captured, fuzzed, reweighted
from torch import nn

import lipaudit
from lipaudit.certification.network_bound import Composition, compose, pairwise
from lipaudit.certification.norm_bounds import bound_in
from lipaudit.domains.graph import Graph, evaluate
from lipaudit.domains.interpreter import walk
from lipaudit.domains.lipschitz import RULES, Ledger, Value
from lipaudit.domains.lipschitz.propagator import INPUT
from lipaudit.errors import LipauditError
from lipaudit.norms.linear_maps import Dense
from lipaudit.results.bounds import NetworkBound

SECONDS = float(os.environ.get("LIPAUDIT_FUZZ_SECONDS", "16"))
SEED = int(os.environ.get("LIPAUDIT_FUZZ_SEED", "0"))
AT_LEAST = 10


class Function(nn.Module):
    """A function of the input as a network."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.double_precision = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W, V, K = weights(8, 6), weights(4, 8, seed=1), weights(3, 1, 2, seed=2)
T = weights(1, 1, 3)
ODD = torch.arange(6) % 2 > 0
FOURTH = torch.arange(6) == 4
NETWORKS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dense": lambda x: torch.relu(x @ W.T) @ V.T,
    "smooth": lambda x: torch.nn.functional.silu(x @ W.T) @ V.T,
    "written out": lambda x: (x @ W.T * torch.sigmoid(x @ W.T)) @ V.T,
    "residual": lambda x: (x @ W.T + torch.tanh(2 * (x @ W.T)) - 0.5 * torch.sin(x @ W.T)) @ V.T,
    "sorted": lambda x: (x @ W.T).reshape(-1, 2, 4).sort(2, descending=True).values.flatten(1) @ V.T,
    "max pooling": lambda x: torch.nn.functional.max_pool1d(
        torch.conv1d(x[:, None], K, padding=1), 3, 2, ceil_mode=True
    ).flatten(1)[:, :4],
    "max pooling of images": lambda x: torch.nn.functional.max_pool2d(
        (x @ W.T).reshape(-1, 1, 2, 4), 2, 1, padding=1
    ).flatten(1)[:, 3:7],
    "extremes": lambda x: torch.cat(
        [torch.maximum(x[:, :3], x[:, 3:]), x.amax(1, keepdim=True), x.amin(1, keepdim=True), x.median(1, True)[0]], 1
    ),
    "running": lambda x: torch.cat([x.cummax(1).values, (x @ W.T).cumsum(1)], 1),
    "norms": lambda x: torch.cat(
        [torch.linalg.vector_norm(x.reshape(-1, 2, 3), p, 2) for p in (1, 2, float("inf"))], 1
    ),
    "assembled": lambda x: torch.where(ODD, x, x.flip(1)).masked_fill(FOURTH, 1.0) @ W.T,
    "limits": lambda x: torch.clamp(x @ W.T, x[:, :1] - 1, x[:, 1:2] + 1),
    "softmax": lambda x: torch.softmax(3 * (x @ W.T), 1) @ V.T,
    "layer norm": lambda x: torch.nn.functional.layer_norm(x @ W.T, (8,), W[:, 0], W[:, 1]) @ V.T,
    "stretched": lambda x: (x[:, :, None] * T).flatten(1)[:, :5],
    "contracted": lambda x: torch.einsum("bij,jk->bk", x.reshape(-1, 2, 3), V[:3, :4]),
    "gated": lambda x: torch.nn.functional.glu(x @ W.T, 1),
    "product": lambda x: (x @ W.T) * (x @ W.T.flip(1)),
}


def slopes(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor | None:
    """The rows of the derivative at x; None where it is not finite."""
    x = x.clone().requires_grad_()
    logits = function(x)
    rows = [torch.autograd.grad(logit, x, retain_graph=True, materialize_grads=True)[0].flatten() for logit in logits]
    found = torch.stack(rows)
    return found if bool(found.isfinite().all()) else None


def exceeded(composition: Composition, points: list[torch.Tensor]) -> list[str]:
    """Which bounds a slope at one of the points, or a change between two of them, is above."""
    found = []
    for norm, order in {"linf": 1.0, "l1": float("inf")}.items():
        bound = bound_in(composition, norm)
        pairs = torch.tensor(bound.pairwise, dtype=torch.float64)
        for x in points:
            rows = slopes(lambda x: evaluate(composition.graph, x), x)
            if rows is not None:
                apart = torch.linalg.vector_norm(rows[:, None] - rows[None], order, dim=2)
                found += [f"{norm} pairs"] * bool((apart > pairs * (1 + 1e-13)).any())
                alone = float(torch.linalg.vector_norm(rows, order, dim=1).max())
                found += [f"{norm} logits"] * (alone > bound.value * (1 + 1e-13))
        for x, y in itertools.pairwise(points):
            moved = float(torch.linalg.vector_norm(x - y, float("inf") if norm == "linf" else 1.0))
            change = evaluate(composition.graph, x) - evaluate(composition.graph, y)
            noise = 1e-12 * (1 + float(change.abs().max()))
            off = (change[:, None] - change[None]).abs() - pairs * moved * (1 + 1e-12) - noise
            found += [f"{norm} between points"] * bool((off > 0).any())
    return found


def corners(shape: tuple[int, ...], count: int, seed: int) -> list[torch.Tensor]:
    """Points, each with a corner of a small box around it, and points anywhere."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        x, sign = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        found += [x, (x + 0.03 * (sign - 0.5).sign()).clamp(0, 1)]
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_no_slope_exceeds_the_bound(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        composition = compose(Function(NETWORKS[name]).eval(), (6,), domain=(0.0, 1.0))
        assert not exceeded(composition, corners((6,), 12, 0))
    notes = [note for norm in ("linf", "l1") for note in bound_in(composition, norm).notes]
    assert not notes, notes
    lines = bound_in(composition, "linf").layers
    assert lines
    assert all(line.inputs and line.upper.value >= 0 for line in lines)


def distances(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    return (x[:, None] - centres).abs().amax(2)


def test_networks_that_are_built_for_linf_come_out_at_one() -> None:
    rows = (weights(8, 6, seed=3).abs(), weights(4, 8, seed=4))
    first, second = (row / row.abs().sum(1, keepdim=True) for row in rows)
    built = {
        "distances": lambda x: distances(distances(x, W) + W[:, 0], V) + V[:, 0],
        "sorted": lambda x: (x @ first.T).sort(1).values @ second.T,
        "maximum": lambda x: torch.relu(x @ first.T).reshape(-1, 4, 2).amax(2),
    }
    for function in built.values():
        bound = lipaudit.bound(Function(function).eval(), (6,), norm="linf")
        assert 1 - 1e-9 <= bound.value <= 1 + 1e-9
        assert bound.largest_pairwise <= 2 + 1e-9


def test_linear_networks_are_exact() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).double().eval()
    matrix = (model[1].weight @ model[0].weight).detach()
    apart = matrix[:, None] - matrix[None]
    for norm, order in {"linf": 1.0, "l1": float("inf")}.items():
        pairs = torch.tensor(lipaudit.bound(model, (6,), norm=norm).pairwise, dtype=torch.float64)
        truth = torch.linalg.vector_norm(apart, order, dim=2)
        assert bool((pairs >= truth * (1 - 1e-14)).all())
        assert torch.allclose(pairs, truth, rtol=1e-9)


def test_the_first_layer_counts_from_linf_to_l2() -> None:
    """Eight rows that read disjoint entries move by at most 1 each: the root of 8 in L2, not the root of 64."""
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8).repeat_interleave(8, 1) / 8)
        model[2].weight.copy_(torch.linalg.qr(weights(8, 8))[0])
    composition = compose(model, (64,))
    step = 8**0.5 / 8**-0.5  # over the L2 norm of the layer
    ours, l2 = (bound_in(composition, norm).pairwise[0][1] for norm in ("linf", "l2"))
    assert ours <= min(step, 64**0.5) * l2 * (1 + 1e-9)


@pytest.mark.parametrize("classes", [2, 20, 130])
def test_many_classes_are_bounded_together(classes: int) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, classes)).double().eval()
    assert not exceeded(compose(model, (6,)), corners((6,), 3, 1))


def test_a_rule_that_is_wrong_about_entries_is_found_out() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    composition = compose(model, (6,))

    def turned(weight: torch.Tensor, *rest: object) -> Dense:
        return Dense(weight.flip(0), *rest)  # of the same norm

    with mock.patch("lipaudit.domains.lipschitz.linear.Dense", turned):
        bound = bound_in(composition, "linf")
    assert "hands on a map that is not what the operation does" in bound.notes[-1]
    assert bound.pairwise[0][1] >= composition.network.pairwise[0][1] * 6**0.5


@dataclass
class Tally:
    """What came of the random networks."""

    tested: int = 0
    by_l2_alone: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def judge(graph: Graph, title: str, seed: int, tally: Tally) -> None:
    ledger = Ledger(graph, torch.device("cpu"), domain=(0.0, 1.0), measure=False)
    try:
        with torch.no_grad():
            head = walk(graph, RULES, Value(INPUT), ledger)
            ledger.settle(head)
            pairs = pairwise(head, ledger)
    except LipauditError as error:
        tally.refused[str(error)[:60]] += 1
        return
    network = NetworkBound((), math.inf, pairs, graph.input_shape)  # of the vector of logits, by the ledger alone
    composition = Composition(network, graph, ledger, head, nn.Identity(), pairs, None)
    tally.tested += 1
    tally.violations += [f"{title}: {what}" for what in exceeded(composition, corners(graph.input_shape, 4, seed))]
    tally.by_l2_alone.update(note[:120] for note in bound_in(composition, "l1").notes)


def sweep(seconds: float, seed: int) -> Tally:
    tally, began = Tally(), time.monotonic()
    while time.monotonic() - began < (seconds if tally.tested >= AT_LEAST else 20 * seconds):
        network, random = fuzzed(seed, BLOCKS[seed % len(BLOCKS)]), Random(seed)
        graph = captured(network, tally.refused) if network.names else None
        for number in range(3 if graph is not None else 0):
            judge(graph, f"seed {seed}, {' + '.join(network.names)}, weights {number}", seed + number, tally)
            graph = reweighted(graph, random)
        seed += 1
    return tally


@pytest.mark.slow
def test_no_random_network_exceeds_its_bounds() -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tally = sweep(SECONDS, SEED)
    assert not tally.violations
    assert tally.tested >= 2 * sum(tally.refused.values())
