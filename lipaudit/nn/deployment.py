"""After training: parametrisations baked into plain layers, and norms projected to a target."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from lipaudit.nn.almost_orthogonal import AOLConv2d, AOLLinear, lattice_stride
from lipaudit.nn.bound_replay import Factor, layer_at, norm_at, plan, variance
from lipaudit.nn.heads import NormalisedLinear
from lipaudit.nn.orthogonal import OrthogonalConv2d
from lipaudit.norms.frequency_cells import lattice_norm
from lipaudit.norms.linear_maps import Conv, Dense
from lipaudit.norms.methods import norm_bound
from lipaudit.rounding import UNIT, check_arithmetic, up

ModelT = TypeVar("ModelT", bound=nn.Module)

PLAIN = {AOLConv2d: nn.Conv2d, AOLLinear: nn.Linear, NormalisedLinear: nn.Linear, OrthogonalConv2d: nn.Conv2d}
"""What a layer of this package is once its weight is an ordinary parameter."""

CELLS = 20_000
"""What the norm on the lattice may take before the grid of fixed size is used."""


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
    makers = cast(nn.ModuleDict, module.parametrizations)
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in makers}
    trained = {name: any(p.requires_grad for p in held.parameters()) for name, held in makers.items()}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]  # the class that parametrize derived this one from
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trained[name]))


def spectral_rescale_(model: nn.Module, input_shape: Sequence[int], target: float = 1.0) -> dict[str, float]:
    """Scales every layer with a norm above `target` down to it, in place; the proved norms before, by layer.

    Layers are the convolutions and dense layers on the way from input to logits, each with the batch norm after it,
    whose weight is scaled where there is one. Norms are proved for zero and circular padding and any image size, from
    the weights as they are rounded: an audit of the model finds none above `target`. A projection, not an identity:
    biases stay, so the network becomes another function, to be measured or trained on. Batch norms that follow no
    layer, transposed convolutions and weights outside of layers stay as they are. `input_shape` has no batch axis.
    Raises `ValueError` for a `target` of zero or less, for other paddings, for weights that are parametrised
    (`export` first) and batch norms without a weight, and the errors of `lipaudit.bound`.
    """
    check_arithmetic(next(model.parameters()).device)
    if not target > 0:
        raise ValueError(f"spectral_rescale_: expected a target above 0, got {target}")
    found: dict[str, float] = {}
    with torch.no_grad():
        scaled = [(factor, _scaled_tensor(model, factor)) for factor in plan(model, input_shape).factors]
        for factor, held in scaled:
            found[factor.layer] = norm = _proved_norm(model, factor)
            while norm > target:  # rounding the scaled weight may leave it a little above
                held.mul_(target / norm * (1 - 4 * torch.finfo(held.dtype).eps))
                norm = _proved_norm(model, factor)
    return found


def _scaled_tensor(model: nn.Module, factor: Factor) -> torch.Tensor:
    module = model.get_submodule(factor.scaling or factor.layer)
    weight = module.weight
    if not isinstance(weight, torch.Tensor) or parametrize.is_parametrized(module, "weight"):
        what = "no weight" if weight is None else "a parametrised one"
        raise ValueError(
            f"spectral_rescale_: expected a plain weight in {factor.layer}, got {what}; export(model) first"
        )
    return weight


def _proved_norm(model: nn.Module, factor: Factor) -> float:
    """Of the weight, with its batch norm, on the lattice."""
    layer, error = layer_at(model, factor.layer), 0.0
    weight = layer.weight.double()
    if factor.scaling is not None:
        norm = norm_at(model, factor.scaling)
        rows = norm.weight.double() / (variance(norm).double() + norm.eps).sqrt()
        weight, error = weight * rows.reshape(-1, *(1,) * (weight.ndim - 1)), 16 * UNIT
    if isinstance(layer, nn.Linear):
        return norm_bound(Dense(weight, (weight.shape[1],), error))[0].value
    pads, ones = ((0, 0),) * len(layer.kernel_size), (1,) * len(layer.kernel_size)
    conv = Conv(weight, layer.kernel_size, lattice_stride(layer), pads, ones, layer.groups, relative_error=error)
    grid = norm_bound(conv, "riesz-grid")[0].value
    cells = lattice_norm(conv, most=CELLS)
    return grid if cells is None else min(grid, up(cells))
