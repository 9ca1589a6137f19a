"""Functions of straight pieces, however they are written: exact slopes, and a refusal where they jump."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import lipaudit
from lipaudit.domains.graph import Graph, Node, Ref, evaluate
from lipaudit.domains.interpreter import walk
from lipaudit.domains.lipschitz import RULES, Ledger, Value
from lipaudit.domains.piecewise import PIECEWISE, rewritten
from lipaudit.errors import CaptureError
from lipaudit.graph.capture import capture

Function = Callable[[torch.Tensor], torch.Tensor]
Pair = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Between(nn.Module):
    """x -> W f(V x + b), with entries moved in between, so that the layers are bounded one by one."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.first = function, nn.Linear(6, 8)
        self.last = nn.Linear(function(torch.zeros(1, 8)).shape[1], 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self.first(x)).flip(1))

    def product(self) -> float:
        first, last = (lipaudit.dense_norm(layer.weight.detach()) for layer in (self.first, self.last))
        return float(first) * float(last)


def halves(pair: Pair) -> Function:
    return lambda x: torch.cat(pair(*x.chunk(2, 1)), 1)


def alternating(x: torch.Tensor) -> torch.Tensor:
    """Twice the same slices: they are the same tensors."""
    return torch.stack([torch.maximum(x[:, ::2], x[:, 1::2]), torch.minimum(x[:, ::2], x[:, 1::2])], 2).flatten(1)


PER_CHANNEL = torch.linspace(0.1, 0.8, 8)

EXACT: dict[str, tuple[Function, float]] = {
    "max and min": (halves(lambda a, b: (torch.maximum(a, b), torch.minimum(b, a))), 1.0),
    "max and min, one entry each way": (halves(lambda a, b: (a.fmax(b), 3 * a.min(b))), 3.0),
    "where a > b": (halves(lambda a, b: (torch.where(a > b, a, b), torch.where(a > b, b, a))), 1.0),
    "where, mirrored": (halves(lambda a, b: (torch.where(a <= b, b, a), torch.where(b > a, a, b))), 1.0),
    "where of a difference": (halves(lambda a, b: (torch.where(a - b > 0, a, b), torch.where(b - a < 0, b, a))), 1.0),
    "a + relu(b - a)": (halves(lambda a, b: (a + torch.relu(b - a), b - torch.relu(b - a))), 1.0),
    "a + relu(b - a), a - relu(a - b)": (halves(lambda a, b: (a + torch.relu(b - a), a - torch.relu(a - b))), 1.0),
    "half of a + b + |a - b|": (
        halves(lambda a, b: ((a + b) / 2 + (a - b).abs() / 2, 0.5 * (a + b - torch.abs(b - a)))),
        1.0,
    ),
    "strided and stacked": (alternating, 1.0),
    "max and min of an axis": (lambda x: torch.cat([x.view(-1, 4, 2).max(2)[0], x.view(-1, 4, 2).min(2)[0]], 1), 1.0),
    "amax and amin": (lambda x: torch.cat([x.view(-1, 2, 4).amax(1), x.view(-1, 2, 4).amin(1)], 1), 1.0),
    "aminmax": (lambda x: torch.cat([*torch.aminmax(x.view(-1, 2, 4), dim=1)], 1), 1.0),
    "max alone": (lambda x: torch.maximum(*x.chunk(2, 1)), 1.0),
    "both signs": (lambda x: torch.cat([torch.relu(x), torch.relu(-x)], 1), 1.0),
    "both signs by clamp": (lambda x: torch.cat([x.clamp(min=0), 2 * x.clamp(max=0)], 1), 2.0),
    "leaky ReLU by where": (lambda x: torch.where(x > 0, x, 0.1 * x), 1.0),
    "steep leaky ReLU by where": (lambda x: torch.where(x < 0, 3 * x, x), 3.0),
    "PReLU by where": (lambda x: torch.where(x > 0, x, PER_CHANNEL * x), 1.0),
    "x (x > 0)": (lambda x: x * (x > 0), 1.0),
    "x (x > 0) in floats": (lambda x: (x > 0).float() * x, 1.0),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0.0), 1.0),
    "x - 2 clamp(x)": (lambda x: x - 2 * torch.clamp(x, -0.3, 0.3), 1.0),
    "N-activation by where": (
        lambda x: torch.where(x < -0.25, x + 0.5, torch.where(x > 0.25, x - 0.5, -x)),
        1.0,
    ),
    "N-activation by relu, a threshold a channel": (
        lambda x: x - 2 * torch.relu(x + PER_CHANNEL) + 2 * torch.relu(x - PER_CHANNEL),
        1.0,
    ),
    "linear spline": (
        lambda x: 0.5 * x + 0.5 * torch.relu(x - 0.25) - torch.relu(x - 0.5) + 0.75 * torch.relu(x - 1.0),
        1.0,
    ),
    "soft threshold": (lambda x: torch.sign(x) * torch.relu(x.abs() - 0.25), 1.0),
    "x sign(x)": (lambda x: x * torch.sign(x), 1.0),
    "relu6 by where": (lambda x: torch.where((x > 0) & (x < 6), x, torch.clamp(x, 0, 6)), 1.0),
    "relu(x) - relu(-x)": (lambda x: torch.relu(x) - torch.relu(-x), 1.0),
}

JUMPING: dict[str, Function] = {
    "a step at 0": lambda x: torch.where(x > 0, x + 1, 0.1 * x),
    "cut off too early": lambda x: x * (x > 0.5),
    "one point": lambda x: torch.where(x == 0, torch.ones_like(x), x),
    "an interval of one point": lambda x: torch.where((x >= 0) & (x <= 0), x + 1, x),
    "the smaller where a > b, the larger elsewhere, times 2": halves(
        lambda a, b: (torch.where(a > b, a, 2 * b), torch.where(a > b, b, a))
    ),
    "a threshold almost right": lambda x: torch.where(x > 0.25, x - 0.25, 0.0 * x + 1e-9),
}


@pytest.mark.parametrize("name", EXACT)
def test_written_out_functions_have_their_own_slope(name: str) -> None:
    function, slope = EXACT[name]
    network = Between(function).eval()
    exact = network.product() * slope
    found = lipaudit.bound(network, (6,), global_method="product").value
    assert exact <= found * (1 + 1e-12)
    assert found <= exact * (1 + 1e-9)


@pytest.mark.parametrize("name", JUMPING)
def test_functions_that_jump_are_refused(name: str) -> None:
    with pytest.raises(CaptureError, match="jumps and has no Lipschitz bound"):
        capture(Between(JUMPING[name]).eval(), (6,))


@pytest.mark.parametrize("local", ["off", pytest.param("auto", marks=pytest.mark.slow)])
def test_rounding_is_promised_only_where_what_runs_is_what_is_bounded(local: str) -> None:
    images = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    for name, held in (("where a > b", True), ("a + relu(b - a)", False), ("leaky ReLU by where", True)):
        graph = capture(Between(EXACT[name][0]).eval(), (6,))
        assert bool(graph.rounded) is not held
        for arithmetic in ("native", "float64"):
            model = Between(EXACT[name][0]).eval()
            refused = lipaudit.certify(
                model, images, local=local, arithmetic=arithmetic, global_method="product"
            ).why_not
            assert bool(refused) is not held


# Random functions ----------------------------------------------------------------------------------------------------

SHAPE = (1, 4)


def random_graph(draw: random.Random) -> tuple[Graph, set[str]]:
    """A random program of two halves of the input, with thresholds at which its pieces may or may not meet."""
    nodes: list[Node] = []

    def add(op: str, **args: object) -> str:
        packet, overload = op.split(".")
        target = getattr(getattr(torch.ops.aten, packet), overload)
        filled = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
        nodes.append(Node(f"n{len(nodes)}", op, target, {**filled, **args}, None, (1, 2), "", f"random:{len(nodes)}"))
        return nodes[-1].name

    def number() -> float:
        return draw.choice([-1.0, -0.5, 0.25, 0.5, 1.0, 2.0])

    first, second = (add("slice.Tensor", self=Ref("input"), dim=1, start=k, end=k + 2, step=1) for k in (0, 2))
    floats, masks = [first, second], list[str]()
    for _ in range(draw.randint(2, 9)):
        x, y = (Ref(draw.choice(floats)) for _ in "xy")
        kind = draw.randint(0, 9)
        if kind <= 1:
            floats.append(add(draw.choice(["add.Tensor", "sub.Tensor"]), self=x, other=y, alpha=draw.choice([1, 2])))
        elif kind == 2:
            floats.append(add("mul.Tensor", self=x, other=draw.choice([number(), torch.tensor([[0.5, -1.0]])])))
        elif kind == 3:
            floats.append(add(draw.choice(["relu.default", "abs.default", "neg.default", "sign.default"]), self=x))
        elif kind == 4:
            floats.append(add("clamp.default", self=x, min=draw.choice([None, -0.5, 0.0]), max=1.0))
        elif kind == 5:
            floats.append(add(draw.choice(["maximum.default", "minimum.default"]), self=x, other=y))
        elif kind == 6:
            name = draw.choice(["gt", "ge", "lt", "le", "eq"])
            masks.append(add(f"{name}.Tensor", self=x, other=y))
        elif kind == 7:
            masks.append(add(draw.choice(["gt.Scalar", "lt.Scalar"]), self=x, other=draw.choice([0.0, number()])))
        elif masks and kind == 8:
            floats.append(add("where.self", condition=Ref(draw.choice(masks)), self=x, other=y))
        elif masks:
            floats.append(add("mul.Tensor", self=x, other=Ref(draw.choice(masks))))
    # A step at 0 and the same value on both sides: what a hand-written activation looks like.
    x = Ref(draw.choice(floats))
    masks.append(add("gt.Scalar", self=x, other=0.0))
    floats.append(add("where.self", condition=Ref(masks[-1]), self=x, other=Ref(add("mul.Tensor", self=x, other=0.25))))
    chosen = [Ref(name) for name in draw.sample(floats, 2)] + [Ref(floats[-1])]
    output = add("cat.default", tensors=chosen, dim=1)
    nodes[-1] = replace(nodes[-1], shape=(1, 6))
    return Graph(tuple(nodes), (4,), output, torch.float64), set(masks)


def live(nodes: list[Node], output: str) -> tuple[Node, ...]:
    wanted = {output}
    for node in reversed(nodes):
        wanted |= set(node.refs()) if node.name in wanted else set()
    return tuple(node for node in nodes if node.name in wanted)


def check_random(seed: int) -> tuple[bool, bool]:
    """Whether something was rewritten, and whether it was bounded."""
    draw = random.Random(seed)
    graph, masks = random_graph(draw)
    found = rewritten(live(list(graph.nodes), graph.output), masks)
    nodes = live(found.nodes, graph.output)
    after = replace(graph, nodes=nodes)
    places = torch.tensor(
        [-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 2.0**-40, -(2.0**-40)], dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(seed)
    points = [places[torch.randint(len(places), (4,), generator=generator)] for _ in range(60)]
    points += [torch.randn(4, dtype=torch.float64, generator=generator) for _ in range(20)]
    values = [evaluate(graph, x) for x in points]
    for x, value in zip(points, values, strict=True):
        assert bool((evaluate(after, x) - value).abs().max() <= 1e-12 * (1 + value.abs().max())), seed
    changed = any(a.op != b.op for a, b in zip(live(list(graph.nodes), graph.output), nodes, strict=False))
    if any(node.name in masks for node in nodes) or any(node.op == "sign.default" for node in nodes):
        return changed, False
    ledger = Ledger(after, torch.device("cpu"))
    head = ledger.settle(walk(after, RULES, Value("input"), ledger))
    bound = float(ledger.so_far[head.step])
    for (x, fx), (y, fy) in zip(
        zip(points, values, strict=True), zip(points[1:], values[1:], strict=True), strict=False
    ):
        near = x + (y - x) * 2.0**-20
        for other, value in ((y, fy), (near, evaluate(graph, near))):
            moved = float((other - x).norm())
            assert float((value - fx).norm()) <= bound * moved * (1 + 1e-9) + 1e-14, seed
    return changed, True


@pytest.mark.parametrize("count", [50, pytest.param(150, marks=pytest.mark.slow)])
def test_random_functions_stay_what_they_are_below_their_bounds(count: int) -> None:
    """Rewritten functions are equal at ties and beside them, and no slope exceeds a bound."""
    outcomes = [check_random(seed) for seed in range(count)]
    assert sum(changed for changed, _ in outcomes) >= 0.4 * count
    assert sum(bounded for _, bounded in outcomes) >= 0.2 * count


@pytest.mark.slow
def test_many_random_functions_stay_what_they_are_below_their_bounds() -> None:
    for seed in range(1000, 2000):
        check_random(seed)


def test_in_pieces_is_the_function_it_says() -> None:
    points, steps = torch.tensor([[-1.0], [0.5]]), torch.tensor([[2.0], [-3.0]])
    x = torch.linspace(-3, 3, 61)
    value = torch.ops.lipaudit.piecewise.default(x, points, steps, torch.tensor(-0.5), torch.tensor(0.25))
    expected = 0.25 - 0.5 * x + 2 * (x + 1).clamp_min(0) - 3 * (x - 0.5).clamp_min(0)
    assert torch.allclose(value, expected)
    assert PIECEWISE in RULES
