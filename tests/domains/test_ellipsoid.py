"""Layers taken together: never below what any slopes of the activations give, never above the product."""

from __future__ import annotations

import math

import pytest
import torch
from quick import mostly_slow
from torch import nn
from torch.nn import functional

import lipaudit
from lipaudit.certification.network_bound import compose
from lipaudit.domains.ellipsoid.ball import Unfit
from lipaudit.domains.ellipsoid.program import Writer
from lipaudit.domains.ellipsoid.torus import Images
from lipaudit.domains.ellipsoid.tuning import tuned
from lipaudit.domains.lipschitz.propagator import INPUT
from lipaudit.errors import LipauditError, UnsupportedOp
from lipaudit.results.bounds import TOGETHER

HOSTILE = (1.0, 1e-30, 1e30, 1e-3)


class Net(nn.Module):
    """Small networks of several kinds, whose activations can be replaced by chosen slopes."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.kind, self.slopes, self.low = kind, None, 0.0

        def weights(*shape: int) -> nn.Parameter:
            w = torch.randn(shape, generator=generator, dtype=torch.float64)
            if seed % 3 == 1:  # dead and duplicate neurons
                w[0], w[-1] = 0.0, w[1]
            return nn.Parameter(w * (HOSTILE[seed % 4] if seed % 5 == 2 else 1.0))

        image = kind in ("conv", "block")
        self.shape = (1, 4, 4) if image else (4,)
        if image:
            self.a, self.b = weights(2, 1, 3, 3), weights(2, 1 if kind == "conv" else 2, 2, 2)
            self.skip, self.c = weights(2, 1, 1, 1), weights(3, 2)
        else:
            self.a, self.b, self.c = weights(4, 4), weights(4, 4), weights(3, 8 if kind == "concat" else 4)

    def act(self, number: int, x: torch.Tensor) -> torch.Tensor:
        if self.slopes is not None:
            return x * self.slopes[number].reshape(x.shape[1:])
        return functional.leaky_relu(x, self.low) if self.low else functional.relu(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "conv":
            x = self.act(0, functional.conv2d(x, self.a, stride=2, padding=1))
            return functional.linear(self.act(1, functional.conv2d(x, self.b, groups=2)).flatten(1), self.c)
        if self.kind == "block":
            y = self.act(0, functional.conv2d(x, self.a, stride=2, padding=1))
            y = functional.pad(functional.conv2d(y, self.b), (0, 1, 0, 1))
            y = self.act(1, functional.conv2d(x, self.skip, stride=2) - 0.5 * y)
            return functional.linear(functional.avg_pool2d(y, 2).flatten(1), self.c)
        y = self.act(0, functional.linear(x, self.a))
        z = functional.linear(y, self.b)
        if self.kind == "chain":
            return functional.linear(self.act(1, z), self.c)
        if self.kind == "residual":
            return functional.linear(self.act(1, x + z), self.c)
        if self.kind == "twice":  # a tensor that an activation and a sum read
            return functional.linear(z - self.act(1, z) + x, self.c)
        return functional.linear(torch.cat([self.act(1, z), x[:, :2], y[:, 2:]], 1), self.c)

    def sizes(self) -> list[int]:
        return {"conv": [8, 2], "block": [8, 8]}.get(self.kind, [4, 4])


def jacobians(net: Net) -> torch.Tensor:
    """The matrices of the network for all slopes that are 0 or 1 (low or 1)."""
    found, count = [], sum(net.sizes())
    basis = torch.eye(math.prod(net.shape), dtype=torch.float64).reshape(-1, *net.shape)
    patterns = range(2**count) if count <= 10 else torch.randint(2**count, (500,)).tolist()
    with torch.no_grad():
        for pattern in patterns:
            bits = torch.tensor([float(pattern >> k & 1) for k in range(count)], dtype=torch.float64)
            net.slopes = (net.low + (1 - net.low) * bits).split(net.sizes())
            found.append(net(basis).T)
    net.slopes = None
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["chain", "residual", "twice", "concat", "conv", "block"])
@pytest.mark.parametrize("seed", mostly_slow((0, 3, 1, 2, 4, 5, 6, 7), 2))  # slopes below zero for 3 and 7
def test_no_slopes_of_activations_exceed_it(kind: str, seed: int) -> None:
    net = Net(kind, seed).eval()
    net.low = -0.3 if seed % 4 == 3 else 0.0
    bound = lipaudit.bound(net, net.shape, global_method="ellipsoid")
    found = jacobians(net)
    assert torch.linalg.matrix_norm(found, 2).max() <= bound.value
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert torch.linalg.vector_norm(found[:, i] - found[:, j], dim=1).max() <= bound.pairwise[i][j]


@pytest.mark.parametrize("kind", ["chain", "residual", "twice", "concat"])
def test_any_multipliers_prove_something_or_are_refused(kind: str) -> None:
    net = Net(kind, 0).eval()
    made = compose(net, net.shape, global_method="product")
    program = Writer(made.graph, made.ledger.maps, made.ledger.device, frozenset({made.graph.output})).program(INPUT)
    truth, proved = torch.linalg.matrix_norm(jacobians(net), 2).max(), 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)

        def choose(_: int, v: torch.Tensor, generator: torch.Generator = generator) -> torch.Tensor:
            spread = 10 ** (3 * torch.rand(v.shape[1], generator=generator, dtype=torch.float64) - 3)
            return 2 * spread / torch.linalg.matrix_norm(v, 2).max() ** 2

        try:
            ball = program.run(choose, prove=True)
        except Unfit:
            continue
        image = ball.images[program.end]
        bound = (torch.linalg.matrix_norm(image.matrix, 2) + image.error) * 2.0**image.exponent * float(ball.scale)
        assert truth <= bound
        proved += 1
    assert proved > 10


def test_a_deep_network_of_huge_numbers_is_finite_and_far_smaller() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(20, 20), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(20, 4)).double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight *= 1e23
    product, best = (lipaudit.bound(net, (20,), global_method=method) for method in ("product", "best"))
    assert 280 < best.log10 < product.log10 - 0.3
    assert best.layers[-1].name == TOGETHER
    assert best.layers[-1].log10_so_far == best.log10


def test_the_smaller_of_both_for_each_pair() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    product, alone, best = (lipaudit.bound(net, (6,), global_method=m) for m in ("product", "ellipsoid", "best"))
    for rows in zip(best.pairwise, product.pairwise, alone.pairwise, strict=True):
        assert all(b <= min(p, a) for b, p, a in zip(*rows, strict=True))
    assert best.value == min(product.value, alone.value) < product.value


def test_what_it_has_no_steps_for_is_the_products() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 3)).eval()
    best, product = (lipaudit.bound(net, (4,), global_method=method) for method in ("best", "product"))
    assert (best.log10, best.pairwise, len(best.layers)) == (product.log10, product.pairwise, len(product.layers))
    with pytest.raises(UnsupportedOp, match="global_method"):
        lipaudit.bound(net, (4,), global_method="ellipsoid")
    with pytest.raises(LipauditError, match="got 'all'"):
        lipaudit.bound(net, (4,), global_method="all")


def test_a_new_ball_starts_behind_what_it_has_no_steps_for() -> None:
    torch.manual_seed(2)
    tail = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    net = nn.Sequential(nn.Linear(6, 6), nn.Softmax(1), *tail).eval()
    product, best = (lipaudit.bound(net, (6,), global_method=method) for method in ("product", "best"))
    alone = [lipaudit.bound(nn.Sequential(*tail).eval(), (6,), global_method=m).value for m in ("product", "best")]
    assert best.value / product.value == pytest.approx(alone[1] / alone[0], rel=1e-6)


class Body(nn.Module):
    """Convolutions of several geometries, with skips; the head only makes logits of it."""

    def __init__(self, kind: str, size: int, low: float) -> None:
        super().__init__()
        torch.manual_seed(size + len(kind))
        self.kind, self.low, self.slopes = kind, low, None
        first = {"strided": (2, 1, 1), "dilated": (1, 2, 2), "unpadded": (1, 0, 1)}.get(kind, (1, 1, 1))
        stride, padding, dilation = first
        self.a = nn.Conv2d(2, 4, 3, stride, padding, dilation, groups=2 if kind == "grouped" else 1)
        self.n = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(2, 4, 1, stride)
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(3.0)
        outputs = self.body(torch.zeros(1, 2, size, size)).numel()
        self.head = nn.Linear(outputs, 3)

    def act(self, number: int, x: torch.Tensor) -> torch.Tensor:
        if self.slopes is not None:
            return x * self.slopes[number][: x[0].numel()].reshape(x.shape[1:])
        return functional.leaky_relu(x, self.low) if self.low else functional.relu(x)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(0, self.n(self.a(x)))
        if self.kind == "pooled":
            return functional.avg_pool2d(self.b(y), 3, 2, padding=1)
        if self.kind == "widened":
            z = self.b(y) + functional.pad(x, (0, 0, 0, 0, 1, 1))
        elif self.kind == "unpadded":
            z = self.b(y)
        else:
            z = self.b(y) + self.c(x)
        return z if self.kind == "dilated" else self.b(self.act(1, z))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(1))


@pytest.mark.parametrize("kind", ["plain", "strided", "dilated", "unpadded", "grouped", "pooled", "widened"])
@pytest.mark.parametrize(("size", "low"), [(5, 0.0), (6, -0.3), pytest.param(6, 0.3, marks=pytest.mark.slow)])
def test_no_slopes_exceed_what_convolutions_on_a_torus_prove(kind: str, size: int, low: float) -> None:
    net = Body(kind, size, low).double().eval().requires_grad_(False)
    made = compose(net, (2, size, size), global_method="product")
    program = Images(made.graph, made.ledger.maps, made.ledger.device, made.graph.bottlenecks()).program(INPUT)
    assert program is not None
    best, _ = tuned(program, lambda ball: ball.images[program.end].matrix.abs().square().sum().log(), lambda _: 3)
    ball = program.run(lambda number, _: best[number].double(), prove=True)
    image = ball.images[program.end]
    proved = (float(torch.linalg.matrix_norm(image.matrix, 2).max()) + image.error) * 2.0**image.exponent
    basis = torch.eye(2 * size**2, dtype=torch.float64).reshape(-1, 2, size, size)
    net.slopes = torch.ones(2, 4 * size**2, dtype=torch.float64)
    for mask in [0.0, 1.0, *range(30)]:
        bits = torch.full_like(net.slopes, mask) if isinstance(mask, float) else torch.randint(2, net.slopes.shape)
        net.slopes = min(low, 0.0) + (1 - min(low, 0.0)) * bits.double() if low <= 0 else low + (1 - low) * bits
        matrix = (net.body(basis) - net.body(torch.zeros_like(basis))).flatten(1)
        assert float(torch.linalg.matrix_norm(matrix, 2)) <= proved * float(ball.scale)


class Exchanging(nn.Module):
    """Three dense layers with the larger and the smaller of two values, or sorts of some, in between."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = ((6, 4), (6, 6), (3, 6))
        weights = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
        if seed % 3 == 1:  # equal operands, and some that never move
            weights[0][3], weights[1][0] = weights[0][0].clone(), 0.0
        self.weights = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)
        self.kind, self.slopes = kind, None

    def larger(self, number: int, x: torch.Tensor, y: torch.Tensor, *, smaller: bool = False) -> torch.Tensor:
        if self.slopes is None:
            return torch.minimum(x, y) if smaller else torch.maximum(x, y)
        moved = self.slopes[number] * (x - y)
        return x - moved if smaller else y + moved

    def act(self, number: int, z: torch.Tensor) -> torch.Tensor:
        if self.kind.startswith("sort"):
            size, down = int(self.kind[4]), self.kind.endswith("down")
            if self.slopes is None or size > 2:
                return z.reshape(-1, 6 // size, size).sort(2, descending=down)[0].flatten(1)
            z = z.reshape(-1, 3, 2)
            both = [self.larger(number, z[..., 0], z[..., 1], smaller=smaller) for smaller in (not down, down)]
            return torch.stack(both, 2).flatten(1)
        a, b = z.chunk(2, 1) if self.kind != "strided" else (z[:, ::2], z[:, 1::2])
        most = self.larger(number, a, b)
        if self.kind == "alone":  # what goes on reads the larger one, and an operand once more
            return torch.cat([most, a], 1)
        least = self.larger(
            number, *((b, a) if self.kind == "crossed" and self.slopes is None else (a, b)), smaller=True
        )
        return torch.cat([most, least], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, weight in enumerate(self.weights[:2]):
            x = self.act(number, functional.linear(x, weight))
        return functional.linear(x, self.weights[2])


@pytest.mark.parametrize("kind", ["chunks", "strided", "crossed", "alone", "sort2", "sort2down", "sort3", "sort3down"])
@pytest.mark.parametrize("seed", range(3))
def test_no_exchanges_exceed_what_is_proved(kind: str, seed: int) -> None:
    net = Exchanging(kind, seed).eval()
    product, bound = (lipaudit.bound(net, (4,), global_method=method) for method in ("product", "ellipsoid"))
    if "3" in kind:
        points = torch.randn(300, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = torch.func.vmap(torch.func.jacrev(lambda x: net(x[None])[0]))(points)
    else:
        basis, patterns = torch.eye(4, dtype=torch.float64), []
        for pattern in range(64):
            bits = torch.tensor([float(pattern >> k & 1) for k in range(6)], dtype=torch.float64)
            net.slopes = bits.split(3)
            patterns.append(net(basis).T)
        found = torch.stack(patterns)
    assert torch.linalg.matrix_norm(found, 2).max() <= bound.value
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert torch.linalg.vector_norm(found[:, i] - found[:, j], dim=1).max() <= bound.pairwise[i][j]
    assert bound.value < product.value or "3" in kind  # three rounds of exchanges may lose what layers together gain
