"""Precise values against exact arithmetic: within what they state, and that far below ordinary rounding."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import mpmath
import pytest
import torch
from torch import nn

from lipaudit.domains.graph import Node
from lipaudit.domains.rounding.extended import RULES, precisely
from lipaudit.domains.rounding.float64 import RULES as ROUNDINGS
from lipaudit.graph.capture import capture


def node_of(model: nn.Module, shape: tuple[int, ...]) -> Node:
    return next(node for node in capture(nn.Sequential(model, nn.Flatten()).eval(), shape).nodes if node.op in RULES)


def exact(model: nn.Module, x: torch.Tensor) -> list[Fraction]:
    """The output of a linear layer in rational numbers, from its matrix."""
    base = model(torch.zeros_like(x)).flatten()
    model.bias = None
    columns = torch.stack([model(one.reshape(x.shape)).flatten() for one in torch.eye(x.numel(), dtype=torch.float64)])
    entries = [Fraction(v) for v in x.flatten().tolist()]
    sums = []
    for output in range(columns.shape[1]):
        weights = columns[:, output].tolist()
        products = (Fraction(w) * v for w, v in zip(weights, entries, strict=True) if w)
        sums.append(sum(products, Fraction(float(base[output]))))
    return sums


def wide(*shape: int, decades: int) -> torch.Tensor:
    """Entries of very different sizes."""
    return torch.randn(shape, dtype=torch.float64) * 10 ** torch.empty(shape, dtype=torch.float64).uniform_(-decades, 0)


def columns(*tensors: torch.Tensor) -> zip:
    return zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True)


@pytest.mark.parametrize("scale", [1.0, 1e-40, 1e30])
@pytest.mark.parametrize("kind", ["dense", "convolution", "grouped", "same"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_maps_are_within_the_stated_error(kind: str, scale: float, bias: bool) -> None:
    torch.manual_seed(0)
    layers = {
        "dense": (nn.Linear(300, 4, bias=bias), (300,)),
        "convolution": (nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=bias), (3, 6, 6)),
        "grouped": (nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=bias), (4, 5, 5)),
        "same": (nn.Conv1d(2, 3, 3, padding="same", bias=bias), (2, 9)),
    }
    model, shape = layers[kind]
    model = model.double().requires_grad_(False)
    with torch.no_grad():
        model.weight.mul_(10 ** torch.empty_like(model.weight).uniform_(-6, 0)).mul_(scale)
    x = wide(1, *shape, decades=8)
    node = node_of(model, shape)
    arguments = {**node.args, "input": x, "weight": model.weight, "bias": model.bias}
    found = precisely(node, arguments)
    usual = ROUNDINGS[node.op](node, arguments, found.value)
    truth = exact(model, x)
    for (value, rest, stated), true in zip(columns(found.value, found.rest, found.error), truth, strict=True):
        assert abs(Fraction(value) + Fraction(rest) - true) <= Fraction(stated)
    assert float(found.error.max() / usual.max()) < 1e-6


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_batch_norm_is_within_the_stated_error(affine: bool, mean: float) -> None:
    torch.manual_seed(0)
    model = nn.BatchNorm2d(3, affine=affine).double()
    model.requires_grad_(False)
    model.running_mean.normal_().add_(mean)
    model.running_var.uniform_(1e-8, 3.0)
    if affine:
        nn.init.normal_(model.weight)
        nn.init.normal_(model.bias)
    x = wide(1, 3, 2, 2, decades=6) + mean
    node = node_of(model, (3, 2, 2))
    arguments = {name: v.detach() if isinstance(v, torch.Tensor) else v for name, v in node.args.items()}
    arguments["input"] = x
    found = precisely(node, arguments)
    usual = ROUNDINGS[node.op](node, arguments, found.value)
    of = mpmath.mpf
    with mpmath.workprec(300):
        for c in range(3):
            root = mpmath.sqrt(of(float(model.running_var[c])) + of(model.eps))
            factor = (of(float(model.weight[c])) if affine else of(1)) / root
            shift = of(float(model.bias[c])) if affine else of(0)
            parts = (x[0, c], found.value[0, c], found.rest[0, c], found.error[0, c])
            for point, value, rest, stated in columns(*parts):
                true = (of(point) - of(float(model.running_mean[c]))) * factor + shift
                assert abs(of(value) + of(rest) - true) <= of(stated)
    assert float((found.error / usual).max()) < 1e-12


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
def test_entry_by_entry_the_pair_is_all_but_exact(op: str) -> None:
    torch.manual_seed(0)
    other = wide(5, decades=5) + 1e-6

    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return getattr(torch, op)(x, other.to(x.dtype))

    node = node_of(Constant(), (5,))
    x = wide(1, 5, decades=12)
    found = precisely(node, {**node.args, "self": x, "other": other})
    operations = {
        "add": Fraction.__add__,
        "sub": Fraction.__sub__,
        "mul": Fraction.__mul__,
        "div": Fraction.__truediv__,
    }
    for a, b, value, rest, stated in columns(x, other, found.value, found.rest, found.error):
        true = operations[op](Fraction(a), Fraction(b))
        assert abs(Fraction(value) + Fraction(rest) - true) <= Fraction(stated)
        assert stated <= abs(value) * 1e-30 + 1e-299


@pytest.mark.parametrize("value", [0.0, 1e-200, float("nan")])
def test_what_it_is_not_made_for_is_left_to_the_rounding_rules(value: float) -> None:
    model = nn.Linear(3, 2).double()
    node = node_of(model, (3,))
    x = torch.full((1, 3), value, dtype=torch.float64)
    assert precisely(node, {"input": x, "weight": model.weight.detach(), "bias": None}) is None
    assert precisely(replace(node, op="relu.default"), {"self": x}) is None


def test_a_difference_of_two_activations_may_be_one_function_to_the_ledger() -> None:
    class Shrink(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - torch.tanh(x)

    subtraction = next(node for node in capture(Shrink().eval(), (3,)).nodes if node.op == "sub.Tensor")
    x = torch.ones(1, 3, dtype=torch.float64)
    assert precisely(subtraction, {"self": x, "other": x.tanh(), "alpha": 1}) is None
