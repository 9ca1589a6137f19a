"""Operations without a rule of their own -> operations that have one; and what hangs on a dtype -> numbers.

Note [Lowering]
    Most of aten is made of other operations of aten. What depends on the input and has no rule is replaced
        by the public spelling of the same kernel (`SPELLINGS`): what is left of a program that was decomposed before;
        by aten's own composite, which is what runs eagerly;
        by one of torch's decompositions in Python: the same function, by other kernels, which may round differently.
            `Graph.rewritten` names these, and nothing is promised of how they are executed.
    This is repeated until every operation has a rule. An operation that leads to one without stays whole, so that it is
    refused by the name that the model calls it by.

Note [Constants of a dtype]
    A default such as `rms_norm(eps=None)` stands for a constant of the dtype that runs: bounds and evaluations in
    float64 would take another one. It is resolved here, once, by asking the operation itself which it takes. A jump
    that is below the rounding of the dtype that runs, as that of softplus at its threshold, is arithmetic of that
    dtype and no part of the function: in float64 it would be one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

from lipaudit.domains.lipschitz import RULES
from lipaudit.errors import UnsupportedOp

ATEN = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd

Decomposition = Callable[..., Any]


def lowered(
    program: torch.export.ExportedProgram, shape_only: Mapping[str, str], known: Collection[str]
) -> tuple[torch.export.ExportedProgram, list[torch.fx.Node]]:
    """The program in operations that have rules, as far as possible; and what other kernels compute in it now.

    `shape_only`: operations that read no more than the shape of one argument, and its name; `known`: others that need
    no rule. See Note [Lowering]. A program that needs no lowering is returned as it is.
    """
    whole: set[Any] = set()
    table: dict[Any, Decomposition] = {}
    lower, others = program, []
    while new := [fx for fx in _unknown(lower, shape_only, known) if fx.target not in table and fx.target not in whole]:
        found = {fx.target: decomposition(fx.target) for fx in new}
        stuck = [fx for fx in new if found[fx.target] is None]
        if not stuck:
            table |= {target: how for target, how in found.items() if how is not None}
            try:
                lower = _decomposed(program, table)
                others += [fx for fx in new if not _same(fx.target)]
                continue
            except Exception:  # noqa: BLE001  (whatever a decomposition does that torch.export does not allow)
                stuck = new
        # What led here stays whole, and all the rest is tried again.
        whole |= {fx.target for fx in stuck} | _origins(program, stuck)
        table, lower, others = {}, program, []
    return lower, others


def _decomposed(
    program: torch.export.ExportedProgram, table: Mapping[Any, Decomposition]
) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program.run_decompositions(dict(table))


def _unknown(
    program: torch.export.ExportedProgram, shape_only: Mapping[str, str], known: Collection[str]
) -> Iterator[torch.fx.Node]:
    """The nodes without a rule that depend on the input."""
    moving = {name for name in program.graph_signature.user_inputs if isinstance(name, str)}
    for fx in program.graph.nodes:
        op = str(fx.target)
        ignored = _argument(fx, shape_only[op]) if op in shape_only else None
        if fx.op != "call_function" or not any(
            read.name in moving for read in fx.all_input_nodes if read is not ignored
        ):
            continue
        moving.add(fx.name)
        if isinstance(fx.target, torch._ops.OpOverload) and not _is_known(fx.target, op, known):
            yield fx


def _is_known(target: Any, op: str, known: Collection[str]) -> bool:
    return (
        op.removeprefix("aten.") in RULES
        or op in known
        or "dropout" in op
        or "_assert" in op
        or torch.Tag.nondeterministic_seeded in target.tags
    )


def _argument(fx: torch.fx.Node, name: str) -> Any:
    target: Any = fx.target
    place = [argument.name for argument in target._schema.arguments].index(name)
    return fx.args[place] if place < len(fx.args) else fx.kwargs.get(name)


def _origins(program: torch.export.ExportedProgram, nodes: list[torch.fx.Node]) -> set[Any]:
    """The operations of the program that nodes of a lowered one come from; all of it where that is not known."""
    targets = {fx.name: fx.target for fx in program.graph.nodes if fx.op == "call_function"}
    nodes = [fx for fx in nodes if targets.get(fx.name) is not fx.target]
    names = [(fx.meta.get("from_node") or [None])[-1] for fx in nodes]
    found = {targets.get(getattr(source, "name", None)) for source in names}
    return set(targets.values()) if None in found else found


def decomposition(target: Any) -> Decomposition | None:
    """What computes the operation by other operations of aten; None if nothing does."""
    if target in SPELLINGS or target in REWRITINGS:
        return SPELLINGS.get(target, REWRITINGS.get(target))
    if target._can_decompose():
        return lambda *args, **kwargs: target._op_dk(_COMPOSITE, *args, **kwargs)
    return torch._decomp.get_decompositions([target]).get(target)


def _same(target: Any) -> bool:
    """Whether what the operation is replaced by runs the same kernels."""
    return target not in REWRITINGS and (target in SPELLINGS or target._can_decompose())


SPELLINGS: dict[Any, Decomposition] = {}
"""Operations that call a kernel -> the public operation of which it is the kernel; other outputs are written out."""

REWRITINGS: dict[Any, Decomposition] = {}
"""Operations -> the same function by other kernels, where torch has no decomposition or a worse one."""


def _register(table: dict[Any, Decomposition], *names: str) -> Callable[[Decomposition], Decomposition]:
    def add(function: Decomposition) -> Decomposition:
        for name in names:
            packet, _, overload = name.partition(".")
            if hasattr(ATEN, packet) and overload in getattr(ATEN, packet).overloads():  # not in every version of torch
                table[getattr(getattr(ATEN, packet), overload)] = function
        return function

    return add


@_register(SPELLINGS, "convolution.default", "_convolution.default", "_convolution.deprecated")
def _convolution(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any
) -> Any:
    output_padding, groups = rest[:2]
    axes = weight.ndim - 3
    if transposed:
        transpose = (ATEN.conv_transpose1d.default, ATEN.conv_transpose2d.input, ATEN.conv_transpose3d.input)[axes]
        return transpose(input, weight, bias, stride, padding, output_padding, groups, dilation)
    convolve = (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default)[axes]
    return convolve(input, weight, bias, stride, padding, dilation, groups)


@_register(SPELLINGS, "_adaptive_avg_pool2d.default")
def _adaptive_average_2d(self: Any, output_size: Any) -> Any:
    return ATEN.adaptive_avg_pool2d.default(self, output_size)


@_register(SPELLINGS, "_adaptive_avg_pool3d.default")
def _adaptive_average_3d(self: Any, output_size: Any) -> Any:
    return ATEN.adaptive_avg_pool3d.default(self, output_size)


@_register(SPELLINGS, "_softmax.default")
def _softmax(self: Any, dim: int, half_to_float: bool) -> Any:
    return NotImplemented if half_to_float else ATEN.softmax.int(self, dim)


@_register(SPELLINGS, "_log_softmax.default")
def _log_softmax(self: Any, dim: int, half_to_float: bool) -> Any:
    return NotImplemented if half_to_float else ATEN.log_softmax.int(self, dim)


@_register(SPELLINGS, "_safe_softmax.default")
def _safe_softmax(self: Any, dim: int, dtype: Any = None) -> Any:
    """It differs where a whole row is minus infinity: 0 instead of NaN, which capture would notice."""
    return ATEN.softmax.int(self, dim, dtype)


@_register(SPELLINGS, "native_layer_norm.default")
def _layer_norm(input: Any, normalized_shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    axes = list(range(-len(normalized_shape), 0))
    out = ATEN.layer_norm.default(input, normalized_shape, weight, bias, eps)
    return out, input.mean(axes, True), (input.var(axes, correction=0, keepdim=True) + eps).rsqrt()


@_register(SPELLINGS, "native_group_norm.default")
def _group_norm(input: Any, weight: Any, bias: Any, N: int, C: int, HxW: int, group: int, eps: float) -> Any:
    del C, HxW
    parts = input.reshape(N, group, -1)
    out = ATEN.group_norm.default(input, group, weight, bias, eps)
    return out, parts.mean(-1), (parts.var(-1, correction=0) + eps).rsqrt()


@_register(SPELLINGS, "_fused_rms_norm.default")
def _rms_norm(input: Any, normalized_shape: Any, weight: Any, eps: float | None) -> Any:
    axes = list(range(-len(normalized_shape), 0))
    out = ATEN.rms_norm.default(input, normalized_shape, weight, eps)
    shift = torch.finfo(input.dtype).eps if eps is None else eps
    return out, (input.square().mean(axes, True) + shift).rsqrt()


def _evaluating(target: Any) -> Decomposition:
    """A batch norm that does not train, as the one that cannot: its other outputs are empty, or come in and go out."""

    def spelled(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, *rest: Any) -> Any:
        training, momentum, eps = rest[:3]
        if training or running_mean is None or running_var is None:
            return NotImplemented
        outputs = ATEN._native_batch_norm_legit_no_training.default(
            input, weight, bias, running_mean, running_var, momentum, eps
        )
        count = len(target._schema.returns)
        return outputs[0] if count == 1 else (*outputs, running_mean, running_var)[:count]

    return spelled


for _name in ("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional"):
    _target = getattr(ATEN, _name).default
    SPELLINGS[_target] = _evaluating(_target)


@_register(SPELLINGS, "_batch_norm_no_update.default")
def _batch_norm_no_update(
    input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, eps: float
) -> Any:
    if running_mean is None or running_var is None:
        return NotImplemented
    outputs = ATEN._native_batch_norm_legit_no_training.default(
        input, weight, bias, running_mean, running_var, momentum, eps
    )
    return *outputs, torch.empty(0, dtype=torch.uint8, device=input.device)


@_register(REWRITINGS, "lerp.Scalar", "lerp.Tensor")
def _lerp(self: Any, end: Any, weight: Any) -> Any:
    """Torch has it as a + w (b - a), where each branch would count twice."""
    return self * (1 - weight) + end * weight


@_register(REWRITINGS, "nanmean.default")
def _mean_of_numbers(self: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Of finite numbers, which is what the network is about, the mean: it counts those that are no NaN."""
    return ATEN.mean.dim(self, dim, keepdim, dtype=dtype)


@_register(REWRITINGS, "nansum.default")
def _sum_of_numbers(self: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return ATEN.sum.dim_IntList(self, dim, keepdim, dtype=dtype)


@_register(REWRITINGS, "var_mean.correction")
def _var_mean(self: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    axes = list(range(self.ndim)) if dim is None else dim
    return ATEN.var.correction(self, dim, correction=correction, keepdim=keepdim), self.mean(axes, keepdim)


@_register(REWRITINGS, "std_mean.correction")
def _std_mean(self: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    axes = list(range(self.ndim)) if dim is None else dim
    return ATEN.std.correction(self, dim, correction=correction, keepdim=keepdim), self.mean(axes, keepdim)


def machine_eps(dtype: torch.dtype, device: torch.device) -> float:
    """The eps that an RMS norm of this dtype takes if it is given none.

    Raises `UnsupportedOp` if that is the epsilon of no dtype.
    """
    if device.type == "meta":
        return torch.finfo(dtype).eps  # nothing is computed there
    probe = torch.full((1, 1), 2.0**-12, dtype=dtype, device=device)  # its square is far from all of them
    taken = ATEN.rms_norm.default(probe, [1])
    for kind in (dtype, torch.float32, torch.float64, torch.float16, torch.bfloat16):
        if bool((ATEN.rms_norm.default(probe, [1], None, torch.finfo(kind).eps) == taken).all()):
            return torch.finfo(kind).eps
    raise UnsupportedOp(f"expected an RMS norm without eps to take a machine epsilon in {dtype}, got another number")


def _with_eps(arguments: Mapping[str, Any], run: torch.Tensor) -> Mapping[str, Any]:
    return {**arguments, "eps": machine_eps(run.dtype, run.device) if arguments["eps"] is None else arguments["eps"]}


def softplus_jumps(threshold: float, dtype: torch.dtype) -> bool:
    """Whether softplus, which is x beyond its threshold, jumps there by more than the rounding of x in this dtype.

    The jump is log(1 + exp(-threshold)) / beta, and x is threshold / beta.
    """
    return not math.log1p(math.exp(-threshold)) <= torch.finfo(dtype).eps / 2 * threshold


SMOOTH = 40.0
"""A threshold of softplus that no dtype notices."""


def _without_step(arguments: Mapping[str, Any], run: torch.Tensor) -> Mapping[str, Any]:
    """A jump that vanishes in the rounding of the model's dtype would be one in float64: it is taken out."""
    threshold = float(arguments["threshold"])
    if threshold < 0 or softplus_jumps(threshold, run.dtype):
        return arguments
    return {**arguments, "threshold": max(threshold, SMOOTH)}


OF_DTYPE: dict[str, Callable[[Mapping[str, Any], torch.Tensor], Mapping[str, Any]]] = {
    "rms_norm.default": _with_eps,
    "softplus.default": _without_step,
}
"""Operations that are another function in every dtype -> their arguments, made to mean what they mean for a tensor of
the dtype that runs; see Note [Constants of a dtype]."""
