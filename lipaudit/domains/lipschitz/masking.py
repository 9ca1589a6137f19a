"""Operations that put a tensor together from entries of others, at places that do not depend on the input.

Which entries of an operand survive, and how often, is read off the operation itself: it is run once on the numbers of
the entries. Each output entry comes from one operand, so the operands' movements add up like those of concatenated
branches; and what survives of an operand is a piece of it (Note [Pieces]).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lipaudit.domains.graph import Node, call
from lipaudit.domains.lipschitz.joining import refuse_undefined, together
from lipaudit.domains.lipschitz.propagator import RULES, Ledger, Value
from lipaudit.domains.lipschitz.shape import as_places, constants_only, root, select
from lipaudit.errors import UnsupportedOp
from lipaudit.norms.linear_maps import Gather
from lipaudit.results.bounds import Upper
from lipaudit.rounding import up


@RULES.rule("where.self", "where.ScalarSelf", "where.ScalarOther")
def choose(node: Node, ledger: Ledger, condition: Any, self: Any, other: Any) -> Value:
    """Each output is an entry of one branch, by a constant mask: root of the sum of squares of the branches."""
    constants_only(node, ["condition"], {"condition": condition})
    return _assembled(node, ledger, {"self": self, "other": other})


@RULES.rule("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(node: Node, ledger: Ledger, self: Any, mask: Any, value: Any) -> Value:
    """Entries under a constant mask become a constant: the others keep their distances."""
    constants_only(node, ["mask", "value"], {"mask": mask, "value": value})
    return _assembled(node, ledger, {"self": self, "value": value})


@RULES.rule("slice_scatter.default")
def slice_scatter(node: Node, ledger: Ledger, self: Any, src: Any, dim: Any, start: Any, end: Any, step: Any) -> Value:
    """A slice is replaced by another tensor: root of the sum of squares of what is left and what comes in."""
    del dim, start, end, step  # read off the operation itself
    return _assembled(node, ledger, {"self": self, "src": src})


@RULES.rule("select_scatter.default")
def select_scatter(node: Node, ledger: Ledger, self: Any, src: Any, dim: Any, index: Any) -> Value:
    """One index is replaced by another tensor: root of the sum of squares of what is left and what comes in."""
    del dim, index  # read off the operation itself
    return _assembled(node, ledger, {"self": self, "src": src})


@RULES.rule("scatter.src")
def scatter(node: Node, ledger: Ledger, self: Any, dim: int, index: Any, src: Any) -> Value:
    """Entries at constant places are replaced by those of a tensor: root of the sum of squares of both."""
    constants_only(node, ["index"], {"index": index})
    del dim  # read off the operation itself
    return _assembled(node, ledger, {"self": self, "src": src})


@RULES.rule("scatter.value")
def scatter_number(node: Node, ledger: Ledger, self: Any, dim: int, index: Any, value: Any) -> Value:
    """Entries at constant places become a number: the others keep their distances."""
    constants_only(node, ["index"], {"index": index})
    del dim
    return _assembled(node, ledger, {"self": self, "value": value})


@RULES.rule("index_copy.default")
def index_copy(node: Node, ledger: Ledger, self: Any, dim: int, index: Any, source: Any) -> Value:
    """Slices at constant places are replaced: root of the sum of squares of what is left and what comes in."""
    constants_only(node, ["index"], {"index": index})
    del dim
    return _assembled(node, ledger, {"self": self, "source": source})


@RULES.rule("index_fill.int_Scalar")
def index_fill(node: Node, ledger: Ledger, self: Any, dim: int, index: Any, value: Any) -> Value:
    """Slices at constant places become a number: the others keep their distances."""
    constants_only(node, ["index"], {"index": index})
    del dim
    return _assembled(node, ledger, {"self": self, "value": value})


@RULES.rule("index_put.default", "_unsafe_index_put.default")
def index_put(node: Node, ledger: Ledger, self: Any, indices: Any, values: Any, accumulate: bool) -> Value:
    """Entries at constant places are replaced, or added to: each comes from one place, or from several that add up."""
    constants_only(node, ["indices"], {"indices": indices})
    if accumulate:
        return _added(node, ledger, {"self": self, "values": values}, "values", 1.0)
    shape = tuple(values.shape) if isinstance(values, torch.Tensor) else ledger.shape_of(node, "values")
    ones = torch.ones(shape, dtype=torch.float64, device=ledger.device)
    written = call(node, {**node.args, "self": ones.new_zeros(node.shape), "values": ones, "accumulate": True})
    if float(written.max()) > 1:
        raise UnsupportedOp(f"expected places that {node.op} writes to once each, got one twice; which wins is open")
    return _assembled(node, ledger, {"self": self, "values": values})


@RULES.rule("scatter_add.default")
def scatter_add(node: Node, ledger: Ledger, self: Any, dim: int, index: Any, src: Any) -> Value:
    """Entries are added at constant places: as many as add up in one place, their root."""
    constants_only(node, ["index"], {"index": index})
    del dim
    return _added(node, ledger, {"self": self, "src": src}, "src", 1.0)


@RULES.rule("index_add.default")
def index_add(node: Node, ledger: Ledger, self: Any, dim: int, index: Any, source: Any, alpha: Any) -> Value:
    """Slices are added at constant places, alpha times: as many as add up in one place, their root."""
    constants_only(node, ["index"], {"index": index})
    del dim
    return _added(node, ledger, {"self": self, "source": source}, "source", abs(float(alpha)))


def _added(node: Node, ledger: Ledger, operands: dict[str, Any], operand: str, factor: float) -> Value:
    """A tensor plus `factor` times the entries of another at constant places: the Schur test of where they go."""
    added, branches = operands[operand], []
    if isinstance(operands["self"], Value):
        branches.append(operands["self"])
    else:
        refuse_undefined(operands["self"])
    if isinstance(added, Value):
        ones = torch.ones(ledger.shape_of(node, operand), dtype=torch.float64, device=ledger.device)
        fixed = {**node.args, "self": ones.new_zeros(node.shape), operand: ones}
        counts = call(node, {**fixed, **({"alpha": 1} if "alpha" in fixed else {})})
        # Only index_put stretches what is added, and then every entry of it alike.
        copies = max(1.0, float(counts.sum()) / ones.numel())
        bound = up(up(math.sqrt(float(counts.max()) * copies)) * factor)
        because = f"up to {float(counts.max()):g} entries add up in one place"
        branches.append(ledger.scaled(node, added, Upper(bound, "copies", because)))
    else:
        refuse_undefined(added)
    return ledger.record(node, "sum", branches, Upper(1.0, "sum", "what is added at constant places"))


def _assembled(node: Node, ledger: Ledger, operands: dict[str, Any]) -> Value:
    branches = []
    for name, value in operands.items():
        if isinstance(value, Value):
            survivor = _surviving(node, ledger, value, name, operands)
            if survivor is not None:
                branches.append(survivor)
    if not branches:
        anything = next(value for value in operands.values() if isinstance(value, Value))
        return ledger.record(node, "scale", [anything], Upper(0.0, "isometry", "no entry survives"))
    return together(node, ledger, branches, "entries of several branches")


def _surviving(node: Node, ledger: Ledger, value: Value, name: str, operands: dict[str, Any]) -> Value | None:
    """What the output holds of this operand; None if nothing."""
    shape = ledger.shape_of(node, name)
    arguments = dict(node.args)
    for other in operands:
        arguments[other] = _nothing(node, ledger, other)
    arguments[name] = as_places(shape, ledger.device)
    places = call(node, arguments).flatten().long()
    places = places[places >= 0]
    if not places.numel():
        ledger.settle(value)  # what was computed in vain is on the ledger all the same
        return None
    most = int(places.bincount().max())
    if most > 1:
        return ledger.scaled(node, value, Upper(root(most), "copies", f"an entry is copied up to {most} times"))
    return select(node, ledger, value, name, Gather(lambda x: x.flatten()[places], shape, 1, coisometry=1.0))


def _nothing(node: Node, ledger: Ledger, name: str) -> Any:
    """An operand without entries of interest: -1 throughout."""
    held = node.args[name]
    if isinstance(held, (bool, int, float)):
        return -1.0
    shape = tuple(held.shape) if isinstance(held, torch.Tensor) else ledger.shape_of(node, name)
    return torch.full(shape, -1.0, dtype=torch.float64, device=ledger.device)
