"""Networks and true proofs of them, for the tests of the checker."""

from __future__ import annotations

import functools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad, relu

from lipaudit import checker
from lipaudit.graph.wrappers import as_module
from lipaudit.nn import GroupSort
from lipaudit.proof import writer
from lipaudit.zoo import digits_split, load, weights_file

Proof = dict[str, Any]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode; no parameter and no statistic is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if name.endswith("var") else noise - 0.5)
    return model.eval()


class Everything(nn.Module):
    """Every operation that the checker has a rule for, on (3, 6, 6) images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 8, (2, 3), stride=2, padding=(0, 1), bias=False), nn.BatchNorm2d(8)
        self.conv3, self.sort = nn.Conv2d(8, 8, (1, 2), padding=(0, 1), dilation=(1, 2), groups=2), GroupSort(4)
        self.largest, self.average = nn.MaxPool2d(2, stride=1, padding=1), nn.AvgPool2d(2)
        self.hidden, self.bn3, self.last = nn.Linear(32, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x)) + pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = self.sort(self.conv3(leaky_relu(x, 0.1)))
        x = self.average(self.largest(x))
        return self.last(relu(self.bn3(self.hidden(x.flatten(1)))))


def everything() -> nn.Module:
    return as_module(randomised(Everything()), mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))


def images(count: int, shape: tuple[int, ...] = (3, 6, 6)) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(5))


def prove(folder: Path, name: str, samples: int) -> tuple[Proof, bytes]:
    """A proof as it is read from its file, and the bytes of the weights."""
    if name == "everything":
        x, checkpoint = images(samples), None
        model, y = everything(), torch.arange(samples) % 3
    else:
        x, y = (torch.from_numpy(part)[:samples] for part in digits_split()[2:])
        model, checkpoint = load(name), weights_file(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "DENSE_SIDE", 64)  # whole matrices of larger maps take the checker half a minute
        written = writer.write_proof(folder / f"{name}.json", model, x, y, checkpoint=checkpoint)
    return json.loads(written.file.read_bytes()), written.checkpoint.read_bytes()


def accepted(claims: Proof, weights: bytes) -> bool:
    try:
        checker.check(claims, weights, say=lambda _: None)
    except checker.Rejected:
        return False
    return True


def remembering(patch: pytest.MonkeyPatch) -> None:
    """What is proved of one layer need not be proved again: for hundreds of checks of nearly the same proof."""
    prove_one, known = checker.bound_holds, {}

    @functools.wraps(prove_one)
    def remembered(*arguments: Any) -> bool:
        key = pickle.dumps([[*map(tuple, [arguments[0], *arguments[1]])], *arguments[2:]])
        if key not in known:
            known[key] = prove_one(*arguments)
        return known[key]

    patch.setattr(checker, "bound_holds", remembered)
    patch.setattr(checker, "integers", functools.lru_cache(64)(checker.integers))
