"""Products of two values that both depend on the network input: bounds over their ranges.

Note [Hybrid path]
    A bilinear B moves by B(x', y') - B(x, y) = B(x' - x, y') + B(x, y' - y): at most the norm of x -> B(x, y') times
    ||x' - x|| plus the norm of y -> B(x, y) times ||y' - y||. With |y'| <= Y entry by entry, the first map is at most
    the map x -> B'(x, Y) with the absolute coefficients, so its norm is at most that one's: the row and column sums
    of that one map, of which no matrix is ever written out, give it by the Schur test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lipaudit.domains.graph import Node, Ref, call
from lipaudit.domains.intervals.value import Range
from lipaudit.domains.lipschitz.magnitudes import (
    HALF,
    copied,
    finite,
    matrix_norms,
    root_of_squares,
    row_spreads,
    widened_norm,
)
from lipaudit.domains.lipschitz.propagator import BOUNDED, RULES, Ledger, Value
from lipaudit.domains.lipschitz.quotients import root_mean_square
from lipaudit.errors import UnsupportedOp
from lipaudit.norms.linear_maps import Gather, Scale, schur_test
from lipaudit.results.bounds import Upper
from lipaudit.rounding import up

BOUNDED.update(
    {
        "mul.Tensor", "addcmul.default", "matmul.default", "mm.default", "bmm.default", "einsum.default",
        "conv1d.default", "conv2d.default", "conv3d.default", "glu.default",
    }
)  # fmt: skip

Name = str | tuple[str, int]
"""An argument of a node: by name, or by name and number in a list."""

_MATRIX_PRODUCTS = ("matmul.default", "mm.default", "bmm.default")


def product(
    node: Node, ledger: Ledger, self: Value, other: Value, names: tuple[Name, Name] = ("self", "other")
) -> Value:
    """A bilinear operation: each operand counts times the largest map that the other one's range allows.

    `names` are the arguments that `self` and `other` are, for einsum `(("tensors", 0), ("tensors", 1))`.
    Raises `NotLipschitz` without an input domain and where a range is infinite. See Note [Hybrid path].
    """
    left, right = names
    whole = _weighted_mean(node, ledger, self, other, names)
    if node.op == "mul.Tensor":
        whole = _divided_by_own_root(node, ledger, {"self": self, "other": other})
    if whole is not None:
        return whole
    factors = [_following(node, ledger, moving, fixed) for moving, fixed in ((left, right), (right, left))]
    moved = [ledger.scaled(node, value, factor) for value, factor in zip((self, other), factors, strict=True)]
    return ledger.record(node, "sum", moved, Upper(1.0, "sum", "product: each factor moves while the other stays"))


@RULES.rule("glu.default")
def gated(node: Node, ledger: Ledger, self: Any, dim: int) -> Value:
    """a sigmoid(b) with a, b the halves of one tensor: sqrt(1 + (|a| / 4)^2), gates in (0, 1) of slope 1/4."""
    half = ledger.range_of(node, "self").magnitude.chunk(2, dim)[0]
    size = widened_norm(ledger, finite(float(half.max()), "the gated half"))
    return ledger.record(node, "scale", [self], Upper(up(math.hypot(1.0, size / 4)), "range", "gate and gated half"))


def _following(node: Node, ledger: Ledger, moving: Name, fixed: Name) -> Upper:
    """How far the output follows one operand, for all values of the other."""
    held = _range(node, ledger, fixed)
    shape, size = _shape(node, ledger, moving), held.magnitude
    # An error e of the other operand changes the norm of the map by at most reach times e.
    reach = _reach(node, ledger)
    finite(float(size.max()), "the other operand of a product")
    if node.op == "mul.Tensor":
        bound, because = copied(size.expand(node.shape), shape), "largest factor"
    elif node.op in _MATRIX_PRODUCTS and len(shape) > 1 and shape[:-2] == tuple(size.shape[:-2]):
        bound, because = float(matrix_norms(held).max()), "norm of the other matrix: Frobenius or Schur test"
    else:
        linear = Gather(lambda x: _with(node, {moving: x, fixed: size}), shape, size.numel())
        whole = up(reach * float(root_of_squares(size, tuple(range(size.ndim)))))
        bound = min(schur_test(linear, size.device), whole)
        because = "map of the other operand's largest absolute values: Schur test or Frobenius norm"
    return Upper(widened_norm(ledger, finite(bound, "a product"), reach), "range", because)


def _weighted_mean(node: Node, ledger: Ledger, self: Value, other: Value, names: tuple[Name, Name]) -> Value | None:
    """softmax(z) V follows z times spread(V) / sqrt(2), see Note [Attention]; None for any other product.

    One matrix after the other would cost 1/2 ||V||, more by the root of the number of rows of V.
    """
    nodes = {each.name: each for each in ledger.graph.nodes}
    weights, values = names
    if node.op not in _MATRIX_PRODUCTS or not isinstance(weights, str) or not isinstance(values, str):
        return None
    softmax = nodes.get(node.args[weights].name)
    if (
        softmax is None
        or softmax.op != "softmax.int"
        or softmax.args["dim"] % len(softmax.shape) != len(softmax.shape) - 1
    ):
        return None
    held = ledger.range_of(node, values)
    line = next((line for line in ledger.lines if line.step == softmax.name == self.step), None)
    if line is None or self.chain or held.low.shape[:-2] != softmax.shape[:-2] or held.low.ndim < 2:
        return None
    spread = finite(float(row_spreads(held).max()), "what softmax weighs")
    norm = widened_norm(ledger, float(matrix_norms(held).max()))
    bound = up(widened_norm(ledger, spread) * HALF)
    moved = [
        ledger.scaled(node, Value(line.inputs[0]), Upper(bound, "attention", "spread of what softmax weighs / sqrt 2")),
        ledger.scaled(node, other, _following(node, ledger, values, weights)),
    ]
    joined = ledger.record(node, "sum", moved, Upper(1.0, "sum", "weighted mean: weights and values move in turn"))
    # What softmax itself rounds reaches the product times ||V||.
    factor = torch.full((1,), norm, dtype=torch.float64, device=ledger.device)
    ledger.parts[joined.step] = ((softmax, None), (node, Scale(factor, (1,))))
    return joined


def _divided_by_own_root(node: Node, ledger: Ledger, operands: dict[str, Value]) -> Value | None:
    """x rsqrt(mean(x^2) + eps) follows x times 1 / sqrt(eps), see Note [Shares] in quotients.py; None for others."""
    roots = {each.name for each in ledger.graph.nodes if each.op == "rsqrt.default"}
    for vector, root in (("self", "other"), ("other", "self")):
        upper = root_mean_square(node, ledger, vector, root) if node.args[root].name in roots else None
        if upper is not None:
            ledger.settle(operands[root])  # its rounding is part of that of the product (float64.py)
            return ledger.record(node, "scale", [operands[vector]], upper)
    return None


def _range(node: Node, ledger: Ledger, argument: Name) -> Range:
    return ledger.range_of(node, *((argument,) if isinstance(argument, str) else argument))


def _shape(node: Node, ledger: Ledger, argument: Name) -> tuple[int, ...]:
    if isinstance(argument, str):
        return ledger.shape_of(node, argument)
    return tuple(_range(node, ledger, argument).low.shape)


def _with(node: Node, replaced: Mapping[Name, torch.Tensor]) -> torch.Tensor:
    """The operation on these operands, without its bias."""
    arguments = {name: list(value) if isinstance(value, list) else value for name, value in node.args.items()}
    for name, tensor in replaced.items():
        if isinstance(name, str):
            arguments[name] = tensor
        else:
            arguments[name[0]][name[1]] = tensor
    if isinstance(arguments.get("bias"), Ref):
        raise UnsupportedOp(f"expected {node.op} with a constant bias, got one that depends on the input")
    return call(node, {**arguments, "bias": None} if "bias" in arguments else arguments)


def _reach(node: Node, ledger: Ledger) -> float:
    """C such that ||B(x, y)|| <= C ||x|| ||y||, by Cauchy-Schwarz over the summed indices.

    1 for products of entries and of matrices. A convolution reads each entry of the image once per tap. An index
    of an einsum that is summed over but belongs to one operand only costs the root of its size.
    """
    if node.op.startswith("conv"):
        return up(math.sqrt(math.prod(ledger.shape_of(node, "weight")[2:])))
    if not node.op.startswith("einsum"):
        return 1.0
    inputs, arrow, output = node.args["equation"].replace(" ", "").partition("->")
    if not arrow:
        output = "".join(index for index in set(inputs) if inputs.count(index) == 1)
    if "." in inputs:
        raise UnsupportedOp(f"expected an einsum of two activations without dots, got {node.args['equation']!r}")
    sizes = [
        dict(zip(term, _shape(node, ledger, ("tensors", number)), strict=True))
        for number, term in enumerate(inputs.split(","))
    ]
    # An axis of length one that stands against a longer one is as good as none.
    lone = (
        size
        for own, other in (sizes, sizes[::-1])
        for index, size in own.items()
        if index not in output and other.get(index, 1) == 1
    )
    return up(math.sqrt(math.prod(lone)))
