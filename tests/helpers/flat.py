"""Functions as classifiers whose logits are all entries of their output, and the norms of linear ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from lipaudit.certification.network_bound import compose
from lipaudit.results.bounds import NetworkBound

Function = Callable[[torch.Tensor], torch.Tensor]


class Flat(nn.Module):
    """The function, its output as one row of logits per sample."""

    def __init__(self, function: Function, *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x).flatten(1)


def bounded(function: Function, shape: tuple[int, ...], **settings: object) -> NetworkBound:
    """The bound of a function, all of whose output entries are logits."""
    return compose(Flat(function).eval(), shape, **settings).network


def matrix_of(function: Function, shape: tuple[int, ...]) -> torch.Tensor:
    """The matrix (outputs x inputs) of an affine function, in float64."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    start = function(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
    return torch.stack([function(unit[None]).flatten() - start for unit in units], 1)


def norm_of(function: Function, shape: tuple[int, ...]) -> float:
    """The exact norm of an affine function."""
    return float(torch.linalg.svdvals(matrix_of(function, shape))[0])


def steepest(function: Function, shape: tuple[int, ...], scale: float = 1.0, tries: int = 20) -> float:
    """The largest norm of the Jacobian at random points of that size."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for _ in range(tries):
        x = torch.randn(1, *shape, generator=generator, dtype=torch.float64).mul(scale).requires_grad_()
        outputs = function(x).flatten()
        rows = [torch.autograd.grad(output, x, retain_graph=True)[0].flatten() for output in outputs]
        largest = max(largest, float(torch.linalg.svdvals(torch.stack(rows))[0]))
    return largest
