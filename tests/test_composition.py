"""Network bounds with known answers, class pairs, the range beyond float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import lipaudit
from lipaudit.certification.network_bound import compose
from lipaudit.norms import row_distances


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = weight.clone()
    return layer


class Residual(nn.Module):
    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def rows(bound: lipaudit.results.bounds.NetworkBound, i: int, j: int) -> float:
    return bound.pairwise[i][j]


def test_pairs_are_row_distances_times_the_bound_before() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(7, 5), torch.randn(3, 7)
    # Of an activation that may fall, two layers are not bounded together.
    network = nn.Sequential(linear(hidden), nn.LeakyReLU(-0.5), linear(head)).eval()
    bound = lipaudit.bound(network, (5,), global_method="product")
    sigma = float(torch.linalg.svdvals(hidden.double())[0])
    for i in range(3):
        for j in range(3):
            exact = float((head[i].double() - head[j].double()).norm()) * sigma
            assert exact <= rows(bound, i, j) <= exact * (1 + 1e-8)


def test_a_linear_network_has_the_exact_pairs() -> None:
    torch.manual_seed(0)
    conv, head = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Linear(2 * 9, 3)
    model = nn.Sequential(conv, nn.Flatten(), head).eval().requires_grad_(False)
    bound = lipaudit.bound(model, (1, 3, 3))
    matrix = torch.func.jacrev(model.double())(torch.zeros(1, 1, 3, 3, dtype=torch.float64))[0, :, 0].reshape(3, 9)
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        exact = float((matrix[i] - matrix[j]).norm())
        assert exact <= rows(bound, i, j) <= exact * (1 + 1e-9)


def test_residual_is_one_plus_the_branch() -> None:
    block = Residual(nn.Sequential(linear(2 * torch.eye(4)), nn.ReLU(), linear(3 * torch.eye(4))))
    value = lipaudit.bound(nn.Sequential(block, nn.ReLU(), linear(torch.eye(4))).eval(), (4,)).value

    assert 7 <= value <= 7 * (1 + 1e-8)


def test_batch_norm_is_folded_into_the_convolution() -> None:
    """Channel 0 is large before and small after, channel 1 the other way round: product 400, composite 4."""
    conv, norm = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2, eps=2.0**-20)
    norm.running_var.fill_(1 - 2.0**-20)
    conv.weight.data = torch.tensor([[[[20.0]]], [[[0.1]]]])
    norm.weight.data = torch.tensor([0.1, 20.0])
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.eye(2)
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    bound = lipaudit.bound(model, (1, 4, 4))

    first = bound.layers[0]
    assert first.name == "0 + 1"
    assert math.hypot(2, 2) * (1 - 1e-6) <= first.upper.value <= math.hypot(2, 2) * (1 + 1e-6)
    assert bound.value <= math.hypot(2, 2) / 4 * (1 + 1e-6)


@pytest.mark.parametrize("where", ["argument", "buffer", "wrapper"])
def test_normalisation_counts_wherever_it_is_written(where: str) -> None:
    conv = nn.Conv2d(3, 4, 1)
    torch.manual_seed(0)
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.5)

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net
            self.register_buffer("m", torch.tensor(mean).view(3, 1, 1))
            self.register_buffer("s", torch.tensor(std).view(1, 3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net((x - self.m) / self.s)

    class Written(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return net(torch.stack([(x[:, c] - mean[c]) * (1 / std[c]) for c in range(3)], 1))

    folded = float(torch.linalg.svdvals(conv.weight.detach().double()[:, :, 0, 0] / torch.tensor(std).double())[0])
    tail = lipaudit.bound(net[1:].eval(), (4, 2, 2), global_method="product").value
    if where == "argument":
        value = lipaudit.bound(net, (3, 2, 2), mean=mean, std=std, global_method="product").value
    else:
        model = {"buffer": Inside, "wrapper": Written}[where]().eval()
        value = lipaudit.bound(model, (3, 2, 2), global_method="product").value
    assert value >= folded * tail * (1 - 1e-6)
    if where != "wrapper":  # channel by channel, the stack forgets which is which
        assert value <= folded * tail * (1 + 1e-6)


def test_beyond_the_range_of_floats() -> None:
    layers = [layer for _ in range(40) for layer in (linear(1e9 * torch.eye(3)), nn.Tanh())]
    bound = lipaudit.bound(nn.Sequential(*layers, linear(torch.eye(3))).eval(), (3,))

    assert 360 <= bound.log10 <= 360 + 1e-6
    assert bound.value == math.inf
    assert bound.pairwise[0][1] == math.inf


def test_a_network_that_ends_in_a_nonlinear_operation_gets_root_two() -> None:
    model = nn.Sequential(linear(torch.eye(3)), nn.Sigmoid()).eval()
    bound = lipaudit.bound(model, (3,))
    assert 0.25 * math.sqrt(2) <= bound.pairwise[0][1] <= 0.25 * math.sqrt(2) * (1 + 1e-8)


def test_the_ledger_is_a_proof_that_can_be_recomputed() -> None:
    torch.manual_seed(0)
    block = Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.GELU(), nn.Conv2d(2, 2, 3, padding=1)))
    model = nn.Sequential(block, nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 3)).eval()
    network = compose(model, (2, 4, 4)).network
    bounds = {"input": 1.0}
    for line in network.layers:
        before = [bounds[step] for step in line.inputs]
        total = {"scale": before[0], "sum": sum(before), "root_sum_squares": math.hypot(*before), "max": max(before)}
        bounds[line.step] = line.upper.value * total[line.law]
        assert line.log10_so_far == pytest.approx(math.log10(bounds[line.step]), abs=1e-9)
        assert line.lower is None or line.lower <= line.upper.value
    assert network.value >= bounds[network.layers[-1].step] * (1 - 1e-12)


def test_the_users_model_stays_on_its_device_and_dtype() -> None:
    model = nn.Sequential(nn.Linear(4, 3)).double().eval()
    lipaudit.bound(model, (4,), device="cpu")
    assert model[0].weight.dtype == torch.float64


def test_layers_keep_the_names_that_their_author_gave_them() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    names = [line.name for line in lipaudit.bound(net, (3, 2, 2), mean=(0.5,) * 3, std=(0.2,) * 3).layers]
    assert names == ["normalise + 0", "3", "layers taken together"]


def test_pairs_of_many_classes_are_those_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7)).eval()
    with torch.no_grad():
        model[3].weight[2] = model[3].weight[5]  # two classes that differ by a constant
    few = torch.tensor(lipaudit.bound(model, (3, 2, 2)).pairwise, dtype=torch.float64)
    monkeypatch.setattr(row_distances, "FEW_ROWS", 2)
    many = torch.tensor(lipaudit.bound(model, (3, 2, 2)).pairwise, dtype=torch.float64)

    assert bool((many.diagonal() == 0).all())
    assert bool((many >= few * (1 - 1e-14)).all())
    torch.testing.assert_close(many, few, rtol=1e-9, atol=1e-4)
