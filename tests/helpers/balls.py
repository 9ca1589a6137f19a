"""Points of a ball, and how low a function gets in it: what local certificates are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lipaudit.certification.network_bound import Composition
from lipaudit.domains.graph import Node, call, evaluate

ORDERS = {"l2": 2.0, "linf": math.inf, "l1": 1.0}


def inside(shape: tuple[int, ...], count: int, generator: torch.Generator, norm: str = "l2") -> torch.Tensor:
    """Points of the unit ball, most of them on its surface; corners of the box in Linf, and of few entries in L1."""
    points = torch.randn(count, math.prod(shape), generator=generator, dtype=torch.float64)
    if norm == "linf":
        points = points.sign()
    elif norm == "l1":
        points *= torch.rand(points.shape, generator=generator, dtype=torch.float64) ** 12
    points /= torch.linalg.vector_norm(points, ORDERS[norm], dim=1, keepdim=True).clamp_min(1e-300) * (1 + 1e-12)
    points[: count // 4] *= torch.rand(count // 4, 1, generator=generator, dtype=torch.float64)
    return points.reshape(count, *shape)


def lowest(
    network: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    radius: float,
    c: torch.Tensor,
    norm: str = "l2",
) -> torch.Tensor:
    """The least value of <c, logits> that projected gradient descent finds in the ball, in Linf among pixels."""
    d = torch.zeros_like(x)
    least = (network(x[None])[0] * c).sum().detach()
    for step in range(12):
        d.requires_grad_(True)
        value = (network((x + d)[None])[0] * c).sum()
        (gradient,) = torch.autograd.grad(value, d)
        least = torch.minimum(least, value.detach())
        size = radius * 0.7 ** (step // 3)
        if norm == "linf":
            d = (d.detach() - gradient.sign() * size).clamp(-radius * (1 - 1e-12), radius * (1 - 1e-12))
            d = (x + d).clamp(0.0, 1.0) - x
            continue
        way = gradient / gradient.norm().clamp_min(1e-300)
        if norm == "l1":
            way = gradient.sign() * (gradient.abs() == gradient.abs().max())
            way = way / way.abs().sum().clamp_min(1.0)
        d = d.detach() - way * size
        d = d * (radius / torch.linalg.vector_norm(d, ORDERS[norm]).clamp_min(max(radius, 1e-300))) * (1 - 1e-12)
    return least


def operands(composition: Composition, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each ReLU reads."""
    read = {}

    def run(node: Node, arguments: Mapping[str, Any]) -> torch.Tensor:
        if node.op == "relu.default":
            read[node.name] = arguments["self"]
        return call(node, arguments)

    evaluate(composition.graph, x, run=run)
    return read
