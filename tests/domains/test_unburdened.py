"""Remainders that become symbols: nothing gets lost on the way, and in a deep network it is what lets it certify."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from balls import lowest
from torch import nn
from torch.nn import functional

from lipaudit.api import certify
from lipaudit.certification.local_search import beginning
from lipaudit.certification.network_bound import Composition
from lipaudit.certification.network_bound import compose as compose_best
from lipaudit.domains.graph import Node, evaluate
from lipaudit.domains.interpreter import walk
from lipaudit.domains.lipschitz import RULES
from lipaudit.domains.zonotope import logits as zonotope
from lipaudit.domains.zonotope import propagator as module
from lipaudit.domains.zonotope.affine_form import ball
from lipaudit.domains.zonotope.backward import Start, lower_bounds
from lipaudit.domains.zonotope.propagator import LocalLedger, TooWide
from lipaudit.graph.capture import capture

ROOM = 20_000
compose = functools.partial(compose_best, global_method="product")  # nothing here reads the bound of several layers


class Residual(nn.Module):
    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.inner, self.outer = activation(), activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(x + self.second(self.inner(self.first(x))))


def deep(blocks: int, activation: type[nn.Module] = nn.ReLU, gain: float = 1.0) -> nn.Sequential:
    torch.manual_seed(blocks)
    head = [nn.Flatten(), nn.Linear(6, 12), activation()]
    network = nn.Sequential(*head, *(Residual(12, activation) for _ in range(blocks)), nn.Linear(12, 3))
    with torch.no_grad():
        for each in network.modules():
            if isinstance(each, Residual):
                each.second.weight.mul_(gain)
    return network.double().eval()


def over(
    composition: Composition, x: torch.Tensor, radius: float, rest: float, *, absorb: bool = True
) -> zonotope.Logits:
    """The logits over x + `radius` d + `rest` v, with v known to nobody but as a remainder of the input."""
    whole = composition.ledger
    ledger = LocalLedger(whole.graph, whole.device, whole=whole, room_for=ROOM, backwards=False)
    if not absorb:
        ledger._narrow = frozenset()
    start = replace(ball(x[None], radius), remainder=rest, loose=rest, step=Start(radius + rest))
    with torch.no_grad():
        form = ledger.settle(walk(whole.graph, RULES, ledger.start(start), ledger, ledger.check)).form
        return zonotope.Logits.of(form, ledger)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.LeakyReLU])
@pytest.mark.parametrize("shares", [(1e-3, 1e-3), (0.03, 0.1), (0.3, 0.02)])
def test_no_input_leaves_the_form_when_its_remainder_becomes_symbols(
    activation: type[nn.Module], shares: tuple[float, float]
) -> None:
    model = deep(3, activation)
    composition = compose(model, (6,))
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        x = torch.rand(6, generator=generator, dtype=torch.float64)
        logits = over(composition, x, *shares)
        assert logits.roundings > 0
        assert logits.remainder < 1e-9
        c = (torch.eye(3, dtype=torch.float64) - torch.eye(3, dtype=torch.float64).roll(1, 0))[:, None]
        backwards = lower_bounds(logits.step, c) + (c * logits.centre).flatten(1).sum(1)
        for label in range(3):
            least = (
                float(lowest(lambda x: evaluate(composition.graph, x[0])[None], x, sum(shares), c[label, 0])) + 1e-12
            )
            others = [j for j in range(3) if j != label]
            assert zonotope.margins(logits, label)[others.index((label - 1) % 3)] <= least
            assert float(backwards[label]) <= least


def test_of_a_linear_network_everything_is_known() -> None:
    """ReLUs that are always on: the remainder is a second ball, and the bound is what both balls give and no more."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    with torch.no_grad():
        model[1].bias.fill_(50.0)
    x = torch.rand(6, dtype=torch.float64)
    first, second = model[1].weight, model[3].weight
    with torch.no_grad():
        logits, gap = (
            over(compose(model, (6,)), x, 0.2, 0.05),
            float(model(x[None])[0] @ torch.tensor([1.0, -1.0]).double()),
        )
        w = second[0] - second[1]
        rest = 0.05 * float(torch.linalg.matrix_norm(first, 2))
        low = gap - 0.2 * float((w @ first).norm()) - rest * float(w.norm())
        (margin,) = zonotope.margins(logits, 0)
    assert logits.roundings == 8
    assert low - 1e-6 < margin <= low + 1e-9


def test_outputs_that_are_zero_have_no_roundings() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([50.0] * 5 + [-50.0] * 3))
    assert over(compose(model, (6,)), torch.rand(6, dtype=torch.float64), 0.2, 0.05).roundings == 5


def test_an_output_of_either_sign_has_roundings() -> None:
    """One ReLU at its kink: over a ball of radius 0.2 + 0.05 it reaches 0.25, and the form says no less."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 2)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(6)[:1])
        model[1].bias.fill_(-0.5)
        model[3].weight.copy_(torch.tensor([[0.0], [1.0]]))
        model[3].bias.zero_()
    for radius, rest in ((0.2, 0.05), (0.05, 0.2)):
        logits = over(compose(model, (6,)), torch.full((6,), 0.5, dtype=torch.float64), radius, rest)
        assert logits.roundings == 1
        assert zonotope.margins(logits, 0)[0] <= -0.25


def test_rows_grow_less_than_bounds_do() -> None:
    """What happens to the roundings of a deep network: bounds multiply, and symbols follow what the network does."""
    composition = compose(deep(24, gain=2.0), (6,))
    x = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    as_symbols = over(composition, x, 1e-8, 1e-8)
    as_bounds = over(composition, x, 1e-8, 1e-8, absorb=False)
    assert float(as_symbols.reach.max()) + as_symbols.remainder < 1e-3 * as_bounds.remainder


def test_without_room_the_remainder_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    composition = compose(deep(3), (6,))
    x = torch.rand(6, dtype=torch.float64)
    whole = composition.ledger
    few = zonotope.logits_over(whole, x, 1e-3, room_for=30)
    assert few.roundings == 0
    monkeypatch.setattr(module, "CROWDING", 0.0)
    monkeypatch.setattr(module, "HARMFUL", 0.0)
    assert zonotope.logits_over(whole, x, 1e-3, room_for=30).roundings <= 15
    assert zonotope.logits_over(whole, x, 1e-3, room_for=ROOM).roundings > 15


def test_patience_does_not_count_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    composition = compose(deep(3), (6,))
    x = torch.rand(6, dtype=torch.float64)
    monkeypatch.setattr(module, "CROWDING", 0.0)
    monkeypatch.setattr(module, "HARMFUL", 0.0)
    logits = zonotope.logits_over(composition.ledger, x, 1e-6, room_for=ROOM, patience=7)
    assert len(logits.rows) - logits.roundings == 7 < len(logits.rows)
    with pytest.raises(TooWide, match="rows"):
        zonotope.logits_over(composition.ledger, x, 3.0, room_for=ROOM, patience=7)


def test_where_all_that_follows_depends_on_one_value() -> None:
    class Forks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            one = torch.relu(x)
            two = one + torch.sigmoid(one)
            return torch.tanh(two) * 2.0 + x

    graph = capture(Forks().eval(), (4,))
    assert {node.op for node in graph.nodes if node.name in graph.bottlenecks()} == {"add.Tensor"}
    assert sum(node.op == "add.Tensor" for node in graph.nodes) == 2
    assert graph.output in graph.bottlenecks()
    assert len(graph.bottlenecks()) == 1
    chain = capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), Residual(3, nn.Tanh)).eval(), (4,))
    names = [node.op.split(".")[0] for node in chain.nodes if node.name in chain.bottlenecks()]
    assert names == ["linear", "relu", "add", "tanh"]


def test_a_network_whose_bound_says_nothing_is_certified() -> None:
    """Without symbols for roundings, the bound of what float64 loses opens every sign."""
    model = deep(28, gain=6.0)
    x = torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = model(x).argmax(1).tolist()
    labels[1] = (labels[1] + 1) % 3
    assert certify(model, x, labels, local="off", global_method="product").radius.tolist() == [0.0, 0.0]
    found = certify(model, x, labels, local="on", global_method="product")
    assert found.radius[0] > 1e-6
    assert found.rows[0].method == "local"
    assert found.radius[1] == 0.0
    composition = compose(model, (6,))
    c = torch.eye(3, dtype=torch.float64)[labels[0]]
    for other in {0, 1, 2} - {labels[0]}:
        gap = c - torch.eye(3, dtype=torch.float64)[other]
        assert float(lowest(lambda x: evaluate(composition.graph, x[0])[None], x[0], float(found.radius[0]), gap)) > 0


def test_what_is_left_of_a_search_is_the_point_as_it_was() -> None:
    composition = compose(deep(3), (6,))
    x = torch.rand(6, dtype=torch.float64)
    beginning(composition, x, 0, 0.0)
    assert not x.requires_grad


class Steep(nn.Module):
    """Activations steeper than one, and maxima of overlapping windows."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled, self.bent, self.last = pooled, nn.LeakyReLU(3.0), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pooled:
            return self.last(functional.max_pool2d(x[:, None, None], (1, 3), 1, (0, 1)).flatten(1))
        return self.last(self.bent(x - 0.5))


@pytest.mark.parametrize("pooled", [False, True])
def test_a_step_knows_how_far_entries_get(pooled: bool) -> None:
    """Backward bounds count by it what their sums lose to rounding; the remainder of a form is part of that."""
    generator = torch.Generator().manual_seed(5)
    composition = compose(Steep(pooled).double().eval(), (7,))
    x = torch.rand(7, generator=generator, dtype=torch.float64)
    whole, forms = composition.ledger, {}
    ledger = LocalLedger(whole.graph, whole.device, whole=whole, room_for=ROOM, backwards=False)
    ledger._narrow = frozenset()
    start = replace(ball(x[None], 0.01), remainder=0.4, loose=0.4, step=Start(0.41))
    walk(whole.graph, RULES, ledger.start(start), ledger, lambda node, value: forms.update({node.name: value.form}))

    def compare(node: Node, arguments: object, true: torch.Tensor) -> None:
        del arguments
        far = (true - forms[node.name].centre).abs()
        assert bool((far <= forms[node.name].step.reach).all())

    directions = torch.cat([torch.eye(7), -torch.eye(7), torch.randn(40, 7, generator=generator)]).double()
    for d in directions:
        evaluate(composition.graph, x + 0.4099 * d / d.norm(), compare)
