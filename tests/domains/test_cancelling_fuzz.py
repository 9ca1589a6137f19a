"""Smooth networks that cancel: tiny balls, nearly equal units whose difference is blown up, held against exact values.

Local certificates say what the real function does. Around 1e-6, float64 cannot tell a curved function from its tangent,
and a gain of 1e8 makes every lost digit visible; so the values are computed with fifty digits, and there is no slack.
`LIPAUDIT_FUZZ_SECONDS` gives more time, `LIPAUDIT_FUZZ_SEED` another start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest import mock

import mpmath
import pytest
import torch
from balls import inside
from torch import nn

from lipaudit.certification.local_search import local_radius
from lipaudit.certification.network_bound import Composition, compose
from lipaudit.domains.zonotope import logits as zonotope
from lipaudit.domains.zonotope import propagator
from lipaudit.domains.zonotope.backward import lower_bounds
from lipaudit.domains.zonotope.propagator import TooWide

SECONDS = float(os.environ.get("LIPAUDIT_FUZZ_SECONDS", "12"))
SEED = int(os.environ.get("LIPAUDIT_FUZZ_SEED", "0"))
AT_LEAST = 8
ROOM = 20_000

Exact = Callable[[Any], Any]
ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], Exact]] = {
    "gelu": (nn.GELU, lambda z: z * mpmath.ncdf(z)),
    "silu": (nn.SiLU, lambda z: z / (1 + mpmath.exp(-z))),
    "tanh": (nn.Tanh, mpmath.tanh),
    "sigmoid": (nn.Sigmoid, lambda z: 1 / (1 + mpmath.exp(-z))),
    "softplus": (lambda: nn.Softplus(threshold=40), lambda z: mpmath.log1p(mpmath.exp(z))),
}


@dataclass
class Tally:
    tested: int = 0
    refused: int = 0
    violations: list[str] = field(default_factory=list)


def cancelling(random: Random, name: str) -> nn.Sequential:
    """Pairs of nearly equal units, whose differences the last layer blows up."""
    inputs, pairs = random.choice([2, 3, 5]), random.choice([2, 3])
    first, last = nn.Linear(inputs, 2 * pairs), nn.Linear(2 * pairs, 3)
    apart, gain, steep = 10 ** random.uniform(-7, -1), 10 ** random.uniform(0, 8), 10 ** random.uniform(-1, 1.5)
    with torch.no_grad():
        weight = torch.randn(pairs, inputs, dtype=torch.float64) * steep
        bias = torch.randn(pairs, dtype=torch.float64)
        layers = [ACTIVATIONS[name][0]()]
        model = nn.Sequential(first, *layers, last).double().eval().requires_grad_(False)
        first.weight.copy_(torch.cat([weight, weight + apart * torch.randn_like(weight)]))
        first.bias.copy_(torch.cat([bias, bias + apart * torch.randn_like(bias)]))
        rows = gain * torch.randn(3, pairs, dtype=torch.float64)
        last.weight.copy_(torch.cat([rows, -rows], 1))
    return model


def exactly(model: nn.Sequential, name: str, x: list[Any]) -> list[Any]:
    """The logits with fifty digits."""
    first, last = model[0], model[2]
    values = x
    for layer in (first, last):
        weights, biases = layer.weight.tolist(), layer.bias.tolist()
        values = [
            mpmath.fsum([b, *(w * v for w, v in zip(row, values, strict=True))])
            for row, b in zip(weights, biases, strict=True)
        ]
        if layer is first:
            values = [ACTIVATIONS[name][1](mpmath.mpf(v)) for v in values]
    return values


def places(model: nn.Sequential, x: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """Unit directions: some at random, and those along which logits and their differences fall and rise fastest."""
    slopes = torch.func.jacrev(model)(x)
    ways = [*slopes, *(slopes - slopes.roll(1, 0))]
    steep = [sign * way / way.norm() for way in ways for sign in (1, -1) if float(way.norm()) > 0]
    return [*inside(tuple(x.shape), 4, generator), *(way * (1 - 1e-12) for way in steep)]


def judge(composition: Composition, model: nn.Sequential, name: str, seed: int, tally: Tally) -> None:
    random, generator = Random(seed), torch.Generator().manual_seed(seed)
    x = torch.rand(model[0].in_features, generator=generator, dtype=torch.float64)
    radius = 10 ** random.choice([-8, -6, -6, -6, -4, -2])
    backwards = random.random() < 0.5
    crowding, harmful = random.choice([(0.0, 0.0), (propagator.CROWDING, propagator.HARMFUL)])
    try:
        with mock.patch.multiple(propagator, CROWDING=crowding, HARMFUL=harmful):  # as symbols, or not
            logits = zonotope.logits_over(composition.ledger, x, radius, room_for=ROOM, backwards=backwards)
    except TooWide:
        tally.refused += 1
        return
    tally.tested += 1
    low, high = ([mpmath.mpf(v) for v in end[0].tolist()] for end in logits.range())
    c = torch.eye(3, dtype=torch.float64) - torch.eye(3, dtype=torch.float64).roll(1, 0)
    centre = [mpmath.mpf(v) for v in logits.centre[0].tolist()]
    below = [mpmath.mpf(v) for v in lower_bounds(logits.step, c[:, None]).tolist()]
    title = f"seed {seed}, {name}, radius {radius:g}"
    top = max(range(3), key=lambda k: float(logits.centre[0, k]))
    proved = local_radius(composition, x, top, start=radius)
    for d in places(model, x, generator):
        point = [mpmath.mpf(a) + radius * mpmath.mpf(b) for a, b in zip(x.tolist(), d.tolist(), strict=True)]
        values = exactly(model, name, point)
        if not all(lo <= v <= hi for lo, v, hi in zip(low, values, high, strict=True)):
            tally.violations.append(f"{title}: a value outside its range")
        for row, bound in zip(c.tolist(), below, strict=True):
            moved = mpmath.fsum(w * (v - at) for w, v, at in zip(row, values, centre, strict=True))
            if moved < bound:
                tally.violations.append(f"{title}: {moved} below {bound}")
        if proved:
            point = [mpmath.mpf(a) + proved * mpmath.mpf(b) for a, b in zip(x.tolist(), d.tolist(), strict=True)]
            values = exactly(model, name, point)
            if max(values) != values[top]:
                tally.violations.append(f"{title}: another class within {proved}")


def sweep(seconds: float, seed: int) -> Tally:
    tally, began = Tally(), time.monotonic()
    names = sorted(ACTIVATIONS)
    while time.monotonic() - began < (seconds if tally.tested >= AT_LEAST else 20 * seconds):
        torch.manual_seed(seed)
        name = names[seed % len(names)]
        model = cancelling(Random(seed), name)
        judge(compose(model, (model[0].in_features,)), model, name, seed, tally)
        seed += 1
    return tally


@pytest.mark.slow
def test_no_tiny_ball_escapes_by_cancellation() -> None:
    with mpmath.workdps(50):
        tally = sweep(SECONDS, SEED)
    assert not tally.violations
    assert tally.tested >= AT_LEAST


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_exact_values_are_those_of_the_network(name: str) -> None:
    model = cancelling(Random(1), name)
    model[2].weight.data = torch.randn(model[2].weight.shape, generator=torch.Generator().manual_seed(0)).double()
    x = torch.rand(model[0].in_features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with mpmath.workdps(50):
        exact = torch.tensor([float(v) for v in exactly(model, name, [mpmath.mpf(v) for v in x.tolist()])])
    assert torch.allclose(model(x), exact.double(), rtol=1e-6, atol=1e-6)
