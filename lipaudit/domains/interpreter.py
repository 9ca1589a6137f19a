"""Fold a table of rules over a graph.

A rule is a function `rule(node, ledger, *, <the operation's schema arguments>)`; arguments that depend on the
input arrive as abstract values of the domain, all others as they are. Its signature *is* the schema: registration
refuses a rule that leaves an argument out, so none is ignored by accident (`del argument` says it on purpose).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from lipaudit.domains.graph import Graph, Node, Ref
from lipaudit.domains.piecewise import FOLDED, PIECEWISE
from lipaudit.errors import LipauditError, NotLipschitz, RuleError, UnsupportedOp
from lipaudit.registry import Registry

V = TypeVar("V")
Rule = Callable[..., Any]


class Rules(Registry[Rule]):
    """Rules by operation name without the namespace: `conv2d.default`."""

    def rule(self, *ops: str) -> Callable[[Rule], Rule]:
        """Decorator: register a rule for operations that share its signature."""

        def add(function: Rule) -> Rule:
            for op in ops:
                check_signature(op, function)
            return self.register(*ops)(function)

        return add


def check_signature(op: str, function: Rule) -> None:
    """Refuse a rule whose keyword arguments are not exactly those of the operation's schema."""
    name, _, overload = op.rpartition(".")
    space = torch.ops.lipaudit if op in (PIECEWISE, FOLDED) else torch.ops.aten
    expected = [a.name for a in getattr(getattr(space, name), overload)._schema.arguments]
    parameters = list(inspect.signature(function).parameters.values())[2:]
    names = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(names) == len(parameters) and names != expected:
        raise RuleError(f"rule for {op}: expected the arguments {expected}, got {names}")


def walk(
    graph: Graph,
    rules: Rules,
    start: V,
    ledger: Any,
    after: Callable[[Node, V], None] | None = None,
    instead: Callable[[Node, Mapping[str, Any]], V | None] | None = None,
) -> V:
    """The abstract value of the logits, from `start` for the network input; others are freed after their last reader.

    `after` sees each node with its value; where `instead` has a value for a node, it counts instead of the rule's.
    Raises `UnsupportedOp` naming every operation without a rule; an error raised by a rule is given the layer and the
    source line here, once.
    """
    refuse_unknown(graph, rules)
    values: dict[str, V] = {"input": start}
    last = {name: reader.name for reader in graph.nodes for name in reader.refs()}
    for node in graph.nodes:
        arguments = {name: _lookup(value, values) for name, value in node.args.items()}
        try:
            found = None if instead is None else instead(node, arguments)
            values[node.name] = rules[node.op](node, ledger, **arguments) if found is None else found
            if after is not None:
                after(node, values[node.name])
        except (NotLipschitz, UnsupportedOp) as error:
            raise type(error)(f"{error} ({where(node)})") from None
        except (ValueError, TypeError, RuntimeError) as error:
            raise LipauditError(f"{node.op}: {error} ({where(node)})") from error
        for name in set(node.refs()):
            if last[name] == node.name and name != graph.output:
                del values[name]
    return values[graph.output]


def where(node: Node) -> str:
    """Layer and source line of a node, for messages."""
    return f"layer {node.layer or '<top>'}, {node.source or 'source unknown'}"


def refuse_unknown(graph: Graph, rules: Rules) -> None:
    """Raise `UnsupportedOp` naming every operation of the graph that the table has no rule for."""
    unknown: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op not in rules:
            unknown.setdefault(node.op, []).append(node)
    if unknown:
        listed = "; ".join(f"{op} x{len(nodes)} (first: {where(nodes[0])})" for op, nodes in unknown.items())
        raise UnsupportedOp(f"expected operations that have a rule, got {len(unknown)} without: {listed}")


def _lookup(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, list):
        return [_lookup(v, values) for v in value]
    return value
