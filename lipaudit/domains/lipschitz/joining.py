"""Operations with several inputs that depend on the network input: sums and concatenations."""

from __future__ import annotations

from typing import Any

from lipaudit.domains.lipschitz.linear import _as_tensor, _scale
from lipaudit.domains.lipschitz.shape import broadcast
from lipaudit.domains.lipschitz.value import RULES, Ledger, Value, disjoint
from lipaudit.errors import NotLipschitz
from lipaudit.graph import Node
from lipaudit.norms.maps import Identity
from lipaudit.results import Upper


@RULES.rule("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar")
def add(node: Node, ledger: Ledger, self: Any, other: Any, alpha: Any) -> Value:
    """The sum of branches moves by at most the sum of their movements; a constant only shifts."""
    if not isinstance(other, Value):
        return _shifted(node, ledger, self, "self")
    right = broadcast(node, ledger, other, "other")
    if alpha != 1:
        right = _scale(node, ledger, right, "other", _as_tensor(alpha, ledger), 0.0)
    if not isinstance(self, Value):
        return ledger.pend(node, right, Identity(tuple(node.shape)))
    left = broadcast(node, ledger, self, "self")
    return ledger.record(node, "sum", [left, right], Upper(1.0, "sum", "residual: sum of the branches"))


def _shifted(node: Node, ledger: Ledger, value: Value, operand: str) -> Value:
    """A constant added: distances stay, but the sum is rounded, so the step has to appear."""
    return ledger.pend(node, broadcast(node, ledger, value, operand), Identity(tuple(node.shape)))


@RULES.rule("rsub.Scalar")
def reverse_subtract(node: Node, ledger: Ledger, self: Any, other: Any, alpha: Any) -> Value:
    """other - alpha x with constants: the factor alpha."""
    del other
    return _scale(node, ledger, self, "self", _as_tensor(alpha, ledger), 0.0)


@RULES.rule("cat.default", "stack.default")
def concatenate(node: Node, ledger: Ledger, tensors: Any, dim: int) -> Value:
    """Concatenated branches move by the root of the sum of the squares of their movements."""
    del dim
    branches = [value for value in tensors if isinstance(value, Value)]
    if not branches:
        raise NotLipschitz("expected a branch that depends on the input, got only constants")
    if len(branches) == 1:
        return ledger.record(node, "scale", branches, Upper(1.0, "isometry", "constants appended"))
    if disjoint(branches):
        because = "concatenation of what becomes of disjoint parts of one tensor: the largest"
        return ledger.record(node, "max", branches, Upper(1.0, "largest-part", because))
    claim = "concatenation: root of the sum of squares"
    return ledger.record(node, "root_sum_squares", branches, Upper(1.0, "root-sum-squares", claim))
