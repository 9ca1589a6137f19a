"""Operations with several operands that depend on the input: sums, concatenations, maxima.

Note [Apart]
    Branches are functions of disjoint parts of one tensor if they are so entry by entry, or if those that share
    entries are, as a group, functions of one part of it and apart by another tensor in between: a split of a split.
    Either way all of them together move by at most the largest constant times the movement of the tensor: Note
    [Pieces], for the groups and then in each group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.branches import centred, one_map
from lipaudit.domains.lipschitz.patterns import minus_tanh
from lipaudit.domains.lipschitz.potentials import potential_step
from lipaudit.domains.lipschitz.products import product
from lipaudit.domains.lipschitz.propagator import BOUNDED, RULES, Ledger, Value
from lipaudit.domains.lipschitz.scaling import as_factor, constant, scale, stretched_norm
from lipaudit.domains.lipschitz.shape import broadcast, copies
from lipaudit.domains.piecewise import FOLDED
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.norms.linear_maps import Identity
from lipaudit.norms.verified_eigenvalues import largest_singular_value
from lipaudit.results.bounds import Law, Upper
from lipaudit.rounding import UNIT, up

BOUNDED.add("addcmul.default")


@RULES.rule("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar")
def add(node: Node, ledger: Ledger, self: Any, other: Any, alpha: Any) -> Value:
    """The sum of branches moves by at most the sum of their movements; a constant only shifts."""
    if not isinstance(other, Value):
        return shifted(node, ledger, self, "self", other)
    if not isinstance(self, Value):
        factor = alpha if node.op.startswith("add") else -alpha
        if factor == 1:
            return shifted(node, ledger, other, "other", self)
        refuse_undefined(self)
        return scale(node, ledger, other, "other", as_factor(factor, ledger))
    if minus_tanh(node, ledger):
        return ledger.record(node, "scale", [self], Upper(1.0, "pointwise", "x - tanh(x): slope tanh(x)^2"))
    sign = float(alpha) if node.op.startswith("add") else -float(alpha)
    step = better_sum(node, ledger, {"self": self, "other": other}, sign)
    if step is not None:
        return step
    left = stretched(node, ledger, self, "self")
    right = stretched(node, ledger, other, "other", abs(float(alpha)))
    return _forgetful(ledger.record(node, "sum", [left, right], Upper(1.0, "sum", "residual: sum of the branches")))


def better_sum(node: Node, ledger: Ledger, operands: dict[str, Value], factor: float) -> Value | None:
    """first + factor second where both have something in common that bounds it better than the sum of their bounds."""
    if not ledger.looks_back:
        return None
    return next(
        filter(None, (rule(node, ledger, operands, factor) for rule in (one_map, centred, potential_step))), None
    )


@RULES.rule("rsub.Scalar", "rsub.Tensor")
def reverse_subtract(node: Node, ledger: Ledger, self: Any, other: Any, alpha: Any) -> Value:
    """other - alpha x: a constant only shifts, x counts |alpha| times."""
    if not isinstance(self, Value):
        return shifted(node, ledger, other, "other", self)
    if not isinstance(other, Value):
        refuse_undefined(other)
        return scale(node, ledger, self, "self", as_factor(-alpha, ledger))
    step = better_sum(node, ledger, {"other": other, "self": self}, -float(alpha))
    if step is not None:
        return step
    left = stretched(node, ledger, other, "other")
    right = stretched(node, ledger, self, "self", abs(float(alpha)))
    return _forgetful(ledger.record(node, "sum", [left, right], Upper(1.0, "sum", "residual: sum of the branches")))


def shifted(node: Node, ledger: Ledger, value: Value, operand: str, constant: Any) -> Value:
    """A constant added: distances stay, but the sum is rounded, so the step has to appear."""
    refuse_undefined(constant)
    if ledger.shape_of(node, operand) != tuple(node.shape):
        return broadcast(node, ledger, value, operand)
    return ledger.pend(node, value, Identity(tuple(node.shape)))


def refuse_undefined(constant: Any) -> None:
    """NaN and +inf have no distances. -inf, in masks of attention, takes an entry out: it does not move any more."""
    if isinstance(constant, complex) or (isinstance(constant, torch.Tensor) and constant.is_complex()):
        raise UnsupportedOp("expected a shift of real numbers, got complex ones outside of a Fourier layer")
    entries = constant if isinstance(constant, torch.Tensor) else torch.tensor(float(constant))
    if bool((entries.isnan() | (entries == torch.inf)).any()):
        raise ValueError("expected a shift of finite numbers or -inf, got NaN or inf")


def stretched(node: Node, ledger: Ledger, value: Value, operand: str, factor: float = 1.0) -> Value:
    """One operand of several, in the shape of the output and times `factor`."""
    copied = copies(node, ledger, operand)
    if copied == factor == 1.0:
        return value
    bound = factor if copied == 1.0 else up(copied * factor)
    return ledger.scaled(node, value, Upper(bound, "copies", "root of the number of copies, times its factor"))


@RULES.rule("addcmul.default")
def add_product(node: Node, ledger: Ledger, self: Any, tensor1: Any, tensor2: Any, value: Any) -> Value:
    """x + c y z: a factor that is constant scales, a term that is constant only shifts."""
    factors = {"tensor1": tensor1, "tensor2": tensor2}
    moving = {name: factor for name, factor in factors.items() if isinstance(factor, Value)}
    if len(moving) == 2:
        if isinstance(self, Value) or value != 1:
            raise UnsupportedOp("expected addcmul of two activations with value 1 and a constant shift, got more")
        args = {"self": node.args["tensor1"], "other": node.args["tensor2"]}
        times = replace(node, op="mul.Tensor", target=torch.ops.aten.mul.Tensor, args=args)
        return product(times, ledger, tensor1, tensor2)
    if not moving:
        for factor in factors.values():
            constant(factor, "a factor")
        return shifted(node, ledger, self, "self", 0.0)
    ((operand, source),) = moving.items()
    held = as_factor(tensor2 if operand == "tensor1" else tensor1, ledger) * as_factor(value, ledger)
    if not isinstance(self, Value):
        refuse_undefined(self)
        return scale(node, ledger, source, operand, held, 2 * UNIT)
    left = stretched(node, ledger, self, "self")
    right = ledger.scaled(node, source, stretched_norm(node, ledger, operand, held, 2 * UNIT))
    return ledger.record(node, "sum", [left, right], Upper(1.0, "sum", "sum of the branches"))


@RULES.rule("cat.default", "stack.default")
def concatenate(node: Node, ledger: Ledger, tensors: Any, dim: int) -> Value:
    """Concatenated branches move by the root of the sum of the squares of their movements."""
    del dim
    branches = [value for value in tensors if isinstance(value, Value)]
    if not branches:
        raise NotLipschitz("expected a branch that depends on the input, got only constants")
    return together(node, ledger, branches, "concatenation")


def together(node: Node, ledger: Ledger, branches: Sequence[Value], what: str) -> Value:
    """The node as a concatenation of the branches, or a function of it that brings no two points farther apart."""
    if len(branches) == 1:
        return ledger.record(node, "scale", branches, Upper(1.0, "isometry", "what is added to it is constant"))
    if apart(branches):
        because = f"{what} of what becomes of disjoint parts of one tensor: the largest"
        return _forgetful(ledger.record(node, "max", branches, Upper(1.0, "largest-part", because)))
    claim = f"{what}: root of the sum of squares"
    return _forgetful(ledger.record(node, "root_sum_squares", branches, Upper(1.0, "root-sum-squares", claim)))


def _forgetful(value: Value) -> Value:
    """Without the pieces that are whole tensors again: nothing is apart from them."""
    return replace(value, pieces=tuple(piece for piece in value.pieces if not bool(piece.entries.all())))


def apart(branches: Sequence[Value]) -> bool:
    """Whether the branches are functions of disjoint parts of one tensor; see Note [Apart]."""
    return _apart([{piece.fork: piece.entries for piece in value.pieces} for value in branches])


def _apart(forks: Sequence[dict[str, torch.Tensor]]) -> bool:
    if len(forks) == 1:
        return True
    for name in set.intersection(*(set(fork) for fork in forks)):
        groups = _overlapping([fork[name] for fork in forks])
        if len(groups) > 1 and all(_apart([forks[k] for k in group]) for group in groups):
            return True
    return False


def _overlapping(parts: Sequence[torch.Tensor]) -> list[list[int]]:
    """The numbers of the parts, those that have an entry in common, directly or through others, in one group."""
    groups: list[tuple[list[int], torch.Tensor]] = []
    for number, part in enumerate(parts):
        apart_from_it = [group for group in groups if not bool((group[1] & part).any())]
        touching = [group for group in groups if bool((group[1] & part).any())]
        members = sorted([number, *(k for group in touching for k in group[0])])
        whole = torch.stack([part, *(group[1] for group in touching)]).any(0)
        groups = [*apart_from_it, (members, whole)]
    return [members for members, _ in groups]


_LARGER_FIRST = {
    "maximum.default": 0, "max.other": 0, "fmax.default": 0, "minimum.default": 1, "min.other": 1, "fmin.default": 1,
}  # fmt: skip


@RULES.rule(*_LARGER_FIRST)
def extreme(node: Node, ledger: Ledger, self: Any, other: Any) -> Value:
    """|max(a, b) - max(c, d)| <= max(|a - c|, |b - d|): root of the sum of squares; a constant does not move."""
    part = _LARGER_FIRST[node.op]
    if isinstance(self, Value) and isinstance(other, Value) and _has_counterpart(node, ledger, part):
        law: Law = "max" if apart([self, other]) else "root_sum_squares"
        fork = f"sorted({', '.join(sorted(node.refs()))})"
        return _forgetful(ledger.sorted(node, fork, [self, other], law, part, 2))
    return _extreme_of(node, ledger, {"self": self, "other": other})


def _has_counterpart(node: Node, ledger: Ledger, part: int) -> bool:
    """Whether the other one of larger and smaller is taken of the same operands, and neither is stretched."""
    if any(ledger.shape_of(node, name) != tuple(node.shape) for name in ("self", "other")):
        return False
    refs = sorted(node.refs())
    return any(_LARGER_FIRST.get(each.op) == 1 - part and sorted(each.refs()) == refs for each in ledger.graph.nodes)


@RULES.rule(FOLDED)
def folded(node: Node, ledger: Ledger, self: Any, other: Any, here: Any, there: Any, step: Any) -> Value:
    """A coordinate of z + u relu(w.z), with the other one where that is computed, too.

    Between two points of one side it moves as I or as I + u w^T, and it is continuous: the larger norm of both.
    """
    del here, there, step
    beside = next((each for each in ledger.graph.nodes if _beside(node, each)), None)
    shapes = {ledger.shape_of(node, name) for name in ("self", "other")}
    if not isinstance(self, Value) or not isinstance(other, Value) or shapes != {tuple(node.shape)}:
        raise UnsupportedOp("expected a fold of two tensors of one shape that both depend on the input")
    both = sorted((node, *(() if beside is None else (beside,))), key=lambda each: each.name)
    rows = [_beyond(each)[:: 1 if each is both[0] else -1] for each in both]
    matrices = torch.stack([torch.stack(row) for row in rows]).reshape(len(both), 2, -1).permute(2, 0, 1).contiguous()
    # An entry is a product of two factors, and for one of them a sum: off by two roundings of at most 1 + its size.
    off = 4 * UNIT * (2.0 + float(matrices.abs().amax()))
    upper = Upper(max(1.0, up(largest_singular_value(matrices) + up(2 * off))), "pointwise", "a plane that is folded")
    law: Law = "max" if apart([self, other]) else "root_sum_squares"
    fork = f"folded({', '.join(each.name for each in both)})"
    part, parts = both.index(node), tuple((each, None) for each in both)
    return _forgetful(ledger.sorted(node, fork, [self, other], law, part, len(both), upper, parts))


def _beside(node: Node, other: Node) -> bool:
    """Whether the other node is the other coordinate of the same fold."""
    return (
        other.op == FOLDED
        and other.name != node.name
        and (other.args["self"], other.args["other"]) == (node.args["other"], node.args["self"])
        and torch.equal(other.args["here"], node.args["there"])
        and torch.equal(other.args["there"], node.args["here"])
    )


def _beyond(node: Node) -> list[torch.Tensor]:
    """What the node multiplies both operands by, beyond the line."""
    here, there, step = torch.broadcast_tensors(*(node.args[key].double() for key in ("here", "there", "step")))
    return [1 + step * here, step * there]


@RULES.rule("hypot.default", "logaddexp.default", "logaddexp2.default")
def smooth_extreme(node: Node, ledger: Ledger, self: Any, other: Any) -> Value:
    """Their gradient in both operands has length at most 1: root of the sum of squares; a constant does not move."""
    return _extreme_of(node, ledger, {"self": self, "other": other})


@RULES.rule("clamp.Tensor")
def clamp(node: Node, ledger: Ledger, self: Any, min: Any, max: Any) -> Value:
    """Clamping moves by at most the largest movement of the value and its limits; constant limits do not move."""
    return _extreme_of(node, ledger, {"self": self, "min": min, "max": max})


@RULES.rule("clamp_min.Tensor")
def clamp_below(node: Node, ledger: Ledger, self: Any, min: Any) -> Value:
    """The maximum of a value and its limit moves by at most the larger of the two movements."""
    return _extreme_of(node, ledger, {"self": self, "min": min})


@RULES.rule("clamp_max.Tensor")
def clamp_above(node: Node, ledger: Ledger, self: Any, max: Any) -> Value:
    """The minimum of a value and its limit moves by at most the larger of the two movements."""
    return _extreme_of(node, ledger, {"self": self, "max": max})


def _extreme_of(node: Node, ledger: Ledger, operands: dict[str, Any]) -> Value:
    """Every output moves by at most the largest movement of one entry of each operand."""
    for name, value in operands.items():
        if isinstance(value, torch.Tensor) and bool(value.isnan().any()):
            raise UnsupportedOp(f"expected {name} of {node.op} without NaN, got NaN")
    branches = [stretched(node, ledger, v, name) for name, v in operands.items() if isinstance(v, Value)]
    return together(node, ledger, branches, "entry-wise extremes")
