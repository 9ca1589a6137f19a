"""Ranges: what every entry of every tensor can be, given that the inputs lie in a box. `RANGES` is the table.

Products, quotients, attention and normalisation have no global Lipschitz bound; on a box they have one, and this
domain says how large their operands can be. Interval arithmetic in float64 with outward rounding, and the length of
vectors where an operation bounds it by construction (layer norm, softmax, x / ||x||): the better of the two counts.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from typing import Any

import torch

from lipaudit.domains.graph import Graph, Node, Ref
from lipaudit.domains.interpreter import refuse_unknown, where
from lipaudit.domains.intervals import arithmetic, linear, normalisation, pointwise, shape
from lipaudit.domains.intervals.value import RANGES, Range
from lipaudit.errors import BadThreat, LipauditError, NotLipschitz, UnsupportedOp

__all__ = [
    "RANGES",
    "Range",
    "arithmetic",
    "linear",
    "normalisation",
    "pointwise",
    "ranges",
    "shape",
    "walk_ranges",
]


def ranges(graph: Graph, low: float, high: float, keep: Container[str]) -> dict[str, Range]:
    """The ranges of the nodes in `keep` (and of "input"), as `walk_ranges` yields them."""
    return {name: found for name, found in walk_ranges(graph, low, high) if name in keep}


def walk_ranges(graph: Graph, low: float, high: float) -> Iterator[tuple[str, Range]]:
    """The range of "input", then of one node after the other, for all inputs whose entries lie in [low, high].

    They hold for exact arithmetic and for evaluation in float64. Each is freed here after its last reader.
    Raises `UnsupportedOp` naming every operation without a rule, `BadThreat` if [low, high] is not an interval.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise BadThreat(f"expected an input range low <= high of finite numbers, got [{low}, {high}]")
    refuse_unknown(graph, RANGES)
    nodes = {node.name: node for node in graph.nodes}
    last = {name: reader.name for reader in graph.nodes for name in reader.refs()}
    shape, device = (1, *graph.input_shape), _device(graph)
    box = [torch.full(shape, end, dtype=torch.float64, device=device) for end in (low, high)]
    values = {"input": Range(box[0], box[1])}
    yield "input", values["input"]
    for node in graph.nodes:
        with torch.no_grad():
            values[node.name] = _checked(node, _apply(node, nodes, values))
        found = values[node.name]
        for name in {*node.refs(), node.name}:
            if last.get(name, node.name) == node.name:
                del values[name]
        yield node.name, found


def _apply(node: Node, nodes: dict[str, Node], values: dict[str, Range]) -> Range:
    arguments = {name: _resolve(value, values) for name, value in node.args.items()}
    try:
        return RANGES[node.op](node, nodes, **arguments)
    except (NotLipschitz, UnsupportedOp) as error:
        raise type(error)(f"{error} ({where(node)})") from None
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise LipauditError(f"range of {node.op}: {error} ({where(node)})") from error


def _checked(node: Node, found: Range) -> Range:
    """The range, after a look at what no rule may return."""
    shape = tuple(found.low.shape)
    if shape != tuple(node.shape) or tuple(found.high.shape) != shape or found.low.dtype != torch.float64:
        raise LipauditError(
            f"expected a range of shape {tuple(node.shape)} in float64, got {shape} in {found.low.dtype} "
            f"from {node.op} ({where(node)})"
        )
    if not bool((found.low <= found.high).all()):
        raise LipauditError(
            f"expected low <= high, got an empty range from {node.op} ({where(node)}); the network is not defined "
            "on all inputs of the domain"
        )
    return found


def _resolve(value: Any, values: dict[str, Range]) -> Any:
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(torch.float64)
    if isinstance(value, list):
        return [_resolve(v, values) for v in value]
    return value


def _device(graph: Graph) -> torch.device:
    constants = (v for node in graph.nodes for v in node.args.values() if isinstance(v, torch.Tensor))
    return next((constant.device for constant in constants), torch.device("cpu"))
