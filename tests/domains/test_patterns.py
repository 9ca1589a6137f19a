"""Activations that a model writes out in several operations: as tight as the built-in ones, and never mistaken."""

from __future__ import annotations

import math

import pytest
import torch
from flat import Function, bounded, steepest
from torch import nn
from torch.nn import functional

from lipaudit.certification.margins import ErrorRecursion
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import evaluate
from lipaudit.domains.lipschitz.pointwise import GELU_SLOPES, SLOPES
from lipaudit.domains.rounding import float64
from lipaudit.errors import NotLipschitz

SILU, MISH, HARD = (SLOPES[f"{name}.default"][0] for name in ("silu", "mish", "hardswish"))
PER_ENTRY = torch.tensor([0.5, -2.0, 1.0, 3.0, 0.1])

WRITTEN: dict[str, tuple[Function, float]] = {
    "swish": (lambda x: x * torch.sigmoid(x), SILU),
    "swish, gate first": (lambda x: torch.sigmoid(x) * x, SILU),
    "quick GELU": (lambda x: x * torch.sigmoid(1.702 * x), SILU),
    "falling gate": (lambda x: x * torch.sigmoid(-3 * x), SILU),
    "a slope for each entry": (lambda x: x * torch.sigmoid(PER_ENTRY.to(x) * x), SILU),
    "of a scaled input": (lambda x: (2 * x) * torch.sigmoid(x), 2 * SILU),
    "of two scaled inputs": (lambda x: (x / 3) * torch.sigmoid(x * 5), SILU / 3),
    "half a swish": (lambda x: x * (0.5 * torch.sigmoid(x)), SILU / 2),
    "hard swish": (lambda x: x * functional.relu6(x + 3) / 6, HARD),
    "hard swish, gate scaled": (lambda x: x * (functional.relu6(x + 3) / 6), HARD),
    "hard swish, clamped": (lambda x: x * (x + 3).clamp(0, 6) / 6, HARD),
    "hard swish, hardtanh": (lambda x: x * functional.hardtanh(x + 3, 0, 6) / 6, HARD),
    "hard swish by hard sigmoid": (lambda x: x * functional.hardsigmoid(x), HARD),
    "mish": (lambda x: x * torch.tanh(functional.softplus(x)), MISH),
    "GELU": (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), GELU_SLOPES["none"]),
    "GELU, written otherwise": (lambda x: x * 0.5 * (torch.erf(x * 0.7071) + 1.0), GELU_SLOPES["none"]),
    "softsign": (functional.softsign, 1.0),
    "softsign of a scaled input": (lambda x: 3 * x / (2 + x.abs()), 1.5),
    "tanhshrink": (functional.tanhshrink, 1.0),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_out_activations_have_their_largest_slope(name: str) -> None:
    function, slope = WRITTEN[name]
    bound = bounded(function, (5,)).value
    seen = max(steepest(function, (5,), scale) for scale in (0.1, 1.0, 2.0, 5.0))

    assert seen <= bound
    assert slope <= bound <= slope * (1 + 1e-8)


def observed(function: Function) -> float:
    """The largest difference quotient of a function of one entry on a fine grid."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    return float((function(x).diff() / x.diff()).abs().max())


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "a slope for each entry"])
def test_the_slope_is_reached_and_nowhere_exceeded(name: str) -> None:
    function, slope = WRITTEN[name]
    assert slope * (1 - 2e-4) <= observed(function) <= slope * (1 + 1e-9)


MISTAKEN: dict[str, Function] = {
    "gate of another tensor": lambda x: x * torch.sigmoid(x.roll(1, 1)),
    "gate of a shifted tensor": lambda x: x * torch.sigmoid(x - 4),
    "gate of a mean": lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    "gate of a tensor of another shape": lambda x: x * torch.sigmoid(x[:, :1]),
    "scaled by the input": lambda x: x * torch.sigmoid(x * x),
    "gate with another shift": lambda x: x * functional.relu6(x + 2.5),
    "gate with another limit": lambda x: x * (x + 3).clamp(0, 7),
    "gate without a limit": lambda x: x * (x + 3).clamp_min(0),
    "gate that is enlarged": lambda x: x * (torch.sigmoid(x) * 40),
    "softplus with another slope": lambda x: x * torch.tanh(functional.softplus(x, beta=2)),
    "two minus erf": lambda x: x * (2 - torch.erf(x)),
    "softsign without a floor": lambda x: x / (x.abs() - 1),
    "softsign of another tensor": lambda x: x / (1 + x.roll(1, 1).abs()),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_what_only_looks_like_it_is_a_product(name: str) -> None:
    with pytest.raises(NotLipschitz, match="give the range of the network input"):
        bounded(MISTAKEN[name], (5,))


def test_a_difference_from_another_tanh_is_a_sum_of_branches() -> None:
    assert bounded(lambda x: x - torch.tanh(2 * x), (5,)).value >= 3.0
    assert bounded(lambda x: torch.sub(x, torch.tanh(x), alpha=-1), (5,)).value >= 2.0


@pytest.mark.parametrize("name", WRITTEN)
def test_the_rounding_of_the_gate_is_accounted_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    spread, head = nn.Linear(6, 5), nn.Linear(5, 3)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spread, self.head = spread, head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(WRITTEN[name][0](self.spread(x) * 8))

    composition = compose(Model().eval(), (6,))
    recursion = ErrorRecursion(composition)
    monkeypatch.setattr(float64, "gamma", lambda n: n * 2.0**-24 * 1.02)
    for seed in range(20):
        x = torch.randn(6, generator=torch.Generator().manual_seed(seed))
        lost = evaluate(composition.graph, x).double() - evaluate(composition.graph, x.double())
        assert float(lost.norm()) <= recursion(x.double())[1]
