"""The graph of a network as the plain list of steps that `checker.py` reads: named layers, settings, tensors.

Only what the checker has a rule for; everything else is refused by name. Several operations become one step where that
is what their author wrote (`GroupSort` is a view, a sort and a view back; a normalisation is a difference and a
quotient).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lipaudit.domains.graph import Graph, Node, Ref
from lipaudit.domains.interpreter import where
from lipaudit.errors import UnsupportedOp

Tensors = Mapping[str, torch.Tensor | None]


@dataclass(frozen=True)
class Listed:
    """One step; settings are as the proof writes them, floats in hexadecimal; shapes without the batch axis."""

    name: str
    op: str
    inputs: tuple[str, ...]
    settings: Mapping[str, Any]
    tensors: Tensors
    before: tuple[int, ...]
    """Shape of the (first) input."""
    node: Node


@dataclass
class _Listing:
    graph: Graph
    steps: list[Listed] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=lambda: {"input": "input"})
    """By node: the step that gives its value."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By step, without the batch axis."""
    pending: dict[str, tuple[Node, Any]] = field(default_factory=dict)
    """Nodes that are only a part of a step."""

    def source(self, node: Node, argument: str) -> str:
        value = node.args[argument]
        if not isinstance(value, Ref) or value.name not in self.names:
            raise _refusal(node, "used on its own, or with a constant")
        return self.names[value.name]

    def add(
        self, node: Node, op: str, inputs: Sequence[str], settings: Any = None, tensors: Tensors | None = None
    ) -> None:
        """One more step, with the shape of the node unless the operation is known to give another."""
        title = node.layer or op
        taken = {step.name for step in self.steps} | {"input"}
        number = next(k for k in range(1, len(taken) + 2) if (title if k == 1 else f"{title}#{k}") not in taken)
        name, shape = (title if number == 1 else f"{title}#{number}"), node.shape[1:]
        self.steps.append(Listed(name, op, tuple(inputs), settings or {}, tensors or {}, self.shapes[inputs[0]], node))
        self.shapes[name], self.names[node.name] = shape, name


def listing(graph: Graph) -> tuple[Listed, ...]:
    """The steps of a graph, in order; raises `UnsupportedOp` for whatever the checker has no rule for."""
    kept = _Listing(graph, shapes={"input": graph.input_shape})
    for node in graph.nodes:
        if node.op not in RULES:
            raise _refusal(node)
        RULES[node.op](kept, node, node.args)
    last = kept.steps[-1] if kept.steps else None
    if last is None or last.op != "linear" or kept.names.get(graph.output) != last.name:
        ends = "nothing" if last is None else f"{last.op} ({where(last.node)})"
        raise UnsupportedOp(f"proof: no checker rule for a network that ends in {ends}, expected a linear layer")
    return tuple(kept.steps)


def _refusal(node: Node, how: str = "") -> UnsupportedOp:
    what = f"{node.op.split('.')[0]} {how}".strip()
    return UnsupportedOp(
        f"proof: no checker rule for {what} ({where(node)}); the report holds without a proof: leave --proof out"
    )


def _conv(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    padding, kernel = args["padding"], args["weight"].shape[2:]
    if isinstance(padding, str):
        around = [d * (k - 1) for d, k in zip(args["dilation"], kernel, strict=True)]
        if padding == "same" and any(n % 2 for n in around):
            raise _refusal(node, "with more padding on one side")
        padding = [n // 2 for n in around] if padding == "same" else [0, 0]
    # The dilation of a single tap means nothing; the checker wants it to be 1.
    dilation = [d if k > 1 else 1 for d, k in zip(args["dilation"], kernel, strict=True)]
    settings = {
        "stride": list(args["stride"]),
        "padding": list(padding),
        "dilation": dilation,
        "groups": args["groups"],
    }
    tensors = {"weight": args["weight"], "bias": args["bias"]}
    kept.add(node, "conv2d", [kept.source(node, "input")], settings, tensors)


def _linear(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    if len(node.shape) != 2:
        raise _refusal(node, f"on inputs with {len(node.shape) - 1} axes")
    kept.add(node, "linear", [kept.source(node, "input")], {}, {"weight": args["weight"], "bias": args["bias"]})


def _batch_norm(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    tensors = {
        "mean": args["running_mean"], "variance": args["running_var"], "weight": args["weight"], "bias": args["bias"],
    }  # fmt: skip
    kept.add(node, "batch_norm", [kept.source(node, "input")], {"eps": float(args["eps"]).hex()}, tensors)


def _relu(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    del args
    kept.add(node, "relu", [kept.source(node, "self")])


def _leaky_relu(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    kept.add(node, "leaky_relu", [kept.source(node, "self")], {"slope": (float(args["negative_slope"]) + 0.0).hex()})


def _reshape(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    read = args["self"].name
    if read in kept.pending and kept.pending[read][0].op == "sort.default":
        _, (source, shape, size) = kept.pending.pop(read)
        if node.shape[1:] != shape:
            raise _refusal(node, "of a sorted view")
        kept.add(node, "group_sort", [source], {"size": size})
        return
    source = kept.source(node, "self")
    before = kept.shapes[source]
    if node.shape[1:] == before:
        kept.names[node.name] = source
    elif node.shape == (1, math.prod(before)):
        kept.add(node, "flatten", [source])
    elif len(node.shape) == len(before) + 2 and node.shape[3:] == before[1:]:
        kept.pending[node.name] = node, (source, before, node.shape[2])
    else:
        raise _refusal(node, f"from {before} to {node.shape[1:]}")


def _sort(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    read = args["self"].name
    if read not in kept.pending or args["dim"] != 2 or args["descending"] or node.output != 0:
        raise _refusal(node, "but of neighbouring channels, ascending (GroupSort)")
    kept.pending[node.name] = node, kept.pending.pop(read)[1]


def _add(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    inputs = {kept.source(node, "self"), kept.source(node, "other")}
    if args["alpha"] != 1 or len(inputs) != 2 or len({kept.shapes[one] for one in inputs}) != 1:
        raise _refusal(node, "but of two different steps of one shape")
    kept.add(node, "add", [name for name in kept.shapes if name in inputs])


def _per_channel(kept: _Listing, node: Node, source: str, constant: Any) -> list[float]:
    shape = kept.shapes[source]
    if not isinstance(constant, torch.Tensor) or constant.numel() not in (1, shape[0]):
        raise _refusal(node, "but of a number per channel")
    aligned = constant.reshape((1,) * (len(shape) + 1 - constant.ndim) + tuple(constant.shape))
    if aligned.shape[0] != 1 or any(size != 1 for size in aligned.shape[2:]):
        raise _refusal(node, "but of a number per channel")
    return aligned.double().flatten().expand(shape[0]).tolist()


def _difference(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    source = kept.source(node, "self")
    mean = _per_channel(kept, node, source, args["other"])
    readers = [other for other in kept.graph.nodes if node.name in other.refs()]
    if args["alpha"] != 1:
        raise _refusal(node, f"times {args['alpha']}")
    if len(readers) == 1 and readers[0].op == "div.Tensor" and isinstance(readers[0].args["other"], torch.Tensor):
        kept.pending[node.name] = node, (source, mean)
    else:
        _normalise(kept, node, source, mean, [1.0] * len(mean))


def _quotient(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    if isinstance(args["self"], Ref) and args["self"].name in kept.pending:
        source, mean = kept.pending.pop(args["self"].name)[1]
    else:
        source = kept.source(node, "self")
        mean = [0.0] * kept.shapes[source][0]
    _normalise(kept, node, source, mean, _per_channel(kept, node, source, args["other"]))


def _normalise(kept: _Listing, node: Node, source: str, mean: list[float], std: list[float]) -> None:
    kept.add(node, "normalise", [source], {"mean": [(m + 0.0).hex() for m in mean], "std": [s.hex() for s in std]})


def _pool(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    op, kernel = node.op.split("2d")[0], list(args["kernel_size"])
    stride, padding = list(args["stride"]) or kernel, list(args["padding"])
    sizes = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(kept.shapes[kept.source(node, "self")][1:], kernel, stride,
                                                             padding, strict=True)]  # fmt: skip
    settings = {"kernel": kernel, "stride": stride}
    if op == "max_pool":
        settings["padding"] = padding
    overlapping = any(s < k for s, k in zip(stride, kernel, strict=True))
    if op == "avg_pool" and (any(padding) or overlapping or args["divisor_override"] is not None):
        raise _refusal(node, "with padding, overlapping windows or a divisor of its own")
    if list(node.shape[2:]) != sizes or list(args.get("dilation", [1, 1])) != [1, 1]:
        raise _refusal(node, "with dilation or ceil_mode")
    kept.add(node, op, [kept.source(node, "self")], settings)


def _adaptive(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    del args
    source = kept.source(node, "self")
    axes = list(zip(kept.shapes[source][1:], node.shape[2:], strict=True))
    if any(n % m for n, m in axes):
        raise _refusal(node, "with windows of several sizes")
    kernel = [n // m for n, m in axes]
    kept.add(node, "avg_pool", [source], {"kernel": kernel, "stride": kernel})


def _mean(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    source = kept.source(node, "self")
    before = kept.shapes[source]
    if len(before) != 3 or sorted(d % 4 for d in args["dim"] or ()) != [2, 3] or args["dtype"] is not None:
        raise _refusal(node, "but over height and width")
    kept.add(node, "avg_pool", [source], {"kernel": list(before[1:]), "stride": list(before[1:])})
    pooled = kept.steps[-1].name
    kept.shapes[pooled] = (before[0], 1, 1)
    if not args["keepdim"]:
        kept.add(node, "flatten", [pooled])


def _slice(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    source, axis = kept.source(node, "self"), args["dim"] % len(node.shape)
    size = ((1, *kept.shapes[source]))[axis]
    if args["start"] or (args["end"] is not None and args["end"] < size) or (axis < 2 and args["step"] != 1):
        raise _refusal(node, "but of every so many pixels from the first on")
    if args["step"] == 1:
        kept.names[node.name] = source
        return
    # An average over windows of one pixel.
    stride = [args["step"] if axis == place else 1 for place in (2, 3)]
    kept.add(node, "avg_pool", [source], {"kernel": [1, 1], "stride": stride})


def _pad(kept: _Listing, node: Node, args: Mapping[str, Any]) -> None:
    pads = list(args["pad"])
    constant = args.get("mode", "constant") == "constant" and not args["value"]
    if not constant or len(pads) != 6 or any(pads[:4]) or min(pads) < 0 or len(node.shape) != 4:
        raise _refusal(node, "but of channels, with zeros")
    kept.add(node, "pad_channels", [kept.source(node, "self")], {"before": pads[4], "after": pads[5]})


RULES: Mapping[str, Callable[[_Listing, Node, Mapping[str, Any]], None]] = {
    "conv2d.default": _conv, "conv2d.padding": _conv, "linear.default": _linear, "relu.default": _relu,
    "_native_batch_norm_legit_no_training.default": _batch_norm, "leaky_relu.default": _leaky_relu,
    "view.default": _reshape, "_unsafe_view.default": _reshape, "reshape.default": _reshape,
    "flatten.using_ints": _reshape, "sort.default": _sort, "add.Tensor": _add, "sub.Tensor": _difference,
    "div.Tensor": _quotient, "max_pool2d.default": _pool, "avg_pool2d.default": _pool,
    "adaptive_avg_pool2d.default": _adaptive, "mean.dim": _mean, "slice.Tensor": _slice, "pad.default": _pad,
    "constant_pad_nd.default": _pad,
}  # fmt: skip
