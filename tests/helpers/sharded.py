"""A small audit that is done in shards: its network, images and settings, and what has to be the same again.

In a module of its own, which workers in other processes find.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from usermodels import SHAPE, SMALL, Small, Write

from lipaudit.results.audit import Audit

SETTINGS = {"eps": ("0.05", "0.2"), "attacks": ("deepfool", "apgd-ce"), "local": "off"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(11, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    labels = network()(x).argmax(1)
    labels[4] = (labels[4] + 1) % 3
    return x, labels


def timeless(audit: Audit) -> dict[str, Any]:
    """All of a result but how long things took, when, and what it is called."""
    bound = replace(audit.bound, seconds=0.0, layers=tuple(replace(line, seconds=0.0) for line in audit.bound.layers))
    attacks = tuple(replace(record, seconds=0.0) for record in audit.attacks)
    parts = tuple(replace(part, run="", started="") for part in audit.parts)
    plain = replace(audit, bound=bound, attacks=attacks, parts=parts, timing={}, run="", started="", command=())
    return vars(plain)


class Deadly(nn.Module):
    """Kills the process in which it is first unpickled, once: a mark on the disk says that it did."""

    def __init__(self, mark: Path, times: int = 1) -> None:
        super().__init__()
        self.inner, self.mark, self.times, self.home = network(), mark, times, os.getpid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if os.getpid() != self.home and len(list(self.mark.iterdir())) < self.times:
            (self.mark / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def pair(user_module: Write, tmp_path: Path) -> list[object]:
    """Options of a small run."""
    torch.manual_seed(0)
    model, images = Small().eval(), torch.rand(7, *SHAPE)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with torch.no_grad():
        np.savez(tmp_path / "data.npz", x=images.numpy(), y=model(images).argmax(1).numpy())
    return [
        "--model", f"{user_module(SMALL)}:Small", "--dataset", f"npz:{tmp_path / 'data.npz'}",
        "--checkpoint", "w.safetensors", "--mean", "none", "--samples", 7, "--attacks", "deepfool",
        "--eps", 0.5, "--local", "off",
    ]  # fmt: skip
