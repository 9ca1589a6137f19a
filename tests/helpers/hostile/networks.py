"""The network that the hostile checkpoints and data are made for, as `--model hostile.networks:small` finds it."""

from __future__ import annotations

import torch
from torch import nn

SHAPE = (1, 6, 6)
NAME = "hostile.networks:small"


class Small(nn.Module):
    """A convolution with batch norm, a dense layer to three logits; the seed decides the weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
            self.linear = nn.Linear(144, 3)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.conv(x)).relu().flatten(1))


def small() -> nn.Module:
    """Untrained: its weights come from a checkpoint."""
    return Small(seed=1)


def stored() -> dict[str, torch.Tensor]:
    """What the checkpoints hold."""
    return {name: tensor.clone() for name, tensor in Small(seed=0).state_dict().items()}
