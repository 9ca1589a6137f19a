"""Matrix products and einsums with one constant operand: linear maps that act on some axes and leave others alone.

Note [Contraction]
    Let every axis have a label, as in einsum. An axis that both operands have is summed over, or kept: then there is
    one matrix for each of its indices, and they act on separate parts of the input. Axes that only the constant has
    are rows, those that only the input has are left alone, or summed over. So the map is a direct sum of copies of
    matrices A_b, rows of the constant by its summed axes, and its norm is the largest ||A_b||; summing the input over
    axes of m entries in all is a factor sqrt(m) more, exactly; summing the output, at most.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lipaudit.domains.einsum import Labels, einsum_labels
from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.joining import refuse_undefined, shifted, stretched
from lipaudit.domains.lipschitz.products import product
from lipaudit.domains.lipschitz.propagator import BOUNDED, RULES, Ledger, Value
from lipaudit.domains.lipschitz.scaling import constant
from lipaudit.domains.lipschitz.shape import root
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.norms.linear_maps import Dense
from lipaudit.norms.methods import norm_bound
from lipaudit.norms.verified_eigenvalues import largest_singular_value
from lipaudit.results.bounds import Upper
from lipaudit.rounding import up

BOUNDED.update({"addmm.default", "baddbmm.default"})

_BY_ITSELF = 64
"""So many matrices of one map are bounded one by one, by every method; more of them together."""


@dataclass(frozen=True)
class Contraction:
    """A product of an input and a constant: the labels of the axes of both and of the output."""

    input: tuple[Hashable, ...]
    constant: tuple[Hashable, ...]
    output: tuple[Hashable, ...]


@RULES.rule("matmul.default")
def matrix_product(node: Node, ledger: Ledger, self: Any, other: Any) -> Value:
    """A product with a constant matrix has its norm, the largest of a batch; of two activations, over the ranges."""
    if isinstance(self, Value) and isinstance(other, Value):
        return product(node, ledger, self, other)
    shapes = [_shape(ledger, node, name, operand) for name, operand in (("self", self), ("other", other))]
    return _contracted(node, ledger, {"self": self, "other": other}, _matmul_labels(*shapes))


@RULES.rule("mm.default", "bmm.default")
def plain_product(node: Node, ledger: Ledger, self: Any, mat2: Any) -> Value:
    """A product with a constant matrix has its norm, the largest of a batch; of two activations, over the ranges."""
    if isinstance(self, Value) and isinstance(mat2, Value):
        return product(node, ledger, self, mat2, names=("self", "mat2"))
    return _contracted(node, ledger, {"self": self, "mat2": mat2}, _bmm_labels(len(node.shape)))


@RULES.rule("addmm.default")
def shifted_product(node: Node, ledger: Ledger, self: Any, mat1: Any, mat2: Any, beta: Any, alpha: Any) -> Value:
    """beta x + alpha A B: a constant matrix has its norm, a constant x shifts, two activations go over the ranges."""
    return _added(node, ledger, self, {"mat1": mat1, "mat2": mat2}, float(beta), float(alpha))


@RULES.rule("baddbmm.default")
def shifted_products(node: Node, ledger: Ledger, self: Any, batch1: Any, batch2: Any, beta: Any, alpha: Any) -> Value:
    """beta x + alpha A B: a constant matrix has its norm, a constant x shifts, two activations go over the ranges."""
    return _added(node, ledger, self, {"batch1": batch1, "batch2": batch2}, float(beta), float(alpha))


def _added(node: Node, ledger: Ledger, shift: Any, factors: dict[str, Any], beta: float, alpha: float) -> Value:
    moving = [name for name, factor in factors.items() if isinstance(factor, Value)]
    if not isinstance(shift, Value):
        refuse_undefined(shift)
    if len(moving) == 2:
        if isinstance(shift, Value) or alpha != 1:
            raise UnsupportedOp(f"expected {node.op} of two activations with alpha 1 and a constant shift, got more")
        left, right = factors
        plain = torch.ops.aten.mm.default if node.op.startswith("addmm") else torch.ops.aten.bmm.default
        args = {"self": node.args[left], "mat2": node.args[right]}
        times = replace(node, op=f"{plain.__name__.split('.')[0]}.default", target=plain, args=args)
        return product(times, ledger, factors[left], factors[right], names=("self", "mat2"))
    if not moving:
        for name, factor in factors.items():
            constant(factor, name)
        if beta == 1:
            return shifted(node, ledger, shift, "self", 0.0)
        moved = stretched(node, ledger, shift, "self", abs(beta))
        return ledger.record(node, "scale", [moved], Upper(1.0, "isometry", "a constant product only shifts"))
    labels = _bmm_labels(len(node.shape))
    if not isinstance(shift, Value) and alpha == 1:
        return _contracted(node, ledger, factors, labels)
    upper = _norm(node, ledger, factors, labels)
    upper = replace(upper, value=up(float(upper) * abs(alpha)))
    if not isinstance(shift, Value):
        return ledger.record(node, "scale", [factors[moving[0]]], upper)
    both = [ledger.scaled(node, factors[moving[0]], upper), stretched(node, ledger, shift, "self", abs(beta))]
    return ledger.record(node, "sum", both, Upper(1.0, "sum", "sum of the branches"))


@RULES.rule("tensordot.default")
def tensor_product(node: Node, ledger: Ledger, self: Any, other: Any, dims_self: Any, dims_other: Any) -> Value:
    """A tensor product with a constant, summed over some axes: the norm of the constant as a matrix."""
    operands = {"self": self, "other": other}
    shapes = [_shape(ledger, node, name, operand) for name, operand in operands.items()]
    left, right = ([(side, axis) for axis in range(len(shape))] for side, shape in zip("ab", shapes, strict=True))
    for axis, partner in zip(dims_self, dims_other, strict=True):
        right[partner % len(right)] = left[axis % len(left)]
    summed = {left[axis % len(left)] for axis in dims_self}
    output = [label for label in (*left, *right) if label not in summed]
    return _contracted(node, ledger, operands, (left, right, output))


@RULES.rule("einsum.default")
def einstein_sum(node: Node, ledger: Ledger, equation: str, tensors: Any, path: Any) -> Value:
    """A sum of products with a constant tensor: the norm of its matrices; of two activations, over the ranges."""
    del path
    if len(tensors) == 2 and all(isinstance(tensor, Value) for tensor in tensors):
        return product(node, ledger, tensors[0], tensors[1], names=(("tensors", 0), ("tensors", 1)))
    if len(tensors) == 1:
        tensors = [*tensors, torch.ones((), dtype=torch.float64, device=ledger.device)]
        equation = equation.replace(" ", "").replace("->", ",->") if "->" in equation else equation + ","
    if len(tensors) != 2:
        raise UnsupportedOp(f"expected an einsum of at most two tensors, got {equation!r} with {len(tensors)}")
    shapes = [
        tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else _list_shape(ledger, node, number)
        for number, tensor in enumerate(tensors)
    ]
    return _contracted(node, ledger, {"0": tensors[0], "1": tensors[1]}, einsum_labels(equation, shapes), shapes)


def _contracted(
    node: Node, ledger: Ledger, operands: dict[str, Any], labels: Sequence[Labels], shapes: Any = None
) -> Value:
    """The linear map of the operand that depends on the input."""
    (value,) = (operand for operand in operands.values() if isinstance(operand, Value))
    dense = _as_dense(node, ledger, operands, labels, shapes)
    if dense is not None:
        return ledger.pend(node, value, dense)
    return ledger.record(node, "scale", [value], _norm(node, ledger, operands, labels, shapes))


def _sides(
    node: Node, ledger: Ledger, operands: dict[str, Any], labels: Sequence[Labels], shapes: Any
) -> tuple[Contraction, tuple[int, ...], torch.Tensor]:
    """Labels, the shape of the input, and the constant."""
    names = list(operands)
    moving = next(k for k, name in enumerate(names) if isinstance(operands[name], Value))
    held = constant(operands[names[1 - moving]], "the other operand of a product")
    shape = ledger.shape_of(node, names[moving]) if shapes is None else shapes[moving]
    return Contraction(tuple(labels[moving]), tuple(labels[1 - moving]), tuple(labels[2])), tuple(shape), held


def _as_dense(
    node: Node, ledger: Ledger, operands: dict[str, Any], labels: Sequence[Labels], shapes: Any
) -> Dense | None:
    """The map as a dense layer, if it is a matrix along the last axis."""
    of, shape, held = _sides(node, ledger, operands, labels, shapes)
    if len(of.constant) != 2 or len(of.input) < 1 or of.input[:-1] != of.output[:-1] or not of.output:
        return None
    inner, outer = of.input[-1], of.output[-1]
    if inner == outer or set(of.constant) != {inner, outer} or outer in of.input or inner in of.output:
        return None
    weight = held if of.constant == (outer, inner) else held.T
    return Dense(weight, shape) if weight.shape[1] == shape[-1] else None


def _norm(node: Node, ledger: Ledger, operands: dict[str, Any], labels: Sequence[Labels], shapes: Any = None) -> Upper:
    """See Note [Contraction]."""
    of, shape, held = _sides(node, ledger, operands, labels, shapes)
    if any(len(set(term)) != len(term) for term in (of.input, of.constant, of.output)):
        raise UnsupportedOp(f"expected each axis of an operand to have a label of its own in {node.op}, got one twice")
    # An axis of length one has nothing to say, and may stand against a longer one of the other operand.
    sizes = {label: size for label, size in zip(of.input, shape, strict=True) if size != 1}
    own = [label for label, size in zip(of.constant, held.shape, strict=True) if size != 1]
    held = held.reshape([size for size in held.shape if size != 1])
    lengths = dict(zip(own, held.shape, strict=True))
    if any(sizes[label] != lengths[label] for label in own if label in sizes):
        raise ValueError(f"expected operands that fit, got {shape} and {tuple(held.shape)}")
    blocks = [label for label in own if label in sizes and label in of.output]
    inner = [label for label in own if label in sizes and label not in of.output]
    rows = [label for label in own if label not in sizes]
    order = [own.index(label) for label in (*blocks, *rows, *inner)]
    count, height, width = (math.prod(lengths[label] for label in some) for some in (blocks, rows, inner))
    matrices = held.permute(order).reshape(count, height, width)
    summed = [size for label, size in sizes.items() if label not in of.output and label not in own]
    summed += [lengths[label] for label in rows if label not in of.output]
    upper = matrix_norm(matrices, ledger.method)
    if not summed:
        return upper
    factor = root(math.prod(summed))
    return Upper(up(float(upper) * factor), upper.method, f"{upper.because}, times the root of {math.prod(summed)}")


def matrix_norm(matrices: torch.Tensor, method: str = "best") -> Upper:
    """The largest norm of the matrices (count, rows, columns), float64 and finite; exact but for rounding."""
    if matrices.shape[1:] == (1, 1):
        return Upper(float(matrices.abs().max()) if matrices.numel() else 0.0, "diagonal", "largest factor")
    if len(matrices) <= _BY_ITSELF:
        uppers = [norm_bound(Dense(matrix, (matrix.shape[1],)), method)[0] for matrix in matrices]
        return max(uppers, key=float, default=Upper(0.0, "diagonal", "no entries"))
    largest = float(matrices.abs().max()) if matrices.numel() else 0.0
    exponent = math.frexp(largest)[1]
    if abs(exponent) > 900:
        raise NotLipschitz(f"expected constant factors of moderate size, got {largest:.3g}")
    norm = largest_singular_value(matrices * 2.0**-exponent)
    return Upper(up(norm * 2.0**exponent), "svd-verified", f"largest of {len(matrices)} norms, proved by Cholesky")


def _shape(ledger: Ledger, node: Node, name: str, operand: Any) -> tuple[int, ...]:
    return tuple(operand.shape) if isinstance(operand, torch.Tensor) else ledger.shape_of(node, name)


def _list_shape(ledger: Ledger, node: Node, number: int) -> tuple[int, ...]:
    read = replace(node, args={"operand": node.args["tensors"][number]})
    return ledger.shape_of(read, "operand")


def _bmm_labels(axes: int) -> tuple[Labels, Labels, Labels]:
    lead = ["batch"] * (axes - 2)
    return [*lead, "row", "inner"], [*lead, "inner", "column"], [*lead, "row", "column"]


def _matmul_labels(left: Sequence[int], right: Sequence[int]) -> tuple[Labels, Labels, Labels]:
    """As torch.matmul reads its operands: vectors have an inner axis only, leading axes are aligned from the right."""
    lead = max(len(left), len(right), 2) - 2
    batch = [("batch", k) for k in range(lead, 0, -1)]
    first = [*batch[lead - max(len(left) - 2, 0) :], *(["row"] if len(left) > 1 else []), "inner"]
    second = [*batch[lead - max(len(right) - 2, 0) :], "inner", *(["column"] if len(right) > 1 else [])]
    output = [*batch, *(["row"] if len(left) > 1 else []), *(["column"] if len(right) > 1 else [])]
    return first, second, output
