"""x - V s(W x + b): never below the steepest slope, and 1 where the step does not expand."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import lipaudit
from lipaudit.certification.network_bound import compose


def hard(z: torch.Tensor) -> torch.Tensor:
    return z.clamp(-1, 1)


class Step(nn.Module):
    """Weights W, and V as a multiple of its transpose, row by row, plus something else."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        draw, self.kind = random.Random(seed), kind
        generator = torch.Generator().manual_seed(seed)
        self.shape = (5,) if kind == "dense" else (3, 5, 6)
        hidden = draw.choice([1, 4, 9])
        size = (hidden, self.shape[0]) if kind == "dense" else (hidden, self.shape[0], 3, draw.choice([1, 3]))
        w = torch.randn(size, generator=generator) * draw.choice([0.1, 0.4, 2.0])
        t = torch.rand(hidden, generator=generator) * draw.choice([0.2, 1.0, 2.0])
        t *= draw.choice([1.0, 1.0, -1.0])  # the wrong sign: a step uphill
        t[draw.randrange(hidden)] = draw.choice([0.0, 0.5])
        off = torch.randn(size, generator=generator) * draw.choice([0.0, 0.0, 1e-7, 1e-2, 0.3])
        self.w, self.v = nn.Parameter(w), nn.Parameter(t.reshape(-1, *(1,) * (w.ndim - 1)) * w + off)
        self.bias = nn.Parameter(torch.randn(hidden, generator=generator))
        self.bend: Callable[[torch.Tensor], torch.Tensor] = draw.choice(
            [
                torch.relu,
                torch.tanh,
                torch.sigmoid,
                torch.erf,
                lambda z: z.clamp(-1, 1),
                functional.softplus,
                functional.leaky_relu,
            ]
        )
        self.stride, self.alpha = draw.choice([1, 1, 2]), draw.choice([1, 1, 1, 2, 0.5])
        self.form = draw.randrange(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "dense":
            moved = functional.linear(self.bend(functional.linear(x, self.w, self.bias)), self.v.t())
        else:
            pads = (1, self.w.shape[3] // 2)
            if self.kind == "transposed":
                z = self.bend(functional.conv2d(x, self.w, self.bias, self.stride, pads))
                extra = [(n + 2 * p - k) % self.stride for n, p, k in zip((5, 6), pads, self.w.shape[2:], strict=True)]
                moved = functional.conv_transpose2d(z, self.v, None, self.stride, pads, tuple(extra))
            else:
                z = self.bend(functional.conv2d(x, self.w, self.bias, padding=pads))
                moved = functional.conv2d(z, self.v.flip(2, 3).transpose(0, 1), padding=pads)
        steps = (
            lambda: torch.sub(x, moved, alpha=self.alpha),
            lambda: x + (-self.alpha * moved),
            lambda: -self.alpha * moved + x,
        )
        return steps[self.form]().flatten(1)


def steepest(network: nn.Module, shape: tuple[int, ...], seed: int) -> float:
    """The largest norm of a Jacobian in float64, climbing from some random points."""
    generator = torch.Generator().manual_seed(seed)
    network, largest = network.double().requires_grad_(False), 0.0

    def norm(x: torch.Tensor) -> torch.Tensor:
        jacobian = torch.func.jacrev(lambda z: network(z[None])[0])(x).flatten(1)
        return torch.linalg.matrix_norm(jacobian, 2)

    for scale in (0.1, 1.0, 4.0, 20.0):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        for _ in range(3):
            slope, at = torch.func.grad_and_value(norm)(x)
            largest, x = max(largest, float(at)), x + slope * 0.3 * scale / slope.norm().clamp_min(1e-12)
    return largest


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", ["dense", "transposed", "convolution"])
@pytest.mark.parametrize(("seeds", "least"), [(range(4, 8), 1), pytest.param(range(12), 2, marks=pytest.mark.slow)])
def test_no_slope_exceeds_the_bound(kind: str, seeds: range, least: int) -> None:
    together = 0
    for seed in seeds:
        step = Step(kind, seed).eval()
        network = compose(step, step.shape).network
        together += network.layers[-1].upper.method == "potential"
        assert steepest(step, step.shape, seed) <= network.value * (1 + 1e-12), seed
    assert together >= least


class Averaged(nn.Module):
    """x - W^T T relu(W x + b), T the inverse row sums of |W W^T|, reweighted: 1-Lipschitz (SLL)."""

    def __init__(self, convolution: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        size = (6, 3, 3, 3) if convolution else (6, 5)
        self.w = nn.Parameter(torch.randn(size, generator=generator))
        self.q = nn.Parameter(torch.randn(6, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q.exp()
        if self.w.ndim == 2:
            t = 2 / ((self.w @ self.w.T).abs() * q / q[:, None]).sum(1)
            return x - functional.linear(t * functional.relu(functional.linear(x, self.w)), self.w.T)
        t = 2 / (functional.conv2d(self.w, self.w, padding=2).abs().sum((2, 3)) * q / q[:, None]).sum(1)
        inner = t[:, None, None] * functional.relu(functional.conv2d(x, self.w, padding=1))
        return x - functional.conv_transpose2d(inner, self.w, padding=1)


@pytest.mark.parametrize("local", ["off", pytest.param("auto", marks=pytest.mark.slow)])
@pytest.mark.parametrize("convolution", [False, True])
def test_steps_that_do_not_expand_have_the_bound_one(convolution: bool, local: str) -> None:
    shape = (3, 6, 6) if convolution else (5,)
    network = nn.Sequential(Averaged(convolution), Averaged(convolution), nn.Flatten()).eval()
    found = lipaudit.bound(network, shape)
    assert 1.0 <= found.value <= 1 + 1e-9
    assert [layer.upper.method for layer in found.layers] == ["potential", "potential"]
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))
    for arithmetic in ("real", "native", "float64"):
        assert float(lipaudit.certify(network, image, local=local, arithmetic=arithmetic).radius[0]) > 0


def test_a_scale_too_small_shows_as_a_bound_above_one() -> None:
    """A norm that power iteration left too small: the step expands, by what the bound says."""
    w = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    norm = float(torch.linalg.matrix_norm(w.double(), 2))

    class Short(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - 2 / (0.9 * norm) ** 2 * functional.linear(functional.relu(functional.linear(x, w)), w.T)

    assert lipaudit.bound(Short().eval(), (5,)).value == pytest.approx(2 / 0.81 - 1, rel=1e-6)


def test_local_radii_go_through_a_step_operation_by_operation() -> None:
    network = nn.Sequential(Averaged(False), nn.Linear(5, 3)).eval()
    points = torch.rand(4, 5, generator=torch.Generator().manual_seed(2))
    found = lipaudit.certify(network, points, local="on")
    plain = lipaudit.certify(network, points)
    assert bool((found.radius >= plain.radius).all())
    assert float(found.radius.max()) > 0
