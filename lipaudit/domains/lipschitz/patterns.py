"""Functions of one entry that a model writes out in several operations: x sigmoid(x), x / (1 + |x|), x - tanh(x).

As products and quotients of two activations they would have no global bound; as what they are, they have one.

Note [Gates]
    Let f(x) = x g(c x) with a constant c, and h(u) = u g(u). Then f(x) = h(c x) / c and f'(x) = h'(c x): the largest
    slope of f is that of h, whatever c other than 0 (for c = 0 it is |g(0)| = |h'(0)|, no larger). So
    x sigmoid(1.702 x) has the constant of x sigmoid(x); a constant in front of either x only changes c.
    How g errs in floating point is charged to the product (float64.py): the gate is bounded and has no large slope.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from lipaudit.domains.graph import Node, Ref
from lipaudit.domains.lipschitz.pointwise import GELU_SLOPES, SLOPES
from lipaudit.domains.lipschitz.propagator import INPUT, Ledger
from lipaudit.results.bounds import Upper
from lipaudit.rounding import up

Nodes = Mapping[str, Node]
Gate = tuple[str, float, str]
"""Name of the node that a gate reads, up to a constant factor; the largest slope of u g(u); what it is called."""


def self_gated(node: Node, ledger: Ledger) -> tuple[str, Upper] | None:
    """For a product x g(c x): which of its arguments is x, and the largest slope (Note [Gates]); else None."""
    nodes = _by_name(ledger)
    if not all(ledger.shape_of(node, name) == tuple(node.shape) for name in ("self", "other")):
        return None
    for operand, other in (("self", "other"), ("other", "self")):
        gate = _gate(nodes, node.args[other].name)
        if gate is not None and gate[0] == _unscaled(nodes, node.args[operand].name):
            return operand, Upper(gate[1], "pointwise", f"{gate[2]}: largest slope")
    return None


def softsign(node: Node, ledger: Ledger) -> Upper | None:
    """For x / (c + |b x|), c > 0: its largest slope, 1 / c at 0, whatever b; else None."""
    nodes = _by_name(ledger)
    divisor = nodes.get(node.args["other"].name)
    if divisor is None or not isinstance(node.args["self"], Ref) or divisor.op != "add.Tensor":
        return None
    size, shift = divisor.args["self"], _number(divisor.args["other"])
    if not isinstance(size, Ref) or shift is None or not shift > 0 or divisor.args["alpha"] != 1:
        return None
    inner = nodes.get(size.name)
    if inner is None or inner.op != "abs.default" or ledger.shape_of(node, "self") != tuple(node.shape):
        return None
    if tuple(inner.shape) != tuple(node.shape):
        return None
    if _unscaled(nodes, inner.args["self"].name) != _unscaled(nodes, node.args["self"].name):
        return None
    return Upper(1.0 if shift == 1 else up(1.0 / shift), "pointwise", f"x / ({shift:g} + |x|): steepest at 0")


def minus_tanh(node: Node, ledger: Ledger) -> bool:
    """Whether the node is x - tanh(x)."""
    nodes = _by_name(ledger)
    right = nodes.get(node.args["other"].name)
    if node.op != "sub.Tensor" or node.args["alpha"] != 1 or right is None or right.op != "tanh.default":
        return False
    return right.args["self"] == node.args["self"]


def _by_name(ledger: Ledger) -> Nodes:
    """The nodes of the graph, and one for the network input."""
    shape = (1, *ledger.graph.input_shape)
    start = Node(INPUT, INPUT, torch.ops.aten.clone.default, {}, None, shape, "", "")
    return {INPUT: start, **{node.name: node for node in ledger.graph.nodes}}


def _gate(nodes: Nodes, name: str) -> Gate | None:
    """What the node is as a gate."""
    node = nodes.get(name)
    if node is None:
        return None
    if node.op in _GATES:
        return _GATES[node.op](nodes, node)
    scaled = _scaling(nodes, node)
    if scaled is None or not scaled[1] <= 1.0:
        return None
    inner = _gate(nodes, scaled[0])
    return None if inner is None else (inner[0], up(inner[1] * scaled[1]), inner[2])


def _sigmoid(nodes: Nodes, node: Node) -> Gate:
    return _unscaled(nodes, node.args["self"].name), SLOPES["silu.default"][0], "x sigmoid(c x)"


def _hard_sigmoid(nodes: Nodes, node: Node) -> Gate:
    return _unscaled(nodes, node.args["self"].name), SLOPES["hardswish.default"][0], "x hardsigmoid(c x)"


def _clipped(nodes: Nodes, node: Node) -> Gate | None:
    """relu6(c x + 3), six times the hard sigmoid."""
    ends = [node.args.get(name, limit) for name, limit in _LIMITS.get(node.op, ())]
    shifted = _plus(nodes, node.args["self"].name, 3.0)
    if shifted is None or ends not in ([0, 6], []):
        return None
    return _unscaled(nodes, shifted), 6 * SLOPES["hardswish.default"][0], "x relu6(c x + 3)"


_LIMITS = {
    "hardtanh.default": (("min_val", -1), ("max_val", 1)),
    "clamp.default": (("min", None), ("max", None)),
}


def _mish(nodes: Nodes, node: Node) -> Gate | None:
    """tanh(softplus(c x))."""
    inner = nodes.get(node.args["self"].name)
    if inner is None or inner.op != "softplus.default" or inner.args["beta"] != 1 or inner.args["threshold"] < 20:
        return None
    return _unscaled(nodes, inner.args["self"].name), SLOPES["mish.default"][0], "x tanh(softplus(c x))"


def _one_plus_erf(nodes: Nodes, node: Node) -> Gate | None:
    """1 + erf(c x), twice the gate of GELU."""
    inner = nodes.get(_plus(nodes, node.name, 1.0) or "")
    if inner is None or inner.op != "erf.default":
        return None
    return _unscaled(nodes, inner.args["self"].name), 2 * GELU_SLOPES["none"], "x (1 + erf(c x))"


_GATES: dict[str, Callable[[Nodes, Node], Gate | None]] = {
    "sigmoid.default": _sigmoid,
    "hardsigmoid.default": _hard_sigmoid,
    "relu6.default": _clipped,
    "hardtanh.default": _clipped,
    "clamp.default": _clipped,
    "tanh.default": _mish,
    "add.Tensor": _one_plus_erf,
}


def _plus(nodes: Nodes, name: str, number: float) -> str | None:
    """What the node adds that number to."""
    node = nodes.get(name)
    if node is None or node.op != "add.Tensor" or node.args["alpha"] != 1:
        return None
    value, shift = node.args["self"], _number(node.args["other"])
    return value.name if isinstance(value, Ref) and shift == number else None


def _number(value: object) -> float | None:
    """A constant that is one number."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.ndim == 0 else None
    return float(value) if isinstance(value, (int, float)) else None


def _unscaled(nodes: Nodes, name: str) -> str:
    """The node of which this one is a constant multiple, entry by entry: as far back as there is one."""
    node = nodes.get(name)
    scaled = None if node is None else _scaling(nodes, node)
    return name if scaled is None else _unscaled(nodes, scaled[0])


def _scaling(nodes: Nodes, node: Node) -> tuple[str, float] | None:
    """For a multiple of a tensor of the same shape by constants: that tensor, and the largest factor; else None."""
    if node.op == "neg.default":
        return node.args["self"].name, 1.0
    if node.op not in ("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar"):
        return None
    left, right = node.args["self"], node.args["other"]
    value, held = (left, right) if isinstance(left, Ref) else (right, left)
    if isinstance(held, Ref) or (node.op.startswith("div") and value is right):
        return None
    source = nodes.get(value.name)
    if source is None or tuple(source.shape) != tuple(node.shape):
        return None
    factors = torch.as_tensor(held, dtype=torch.float64)
    factors = 1.0 / factors if node.op.startswith("div") else factors
    largest = float(factors.abs().max())
    if not largest < float("inf"):
        return None
    return value.name, up(largest) if node.op.startswith("div") else largest
