"""nn.Module -> `Graph`.

The model is exported (torch.export, non-strict, batch of one, eval, no gradient) on a copy, decomposed to functional
ATen with composites whole, and reduced (`lowering.py`) to the nodes that depend on the input; everything else is
folded into constants with the real weights, in the model's own dtype: exactly the tensors that run.

The guards are not optional (trials.py): the graph must compute what the model computes however it is called, one
sample must not influence another, no value may be looked at, nothing may be random or kept. What fails is a
`CaptureError` that names the reason.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lipaudit.domains.graph import Graph, evaluate
from lipaudit.errors import CaptureError
from lipaudit.graph.agreement import Agreement
from lipaudit.graph.lowering import fold_shapes, reduce
from lipaudit.graph.replay import Replay
from lipaudit.graph.snapshot import State, computes_weights, fix_parametrized
from lipaudit.graph.trials import answer, first_calls, first_line, hold
from lipaudit.graph.wrappers import WRAPPED, Normalised, bare, plain_copy
from lipaudit.results.formatting import clean

_MOST_ENTRIES = 2**31
"""Of an input: more would not fit into memory, whatever the network."""


def capture(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    domain: tuple[float, float] | None = None,
    probes: torch.Tensor | None = None,
) -> Graph:
    """The graph of `model` for inputs of `input_shape` (no batch axis), on the model's own device.

    It is held against the model on random images, on flat and two-coloured ones at the ends of `domain` (0 to 1 unless
    given), and on the images `probes` (n, *input_shape) if there are any. `torch.compile` and `DataParallel` are taken
    off: they compute the same. Weights that a parametrisation computes are fixed at their present values, and so are
    constants that the model's Python code reads; `notes` has both. Raises `CaptureError` when the model is in train
    mode, looks at values, is random, keeps what it computes, writes to its input, couples samples, or when the captured
    graph does not reproduce it in one of the ways to call it (trials.py).
    """
    _check_shape(input_shape)
    if torch.get_default_device().type == "meta":
        raise CaptureError(
            "expected a default device with values, got meta; call torch.set_default_device('cpu') first"
        )
    low, high = (0.0, 1.0) if domain is None else domain
    frozen, like = _frozen(model)
    absent = next((name for name, tensor in _named(frozen) if tensor.is_meta), None)
    if absent is not None or like.is_meta:
        raise CaptureError(
            f"expected weights with values, got {absent or 'tensors'} on the meta device; load them first"
        )
    probe = (low + (high - low) * _random(input_shape)).to(like)
    with torch.no_grad():
        _check_modes(frozen, probe)
        computing = plain_copy(frozen) if computes_weights(frozen) else None
        fixed = fix_parametrized(frozen)
        watch, answers = first_calls(frozen, probe[:1])
        program = _export(frozen, probe[:1], Replay(watch.constants))
        graph = reduce(program, input_shape, like.dtype, prefix=_prefix(frozen))
        hold(graph, frozen, watch, probe[:1], answers, (low, high), probes)
        if computing is not None:
            _check_weights(graph, computing, fixed, probe)
    notes = {"snapshot of parametrised weights": fixed, "read at capture": list(watch.read)}
    return replace(
        graph, notes=(*graph.notes, *(f"{what}: {_listed(names)}" for what, names in notes.items() if names))
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_modes(model: nn.Module, probe: torch.Tensor) -> None:
    """Sub-modules in train mode must not make a difference: some parents leave them there, whatever they do."""
    training = [(name, module) for name, module in model.named_modules() if module.training]
    if not training:
        return
    before, answers = State(model), [answer(model, probe)]
    for _, module in training:
        module.training = False
    answers += [answer(model, probe), answer(model, probe)]
    for _, module in training:
        module.training = True
    same = all(isinstance(one, torch.Tensor) and torch.equal(one, answers[0]) for one in answers)
    if not same or before.changes(State(model)):
        raise _in_train_mode([name for name, _ in training])


def _check_weights(graph: Graph, model: nn.Module, fixed: list[str], probe: torch.Tensor) -> None:
    """The model that computes its weights at each pass has the answers of the one in which they are fixed."""
    agreement, computed = Agreement(graph), evaluate(graph, probe[0])
    for _ in range(2):
        got = answer(model, probe[:1])
        if got.shape != computed[None].shape or not bool(agreement.same(probe[:1], got, computed[None]).all()):
            raise CaptureError(
                f"expected weights that stay as they are in eval mode, got others at each call from the "
                f"parametrisation of {fixed[0]}; fix them first (torch.nn.utils.parametrize.remove_parametrizations)"
            )


def _in_train_mode(names: list[str]) -> CaptureError:
    return CaptureError(
        f"expected a model in eval mode, got {len(names)} modules in train mode (first: {names[0]}); "
        "call model.eval() first: certificates hold for eval mode only"
    )


def _check_shape(shape: tuple[int, ...]) -> None:
    whole = all(isinstance(size, int) and size > 0 for size in shape)
    if not shape or not whole or math.prod(shape) > _MOST_ENTRIES:
        raise CaptureError(
            f"expected an input shape of whole numbers above 0 without the batch, such as (3, 32, 32), got "
            f"{clean(tuple(shape))}"
        )


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    """Two samples in [0,1], the same on every device."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.rand(2, *shape, generator=generator, dtype=torch.float64, device="cpu")


def _named(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def outline(model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """The graph of a `model` without values (on the meta device): operations, shapes and names, nothing checked.

    Its constants have no entries either. Raises `CaptureError` where `capture` does for reasons that do not need
    values.
    """
    frozen, like = _frozen(model)
    training = [name for name, module in frozen.named_modules() if module.training]
    if training:
        raise _in_train_mode(training)
    example = torch.empty(1, *input_shape, dtype=like.dtype, device="meta")
    with torch.no_grad():
        return reduce(
            _export(frozen, example, Replay([])), input_shape, like.dtype, fold=fold_shapes, prefix=_prefix(frozen)
        )


def _frozen(model: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    """A copy without wrappers, whose parameters ask for no gradient; and a tensor of its type and device."""
    inner = bare(model)
    training = [name or type(inner).__name__ for name, module in inner.named_modules() if module.training]
    if inner.training:
        raise _in_train_mode(training)
    _check_tensors(inner)
    frozen = plain_copy(inner).requires_grad_(False)
    tensors = [*frozen.parameters(), *frozen.buffers()]
    return frozen, next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(0, device="cpu"))


def _check_tensors(model: nn.Module) -> None:
    """Modules and tensors that can be looked into: all the others would fail in some line of torch."""
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise CaptureError(
                f"expected modules in Python, got {name or 'a model'} as a TorchScript module, which cannot be looked "
                "into; pass the nn.Module that it was made from"
            )
    for name, tensor in _named(model):
        if nn.parameter.is_lazy(tensor):
            raise CaptureError(f"expected weights with a shape, got {name} of a lazy module; run the model once first")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            kind = tensor.layout if tensor.layout != torch.strided else tensor.dtype
            raise CaptureError(f"expected dense weights of real numbers, got {name} as {kind}; convert the model first")


def _prefix(model: nn.Module) -> str:
    return WRAPPED if isinstance(model, Normalised) else ""


def _export(model: nn.Module, example: torch.Tensor, replay: Replay) -> torch.export.ExportedProgram:
    try:
        with _quiet(), _without_the_check_for_zeros(), replay.inside(model):
            program = torch.export.export(model, (example,), strict=False).run_decompositions({})
    except Exception as error:  # export raises many private types; the model is what is at fault
        raise CaptureError(
            f"expected a model whose operations do not depend on values, got {type(error).__name__} from "
            f"torch.export: {first_line(error)}; rewrite the branch or loop that it comes from"
        ) from error
    if program.graph_signature.user_inputs_to_mutate:
        raise CaptureError("expected a model that leaves its input alone, got writes to it; clone it first in forward")
    if program.graph_signature.buffers_to_mutate:
        names = ", ".join(sorted(program.graph_signature.buffers_to_mutate.values())[:3])
        raise CaptureError(f"expected a model that does not write to itself in eval mode, got writes to {names}")
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and logs of torch.export: what matters in them comes back as an error."""
    disabled, trace = logging.root.manager.disable, logging.getLogger("torch.__trace")
    traced = trace.disabled
    logging.disable(logging.CRITICAL)
    trace.disabled = True  # hands its records over without asking whether logging is on
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        trace.disabled = traced


@contextlib.contextmanager
def _without_the_check_for_zeros() -> Iterator[None]:
    """torchvision's `normalize` as its second version has it: the first asks whether a std is zero, as a tensor.

    torch.export cannot branch on that. The model has run before, so none is; the graph is held against it afterwards.
    """
    functional: Any = sys.modules.get("torchvision.transforms._functional_tensor")
    if functional is None:
        yield
        return
    from torchvision.transforms.v2.functional import normalize_image

    before = functional.normalize
    functional.normalize = normalize_image
    try:
        yield
    finally:
        functional.normalize = before
