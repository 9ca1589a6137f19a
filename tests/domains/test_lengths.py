"""Lengths and normalised vectors in every spelling: the bound is never below a slope, and is the constant itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import lipaudit
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import evaluate
from lipaudit.errors import LipauditError

Function = Callable[[torch.Tensor], torch.Tensor]


class Net(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x).flatten(1)


SHARP: dict[str, tuple[Function, float]] = {
    "sum and eps": (lambda x: (x.pow(2).sum(1) + 1e-9).sqrt(), 1.0),
    "product with itself": (lambda x: torch.sqrt((x * x).sum((2, 3))), 1.0),
    "halves of two": (lambda x: torch.sqrt(0.5 * x**2 + 0.5 * x.flip(1) ** 2 + 1e-9), 1.0),
    "soft absolute value": (lambda x: 0.05 * (torch.sqrt(1 + (x / 0.05) ** 2) - 1), 1.0),
    "LPPool": (lambda x: functional.lp_pool2d(x, 2.0, 2), 1.0),
    "root of an average": (lambda x: torch.sqrt(functional.avg_pool2d(x.square(), 2) + 1e-9), 0.5),
    "power of a half": (lambda x: x.square().mean((1, 2)) ** 0.5, (1 / 24) ** 0.5),
    "adaptive average": (lambda x: functional.adaptive_avg_pool2d(x**2, 2).sqrt(), 1 / 3),
    "clamped": (lambda x: x.square().sum(1).clamp_min(1e-9).sqrt(), 1.0),
    "weights": (lambda x: torch.sqrt((x.square() * torch.tensor([4.0, 1.0, 0.25, 0.0])[:, None, None]).sum(1)), 2.0),
    "normalize": (lambda x: functional.normalize(x, dim=1, eps=0.1), 10.0),
    "length plus number": (lambda x: x / (x.norm(dim=1, keepdim=True) + 0.5), 2.0),
    "root of sum plus number": (lambda x: x / (x.pow(2).sum(1, keepdim=True) + 0.25).sqrt(), 2.0),
    "root clamped": (lambda x: x / x.pow(2).sum(1, keepdim=True).sqrt().clamp(min=0.5), 2.0),
    "root, then number": (lambda x: x / ((x * x).sum(1, keepdim=True) + 1e-9).sqrt().clamp(min=0.5), 2.0),
    "maximum": (lambda x: x / torch.maximum(torch.tensor(0.5), x.norm(dim=1, keepdim=True)), 2.0),
}


@pytest.mark.parametrize("name", SHARP)
def test_the_constant_is_found(name: str) -> None:
    function, constant = SHARP[name]
    found = compose(Net(function).eval(), (4, 6, 6))
    largest = 0.0
    for scale in (1e-3, 0.03, 0.1, 1.0, 10.0):
        x = torch.randn(4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * scale
        rows = torch.func.jacrev(lambda z: evaluate(found.graph, z))(x).flatten(1)
        largest = max(largest, float(torch.linalg.matrix_norm(rows, 2)))
    assert largest <= found.network.value * (1 + 1e-14)
    assert found.network.value == pytest.approx(constant, rel=1e-9)
    assert largest >= 0.99 * constant


OTHERS: dict[str, Function] = {
    "overlapping windows": lambda x: functional.lp_pool2d(x, 2.0, 3, 1),
    "the square of one, the other as it is": lambda x: torch.sqrt(x[:, :2] ** 2 + (x[:, 2:] - 1) ** 2 + 1e-6),
    "twice the same": lambda x: torch.sqrt(x**2 + (x * x).sum(1, keepdim=True) + x.square().mean(2, keepdim=True) + 1),
    "a root in a root": lambda x: torch.sqrt((x**2).sum(1).sqrt() ** 2 * 3 + x[:, 0] ** 2),
    "stretched": lambda x: torch.sqrt(x[:, :1] ** 2 + torch.ones(1, 3, 1, 1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_slope_exceeds_the_bound(name: str) -> None:
    bound = lipaudit.bound(Net(OTHERS[name]).eval(), (4, 6, 6)).value
    for seed in range(8):
        x = torch.randn(4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        rows = torch.func.jacrev(lambda z: OTHERS[name](z[None])[0].flatten())(x).flatten(1)
        assert float(torch.linalg.matrix_norm(rows, 2)) <= bound * (1 + 1e-14)


REFUSED: dict[str, Function] = {
    "a negative factor": lambda x: torch.sqrt(x[:, 0] ** 2 - 0.5 * x[:, 1] ** 2 + 9),
    "a negative number": lambda x: torch.sqrt(x.square().sum(1) - 1e-6),
    "no square": lambda x: torch.sqrt(x.sum(1) + 5),
    "a cube": lambda x: torch.sqrt(x.pow(3).sum(1) + 100),
    "read elsewhere": lambda x: torch.sqrt(x.square()) + x.square(),
    "divided by its length": lambda x: x / x.norm(dim=1, keepdim=True),
    "another tensor's length": lambda x: x / (x.flip(1).norm(dim=(1, 2), keepdim=True) + 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_others_have_no_bound_without_a_range(name: str) -> None:
    with pytest.raises(LipauditError):
        lipaudit.bound(Net(REFUSED[name]).eval(), (4, 6, 6))


def test_rounding_of_squares_is_charged_to_the_root() -> None:
    network = nn.Sequential(Net(lambda x: torch.sqrt(x.square().sum((2, 3)) + 1e-6)), nn.Linear(4, 3)).eval()
    points = torch.rand(3, 4, 6, 6)
    found = compose(network, (4, 6, 6))
    inner = {node.name: node for node in found.graph.nodes}
    (root,) = (name for name, node in inner.items() if node.op == "sqrt.default")
    assert dict(found.ledger.growth()[root])[root] >= (32 + 144) / 32
    assert bool((lipaudit.certify(network, points, local="off").radius > 0).all())
    assert "square in float32" in lipaudit.certify(network, points, arithmetic="native").why_not
