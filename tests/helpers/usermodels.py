"""Python files such as users write, in a folder of their own."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

_numbers = itertools.count()

SMALL = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4 * 8 * 8, num_classes)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().flatten(1))

def seeded(num_classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Small(num_classes)
"""
SHAPE = (3, 8, 8)

_small: dict[str, Any] = {}
exec(SMALL, _small)
Small: type[nn.Module] = _small["Small"]
"""The class in `SMALL`."""

Write = Callable[[str], str]


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a Python file into the current folder (a temporary one); gives the module's name."""
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    names: list[str] = []

    def write(text: str) -> str:
        names.append(f"user_module_{next(_numbers)}")
        (tmp_path / f"{names[-1]}.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)
