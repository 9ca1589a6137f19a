"""Cases that a review of the rules found below the truth, or in an exception: each keeps its fix from being undone."""

from __future__ import annotations

import math

import pytest
import torch
from flat import Flat, Function, bounded, norm_of
from torch.nn import functional

from lipaudit.certification.margins import ErrorRecursion
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import evaluate
from lipaudit.domains.intervals import ranges
from lipaudit.domains.rounding import float64
from lipaudit.errors import UnsupportedOp
from lipaudit.graph.capture import capture

F = functional


def slope_at(function: Function, x: torch.Tensor) -> float:
    """The norm of the Jacobian at a point, in float64."""
    x = x.double().requires_grad_()
    rows = [torch.autograd.grad(output, x, retain_graph=True)[0].flatten() for output in function(x).flatten()]
    return float(torch.linalg.svdvals(torch.stack(rows))[0])


def two_windows(x: torch.Tensor) -> torch.Tensor:
    """Two windows along the first axis, far apart; each of them hardly varies."""
    apart = torch.tensor([0.0, 100.0]).to(x).reshape(2, 1, 1)
    return x.reshape(-1, 2, 2) * 1e-2 + apart.repeat(len(x), 1, 1)


WINDOWED: dict[str, Function] = {
    "group norm": lambda x: F.group_norm(two_windows(x), 1, eps=1e-4).reshape(len(x), 8),
    "two groups": lambda x: F.group_norm(two_windows(x), 2, eps=1e-4).reshape(len(x), 8),
    "instance norm": lambda x: F.instance_norm(two_windows(x), eps=1e-4).reshape(len(x), 8),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_along_the_first_axis_are_normalised_one_by_one(name: str) -> None:
    slope = slope_at(WINDOWED[name], torch.full((1, 8), 0.5))
    assert 0.9 <= slope <= bounded(WINDOWED[name], (8,), domain=(0.0, 1.0)).value


@pytest.mark.parametrize("name", WINDOWED)
def test_ranges_and_rounding_of_windows_cover_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    composition = compose(Flat(WINDOWED[name]).eval(), (8,), domain=(0.0, 1.0))
    graph = composition.graph
    found = ranges(graph, 0.0, 1.0, {node.name for node in graph.nodes})
    x = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0])

    def inside(node: object, _: object, value: torch.Tensor) -> None:
        assert bool(((found[node.name].low <= value) & (value <= found[node.name].high)).all()), node.name

    exact = evaluate(graph, x.double(), inside)
    monkeypatch.setattr(composition.ledger, "room", math.inf)
    monkeypatch.setattr(float64, "gamma", lambda n: n * 2.0**-24 * 1.02)
    allowed = ErrorRecursion(composition)(x.double())[1]
    assert float((evaluate(graph, x).double() - exact).norm()) <= allowed


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: F.adaptive_avg_pool1d(x, 5), (3,)),
        (lambda x: F.adaptive_avg_pool2d(x, (5, 2)), (3, 4)),
        (lambda x: F.adaptive_avg_pool1d(x, 3), (6,)),
    ],
)
def test_adaptive_averages_without_a_channel_axis(function: Function, shape: tuple[int, ...]) -> None:
    exact = norm_of(function, shape)
    assert exact <= bounded(function, shape).value <= exact * 1.2


@pytest.mark.parametrize(
    ("function", "shape", "windows"),
    [(lambda x: F.adaptive_max_pool1d(x, 4), (6,), 2), (lambda x: F.adaptive_max_pool2d(x, (4, 5)), (6, 7), 4)],
)
def test_adaptive_maxima_without_a_channel_axis(function: Function, shape: tuple[int, ...], windows: int) -> None:
    """An entry that is the largest of all its windows moves as many outputs."""
    assert bounded(function, shape).value == pytest.approx(math.sqrt(windows), rel=1e-6)


@pytest.mark.parametrize("equation", ["bcw,bcw->bc", "bcw,bow->bco", "bcw,bcw->bw"])
def test_an_axis_of_one_in_an_einsum_stands_for_many(equation: str) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.einsum(equation, x[:, :, :1] + 1, x).flatten(1)

    slope = slope_at(function, torch.ones(1, 1, 9))
    assert slope <= bounded(function, (1, 9), domain=(0.0, 1.0)).value


@pytest.mark.parametrize("silent", ["query", "key", "value", "scale"])
def test_attention_with_zeros_has_a_bound(silent: str) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        tokens = x[:, None]
        operands = {name: torch.zeros_like(tokens) if name == silent else tokens for name in ("query", "key", "value")}
        scale = 0.0 if silent == "scale" else 1.0
        return F.scaled_dot_product_attention(*operands.values(), scale=scale).flatten(1) + x.flatten(1)

    # Without scores, every output is the mean of the values; without values it is 0.
    truth = 1.0 if silent == "value" else 2.0
    assert truth <= bounded(function, (3, 2), domain=(0.0, 1.0)).value <= 1 + math.sqrt(3) * (1 + 1e-5)


def test_a_constant_divided_by_a_root_mean_square() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([2.0, 3.0, 1.0]).to(x) / torch.sqrt(x.square().mean(1, keepdim=True) + 0.01)

    assert slope_at(function, torch.full((1, 3), 0.07)) <= bounded(function, (3,), domain=(0.0, 1.0)).value


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.ops.aten._prelu_kernel(x[:, None] - 0.5, torch.tensor([0.5, 2.0, -3.0]).reshape(1, 3, 1)),
        lambda x: x[:, None] ** torch.full((3, 1), 2.0),
    ],
)
def test_entrywise_functions_that_stretch_their_operand_are_refused(function: Function) -> None:
    with pytest.raises(UnsupportedOp, match="stretch"):
        bounded(function, (4,), domain=(0.0, 1.0))


def test_the_graph_of_windows_has_them_along_its_first_axis() -> None:
    """What the tests above are about."""
    graph = capture(Flat(WINDOWED["group norm"]).eval(), (8,))
    assert any(node.shape[0] == 2 for node in graph.nodes)
