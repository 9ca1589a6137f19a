"""Products and quotients: by constants they are linear, of two operands that depend on the input they are not."""

from __future__ import annotations

from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.patterns import self_gated, softsign
from lipaudit.domains.lipschitz.products import product
from lipaudit.domains.lipschitz.propagator import RULES, Ledger, Value
from lipaudit.domains.lipschitz.quotients import quotient
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.norms.linear_maps import Scale
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, gamma, up


def constant(weight: Any, what: str) -> torch.Tensor:
    """A weight as float64. Raises `UnsupportedOp` if it depends on the input, `ValueError` if it is not finite."""
    if not isinstance(weight, torch.Tensor):
        raise UnsupportedOp(f"expected {what} that does not depend on the input, got one that does")
    if weight.is_complex():
        raise UnsupportedOp(f"expected {what} of real numbers, got complex ones outside of a Fourier layer")
    weight = weight.to(torch.float64)
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"expected {what} of finite numbers, got NaN or inf")
    return weight


def dependent(x: Any, what: str) -> Value:
    """An operand that depends on the input. Raises `UnsupportedOp` for a constant."""
    if not isinstance(x, Value):
        raise UnsupportedOp(f"expected {what} to depend on the input, got a constant")
    return x


def as_factor(number: Any, ledger: Ledger) -> torch.Tensor:
    """A number or a constant tensor as a factor: float64, finite."""
    if not isinstance(number, (torch.Tensor, Value)):
        number = torch.tensor(float(number), dtype=torch.float64, device=ledger.device)
    return constant(number, "a factor")


def scale(node: Node, ledger: Ledger, source: Value, operand: str, factor: torch.Tensor, error: float = 0.0) -> Value:
    """Entry by entry times a constant factor that is exact up to a relative `error`; stretched to the output."""
    if ledger.shape_of(node, operand) == tuple(node.shape):
        return ledger.pend(node, source, Scale(factor, tuple(node.shape), relative_error=error))
    return ledger.record(node, "scale", [source], stretched_norm(node, ledger, operand, factor, error))


def stretched_norm(node: Node, ledger: Ledger, operand: str, factor: torch.Tensor, error: float) -> Upper:
    """The norm of stretching an operand to the shape of the output, times a factor.

    Every output reads one entry: the norm is the largest root of the sum of the squares of an entry's factors.
    """
    shape, largest = ledger.shape_of(node, operand), float(factor.abs().max()) if factor.numel() else 0.0
    if largest == 0.0:
        return Upper(0.0, "diagonal", "every factor is 0")
    squares = (factor / largest).square().expand(node.shape).sum_to_size(shape)
    counted = 2 * gamma(squares.numel() and torch.Size(node.shape).numel() // squares.numel() + 16)
    value = float(squares.max().sqrt()) * largest * (1 + counted + error)
    return Upper(up(value), "diagonal", "root of the largest sum of squares of the factors of one entry")


@RULES.rule("mul.Tensor", "mul.Scalar")
def multiply(node: Node, ledger: Ledger, self: Any, other: Any) -> Value:
    """Times a constant: linear, folded into neighbouring weights; x g(x) by its slope; else over the ranges."""
    if isinstance(self, Value) and isinstance(other, Value):
        gated = self_gated(node, ledger)
        if gated is None:
            return product(node, ledger, self, other)
        operand, upper = gated
        moving, gate = (self, other) if operand == "self" else (other, self)
        ledger.settle(gate)  # its steps belong on the ledger too; their rounding is charged here
        return ledger.record(node, "scale", [moving], upper)
    if isinstance(self, Value):
        return scale(node, ledger, self, "self", as_factor(other, ledger))
    return scale(node, ledger, other, "other", as_factor(self, ledger))


@RULES.rule("div.Tensor", "div.Scalar")
def divide(node: Node, ledger: Ledger, self: Any, other: Any) -> Value:
    """Divided by a constant: linear, the inverse of the smallest divisor; x / (c + |x|) by its slope; else ranges."""
    if isinstance(other, Value):
        upper = softsign(node, ledger)
        if upper is None:
            return quotient(node, ledger, self, other)
        ledger.settle(other)
        return ledger.record(node, "scale", [self], upper)
    divisor = as_factor(other, ledger)
    if not bool((divisor != 0).all()):
        raise NotLipschitz("expected divisors other than zero, got a zero")
    inverse = 1.0 / divisor
    if not bool(torch.isfinite(inverse).all()):
        raise NotLipschitz("expected divisors that have an inverse in float64, got one too close to zero")
    return scale(node, ledger, self, "self", inverse, 2 * UNIT)


@RULES.rule("neg.default")
def negate(node: Node, ledger: Ledger, self: Any) -> Value:
    """Changing the sign is an isometry."""
    return scale(node, ledger, self, "self", as_factor(-1.0, ledger))
