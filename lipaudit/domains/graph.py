"""What a network computes: operations that depend on the input, one per node, names and source lines kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lipaudit.errors import CaptureError


@dataclass(frozen=True)
class Ref:
    """An argument that is the output of another node (or the network input, named "input")."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation that depends on the network input."""

    name: str
    op: str
    """`conv2d.default`, in namespace aten."""
    target: torch._ops.OpOverload[..., Any]
    args: Mapping[str, Any]
    """By the names of the operation's schema, defaults filled in: `Ref`, tensors, numbers, lists of these."""
    output: int | None
    """Which output, for operations with several."""
    shape: tuple[int, ...]
    """Of the output, captured with a batch of one: the whole tensor belongs to one sample."""
    layer: str
    """Module path, `layer1.0.conv1`; empty at the top."""
    source: str
    """`file.py:line` of the model's code."""

    @property
    def title(self) -> str:
        """What a person recognises: the layer, or the operation where no layer has a name."""
        return self.layer or self.op.split(".")[0]

    def refs(self) -> list[str]:
        """Names of the nodes that it reads."""
        return [ref.name for value in self.args.values() for ref in refs_in(value)]


@dataclass(frozen=True)
class Graph:
    """Topologically ordered nodes; the last one gives the logits."""

    nodes: tuple[Node, ...]
    input_shape: tuple[int, ...]
    output: str
    """Name of the node that holds the logits."""
    dtype: torch.dtype = torch.float32
    """The model's own, in which it is executed."""
    casts: tuple[str, ...] = ()
    """Where the model leaves its own dtype for another, which the graph does not show."""
    notes: tuple[str, ...] = ()
    """What was fixed at its present value, for people: weights that are computed, constants that Python reads."""
    complexes: frozenset[str] = frozenset()
    """Nodes whose output has complex numbers."""
    rounded: tuple[str, ...] = ()
    """Operations that the model writes out in others, which round otherwise (piecewise.py)."""
    rewritten: tuple[str, ...] = ()
    """What the model computes by one kernel and the graph by several others, which may round differently."""

    def users(self) -> dict[str, int]:
        """How many arguments read each node."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            for name in node.refs():
                counts[name] = counts.get(name, 0) + 1
        return counts

    def bottlenecks(self) -> frozenset[str]:
        """Nodes through which alone all later ones see the input."""
        last: dict[str, int] = {}
        for place, node in enumerate(self.nodes):
            last |= dict.fromkeys(node.refs(), place)
        found, needed_until = set(), last["input"]
        for place, node in enumerate(self.nodes):
            if needed_until <= place:
                found.add(node.name)
            needed_until = max(needed_until, last.get(node.name, place))
        return frozenset(found)


Visitor = Callable[[Node, dict[str, Any], torch.Tensor], None]


def evaluate(
    graph: Graph,
    x: torch.Tensor,
    visit: Visitor | None = None,
    run: Callable[[Node, dict[str, Any]], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The logits of one sample (`x` without batch axis), computed node by node in the dtype of `x`.

    `visit` sees every node with its resolved arguments and its output (both with a batch axis of one); `run` computes
    the output instead of `call`.
    """
    values: dict[str, torch.Tensor] = {"input": x[None]}
    for node in graph.nodes:
        arguments = {name: _resolve(value, values, x.dtype) for name, value in node.args.items()}
        result = (run or call)(node, arguments)
        if result.dtype not in (x.dtype, x.dtype.to_complex()) and (result.is_floating_point() or result.is_complex()):
            where = f"{node.title} ({node.source})"
            raise CaptureError(f"expected {x.dtype} throughout, got {result.dtype} from {node.op} in {where}")
        values[node.name] = result
        if visit is not None:
            visit(node, arguments, result)
    return values[graph.output][0]


def in_dtype(graph: Graph, dtype: torch.dtype) -> Graph:
    """The graph with its floating constants cast once, as `evaluate` casts them at every pass."""

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(one) for one in value]
        return _in_precision(value, dtype) if isinstance(value, torch.Tensor) else value

    nodes = tuple(replace(node, args={name: cast(value) for name, value in node.args.items()}) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def call(node: Node, arguments: Mapping[str, Any]) -> torch.Tensor:
    """Run the node's operation on resolved arguments (by schema name)."""
    if node.op in ("view.default", "_unsafe_view.default"):
        # A view needs the strides of the run that was exported; reshape gives the same entries for any.
        return arguments["self"].reshape(arguments["size"])
    schema = node.target._schema.arguments
    positional = [arguments[a.name] for a in schema if not a.kwarg_only]
    keywords = {a.name: arguments[a.name] for a in schema if a.kwarg_only and a.name in arguments}
    result = node.target(*positional, **keywords)
    return resolved(result if node.output is None else result[node.output])


def resolved(result: Any) -> Any:
    """Conjugates written out: torch puts them off, and some operations refuse what is put off."""
    return result.resolve_conj() if isinstance(result, torch.Tensor) and result.is_complex() else result


def refs_in(value: Any) -> list[Ref]:
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, (list, tuple)):
        return [ref for v in value for ref in refs_in(v)]
    return []


def _in_precision(constant: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A real or complex constant with parts of that type; others as they are."""
    if constant.is_complex():
        return constant.to(dtype.to_complex())
    return constant.to(dtype) if constant.is_floating_point() else constant


def _resolve(value: Any, values: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Any:
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, torch.Tensor):
        return _in_precision(value, dtype)
    if isinstance(value, list):
        return [_resolve(v, values, dtype) for v in value]
    return value


@contextlib.contextmanager
def quiet_vmap() -> Iterator[None]:
    """Where `torch.vmap` has no rule for an operation it loops over the samples; here it does so in silence."""
    warn = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]  # torch does not list it
    warn(False)
    try:
        yield
    finally:
        warn(True)  # as torch sets it; it cannot be asked for
