"""nn.Module -> `Graph`.

The model is exported (torch.export, non-strict, batch of one, eval, no gradient) on a copy, decomposed to functional
ATen with composites whole, and reduced to the nodes that depend on the input; everything else is folded into
constants with the real weights, in the model's own dtype: exactly the tensors that run.

The guards are not optional: the graph must compute what the model computes, one sample must not influence another,
nothing may be random or written to. What fails is a `CaptureError` that names the reason.
"""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lipaudit.adapters import WRAPPED, Normalised
from lipaudit.errors import CaptureError
from lipaudit.graph import Graph, Node, Ref, evaluate, refs_in

_IDENTITY = {
    "aten.alias.default", "aten.clone.default", "aten.detach.default", "aten.contiguous.default",
    "aten.lift_fresh_copy.default", "aten.detach_.default",
}  # fmt: skip
"""Operations that hand on their first argument unchanged."""

_SHAPE_ONLY = {
    f"aten.{name}.default"
    for name in ("new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like")
}
"""Operations that read only the shape of their argument: constants, whatever they are applied to."""

_RANDOM = ("rand", "bernoulli", "dropout", "multinomial", "normal_", "poisson", "exponential")


def capture(model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """The graph of `model` for inputs of `input_shape` (no batch axis), on the model's own device.

    Raises `CaptureError` when the model is in train mode, branches on values, is random, writes to its buffers,
    couples samples, or when the captured graph does not reproduce it.
    """
    _refuse_train_mode(model)
    frozen = copy.deepcopy(model).requires_grad_(False)
    first = next((p for p in [*frozen.parameters(), *frozen.buffers()] if p.is_floating_point()), torch.zeros(0))
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand(2, *input_shape, generator=generator, dtype=torch.float64).to(first)
    with torch.no_grad():
        expected = _run_eagerly(frozen, probe)
        program = _export(frozen, probe[:1])
        graph = _reduce(program, input_shape, WRAPPED if isinstance(model, Normalised) else "")
        _check(graph, frozen, probe, expected)
    return graph


def _refuse_train_mode(model: nn.Module) -> None:
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise CaptureError(
            f"expected a model in eval mode, got {len(training)} modules in train mode (first: {training[0]}); "
            "call model.eval() first: certificates hold for eval mode only"
        )


def _run_eagerly(model: nn.Module, probe: torch.Tensor) -> torch.Tensor:
    """The model's own answer on two samples; checks that it is plain logits and that samples do not mix."""
    try:
        both, alone = model(probe), model(probe[:1])
    except Exception as error:  # the model is the user's code: whatever it raises is the finding
        raise CaptureError(
            f"expected the model to run on inputs of shape {tuple(probe.shape)}, got "
            f"{type(error).__name__}: {_first_line(error)}; check the input shape and channel order"
        ) from error
    if not isinstance(both, torch.Tensor) or both.ndim != 2 or not both.is_floating_point():
        got = tuple(both.shape) if isinstance(both, torch.Tensor) else type(both).__name__
        raise CaptureError(f"expected logits of shape (batch, classes), got {got}; wrap the model to return logits")
    if not bool(torch.isfinite(both).all()):
        raise CaptureError("expected finite logits on random inputs, got NaN or inf; check the weights")
    scale = both.abs().max().clamp_min(1e-30)
    if bool((both[:1] - alone).abs().max() > 1e-4 * scale):
        raise CaptureError(
            "expected the answer for a sample not to depend on the others in its batch, got a different one; "
            "batch statistics or operations across the batch cannot be certified"
        )
    again = model(probe)
    if not bool((again - both).abs().max() <= 1e-4 * scale):
        raise CaptureError("expected the same answer twice, got two different ones; the model is random in eval mode")
    return both


def _export(model: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    try:
        program = torch.export.export(model, (example,), strict=False).run_decompositions({})
    except Exception as error:  # export raises many private types; the model is what is at fault
        raise CaptureError(
            f"expected a model whose operations do not depend on values, got {type(error).__name__} from "
            f"torch.export: {_first_line(error)}; rewrite the branch or loop it names"
        ) from error
    if program.graph_signature.buffers_to_mutate:
        names = ", ".join(sorted(program.graph_signature.buffers_to_mutate.values())[:3])
        raise CaptureError(f"expected a model that does not write to itself in eval mode, got writes to {names}")
    return program


def _reduce(program: torch.export.ExportedProgram, input_shape: tuple[int, ...], wrapped: str) -> Graph:
    """Fold constants, drop identities, name arguments; layer names without the prefix `wrapped`."""
    signature = program.graph_signature
    constants = _lifted_tensors(program)
    values: dict[str, Any] = {}  # fx node name -> Ref, constant, or _Several
    nodes: list[Node] = []
    output = ""
    for fx in program.graph.nodes:
        if fx.op == "placeholder":
            values[fx.name] = Ref("input") if fx.name in signature.user_inputs else constants[fx.name]
        elif fx.op == "output":
            first = fx.args[0][0] if isinstance(fx.args[0], (tuple, list)) else fx.args[0]
            output = _logits_name(values[first.name])
        elif fx.op == "call_function":
            values[fx.name] = _translate(fx, values, nodes)
        else:
            raise CaptureError(f"expected functional operations, got a {fx.op} node ({fx.name})")
    named = [replace(node, layer=node.layer.removeprefix(wrapped)) for node in _live(nodes, output)]
    return Graph(tuple(named), input_shape, output)


def _live(nodes: list[Node], output: str) -> list[Node]:
    """Only what the logits depend on."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if node.name in wanted:
            kept.append(node)
            wanted.update(node.refs())
    return kept[::-1]


@dataclass(frozen=True)
class _Several:
    """An operation with several outputs, waiting for its getitem nodes."""

    fx: torch.fx.Node
    args: Mapping[str, Any]


def _translate(fx: torch.fx.Node, values: dict[str, Any], nodes: list[Node]) -> Any:
    if fx.target is operator.getitem:
        source, index = values[fx.args[0].name], fx.args[1]
        if not isinstance(source, _Several):
            return source[index]
        return _append(fx, source.fx, source.args, index, nodes)
    arguments = _by_schema(fx, values)
    op = str(fx.target)
    dependent = [ref for value in arguments.values() for ref in refs_in(value)]
    if not dependent or op in _SHAPE_ONLY:
        return _fold(fx, values)
    if any(isinstance(value, _Several) for value in arguments.values()):
        raise CaptureError(f"expected single tensors as arguments of {op}, got an operation with several outputs")
    first = next(iter(arguments.values()))
    if op in _IDENTITY or (op == "aten.dropout.default" and not arguments["train"]):
        return first
    if op == "aten._to_copy.default" and arguments.get("dtype") in (None, *_FLOATS):
        return first
    if any(word in op for word in _RANDOM):
        raise CaptureError(f"expected a deterministic model, got {op} in {_layer(fx) or 'the model'} ({_source(fx)})")
    if "val" in fx.meta and isinstance(fx.meta["val"], (tuple, list)):
        return _Several(fx, arguments)
    if "_assert" in op:
        return None
    return _append(fx, fx, arguments, None, nodes)


_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _append(
    fx: torch.fx.Node,
    call_fx: torch.fx.Node,
    arguments: Mapping[str, Any],
    output: int | None,
    nodes: list[Node],
) -> Ref:
    shape = tuple(fx.meta["val"].shape) if hasattr(fx.meta.get("val"), "shape") else ()
    if not hasattr(fx.meta.get("val"), "shape"):
        raise CaptureError(
            f"expected tensors throughout, got a number taken from the input by {call_fx.target} in "
            f"{_layer(call_fx) or 'the model'} ({_source(call_fx)}); control flow on values cannot be certified"
        )
    op = str(call_fx.target).removeprefix("aten.")
    nodes.append(Node(fx.name, op, call_fx.target, arguments, output, shape, _layer(call_fx), _source(call_fx)))
    return Ref(fx.name)


def _by_schema(fx: torch.fx.Node, values: dict[str, Any]) -> dict[str, Any]:
    """Arguments by schema name, defaults filled in, fx nodes replaced by what they stand for."""

    def lookup(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return values[value.name]
        if isinstance(value, (list, tuple)):
            return [lookup(v) for v in value]
        return value

    if not hasattr(fx.target, "_schema"):
        where = _layer(fx) or "the model"
        raise CaptureError(f"expected tensor operations, got {fx.target} in {where} ({_source(fx)})")
    arguments: dict[str, Any] = {}
    for position, argument in enumerate(fx.target._schema.arguments):
        if position < len(fx.args) and not argument.kwarg_only:
            arguments[argument.name] = lookup(fx.args[position])
        elif argument.name in fx.kwargs:
            arguments[argument.name] = lookup(fx.kwargs[argument.name])
        elif argument.has_default_value():
            arguments[argument.name] = argument.default_value
    return arguments


def _fold(fx: torch.fx.Node, values: dict[str, Any]) -> Any:
    """The value of a node that does not depend on the input, computed with the real weights."""

    def lookup(node: torch.fx.Node) -> Any:
        value = values[node.name]
        if not isinstance(value, Ref):
            return value
        val = node.meta["val"]  # read for its shape alone
        return torch.zeros(val.shape, dtype=val.dtype, device=val.device)

    arguments = torch.fx.map_arg(fx.args, lookup)
    return fx.target(*arguments, **torch.fx.map_arg(fx.kwargs, lookup))


def _lifted_tensors(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Placeholder name -> parameter, buffer or constant."""
    signature, tensors = program.graph_signature, {}
    for table in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        for placeholder, name in table.items():
            held = program.state_dict.get(name, program.constants.get(name))
            if held is None:
                raise CaptureError(f"expected a value for {name}, got none from torch.export")
            tensors[placeholder] = held.detach()
    return tensors


def _check(graph: Graph, model: nn.Module, probe: torch.Tensor, expected: torch.Tensor) -> None:
    """The graph computes what the model computes, on inputs that the export has not seen."""
    scale = expected.abs().max().clamp_min(1e-30)
    fresh = torch.rand(probe.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(probe)
    for sample, answer in [*zip(probe, expected, strict=True), *zip(fresh, model(fresh), strict=True)]:
        difference = (evaluate(graph, sample) - answer).abs().max() / scale
        if not bool(difference <= 1e-4):
            raise CaptureError(
                f"expected the captured graph to compute what the model computes, got logits that differ by "
                f"{float(difference):.1e} of their size; the model probably branches on how it is called"
            )


def _logits_name(value: Any) -> str:
    if not isinstance(value, Ref) or value.name == "input":
        raise CaptureError("expected logits that depend on the input, got a constant or the input itself")
    return value.name


def _layer(fx: torch.fx.Node) -> str:
    stack = fx.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0].split("@")[0] if stack else ""


def _source(fx: torch.fx.Node) -> str:
    """The innermost line of the model's code, outside torch."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', fx.meta.get("stack_trace") or "")
    own = [frame for frame in frames if "/torch/" not in frame[0].replace("\\", "/")] or frames
    return f"{own[-1][0].replace(chr(92), '/').rsplit('/', 1)[-1]}:{own[-1][1]}" if own else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
