"""Random networks with harmful weights: no input of a ball leaves its form, no difference falls below its bound.

`LIPAUDIT_FUZZ_SECONDS` gives more time, `LIPAUDIT_FUZZ_SEED` another start. And tiny networks, where the least value
over a ball is known exactly.
"""

from __future__ import annotations

import itertools
import math
import os
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from unittest import mock

import pytest
import torch
from balls import inside, lowest
from fuzzed import BLOCKS, captured, fuzzed, reweighted
from quick import mostly_slow
from torch import nn

from lipaudit.certification.margins import ErrorRecursion
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import Graph, evaluate
from lipaudit.domains.interpreter import walk
from lipaudit.domains.lipschitz import RULES, Ledger, Value
from lipaudit.domains.lipschitz.propagator import INPUT
from lipaudit.domains.zonotope import logits as zonotope
from lipaudit.domains.zonotope import propagator as ledger
from lipaudit.domains.zonotope.backward import lower_bounds
from lipaudit.domains.zonotope.propagator import TooWide
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.results.threat import NORMS

SECONDS = float(os.environ.get("LIPAUDIT_FUZZ_SECONDS", "16"))
AT_LEAST = 10
"""Networks, however slow the machine is."""
SEED = int(os.environ.get("LIPAUDIT_FUZZ_SEED", "0"))
WEIGHTINGS = 3
ROOM = 20_000
FEW = 1500
"""Rows that are taken together."""


@dataclass
class Parts:
    """What the error recursion wants of a composition."""

    graph: Graph
    ledger: Ledger
    head: Value


@dataclass
class Tally:
    """What came of the networks."""

    tested: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def judge(graph: Graph, title: str, seed: int, tally: Tally) -> None:
    whole = Ledger(graph, torch.device("cpu"), domain=(0.0, 1.0), measure=False)
    random, generator = Random(seed), torch.Generator().manual_seed(seed)
    x = torch.rand(graph.input_shape, generator=generator, dtype=torch.float64)
    radius, backwards = 10 ** random.uniform(-6, 0.5), random.random() < 0.5
    together = random.random() < 0.5 and math.prod(graph.input_shape) < FEW
    crowding, harmful = random.choice([(0.0, 0.0), (ledger.CROWDING, ledger.HARMFUL)])
    norm = random.choice(NORMS)
    try:
        with torch.no_grad(), mock.patch.multiple(ledger, CROWDING=crowding, HARMFUL=harmful):  # as symbols, or not
            head = walk(graph, RULES, Value(INPUT), whole)
            whole.settle(head)
            logits = zonotope.logits_over(
                whole,
                x,
                radius,
                norm=norm,
                room_for=FEW if together else ROOM,
                backwards=backwards,
                together=together,
            )
    except (NotLipschitz, UnsupportedOp, TooWide) as error:
        tally.refused[f"{type(error).__name__}: {str(error)[:60]}"] += 1
        return
    tally.tested += 1
    title = f"{title}, {norm}"
    low, high = (end[0] for end in logits.range())
    evaluated = ErrorRecursion(Parts(graph, whole, head))
    for d in inside(graph.input_shape, 8, generator, norm):
        point = (x + radius * d).clamp(0.0, 1.0) if norm == "linf" else x + radius * d
        value, error = (torch.tensor(found, dtype=torch.float64) for found in evaluated(point))
        if not bool(((low - error <= value) & (value <= high + error)).all()):
            tally.violations.append(f"{title}, radius {radius:.3g}: a value outside its range")
    c = torch.eye(3, dtype=torch.float64) - torch.eye(3, dtype=torch.float64).roll(1, 0)
    below = lower_bounds(logits.step, c[:, None]) + c @ logits.centre[0]
    for label in range(3):
        try:
            least = float(lowest(lambda x: evaluate(graph, x[0])[None], x, radius, c[label], norm))
        except RuntimeError:  # no gradient reaches the input
            continue
        noise = 1e-11 * (1 + float(logits.centre.abs().max()) + float((high - low).max()))
        other = int(c[label].argmin())
        by_form = zonotope.margins(logits, label)[other - (other > label)]
        bounds = [float(below[label]), by_form]
        if together:
            bounds.append(float(zonotope.margins_together(logits, label, 10)[other - (other > label)]))
        for bound in bounds:
            if bound > least + noise:
                tally.violations.append(f"{title}, radius {radius:.3g}: {least} below {bound}")


def sweep(seconds: float, seed: int) -> Tally:
    tally, began = Tally(), time.monotonic()
    while time.monotonic() - began < (seconds if tally.tested >= AT_LEAST else 20 * seconds):
        network, random = fuzzed(seed, BLOCKS[seed % len(BLOCKS)]), Random(seed)
        graph = captured(network, tally.refused) if network.names else None
        for number in range(WEIGHTINGS if graph is not None else 0):
            judge(graph, f"seed {seed}, {' + '.join(network.names)}, weights {number}", seed + number, tally)
            graph = reweighted(graph, random)
        seed += 1
    return tally


@pytest.mark.slow
def test_no_random_network_leaves_its_forms() -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tally = sweep(SECONDS, SEED)
    assert not tally.violations
    assert tally.tested >= AT_LEAST


def least_of(first: nn.Linear, f: nn.Module, c: torch.Tensor, x: torch.Tensor, radius: float) -> float:
    """The least value over a disk of <c, network>, for one hidden layer of ReLU and two inputs: exactly.

    Where no ReLU bends the function is straight, so it is least where two bends cross, or a bend and the circle, or
    where a straight piece falls most steeply out of the disk. Every candidate is in the disk: none is too low.
    """
    bends = [(w, float(b)) for w, b in zip(first.weight, first.bias, strict=True)]
    candidates = [x]
    for (w, b), (v, a) in itertools.combinations(bends, 2):
        both = torch.stack([w, v])
        if abs(float(torch.linalg.det(both))) > 1e-12:
            candidates.append(torch.linalg.solve(both, -torch.tensor([b, a], dtype=torch.float64)))
    for w, b in bends:
        away = -(float(w @ x) + b) / float(w @ w)
        if abs(away) * float(w.norm()) < radius:
            along = torch.stack([-w[1], w[0]]) * math.sqrt(radius**2 - away**2 * float(w @ w)) / float(w.norm())
            candidates += [x + away * w + along, x + away * w - along]
    for pattern in itertools.product((0.0, 1.0), repeat=len(bends)):
        slope = (c @ f[2].weight * torch.tensor(pattern, dtype=torch.float64)) @ first.weight
        if float(slope.norm()) > 0:
            candidates.append(x - radius * slope / slope.norm())
    points = torch.stack(candidates)
    points = points[(points - x).norm(dim=1) <= radius * (1 + 1e-9)]
    return float((f(points) @ c).min())


@pytest.mark.parametrize("seed", mostly_slow(range(10), 3))
def test_bounds_are_below_the_exact_least_value(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval().requires_grad_(False)
    composition = compose(model, (2,))
    x = torch.randn(2, dtype=torch.float64)
    for radius in (1e-3, 0.1, 0.5, 2.0):
        logits = zonotope.logits_over(composition.ledger, x, radius, room_for=ROOM)
        for label in range(3):
            others = [j for j in range(3) if j != label]
            for bound, other in zip(zonotope.margins(logits, label), others, strict=True):
                c = torch.zeros(3, dtype=torch.float64)
                c[label], c[other] = 1.0, -1.0
                least = least_of(model[0], model, c, x, radius)
                assert bound <= least + 1e-9 * radius  # candidates are in the disk to 1e-9
                backwards = lower_bounds(logits.step, c[None, None]) + c @ logits.centre[0]
                assert float(backwards) <= least + 1e-9 * radius
                gap = float(c @ logits.centre[0])
                if radius <= 1e-3 and not bool(((model[0](x)).abs() < 0.01).any()):
                    assert bound >= least - 1e-9  # nothing bends: the bound is the least value
                assert least <= gap


def least_in_polygon(first: nn.Linear, f: nn.Module, c: torch.Tensor, corners: torch.Tensor) -> float:
    """The least value over a convex polygon of <c, network>, for one hidden layer of ReLU and two inputs: exactly.

    A function of straight pieces is least at a corner of a piece: of the polygon, or where two lines cross of those
    where ReLUs bend and the polygon's edges. Candidates that rounding puts outside are left out: none is too low.
    """
    edges = [
        (torch.stack([q[1] - p[1], p[0] - q[0]]), float(q[1] * p[0] - q[0] * p[1]))
        for p, q in zip(corners, corners.roll(-1, 0), strict=True)
    ]
    lines = [(w, -float(b)) for w, b in zip(first.weight, first.bias, strict=True)] + edges
    points = [*corners]
    for (w, b), (v, a) in itertools.combinations(lines, 2):
        both = torch.stack([w, v])
        if abs(float(torch.linalg.det(both))) > 1e-12:
            points.append(torch.linalg.solve(both, torch.tensor([b, a], dtype=torch.float64)))
    middle, found = corners.mean(0), torch.stack(points)
    for w, b in edges:
        side = (found @ w - b) * torch.sign(w @ middle - b)
        found = found[side >= -1e-12]
    return float((f(found) @ c).min())


@pytest.mark.parametrize("seed", mostly_slow(range(6), 2))
@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("together", [False, True])
def test_bounds_are_below_the_exact_least_value_in_a_box_or_a_diamond(norm: str, seed: int, together: bool) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval().requires_grad_(False)
    composition = compose(model, (2,), domain=(0.0, 1.0))
    x = torch.rand(2, dtype=torch.float64)
    signs = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    turned = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    for radius in (1e-3, 0.1, 0.5, 2.0):
        corners = (x + radius * signs).clamp(0.0, 1.0) if norm == "linf" else x + radius * turned
        logits = zonotope.logits_over(composition.ledger, x, radius, norm=norm, room_for=ROOM, together=together)
        for label in range(3):
            others = [j for j in range(3) if j != label]
            all_at_once = zonotope.margins_together(logits, label, 10).tolist() if together else [-math.inf] * 2
            for bound, at_once, other in zip(zonotope.margins(logits, label), all_at_once, others, strict=True):
                c = torch.zeros(3, dtype=torch.float64)
                c[label], c[other] = 1.0, -1.0
                least = least_in_polygon(model[0], model, c, corners)
                backwards = float(lower_bounds(logits.step, c[None, None]) + c @ logits.centre[0])
                assert max(bound, backwards, at_once) <= least + 1e-11
                if radius <= 1e-3 and not bool(((model[0](x)).abs() < 0.01).any()):
                    assert bound >= least - 1e-9  # nothing bends: the bound is the least value
