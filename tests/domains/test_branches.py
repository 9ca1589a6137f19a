"""Linear branches of one tensor that are summed: the norm of their sum, never below it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

import lipaudit
from lipaudit.domains.lipschitz.branches import _conv_sum
from lipaudit.norms.linear_maps import Conv, dense


class Branches(nn.Module):
    """A function of x and of its layers."""

    def __init__(self, function: Callable[..., torch.Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *self.layers).flatten(1)


def norm_of(network: nn.Module, shape: tuple[int, ...]) -> float:
    """Of an affine network, in float64."""
    network = network.double().requires_grad_(False)
    rows = torch.func.jacrev(lambda x: network(x[None])[0])(torch.zeros(shape, dtype=torch.float64))
    return float(torch.linalg.matrix_norm(rows.flatten(1), 2))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    nn.init.uniform_(layer.weight, -1, 2)
    nn.init.normal_(layer.running_mean)
    return layer


def conv(draw: random.Random, outs: int, stride: int) -> nn.Conv2d:
    """One of those whose output has the size of every other's, on maps of 7 x 6."""
    kernel, dilation = draw.choice([(1, 1), (3, 1), (3, 2), (5, 1)])
    groups = draw.choice([1, 2])
    padding = dilation * (kernel // 2)
    return nn.Conv2d(4, outs, kernel, stride, padding, dilation, groups, bias=draw.choice([True, False]))


def summed(x: torch.Tensor, *layers: nn.Module) -> torch.Tensor:
    total = layers[0](x)
    for layer in layers[1:]:
        total = torch.sub(total, layer(x), alpha=1.5)
    return total


@pytest.mark.parametrize("seed", range(12))
def test_branches_of_convolutions_have_the_norm_of_their_sum(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    stride, outs = draw.choice([(1, 4), (1, 4), (2, 6)])
    layers: list[nn.Module] = [conv(draw, outs, stride) for _ in range(draw.choice([1, 2, 3]))]
    if stride == 1:
        layers.append(draw.choice([nn.Identity(), batch_norm(4), nn.Sequential(conv(draw, 4, 1), batch_norm(4))]))
    else:
        layers.append(conv(draw, outs, stride))
    draw.shuffle(layers)
    network = Branches(summed, *layers).eval()
    found = lipaudit.bound(network, (4, 7, 6))
    exact = norm_of(network, (4, 7, 6))
    assert exact <= found.value
    assert found.value <= 1.35 * exact  # zero padding is bounded on a torus
    assert found.layers[-1].op in ("sub", "sub + sub")


def low_rank(x: torch.Tensor, whole: nn.Module, down: nn.Module, back: nn.Module) -> torch.Tensor:
    return whole(x) + 2 * back(down(x))


DENSE: dict[str, Branches] = {
    "low rank": Branches(low_rank, nn.Linear(7, 5), nn.Linear(7, 2, bias=False), nn.Linear(2, 5)),
    "most of it cancels": Branches(lambda x, a: a(x) - 0.9 * a(x), nn.Linear(7, 5)),
    "identity minus": Branches(lambda x, a: x - a(x), nn.Linear(7, 7)),
    "minus identity": Branches(lambda x, a: 2 * a(x) - x, nn.Linear(7, 7)),
    "multiples": Branches(lambda x: 3 * x - x),
    "without its mean": Branches(lambda x: x.view(-1, 7, 1) - x.view(-1, 7, 1).mean(1, keepdim=True)),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_branches_have_the_norm_of_their_sum(name: str) -> None:
    network = DENSE[name].eval()
    found = lipaudit.bound(network, (7,)).value
    exact = norm_of(network, (7,))
    assert exact <= found * (1 + 1e-15)
    assert found <= exact * (1 + 1e-9)


@pytest.mark.parametrize("name", ["a ReLU in between", "another tensor"])
def test_branches_of_different_tensors_are_not_one_map(name: str) -> None:
    """relu(y) is a step of its own, though its bound is that of y."""
    torch.manual_seed(0)
    functions = {
        "a ReLU in between": lambda x, a, b: a(torch.relu(b(x))) - a(b(x)),
        "another tensor": lambda x, a, b: b(x) - a(torch.relu(b(x))),
    }
    network = Branches(functions[name], nn.Linear(5, 5), nn.Linear(6, 5)).eval()
    slopes = []
    for seed in range(40):
        x = torch.randn(6, generator=torch.Generator().manual_seed(seed))
        rows = torch.func.jacrev(lambda z: network(z[None])[0])(x)
        slopes.append(float(torch.linalg.matrix_norm(rows.detach(), 2)))
    assert max(slopes) <= lipaudit.bound(network, (6,)).value


def test_rounding_inside_the_branches_counts() -> None:
    """Logits of a network whose branches cancel: what float64 loses in them is not lost on the certificate."""
    torch.manual_seed(0)
    big = nn.Linear(6, 6).requires_grad_(False)
    big.weight.mul_(1e9)
    network = nn.Sequential(Branches(lambda x, a: a(x) - 0.999 * a(x), big), nn.Linear(6, 3)).eval()
    points = torch.rand(3, 6)
    for arithmetic in ("real", "native", "float64"):
        found = lipaudit.certify(network, points, arithmetic=arithmetic)
        assert not found.why_not
    errors = lipaudit.certify(network, points).rounding
    assert errors is not None
    assert errors > 1e-10 * 1e9 * 1e-4


@pytest.mark.parametrize("order", [1, -1])
def test_a_kernel_that_pads_nothing_hands_on_no_way_of_padding(order: int) -> None:
    """A kernel of one tap says "circular" and pads nothing: the sum with one that pads zeros pads zeros."""
    size, ones, generator = (4, 5), (1, 1), torch.Generator().manual_seed(0)
    weights = [torch.randn(2, 2, k, k, generator=generator, dtype=torch.float64) for k in (1, 3)]
    point = Conv(weights[0], size, ones, ((0, 0), (0, 0)), ones, padding_mode="circular")
    wide = Conv(weights[1], size, ones, ((1, 1), (1, 1)), ones)
    first, second = (point, wide)[::order]
    together = _conv_sum(first, second, -0.5)
    assert together is not None
    torch.testing.assert_close(dense(together), dense(first) - 0.5 * dense(second), rtol=0, atol=1e-15)
