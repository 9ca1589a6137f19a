"""Which layers decide a network's Lipschitz bound, and how: the proof of `lipaudit.bound`, to be replayed in training.

Note [Replay]
    The ledger of an audit is a list of steps, each a law over the bounds of earlier ones (a product, the sum of the
    branches of a residual block, …) times a norm. The laws depend on the architecture only. So the network is
    captured and walked once, with the cheapest norms; what is kept is, for each step, its law and the convolutions,
    dense layers and batch norms that its norm comes from. In training the norms are computed anew from the weights of
    the moment and the laws are replayed in logarithms: one differentiable bound for chains and for residual networks.
    A batch norm after a convolution belongs to its weight, with the running variance, as in evaluation: without it, a
    penalty on the weight could be undone by the batch norm. Whatever else has a norm (fixed scalings, weights outside
    of such layers, slopes of activations) stays at the value that it had when the plan was made.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lipaudit.domains.graph import Node
from lipaudit.domains.interpreter import walk
from lipaudit.domains.lipschitz import RULES, Ledger, Value
from lipaudit.domains.lipschitz.propagator import INPUT
from lipaudit.graph.capture import capture
from lipaudit.nn.almost_orthogonal import Convolution
from lipaudit.norms.linear_maps import Gather, Identity, LinearMap
from lipaudit.norms.methods import norm_bound
from lipaudit.results.bounds import Law

Layer = nn.Linear | Convolution
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True)
class Factor:
    """A convolution or dense layer, by its path, and the batch norm that follows it."""

    layer: str
    scaling: str | None = None

    def weight(self, model: nn.Module) -> Tensor:
        """As it runs in evaluation: rows times the factors of the batch norm."""
        weight = layer_at(model, self.layer).weight
        if self.scaling is None:
            return weight
        factors = scales(norm_at(model, self.scaling))
        return weight * factors.reshape(-1, *(1,) * (weight.ndim - 1))

    def geometry(self, model: nn.Module) -> tuple[tuple[int, ...], int]:
        """Stride on the lattice (Note [Lattice] in `norms/lattice.py`) and groups."""
        layer = layer_at(model, self.layer)
        if isinstance(layer, nn.Linear):
            return (), 1
        return tuple(s // math.gcd(s, d) for s, d in zip(layer.stride, layer.dilation, strict=True)), layer.groups


@dataclass(frozen=True)
class Step:
    """One line of the ledger: a law over earlier steps, times a constant, norms of factors, and of lone batch norms."""

    name: str
    law: Law
    inputs: tuple[str, ...]
    constant: float = 1.0
    factors: tuple[Factor, ...] = ()
    scalings: tuple[str, ...] = ()


@dataclass
class Plan:
    """The steps of a network, and what the norms remember from call to call."""

    steps: tuple[Step, ...]
    logits: str
    memory: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(dict.fromkeys(factor for step in self.steps for factor in step.factors))

    @property
    def scalings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for step in self.steps for path in step.scalings))

    @property
    def body(self) -> str:
        """The step in front of the last one, where that is a linear layer; `ValueError` where it is not."""
        last = next((step for step in self.steps if step.name == self.logits), None)
        if last is None or last.law != "scale" or not last.factors:
            raise ValueError("expected a network that ends in a linear layer, got one that does not")
        return last.inputs[0]

    def replay(self, logarithms: Mapping[Factor | str, Tensor], until: str | None = None) -> Tensor:
        """The logarithm of the bound from the input to a step (the logits), from those of the norms."""
        some = next(iter(logarithms.values()))
        so_far = {INPUT: torch.zeros((), dtype=some.dtype, device=some.device)}
        for step in self.steps:
            before = torch.stack([so_far[name] for name in step.inputs])
            keys: tuple[Factor | str, ...] = (*step.factors, *step.scalings)
            own = sum((logarithms[key] for key in keys), start=_log(step.constant))
            so_far[step.name] = own + _joined(step.law, before)
        return so_far[until or self.logits]


_PLANS: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], tuple[tuple[Any, ...], Plan]]] = WeakKeyDictionary()


def plan(model: nn.Module, input_shape: Sequence[int], domain: tuple[float, float] | None = None) -> Plan:
    """The plan of a model, made on first use and kept as long as its layers stay what they are.

    `input_shape` has no batch axis. Raises the errors of `lipaudit.bound`, and `ValueError` for a model without
    convolutions or dense layers.
    """
    layers = tuple((n, type(m), tuple(m.weight.shape)) for n, m in model.named_modules() if _has_weight(m))
    key = (tuple(input_shape), domain)
    held = _PLANS.setdefault(model, {})
    if key not in held or held[key][0] != layers:
        held[key] = (layers, _make(model, tuple(input_shape), domain))
    return held[key][1]


def _make(model: nn.Module, input_shape: tuple[int, ...], domain: tuple[float, float] | None) -> Plan:
    frozen = copy.deepcopy(model).cpu().float().eval()
    graph = capture(frozen, input_shape, domain=domain)
    ledger = Ledger(graph, torch.device("cpu"), method="schur", measure=False, domain=domain)
    ledger.looks_back = False  # laws of one operation each: those over whole blocks cannot be replayed
    with torch.no_grad():
        logits = ledger.settle(walk(graph, RULES, Value(INPUT), ledger)).step
    steps = []
    for line in ledger.lines:
        factors, scalings, constant = _read(model, ledger.parts[line.step])
        if not factors and not scalings:
            constant = line.upper.value
        steps.append(Step(line.step, line.law, line.inputs, constant, factors, scalings))
    made = Plan(tuple(steps), logits)
    if not made.factors:
        raise ValueError(f"expected a model with convolutions or dense layers, got none in {type(model).__name__}")
    return made


def _read(
    model: nn.Module, parts: Sequence[tuple[Node, LinearMap | None]]
) -> tuple[tuple[Factor, ...], tuple[str, ...], float]:
    """Of the maps that were merged into one step: the layers, the batch norms without one, the norm of all others."""
    factors: list[Factor] = []
    scalings: list[str] = []
    constant, fresh = 1.0, False
    for node, linear in parts:
        layer = _module(model, node.layer)
        if node.op.startswith(("conv1d", "conv2d", "conv3d", "linear")) and isinstance(layer, Layer):
            factors.append(Factor(node.layer))
            fresh = True
        elif isinstance(layer, BatchNorm) and "batch_norm" in node.op:
            if fresh:
                factors[-1] = Factor(factors[-1].layer, node.layer)
            else:
                scalings.append(node.layer)
            fresh = False
        elif linear is not None and not isinstance(linear, Identity):
            isometric = isinstance(linear, Gather) and linear.isometric
            constant *= 1.0 if isometric else norm_bound(linear, "schur")[0].value
            fresh = False
    return tuple(factors), tuple(scalings), constant


def layer_at(model: nn.Module, path: str) -> Layer:
    """The convolution or dense layer at a path of a plan."""
    return cast(Layer, model.get_submodule(path))


def norm_at(model: nn.Module, path: str) -> BatchNorm:
    """The batch norm at a path of a plan."""
    return cast(BatchNorm, model.get_submodule(path))


def variance(norm: BatchNorm) -> Tensor:
    """The running variance. Raises `ValueError` for a batch norm that keeps none."""
    if norm.running_var is None:
        raise ValueError(f"expected running statistics, got none in {norm}")
    return norm.running_var


def scales(norm: BatchNorm) -> Tensor:
    """What a batch norm in evaluation multiplies each channel by; the running variance has no gradient."""
    roots = (variance(norm).detach() + norm.eps).rsqrt()
    return roots if norm.weight is None else norm.weight * roots


def _has_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _log(constant: float) -> float:
    return math.log(constant) if constant > 0 else -math.inf


def _joined(law: Law, before: Tensor) -> Tensor:
    if law == "sum":
        return before.logsumexp(0)
    if law == "root_sum_squares":
        return (2 * before).logsumexp(0) / 2
    return before.amax(0)
