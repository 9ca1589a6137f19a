"""After training: parametrisations baked into plain layers, and norms projected to a target."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from lipaudit.nn.almost_orthogonal import AOLConv2d, AOLLinear
from lipaudit.nn.heads import NormalisedLinear

ModelT = TypeVar("ModelT", bound=nn.Module)

PLAIN = {AOLConv2d: nn.Conv2d, AOLLinear: nn.Linear, NormalisedLinear: nn.Linear}
"""What a layer of this package is once its weight is an ordinary parameter."""


def export(model: ModelT) -> ModelT:
    """A copy in evaluation mode in which every parametrised tensor is an ordinary parameter with the value that runs.

    Layers of this package become `nn.Conv2d` and `nn.Linear`; parametrisations of torch (weight norm, spectral norm,
    orthogonal) are baked in as well. The values are those of the model's own dtype, bit for bit: what is deployed is
    what was audited, and in float64 both are the same function. The model itself is left as it is.
    """
    plain = copy.deepcopy(model).eval()
    for module in plain.modules():
        if parametrize.is_parametrized(module):
            _bake(module)
        module.__class__ = PLAIN.get(type(module), type(module))
    return plain


def _bake(module: nn.Module) -> None:
    """`remove_parametrizations` would take the property off the class, which the copy shares with the original."""
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    trained = {name: any(p.requires_grad for p in held.parameters()) for name, held in module.parametrizations.items()}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]  # the class that parametrize derived this one from
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trained[name]))
