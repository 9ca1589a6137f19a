"""Global bounds beside each other: product, Combettes-Pesquet (dense networks), ellipsoid, and a slope from below.

    python tests/benchmarks/global_bounds.py [--resnets FOLDER] [--nets FOLDER]

Networks are trained here on the bundled digits or have random weights; FOLDER may hold trained ResNet-20/56 for
CIFAR-10 (`resnet20-*.th`, `resnet56-*.th`) and small MNIST networks (`mnist_mlp.pth`, `mnist_convsmall.pth`).
Seconds are CPU time of the whole bound; "pairs" is the median over the class pairs of ellipsoid / product; "below" a
slope by ascent.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from torch import nn
from torch.nn import functional

import lipaudit
from lipaudit.results.bounds import NetworkBound

sys.path.append(str(Path(__file__).parents[2] / "examples" / "training"))
from small_networks import residual


def combettes_pesquet(network: nn.Module) -> float | None:
    """Of dense layers with ReLU, by the norms of merged layers (SIAM J. Math. Data Sci. 2020); not proved."""
    layers = [layer for layer in network.modules() if not list(layer.children())]
    if not all(isinstance(layer, (nn.Linear, nn.ReLU, nn.Flatten)) for layer in layers):
        return None
    weights = [layer.weight.detach().double() for layer in layers if isinstance(layer, nn.Linear)]
    found = [1.0]
    for k in range(1, len(weights) + 1):
        merged, total = None, 0.0
        for j in range(k - 1, -1, -1):
            merged = weights[j] if merged is None else merged @ weights[j]
            total += found[j] * float(torch.linalg.matrix_norm(merged, 2)) * 0.5 ** (k - 1 - j)
        found.append(total * (0.5 if k < len(weights) else 1.0))
    return found[-1]


def slope(network: nn.Module, shape: tuple[int, ...], steps: int = 30) -> float:
    """The steepest slope that power iteration and ascent on the input come across: a lower bound."""
    network, best = network.double().eval(), 0.0
    for seed in range(3):
        x = torch.rand((1, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        u = torch.randn(network(x).shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for _ in range(steps):
            value, pull = torch.func.vjp(network, x)
            (v,) = pull(u)
            _, u = torch.func.jvp(network, (x,), (v / v.norm().clamp_min(1e-300),))
            best = max(best, float(u.norm()))
            x, u = x + 0.05 * v / v.norm().clamp_min(1e-300), u / u.norm().clamp_min(1e-300)
            del value
    network.float()
    return best


def digits(network: nn.Module, epochs: int = 30) -> nn.Module:
    """Trained on the bundled digits, in the ordinary way."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.tensor(data.images / 16).float()[:, None], torch.tensor(data.target)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(128):
            optimiser.zero_grad()
            functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimiser.step()
    return network.eval()


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """Two convolutions with batch norms and a shortcut of every second pixel, padded with channels of zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2, self.added = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs), (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return functional.relu(x + y)


class ResNet(nn.Module):
    """ResNet-20 (3 blocks a stage) and ResNet-56 (9) for CIFAR-10 (He et al., CVPR 2016, section 4.2)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for number, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            first = Block(inputs, outputs, 1 if number == 1 else 2)
            rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def networks(resnets: Path | None, nets: Path | None) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    yield "MLP 64-100-100-100-10, digits", digits(mlp(64, 100, 100, 100, 10)), (1, 8, 8)
    conv = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    yield "CNN 8-16-64, digits", digits(conv), (1, 8, 8)
    yield "ResNet of 8 convolutions, digits", digits(residual((1, 8, 8), 10, 8)), (1, 8, 8)
    for depth in (4, 11):
        yield f"random MLP, {depth} layers of 100", mlp(*[100] * depth, 10).eval(), (100,)
    if nets is not None:
        for name, layers in (
            ("mnist_mlp", mlp(784, 100, 100, 10)),
            (
                "mnist_convsmall",
                nn.Sequential(
                    *(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten()),
                    *(nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
                ),
            ),
        ):
            state = torch.load(nets / f"{name}.pth", weights_only=True, map_location="cpu")
            values = list(state.get("state_dict", state).values())
            layers.load_state_dict(dict(zip(layers.state_dict(), values, strict=True)))
            yield name, layers.eval(), (1, 28, 28)
    for blocks in (3, 9) if resnets is not None else ():
        assert resnets is not None
        network = ResNet(blocks)
        (file,) = resnets.glob(f"resnet{6 * blocks + 2}-*.th")
        state = torch.load(file, weights_only=True, map_location="cpu")["state_dict"]
        network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        yield f"ResNet-{6 * blocks + 2}", network.eval(), (3, 32, 32)


def timed(network: nn.Module, shape: tuple[int, ...], method: str) -> tuple[NetworkBound, float]:
    began = time.process_time()
    found = lipaudit.bound(network, shape, global_method=method)
    return found, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resnets", type=Path)
    parser.add_argument("--nets", type=Path)
    given = parser.parse_args()
    click.echo("| network | product | Combettes-Pesquet | ellipsoid | pairs | below | seconds product | seconds best |")
    click.echo("|---|---|---|---|---|---|---|---|")
    for name, network, shape in networks(given.resnets, given.nets):
        network.requires_grad_(False)
        (product, first), (best, second) = (timed(network, shape, method) for method in ("product", "best"))
        pairs = [
            ours / theirs
            for mine, known in zip(best.pairwise, product.pairwise, strict=True)
            for ours, theirs in zip(mine, known, strict=True)
            if theirs
        ]
        merged = combettes_pesquet(network)
        click.echo(
            f"| {name} | {product.value:.4g} | {'-' if merged is None else f'{merged:.4g}'} | {best.value:.4g} | "
            f"{statistics.median(pairs):.3g} | {slope(network, shape):.3g} | {first:.1f} | {second:.1f} |",
        )


if __name__ == "__main__":
    main()
