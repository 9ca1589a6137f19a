"""The 1-Lipschitz layers and networks of the field, each written from its paper's formula: is the bound their constant?

    python tests/benchmarks/certified_zoo.py [--only SLL]

For each: the proved bound (its authors claim 1, unless it says so), the steepest slope seen (ascent on the Jacobian's
norm in float64, from below: three layers seldom have their steepest slopes at one point), and seconds of processor time
for the bound. Weights are random. orthogonium and deel-torchlip join where they are installed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn import functional

import lipaudit
from lipaudit.errors import LipauditError

Shape = tuple[int, ...]
ZOO: dict[str, Callable[[], tuple[nn.Module, Shape]]] = {}
IMAGE: Shape = (4, 8, 8)


def entry(name: str) -> Callable[[Callable[[], tuple[nn.Module, Shape]]], Callable[[], tuple[nn.Module, Shape]]]:
    def add(function: Callable[[], tuple[nn.Module, Shape]]) -> Callable[[], tuple[nn.Module, Shape]]:
        ZOO[name] = function
        return function

    return add


def max_min(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


class MaxMin(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return max_min(x)


def cayley(w: torch.Tensor) -> torch.Tensor:
    """A matrix with orthonormal columns from one with at least as many rows."""
    columns = w.shape[1]
    u, v = w[:columns], w[columns:]
    a = u - u.T + v.T @ v
    eye = torch.eye(columns).to(w)
    inverse = torch.linalg.inv(eye + a)
    return torch.cat([inverse @ (eye - a), -2 * v @ inverse])


class CayleyDense(nn.Module):
    """Trockman and Kolter, ICLR 2021."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.outputs = nn.Parameter(torch.randn(max(inputs, outputs), min(inputs, outputs))), outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = cayley(self.weight)
        return functional.linear(x, q if q.shape[0] == self.outputs else q.T)


class Bjorck(nn.Module):
    """Anil et al., ICML 2019: fifteen steps towards the nearest orthonormal matrix."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight / torch.linalg.matrix_norm(self.weight, 2)
        for _ in range(15):
            w = 1.5 * w - 0.5 * w @ w.T @ w
        return functional.linear(x, w)


class Sandwich(nn.Module):
    """Wang and Manchester, ICML 2023: sqrt(2) A^T Psi relu(sqrt(2) Psi^-1 B x + b), [A, B] orthonormal."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.psi = nn.Parameter(torch.randn(inputs + outputs, outputs)), nn.Parameter(torch.randn(outputs))
        self.bias, self.outputs = nn.Parameter(torch.randn(outputs)), outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = cayley(self.weight).T
        a, b = q[:, : self.outputs], q[:, self.outputs :]
        hidden = functional.linear(x, math.sqrt(2.0) * b) * torch.exp(-self.psi) + self.bias
        return functional.linear(functional.relu(hidden) * (math.sqrt(2.0) * torch.exp(self.psi)), a.T)


class Potential(nn.Module):
    """x - V relu(W x + b), dense or convolutional; how V is scaled is what tells the families apart."""

    def __init__(self, inputs: int, hidden: int, kind: str, *, convolution: bool) -> None:
        super().__init__()
        size = (hidden, inputs, 3, 3) if convolution else (hidden, inputs)
        self.weight, self.kind = nn.Parameter(torch.randn(size) / math.sqrt(math.prod(size[1:]))), kind
        self.q, self.bias = nn.Parameter(torch.randn(hidden) / 4), nn.Parameter(torch.randn(hidden))
        self.register_buffer("start", torch.randn(1, inputs, *IMAGE[1:]))
        self.convolution = convolution

    def scales(self) -> torch.Tensor:
        w = self.weight
        if self.kind == "cpl":  # Meunier et al., ICML 2022: 2 / ||W||^2 by power iteration
            u = self.start if self.convolution else self.start[:, :, 0, 0]
            for _ in range(100):
                v = self.apply_w(u)
                u = self.apply_wt(v / v.norm())
                u = u / u.norm()
            return 2 / self.apply_w(u).square().sum()
        gram = functional.conv2d(w, w, padding=2).abs().sum((2, 3)) if self.convolution else (w @ w.T).abs()
        q = torch.exp(self.q)  # Araujo et al., ICLR 2023 (SLL)
        return 2 / (gram * q / q[:, None]).sum(1)

    def apply_w(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, self.weight, padding=1) if self.convolution else functional.linear(x, self.weight)

    def apply_wt(self, z: torch.Tensor) -> torch.Tensor:
        if self.convolution:
            return functional.conv_transpose2d(z, self.weight, padding=1)
        return functional.linear(z, self.weight.T)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.bias[:, None, None] if self.convolution else self.bias
        scale = self.scales()
        scale = scale[:, None, None] if self.convolution and scale.ndim else scale
        return x - self.apply_wt(scale * functional.relu(self.apply_w(x) + bias))


class AOLConv(nn.Module):
    """Prach and Lampert, ECCV 2022."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        by_input = self.weight.transpose(0, 1)
        sums = functional.conv2d(by_input, by_input, padding=2).abs().sum((1, 2, 3))
        return functional.conv2d(x, self.weight * sums.rsqrt()[:, None, None], padding=1)


def network(block: Callable[[], nn.Module], activation: nn.Module, inputs: Shape = IMAGE) -> tuple[nn.Module, Shape]:
    """Three blocks with the activation in between."""
    return nn.Sequential(block(), activation, block(), activation, block(), nn.Flatten()), inputs


@entry("AOL convolutions, MaxMin by max and min")
def aol() -> tuple[nn.Module, Shape]:
    return network(lambda: AOLConv(4), MaxMin())


@entry("Cayley dense, MaxMin by max and min")
def cayley_dense() -> tuple[nn.Module, Shape]:
    return network(lambda: CayleyDense(12, 12), MaxMin(), (12,))


@entry("Bjorck dense, MaxMin by max and min")
def bjorck() -> tuple[nn.Module, Shape]:
    return network(lambda: Bjorck(12, 12), MaxMin(), (12,))


@entry("Sandwich dense (LBDN)")
def sandwich() -> tuple[nn.Module, Shape]:
    return nn.Sequential(Sandwich(12, 16), Sandwich(16, 16), Sandwich(16, 6)), (12,)


@entry("SLL dense")
def sll_dense() -> tuple[nn.Module, Shape]:
    return nn.Sequential(*(Potential(12, 20, "sll", convolution=False) for _ in range(3))), (12,)


@entry("SLL convolutions")
def sll() -> tuple[nn.Module, Shape]:
    return nn.Sequential(*(Potential(4, 8, "sll", convolution=True) for _ in range(3)), nn.Flatten()), IMAGE


@entry("CPL convolutions, 100 power iterations")
def cpl() -> tuple[nn.Module, Shape]:
    return nn.Sequential(*(Potential(4, 8, "cpl", convolution=True) for _ in range(3)), nn.Flatten()), IMAGE


class Reparametrised(nn.Module):
    """x + conv3(x) + conv1(x), the training form of LiResNet's and RepVGG's blocks: 1 is not claimed."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.wide(x) + self.narrow(x)).flatten(1)


@entry("identity + 3x3 + 1x1 (no claim)")
def reparametrised() -> tuple[nn.Module, Shape]:
    return Reparametrised(), IMAGE


if find_spec("orthogonium"):

    @entry("orthogonium AdaptiveOrthoConv2d")
    def orthogonium() -> tuple[nn.Module, Shape]:
        from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d

        return network(lambda: AdaptiveOrthoConv2d(4, 4, 3, padding=1, padding_mode="circular"), MaxMin())


if find_spec("deel"):

    @entry("torchlip SpectralConv2d, GroupSort2")
    def torchlip() -> tuple[nn.Module, Shape]:
        from deel import torchlip as lip

        return network(lambda: lip.SpectralConv2d(4, 4, 3, padding=1), lip.GroupSort2())


def steepest(model: nn.Module, shape: Shape) -> float:
    """The largest norm of a Jacobian seen on the way up from some random points."""
    double = model.double().requires_grad_(False)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.matrix_norm(torch.func.jacrev(lambda z: double(z[None])[0])(x).flatten(1), 2)

    largest = 0.0
    for scale in (0.3, 3.0, 30.0):
        x = torch.randn(shape, dtype=torch.float64) * scale
        for _ in range(4):
            slope, at = torch.func.grad_and_value(norm)(x)
            largest, x = max(largest, float(at)), x + slope * 0.3 * scale / slope.norm().clamp_min(1e-12)
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    say = partial(print, flush=True)
    say("| layers | bound | slope seen | CPU seconds |\n|---|---|---|---|")
    for name, make in ZOO.items():
        if arguments.only.lower() not in name.lower():
            continue
        torch.manual_seed(arguments.seed)
        model, shape = make()
        model.eval()
        began = time.process_time()
        try:
            bound = lipaudit.bound(model, shape).value
        except LipauditError as error:
            say(f"| {name} | refused: {str(error)[:100]} | | |")
            continue
        seconds = time.process_time() - began
        say(f"| {name} | {bound:.9g} | {steepest(model, shape):.9g} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
