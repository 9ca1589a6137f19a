"""An exported program -> `Graph`: only what depends on the input, constants folded, arguments named by schema.

Note [Dependence]
    An operation depends on the network input if one of its arguments does, unless it reads no more of that argument
    than its shape and type (`zeros_like`): then it is a constant. What depends on the input must be a floating-point
    tensor: an index, a mask or a number taken from it makes the network jump, and nothing bounds a jump. Exceptions are
    an output that nobody reads, such as the indices of a max pool, and the masks of functions that do not jump, which
    `piecewise.py` puts together.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lipaudit.domains.graph import Graph, Node, Ref, refs_in, resolved
from lipaudit.domains.piecewise import rewritten
from lipaudit.errors import CaptureError
from lipaudit.graph.decompositions import OF_DTYPE, lowered

IDENTITY = {
    "aten.alias.default", "aten.clone.default", "aten.detach.default", "aten.contiguous.default",
    "aten.lift_fresh_copy.default", "aten.detach_.default",
}  # fmt: skip
"""Operations that hand on their first argument unchanged."""

SHAPE_ONLY = {
    **{f"aten.{name}.default": "self" for name in ("new_zeros", "new_ones", "new_full", "new_empty")},
    **{f"aten.{name}.default": "self" for name in ("zeros_like", "ones_like", "full_like", "empty_like")},
    "aten.fill.Scalar": "self",
    "aten.fill.Tensor": "self",
    "aten.copy.default": "self",
    "aten.type_as.default": "other",
    "aten.expand_as.default": "other",
    "aten.view_as.default": "other",
}
"""Operations that read no more than shape and type of one argument, and its name; see Note [Dependence]."""

COPIES = {"aten.copy.default": "src", "aten.type_as.default": "self", "aten._to_copy.default": "self"}
"""Operations that hand on an argument, in another type or place."""

Fold = Callable[[torch.fx.Node, Mapping[str, Any]], Any]
"""What an operation that does not depend on the input stands for, from the values so far."""


def fold_values(fx: torch.fx.Node, values: Mapping[str, Any]) -> Any:
    """The operation's result, computed with the real weights."""

    def lookup(node: torch.fx.Node) -> Any:
        value = values[node.name]
        if not isinstance(value, Ref):
            return value
        val = node.meta["val"]  # read for its shape alone
        return torch.zeros(val.shape, dtype=val.dtype, device=val.device)

    function: Any = fx.target
    arguments = torch.fx.map_arg(fx.args, lookup)
    return resolved(function(*arguments, **torch.fx.map_arg(fx.kwargs, lookup)))


def fold_shapes(fx: torch.fx.Node, values: Mapping[str, Any]) -> Any:
    """Tensors without entries, of the shapes of the operation's results."""
    del values
    return torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda val: torch.empty(val.shape, dtype=val.dtype, device="meta"), fx.meta.get("val")
    )


def reduce(
    program: torch.export.ExportedProgram,
    input_shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    fold: Fold = fold_values,
    prefix: str = "",
) -> Graph:
    """The graph of a functional program with one input (batch of one) and one output; `dtype` is the model's own.

    `prefix` is taken off the names of layers. Raises `CaptureError` for what is random, and for numbers, integers
    or truth values that depend on the input, with layer and source line.
    """
    program, others = lowered(program, SHAPE_ONLY, {*IDENTITY, *COPIES})
    signature = program.graph_signature
    reading = _Reading(dtype, fold, _lifted_tensors(program))
    results = [
        spec.arg for spec in signature.output_specs if spec.kind == torch.export.graph_signature.OutputKind.USER_OUTPUT
    ]
    for fx in program.graph.nodes:
        if fx.op == "placeholder" and fx.name in signature.user_inputs:
            reading.values[fx.name] = Ref("input")
        elif fx.op == "call_function":
            reading.values[fx.name] = reading.translate(fx)
        elif fx.op not in ("placeholder", "output"):
            raise CaptureError(f"expected functional operations, got a {fx.op} node ({fx.name})")
    value = reading.values.get(getattr(results[0], "name", ""))
    if not isinstance(value, Ref) or value.name == "input":
        raise CaptureError("expected logits that depend on the input, got a constant or the input itself")
    masks = [name for name, kind in reading.kinds.items() if kind.startswith("bool ")]
    once, output = _computed_once(_live(reading.nodes, value.name), value.name)
    together = rewritten(once, masks, reading.complexes, dtype)
    nodes = _live(together.nodes, output)
    reading.refuse_steps(nodes)
    named = tuple(replace(node, layer=node.layer.removeprefix(prefix)) for node in nodes)
    return Graph(
        named,
        input_shape,
        output,
        dtype,
        casts=tuple(dict.fromkeys(reading.casts)),
        complexes=frozenset(node.name for node in named if node.name in reading.complexes),
        notes=tuple(f"continuous up to rounding: {what}; certified without that jump" for what in together.continuous),
        rounded=together.rounded,
        rewritten=tuple(f"{_name(fx.target)} in {_where(fx)}" for fx in others),
    )


def _live(nodes: list[Node], output: str) -> list[Node]:
    """Only what the logits depend on."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if node.name in wanted:
            kept.append(node)
            wanted.update(node.refs())
    return kept[::-1]


def _computed_once(nodes: list[Node], output: str) -> tuple[list[Node], str]:
    """The nodes without those that compute what an earlier one did: rules see that both are the same tensor."""
    kept: list[Node] = []
    first: dict[Any, str] = {}
    same: dict[str, str] = {}

    def known(value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(same.get(value.name, value.name))
        return [known(v) for v in value] if isinstance(value, list) else value

    def key(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return (id(value),)  # the same constant, not an equal one
        return tuple(map(key, value)) if isinstance(value, list) else (type(value), value)

    for node in nodes:
        node = replace(node, args={name: known(value) for name, value in node.args.items()})
        what = (node.op, node.output, tuple((name, key(value)) for name, value in node.args.items()))
        if first.setdefault(what, node.name) == node.name:
            kept.append(node)
        else:
            same[node.name] = first[what]
    return kept, same.get(output, output)


@dataclass(frozen=True)
class _Several:
    """An operation with several outputs, waiting for its getitem nodes."""

    fx: torch.fx.Node
    args: Mapping[str, Any]


@dataclass
class _Reading:
    """A program as far as it has been read."""

    dtype: torch.dtype
    fold: Fold
    values: dict[str, Any]
    """fx node name -> `Ref`, constant, or `_Several`."""
    nodes: list[Node] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    """Nodes that are not floating-point: what they are, and what computes them."""
    complexes: set[str] = field(default_factory=set)
    casts: list[str] = field(default_factory=list)
    """Where floating-point tensors are of another type than the model's own."""

    def translate(self, fx: torch.fx.Node) -> Any:
        """What the fx node stands for; a node of the graph is appended where it has to be one."""
        if fx.target is operator.getitem:
            source, index = self._lookup(fx.args[0]), self._lookup(fx.args[1])
            return self._append(fx, source.fx, source.args, index) if isinstance(source, _Several) else source[index]
        op, arguments = str(fx.target), self._by_schema(fx)
        if is_random(fx.target, arguments):
            raise CaptureError(f"expected a deterministic model, got {op} in {_where(fx)}")
        read = {name: value for name, value in arguments.items() if name != SHAPE_ONLY.get(op)}
        if not any(refs_in(value) for value in read.values()):
            return self.fold(fx, self.values)
        if any(isinstance(value, _Several) for value in arguments.values()):
            raise CaptureError(f"expected single tensors as arguments of {op}, got an operation with several outputs")
        if op == "aten._assert_tensor_metadata.default":
            return None
        if "_assert" in op:
            raise CaptureError(
                f"expected a model that does not look at values, got {op} on something computed from the input in "
                f"{_where(fx)}; take the check out"
            )
        handed_on = self._handed_on(fx, op, arguments)
        if handed_on is not None:
            return handed_on
        if isinstance(fx.meta.get("val"), (tuple, list)):
            return _Several(fx, arguments)
        return self._append(fx, fx, arguments, None)

    def _handed_on(self, fx: torch.fx.Node, op: str, arguments: Mapping[str, Any]) -> Any:
        """The argument that the operation hands on unchanged; None if it does more than that."""
        if op in IDENTITY or (op.endswith("dropout.default") and arguments.get("train") is False):
            return next(iter(arguments.values()))
        if op not in COPIES or not fx.meta["val"].is_floating_point():
            return None
        source = fx.args[[a.name for a in operation(fx)._schema.arguments].index(COPIES[op])]
        if not isinstance(source, torch.fx.Node) or source.meta["val"].shape != fx.meta["val"].shape:
            return None
        self._check_cast(fx, fx.meta["val"].dtype)
        return arguments[COPIES[op]]

    def refuse_steps(self, nodes: list[Node]) -> None:
        """Refuse integers and truth values that the logits depend on."""
        for node in nodes:
            if node.name in self.kinds:
                where = f"{node.layer or 'the model'} ({node.source or 'source unknown'})"
                raise CaptureError(
                    f"expected floating-point tensors throughout, got {self.kinds[node.name]} in {where}; what hangs "
                    "on them jumps and has no Lipschitz bound"
                )

    def _append(self, fx: torch.fx.Node, call: torch.fx.Node, arguments: Mapping[str, Any], output: int | None) -> Ref:
        val = fx.meta.get("val")
        if not isinstance(val, torch.Tensor):
            raise CaptureError(
                f"expected tensors throughout, got a number taken from the input by {call.target} in {_where(call)}; "
                "control flow on values cannot be certified"
            )
        if not (val.is_floating_point() or val.is_complex()):
            kind = str(val.dtype).removeprefix("torch.")
            self.kinds[fx.name] = f"{kind} values computed from the input by {_called(call)}"
        elif val.is_complex() and val.dtype == self.dtype.to_complex():
            self.complexes.add(fx.name)
        elif val.is_complex():
            raise CaptureError(
                f"expected {self.dtype.to_complex()} throughout, got {val.dtype} from {call.target} in {_where(fx)}"
            )
        elif val.dtype != self.dtype:
            self.casts.append(f"{val.dtype} from {call.target} in {_where(fx)}")
        arguments = self._in_own_dtype(call, arguments)
        op, shape = _name(call.target), tuple(val.shape)
        self.nodes.append(Node(fx.name, op, operation(call), arguments, output, shape, _layer(call), _source(call)))
        return Ref(fx.name)

    def _in_own_dtype(self, fx: torch.fx.Node, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments with what hangs on the dtype resolved: Note [Constants of a dtype] in lowering.py.

        A default is a number from here on; a cast to the model's own dtype, or to a finer one, is taken out.
        """
        if _name(fx.target) in OF_DTYPE:
            return OF_DTYPE[_name(fx.target)](arguments, fx.meta["val"])
        asked = arguments.get("dtype")
        if isinstance(asked, torch.dtype) and asked.is_floating_point:
            self._check_cast(fx, asked)
            return {**arguments, "dtype": None}
        return arguments

    def _check_cast(self, fx: torch.fx.Node, got: torch.dtype) -> None:
        if torch.finfo(got).eps > torch.finfo(self.dtype).eps:
            raise CaptureError(
                f"expected {self.dtype} throughout, got a cast to {got} in {_where(fx)}; turn autocast off, or give "
                "the whole model in that type"
            )
        if got != self.dtype:
            self.casts.append(f"a cast to {got} in {_where(fx)}")

    def _by_schema(self, fx: torch.fx.Node) -> dict[str, Any]:
        """Arguments by schema name, defaults filled in, fx nodes replaced by what they stand for."""
        arguments: dict[str, Any] = {}
        for position, argument in enumerate(operation(fx)._schema.arguments):
            if position < len(fx.args) and not argument.kwarg_only:
                arguments[argument.name] = self._lookup(fx.args[position])
            elif argument.name in fx.kwargs:
                arguments[argument.name] = self._lookup(fx.kwargs[argument.name])
            elif argument.has_default_value():
                arguments[argument.name] = argument.default_value
        return arguments

    def _lookup(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            if value.name not in self.values:
                raise CaptureError(f"expected tensors and numbers as arguments, got {_opaque(value)}")
            return self.values[value.name]
        if isinstance(value, (list, tuple)):
            return [self._lookup(v) for v in value]
        return value


def operation(fx: torch.fx.Node) -> torch._ops.OpOverload[..., Any]:
    """The operation of torch that the node calls. Raises `CaptureError` for anything else."""
    if not isinstance(fx.target, torch._ops.OpOverload):
        raise CaptureError(f"expected tensor operations, got {fx.target} in {_where(fx)}")
    return fx.target


def is_random(target: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether the operation draws random numbers, as it is called here."""
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    off = arguments.get("train") is False or arguments.get("training") is False or arguments.get("dropout_p") == 0
    return not off


def _lifted_tensors(program: torch.export.ExportedProgram) -> dict[str, Any]:
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


def _opaque(fx: torch.fx.Node) -> str:
    """An object that torch.export hands over as it is, such as a generator of random numbers, and its first user."""
    user = next(iter(fx.users))
    held = getattr(fx.meta.get("val"), "script_class_name", "") or type(fx.meta.get("val")).__name__
    return f"{held} for {user.target} in {_where(user)}; take it out of forward"


def _name(target: Any) -> str:
    return str(target).removeprefix("aten.")


def _called(fx: torch.fx.Node) -> str:
    """The operation, and the one that the model calls if torch made several of it."""
    origins = fx.meta.get("from_node") or ()
    names = [_name(getattr(origin, "target", "")) for origin in origins[-1:]]
    own = _name(fx.target)
    return f"{own}, a part of {names[0]}," if names and names[0] not in ("", own) else own


def _where(fx: torch.fx.Node) -> str:
    return f"{_layer(fx) or 'the model'} ({_source(fx) or 'source unknown'})"


def _layer(fx: torch.fx.Node) -> str:
    """Path of the innermost module; a module that is called again has `@1` behind it there, which is taken off."""
    stack = fx.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0].split("@")[0] if stack else ""


def _source(fx: torch.fx.Node) -> str:
    """The innermost line of the model's code, outside torch."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', fx.meta.get("stack_trace") or "")
    return innermost(frames) or innermost(frames, torch_too=True)


def innermost(frames: Iterable[tuple[str, int | str]], *, torch_too: bool = False) -> str:
    """`file.py:line` of the last of the frames (path, line) that is the model's own code; empty if none is.

    `torch_too`: or torch's; code that torch generated has no line that a person could look up.
    """
    own = [
        f"{path.rpartition('/')[2]}:{line}"
        for path, line in ((path.replace("\\", "/"), line) for path, line in frames)
        if not path.startswith("<") and (torch_too or "/torch/" not in path)
    ]
    return own[-1] if own else ""
