"""Random networks with hostile weights: no slope above what layers prove together, without any slack.

`LIPAUDIT_FUZZ_SECONDS` gives more time, `LIPAUDIT_FUZZ_SEED` another start.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional

from lipaudit.certification.network_bound import compose
from lipaudit.domains.ellipsoid.slopes import slopes
from lipaudit.domains.ellipsoid.together import Together, together
from lipaudit.domains.graph import Graph, Node, call, evaluate
from lipaudit.domains.interpreter import walk
from lipaudit.domains.lipschitz import RULES, Value
from lipaudit.domains.lipschitz.propagator import INPUT, Ledger
from lipaudit.errors import LipauditError
from lipaudit.graph.capture import capture
from lipaudit.rounding import narrow_up

SECONDS = float(os.environ.get("LIPAUDIT_FUZZ_SECONDS", "11"))
SEED = int(os.environ.get("LIPAUDIT_FUZZ_SEED", "0"))

ACTIVATIONS = (
    functional.relu, functional.gelu, functional.silu, functional.hardswish, torch.tanh, torch.sigmoid, functional.elu,
    functional.leaky_relu, functional.softplus, torch.abs, torch.sin, lambda x: functional.leaky_relu(x, -0.7),
    lambda x: functional.relu6(4 * x), functional.selu, lambda x: functional.softmax(x.flatten(1), 1).view_as(x),
    lambda x: x.sort(1)[0], lambda x: torch.maximum(x, x.flip(1)),
    lambda x: torch.cat([torch.maximum(x, x.flip(1))[:, :1], torch.minimum(x, x.flip(1))[:, 1:]], 1),
)  # fmt: skip


class Random_(nn.Module):  # noqa: N801
    """Layers in a random order, each of which may read any tensor of its shape before it."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.images, self.plan, self.layers = random.random() < 0.5, [], nn.ModuleList()
        c, side = random.choice((2, 3, 4)), random.choice((4, 5, 6))
        self.shape = (c, side, side) if self.images else (c + 3,)
        width, count = self.shape[0], 1
        for _ in range(random.randint(3, 12)):
            kind = random.choice(("linear", "act", "act", "sum", "cat", "linear", "scale"))
            source = count - 1 if random.random() < 0.8 else random.randrange(count)
            if kind == "cat" and (self.images or width > 12):
                kind = "sum"
            self.plan.append((kind, source, len(self.layers), random.choice(ACTIVATIONS), random.randrange(count)))
            if kind == "linear" and self.images:
                k, groups = random.choice((1, 3)), random.choice((1, width))
                self.layers.append(nn.Conv2d(width, width, k, padding=k // 2, groups=groups))
            elif kind == "linear":
                self.layers.append(nn.Linear(width, width))
            elif kind == "scale" and self.images:
                self.layers.append(nn.BatchNorm2d(width))
            else:
                self.layers.append(nn.Identity())
            count += 1
        self.stride = random.choice((1, 2)) if self.images else 1
        self.down = nn.Conv2d(width, 3, 3, self.stride, 1) if self.images else nn.Linear(width, 3)
        size = -(-side // self.stride)
        self.head = nn.Linear(3 * size * size if self.images else 3, 3)
        generator = torch.Generator().manual_seed(random.randrange(2**31))
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.7)
                if random.random() < 0.2:
                    weight.mul_(10.0 ** random.choice((-12, -4, 3, 9)))
                if random.random() < 0.2 and weight.ndim > 1:  # dead and duplicate neurons
                    weight[0], weight[-1] = 0.0, weight[len(weight) // 2].clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [x]
        for kind, source, layer, act, other in self.plan:
            y = found[source]
            if kind == "act":
                y = act(y)
            elif kind == "sum":
                y = y - 0.5 * found[other]
            elif kind == "cat":
                half = y.shape[1] // 2
                y = torch.cat([y[:, :half], found[other][:, half:]], 1)
            else:
                y = self.layers[layer](y)
            found.append(y)
        return self.head(functional.relu(self.down(found[-1])).flatten(1))


@pytest.mark.parametrize("seconds", [1.0, pytest.param(SECONDS, marks=pytest.mark.slow)])
def test_no_slope_exceeds_the_smaller_bound(seconds: float) -> None:
    began, seed, tested, gained, violations = time.monotonic(), SEED, 0, 0, []
    while time.monotonic() - began < seconds or not gained:
        seed += 1
        net = Random_(Random(seed)).double().eval().requires_grad_(False)
        try:
            made = compose(net, net.shape)
        except LipauditError:
            continue
        tested += 1
        gained += made.network.pairwise != made.product
        pairs = torch.tensor(made.network.pairwise, dtype=torch.float64)
        x = torch.rand(net.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for _ in range(4):
            jacobian = torch.func.jacrev(lambda z, graph=made.graph: evaluate(graph, z))(x).reshape(3, -1)
            apart = torch.linalg.vector_norm(jacobian[:, None] - jacobian[None], dim=2)
            if bool((apart > pairs).any()) or float(torch.linalg.matrix_norm(jacobian, 2)) > made.network.value:
                violations.append(f"seed {seed}: {float((apart / pairs.clamp_min(1e-300)).max())}")
            way = torch.linalg.svd(jacobian, full_matrices=False).Vh[0].reshape(net.shape)
            x = x + way * 10.0 ** Random(seed).choice((-2, -1, 0, 1))
    assert not violations
    assert tested > 0


def hostile(graph: Graph, random: Random) -> Graph:
    """The same graph with other weights: of any scale, with neurons that are dead and some that are the same."""

    def other(weight: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(random.randrange(2**31))
        weight = torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 10 ** random.uniform(-1, 0.5)
        weight *= 10.0 ** random.choice((0, 0, 0, 0, 0, 0, -80, -12, -3, 3, 9, 60))
        if weight.ndim > 1 and random.random() < 0.3:
            weight[0] = 0
        if weight.ndim > 1 and random.random() < 0.3:
            weight[-1] = weight[len(weight) // 2]
        return weight

    def changed(node: Node) -> Node:
        if not isinstance(node.args.get("weight"), torch.Tensor) or "prelu" in node.op:
            return node
        return replace(node, args={**node.args, "weight": other(node.args["weight"])})

    return replace(graph, nodes=tuple(map(changed, graph.nodes)))


def proved(graph: Graph) -> Together | None:
    ledger, values = Ledger(graph, torch.device("cpu"), measure=False), {}
    with torch.no_grad():
        head = walk(graph, RULES, Value(INPUT), ledger, after=lambda node, value: values.update({node.name: value}))
        return together(ledger, values, head, ledger.settle(head))


def steepest(graph: Graph, seed: int, rounds: int) -> Iterator[torch.Tensor]:
    """Jacobians for slopes of the activations that are chosen freely, each time those that make the last one longer.

    For fixed directions the Jacobian is affine in each slope: the sign of its derivative says which end is the best.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(graph.input_shape, generator=generator, dtype=torch.float64)
    chosen: dict[str, torch.Tensor] = {}

    def run(node: Node, arguments: dict[str, object]) -> torch.Tensor:
        interval = slopes(node) if len(node.refs()) == 1 else None
        if interval is None:
            return call(node, arguments)
        low, rise = interval
        if node.name not in chosen:
            chosen[node.name] = torch.randint(2, node.shape, generator=generator).double().requires_grad_()
        return arguments["self"] * (low + rise * (1 - 1e-14) * chosen[node.name])

    for _ in range(rounds):
        jacobian = torch.autograd.functional.jacobian(lambda z: evaluate(graph, z, run=run), x, create_graph=True)
        jacobian = jacobian.reshape(jacobian.shape[0], -1)
        yield jacobian.detach()
        if not chosen or not bool(torch.isfinite(jacobian).all()):
            return
        u, _, v = torch.linalg.svd(jacobian.detach(), full_matrices=False)
        pulls = torch.autograd.grad(u[:, 0] @ jacobian @ v[0], list(chosen.values()), allow_unused=True)
        for name, pull in zip(list(chosen), pulls, strict=True):
            if pull is not None:
                chosen[name] = (pull >= 0).double().requires_grad_()


@pytest.mark.parametrize("seconds", [1.0, pytest.param(SECONDS, marks=pytest.mark.slow)])
def test_no_chosen_slopes_exceed_what_layers_prove_together(seconds: float) -> None:
    began, seed, tested, violations, closest = time.monotonic(), SEED, 0, [], 0.0
    while time.monotonic() - began < seconds or not tested:
        seed += 1
        random = Random(seed)
        net = Random_(random).double().eval().requires_grad_(False)
        try:
            captured = capture(net, net.shape)
        except LipauditError:
            continue
        for change in range(15):
            graph = hostile(captured, random)
            try:
                found = proved(graph)
            except LipauditError:
                continue
            if found is None:
                continue
            tested += 1
            whole, pairs = (
                narrow_up(found.total),
                torch.tensor(found.pairs or [[torch.inf] * 3] * 3, dtype=torch.float64),
            )
            for jacobian in steepest(graph, seed, 5):
                if not bool(torch.isfinite(jacobian).all()):
                    break
                size = float(torch.linalg.matrix_norm(jacobian, 2))
                unit = 2.0 ** math.frexp(size)[1]  # squares stay in the range of float64
                apart = torch.linalg.vector_norm((jacobian[:, None] - jacobian[None]) / unit, dim=2)
                closest = max(closest, size / whole if whole else 0.0)
                if size > whole:
                    violations.append(f"seed {seed}, weights {change}: {size} > {whole}")
                if bool((apart > pairs / unit).any()):
                    violations.append(f"seed {seed}, weights {change}: pairs {(apart / (pairs / unit)).amax()}")
    assert not violations
    print(f"{tested} networks, closest {closest:.3f}")  # noqa: T201
