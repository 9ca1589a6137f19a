"""The small networks of a folder `models/l2-verification`, and budgets for them. Needs PyTorch and NumPy, nothing else:
benchmarks of other tools import it where lipaudit does not run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

MEAN, STD = (125.3 / 255, 123 / 255, 113.9 / 255), (0.225, 0.225, 0.225)
BUDGETS = {
    "linf": {
        "mnist_mlp": ("0.02", "0.05", "0.1"),
        "mnist_convsmall": ("0.01", "0.02", "0.05"),
        "cifar10_cnn_c": ("1/255", "2/255", "4/255"),
    },
    "l1": {
        "mnist_mlp": ("1", "2", "3"),
        "mnist_convsmall": ("0.5", "1", "2"),
        "cifar10_cnn_c": ("0.5", "1", "2"),
    },
}


class Normalised(nn.Module):
    """(x - mean) / std by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN, dtype=torch.float64).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD, dtype=torch.float64).reshape(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)


def networks(shared: Path, **how: object) -> dict[str, nn.Sequential]:
    """As their README describes them; `how` torch reads a file of weights: of weights only, where it knows that."""
    flat = nn.Flatten
    found = {
        "mnist_mlp": [flat(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)],
        "mnist_convsmall": [
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), flat(),
            nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
        ],
        "cifar10_cnn_c": [
            nn.Conv2d(3, 8, 4, 2, 0), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 0), nn.ReLU(), flat(),
            nn.Linear(576, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
        ],
    }  # fmt: skip
    for name, layers in found.items():
        state = torch.load(
            shared / "models/l2-verification" / f"{name}.pth", map_location="cpu", **(how or {"weights_only": True})
        )
        weights = list(state.values())
        parameters = [parameter for layer in layers for parameter in layer.parameters()]
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.data.copy_(weight)
    head = {"cifar10_cnn_c": [Normalised()]}
    return {
        name: nn.Sequential(*head.get(name, []), *layers).eval().requires_grad_(False).double()
        for name, layers in found.items()
    }


def images_of(shared: Path, name: str, first: int) -> tuple[torch.Tensor, list[int]]:
    """The first images for a network, float64, and their labels."""
    data = np.load(shared / "data/l2-verification" / f"{name.split('_')[0].removesuffix('10')}_200.npz")
    images = torch.from_numpy(next(v for v in data.values() if v.ndim == 4)[:first]).double()
    return images, next(v for v in data.values() if v.ndim == 1)[:first].tolist()
