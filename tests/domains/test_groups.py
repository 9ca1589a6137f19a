"""Groups of symbols: what they claim against what the network does, and what they are good for."""

from __future__ import annotations

import functools

import pytest
import torch
from balls import inside, operands
from quick import mostly_slow
from torch import nn

from lipaudit import zoo
from lipaudit.certification.network_bound import Composition, compose
from lipaudit.domains.zonotope import logits as zonotope
from lipaudit.domains.zonotope.affine_form import Shared
from lipaudit.domains.zonotope.backward import Banded, ancestors
from lipaudit.domains.zonotope.ball_constraints import Group, ends

ROOM = 4000


@functools.cache
def tiny(seed: int) -> tuple[Composition, torch.Tensor]:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip
    return compose(network.eval(), (1, 4, 4), global_method="product"), torch.rand(1, 4, 4)


@pytest.mark.parametrize("seed", mostly_slow(range(4), 2))
@pytest.mark.parametrize("radius", [0.1, 0.3, 2.0])
def test_no_input_of_the_ball_leaves_a_group(seed: int, radius: float) -> None:
    composition, x = tiny(seed)
    logits = zonotope.logits_over(composition.ledger, x, radius, room_for=ROOM)
    steps = sorted((step for step in ancestors(logits.step) if isinstance(step, Banded)), key=lambda step: step.number)
    bands = [step for step in steps if bool((step.band.error > 0).any())]
    assert len(bands) == len(logits.groups) > 0
    relus = [node.name for node in composition.graph.nodes if node.op == "relu.default"]
    names = [name for name, step in zip(relus, steps, strict=True) if bool((step.band.error > 0).any())]
    nearest = 0.0
    for move in inside(tuple(x.shape), 200, torch.Generator().manual_seed(seed)):
        values = operands(composition, x.double() + radius * move)
        for name, step, group in zip(names, bands, logits.groups, strict=True):
            places = step.band.error.flatten() > 0
            z, slope, shift, error = (
                value.flatten()[places] for value in (values[name], step.band.slope, step.band.shift, step.band.error)
            )
            e = (z.clamp_min(0) - slope * z - shift) / error
            length = float(torch.linalg.vector_norm(e + group.shift))
            assert length <= group.radius * (1 + 1e-12)
            nearest = max(nearest, length / group.radius)
    assert nearest > 0.05  # or the test sees nothing


@pytest.mark.parametrize("seed", range(20))
def test_furthest_is_above_the_exact_optimum_and_near_it(seed: int) -> None:
    """The exact optimum of a linear function over box and ball: by bisection on the multiplier, to 1e-12."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 60, (), generator=generator))
    shift = torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1
    radius = float(torch.rand((), generator=generator)) * 2 * count**0.5 + 0.05
    g = torch.randn(count, 5, generator=generator, dtype=torch.float64).pow(3)
    bound = Group(0, count, shift, radius).furthest(g)
    for column in range(5):
        exact = _optimum(g[:, column], shift, radius)
        assert float(bound[column]) >= exact
        assert float(bound[column]) - exact <= 0.05 * float(g[:, column].abs().sum())


def _optimum(g: torch.Tensor, shift: torch.Tensor, radius: float) -> float:
    def best(multiplier: float) -> torch.Tensor:
        return (g / multiplier - shift).clamp(-1.0, 1.0)

    low, high = 1e-12, 1e12
    if float(torch.linalg.vector_norm(best(low) + shift)) <= radius:
        return float(g.abs().sum()) * (1 - 1e-9)
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if float((best(middle) + shift).norm()) > radius else (low, middle)
    return float(g @ best(high)) - 1e-12 * float(g.abs().sum())


def test_symbols_outside_of_groups_count_one_by_one() -> None:
    rows = torch.tensor([[3.0], [4.0], [-1.0], [2.0], [1.0], [1.0], [-5.0]], dtype=torch.float64)
    group = Group(4, 6, torch.zeros(2, dtype=torch.float64), 2.0**0.5)
    below, above = ends(rows, Shared(2), [group])
    assert float(below) == pytest.approx(5 + 1 + 2 + 2 + 5)  # the known row is added with its sign
    assert float(above) == pytest.approx(5 - 1 + 2 + 2 + 5)
    small = Group(4, 6, torch.zeros(2, dtype=torch.float64), 1.0)
    assert float(ends(rows, Shared(2), [small])[1]) == pytest.approx(5 - 1 + 2 + 2.0**0.5 + 5)


def test_groups_show_what_looking_at_one_neuron_at_a_time_cannot() -> None:
    _, _, images, labels = zoo.digits_split()
    composition = compose(zoo.load("digits-cnn"), (1, 8, 8), global_method="product")
    x, label = torch.from_numpy(images[0]), int(labels[0])
    logits = zonotope.logits_over(composition.ledger, x, 0.055, room_for=ROOM, backwards=False)
    alone = type(logits)(logits.centre, logits.rows, logits.shared, logits.remainder)
    assert min(zonotope.margins(logits, label)) > 0.0
    assert min(zonotope.margins(alone, label)) < min(zonotope.margins(logits, label))
