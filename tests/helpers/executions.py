"""Float32 executions of a captured network whose sums are taken in whatever order: what native arithmetic speaks of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lipaudit.certification.network_bound import Composition
from lipaudit.domains.graph import Node, call, evaluate, in_dtype
from lipaudit.norms.linear_maps import Conv, Dense, LinearMap, dense

Summing = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From a matrix and a vector to their product, in their dtype."""


def one_by_one(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(len(weight), dtype=x.dtype)
    for column, entry in zip(weight.T, x, strict=True):
        total = total + column * entry
    return total


def fused(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """With one rounding for each product and sum (and one more of the float64 sum between, which hardly matters)."""
    total = torch.zeros(len(weight), dtype=x.dtype)
    for column, entry in zip(weight.T.double(), x.double(), strict=True):
        total = (total.double() + column * entry).to(x.dtype)
    return total


def in_blocks(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    parts = [one_by_one(w, v) for w, v in zip(weight.split(7, 1), x.split(7), strict=True)]
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], [*parts[1::2], torch.zeros_like(parts[0])], strict=False)]
    return parts[0]


def largest_first(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Each sum from its largest positive to its largest negative term: much cancels at the end."""
    terms = (weight * x).sort(1, descending=True).values
    return one_by_one(terms, torch.ones_like(x))


def shuffled(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    order = torch.randperm(len(x))
    return one_by_one(weight[:, order], x[order])


SUMMINGS: dict[str, Summing] = {
    "one by one": one_by_one,
    "fused": fused,
    "in blocks": in_blocks,
    "largest first": largest_first,
    "shuffled": shuffled,
}


def executed(
    composition: Composition, x: torch.Tensor, summing: Summing, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The logits at `x` in `dtype`, convolutions and dense layers summed that way, batch norms by scale and shift."""
    maps = {node.name: linear for parts in composition.ledger.parts.values() for node, linear in parts if linear}

    def run(node: Node, arguments: Mapping[str, Any]) -> torch.Tensor:
        linear = maps.get(node.name)
        if isinstance(linear, (Conv, Dense)) and "bias" in node.args:  # else a sum of branches that are one map
            return _summed(node, arguments, linear, summing)
        if node.op == "_native_batch_norm_legit_no_training.default":
            return scale_and_shift(arguments)
        return call(node, arguments)

    with torch.no_grad():
        return evaluate(in_dtype(composition.graph, dtype), x.to(dtype), run=run)


def _summed(node: Node, arguments: Mapping[str, Any], linear: LinearMap, summing: Summing) -> torch.Tensor:
    x, bias = arguments["input"], arguments["bias"]
    weight = dense(linear).to(x.dtype)
    parts = x.reshape(-1, weight.shape[1])  # a dense layer may be applied to each of many tokens
    output = torch.stack([summing(weight, part) for part in parts]).reshape(node.shape)
    if bias is None:
        return output
    return output + (bias if isinstance(linear, Dense) else bias.reshape(-1, *[1] * (x.ndim - 2)))


def scale_and_shift(arguments: Mapping[str, Any]) -> torch.Tensor:
    """Batch norm as x scale + shift, all in the dtype of x."""
    x, shape = arguments["input"], (1, -1, *[1] * (arguments["input"].ndim - 2))
    scale = 1 / (arguments["running_var"] + arguments["eps"]).sqrt()
    scale = scale if arguments["weight"] is None else scale * arguments["weight"]
    shift = -arguments["running_mean"] * scale
    shift = shift if arguments["bias"] is None else shift + arguments["bias"]
    return x * scale.reshape(shape) + shift.reshape(shape)


class Residual(nn.Module):
    """Convolutions with batch norm and residual sums, every kind of pooling, two dense layers."""

    def __init__(self, channels: int = 4, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.first = nn.Conv2d(2, channels, 3, padding=1, padding_mode=padding_mode)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)])
        self.dense = nn.Linear(channels * 4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norms[0](self.first(x)))
        x = torch.relu(x + self.norms[2](self.convs[1](torch.relu(self.norms[1](self.convs[0](x))))))
        x = nn.functional.avg_pool2d(nn.functional.max_pool2d(x, 3, 1, 1), 2)
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(nn.functional.leaky_relu(self.dense(x), 0.1))


def residual(seed: int, **options: Any) -> nn.Module:
    """A random one, statistics and all."""
    torch.manual_seed(seed)
    network = Residual(**options)
    for norm in network.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.05, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return network.eval().requires_grad_(False)


def perceptron(seed: int, *widths: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def with_cancelling_biases(network: nn.Sequential, size: float) -> nn.Sequential:
    """The same function, but for rounding: the last hidden layer is shifted by `size`, the last layer takes it off."""
    hidden, last = network[-3], network[-1]
    assert isinstance(hidden, nn.Linear)
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        hidden.bias += size
        last.bias -= size * last.weight.sum(1)
    return network
