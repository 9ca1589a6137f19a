"""Two dense layers and the activation between them: never below the steepest slope, 1 for sandwich layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import lipaudit
from lipaudit.domains.lipschitz.pairs import pair_bound
from lipaudit.norms.linear_maps import Dense


def steepest(first: torch.Tensor, then: torch.Tensor, slope: float) -> float:
    """The largest ||C S B|| over all diagonal S with entries 0 or `slope`: a corner is the worst."""
    patterns = itertools.product((0.0, slope), repeat=first.shape[0])
    return max(float(torch.linalg.matrix_norm(then @ (torch.tensor(s).double()[:, None] * first), 2)) for s in patterns)


@pytest.mark.parametrize("seed", range(30))
def test_no_pattern_of_slopes_exceeds_the_bound(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs, hidden, outputs = (int(torch.randint(1, 7, (1,), generator=generator)) for _ in range(3))
    first = torch.randn(hidden, inputs, generator=generator, dtype=torch.float64) * 10.0 ** (seed % 7 - 3)
    then = torch.randn(outputs, hidden, generator=generator, dtype=torch.float64)
    if seed % 5 == 0:
        first[0] = 0  # a dead neuron
    if seed % 7 == 0:
        then[:, -1] = 0  # one that nobody reads
    if seed % 3 == 0:
        first[1:2] = first[:1]  # and twins
    slope = (1.0, 0.25, 1.128379168)[seed % 3]
    upper = pair_bound(Dense(first, (inputs,)), Dense(then, (hidden,)), slope)
    exact = steepest(first, then, slope)
    if upper is None:
        assert exact == 0
    else:
        assert exact <= upper.value


def test_an_ordinary_pair_gains() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 20), nn.Tanh()).eval()
    found = lipaudit.bound(network, (20,))
    product = math.prod(float(lipaudit.dense_norm(network[k].weight.detach())) for k in (0, 2))
    assert found.value < 0.8 * product
    assert found.layers[0].upper.method == "pair"


class Sandwich(nn.Module):
    """sqrt(2) A^T Psi relu(sqrt(2) Psi^-1 B x + b) with [A, B] orthonormal: 1-Lipschitz (Wang and Manchester, 2023)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        square = torch.randn(inputs + outputs, inputs + outputs, dtype=torch.float64)
        rows = torch.linalg.qr(square)[0][:, :outputs].T.float()
        self.a, self.b = nn.Parameter(rows[:, :outputs]), nn.Parameter(rows[:, outputs:])
        self.psi, self.shift = nn.Parameter(torch.randn(outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = functional.linear(x, math.sqrt(2.0) * self.b) * torch.exp(-self.psi) + self.shift
        return functional.linear(functional.relu(hidden) * (math.sqrt(2.0) * torch.exp(self.psi)), self.a.T)


@pytest.mark.parametrize("local", ["off", pytest.param("auto", marks=pytest.mark.slow)])
def test_sandwich_layers_have_the_bound_one(local: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Sandwich(9, 12), Sandwich(12, 12), Sandwich(12, 4)).eval()
    found = lipaudit.bound(network, (9,))
    assert 1 - 1e-6 <= found.value <= 1 + 1e-4
    points = torch.rand(3, 9)
    each = ("real", "native", "float64")
    radii = {one: lipaudit.certify(network, points, local=local, arithmetic=one).radius for one in each}
    assert bool((radii["real"] > 0).all())
    assert bool((radii["native"] <= radii["real"]).all())
    if local == "auto":
        assert bool((lipaudit.certify(network, points, local="on").radius >= radii["real"]).all())


BETWEEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sorted": lambda x: torch.relu(x.sort(1)[0]),
    "moved before": lambda x: torch.relu(x.flip(1)),
    "moved after": lambda x: torch.relu(x).flip(1),
    "turned over": lambda x: torch.relu(x.view(-1, 3, 3).transpose(1, 2)).flatten(1),
    "rectified twice": lambda x: torch.relu(torch.tanh(x)),
    "the larger of two": lambda x: torch.relu(torch.maximum(x, x.roll(1, 1))),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_moves_entries_in_between_is_seen(name: str) -> None:
    """Layers that agree only if nothing moves: B = 9 e e^T and C the same, so that another order has another norm."""
    first, then = torch.eye(9), torch.eye(9)
    first[0, 0], then[8, 8], then[1, 1] = 5.0, 7.0, 4.0
    network = nn.Sequential(nn.Linear(9, 9, bias=False), Function(BETWEEN[name]), nn.Linear(9, 9, bias=False)).eval()
    network[0].weight.data, network[2].weight.data = first, then
    bound = lipaudit.bound(network, (9,)).value
    network.double().requires_grad_(False)
    for seed in range(60):
        x = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rows = torch.func.jacrev(lambda z: network(z[None])[0])(x)
        assert float(torch.linalg.matrix_norm(rows, 2)) <= bound * (1 + 1e-12)


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)
