"""What a random block is, and how weights are made that do harm: see fuzzed.py."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import nn
from torch.nn import functional

F = functional
Shape = tuple[int, ...]
Function = Callable[[torch.Tensor], torch.Tensor]
Parts = list[nn.Module]
Block = Callable[[Random, Shape], tuple[Function, Parts] | None]
"""What it computes, and the layers it needs; None where the shape does not suit it."""

IMAGES: dict[str, Block] = {}
TOKENS: dict[str, Block] = {}
ANY: dict[str, Block] = {}


def block(table: dict[str, Block]) -> Callable[[Block], Block]:
    def add(build: Block) -> Block:
        table[build.__name__] = build
        return build

    return add


def shape_after(function: Function, shape: Shape) -> Shape | None:
    """The shape of its output; None where a kernel does not fit, or nothing is left."""
    try:
        with torch.no_grad():
            after = tuple(function(torch.rand(1, *shape)).shape[1:])
    except RuntimeError:
        return None
    return after if after and 0 not in after else None


def harmed(random: Random, weight: torch.Tensor) -> torch.Tensor:
    """Weights as they are, tiny, huge, zero, one-hot or of rank one; as biases they saturate what follows."""
    kind = random.choice(["plain", "plain", "normal", "scaled", "scaled", "zero", "one-hot", "rank one"])
    if kind == "plain":
        return weight
    weight = torch.randn_like(weight)
    if kind == "scaled":
        return weight * 10.0 ** random.uniform(-3, 3)
    if kind == "zero":
        return torch.zeros_like(weight)
    if kind == "one-hot":
        one = torch.zeros_like(weight)
        one.view(-1)[random.randrange(weight.numel())] = random.choice([-3.0, 3.0])
        return one
    if kind == "rank one" and weight.ndim > 1:
        return (weight.flatten(1)[:, :1] * weight.flatten(1)[:1]).reshape(weight.shape)
    return weight


def harm(random: Random, parts: Parts) -> None:
    """Harmful weights everywhere; running statistics of moderate size."""
    for parameter in (p for part in parts for p in part.parameters()):
        with torch.no_grad():
            parameter.copy_(harmed(random, parameter.clone()))
    for part in parts:
        for name, buffer in part.named_buffers():
            if "running_mean" in name:
                buffer.normal_()
            elif "running_var" in name:
                buffer.uniform_(0.01, 2)
