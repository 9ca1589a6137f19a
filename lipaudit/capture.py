"""nn.Module -> `Graph`.

The model is exported (torch.export, non-strict, batch of one, eval, no gradient) on a copy, decomposed to functional
ATen with composites whole, and reduced (`reduction.py`) to the nodes that depend on the input; everything else is
folded into constants with the real weights, in the model's own dtype: exactly the tensors that run.

The guards are not optional: the graph must compute what the model computes, one sample must not influence another,
nothing may be random or written to. What fails is a `CaptureError` that names the reason.

Note [One image at a time]
    The graph, every bound and every certificate are about x -> model(x[None])[0], one image at a time: they need
    nothing from the other samples of a batch. That the model computes the same in a batch is what its users rely on,
    and it is checked here on batches of two: the answers are those of batches of one, and when one of the samples is
    NaN throughout, it leaves no trace in the answer for the other, which is that of the graph. Every operation that
    has a rule hands a NaN on to all that depends on it, however small its weight and whatever the other values are
    (held by a test; `HIDES_NAN` has the exceptions). So this shows that no path leads from one sample to the other,
    where comparing numbers shows only that none has mattered. Nothing is promised for a model that looks at the size
    of its batch and treats more than two samples in another way.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import sys
import traceback
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lipaudit.adapters import WRAPPED, Normalised
from lipaudit.errors import CaptureError
from lipaudit.formatting import clean
from lipaudit.graph import Graph, evaluate
from lipaudit.reduction import fold_shapes, innermost, reduce

SAME = 1e-4
"""Two answers that differ by less than this share of the largest logit are the same, but for rounding."""

_MOST_ENTRIES = 2**31
"""Of an input: more would not fit into memory, whatever the network."""

HIDES_NAN = {"sort.default", "topk.default", "fmax.default", "fmin.default", "kthvalue.default"}
"""They prefer numbers to NaN, or move it away from entries that depended on it (as do nanmean and nansum, which are
read as mean and sum): a path through them may stay hidden, and shows only where it changes the numbers."""


def capture(model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """The graph of `model` for inputs of `input_shape` (no batch axis), on the model's own device.

    `torch.compile` and `DataParallel` are taken off: they compute the same. Raises `CaptureError` when the model is
    in train mode, branches on values, is random, writes to its buffers or its input, couples samples, or when the
    captured graph does not reproduce it.
    """
    _check_shape(input_shape)
    if torch.get_default_device().type == "meta":
        raise CaptureError(
            "expected a default device with values, got meta; call torch.set_default_device('cpu') first"
        )
    frozen, like = _frozen(model)
    absent = next((name for name, tensor in _named(frozen) if tensor.is_meta), None)
    if absent is not None or like.is_meta:
        raise CaptureError(
            f"expected weights with values, got {absent or 'tensors'} on the meta device; load them first"
        )
    probe, fresh = (_random(seed, input_shape).to(like) for seed in (0, 1))
    with torch.no_grad():
        _run_eagerly(frozen, probe)
        graph = reduce(_export(frozen, probe[:1]), input_shape, like.dtype, prefix=_prefix(frozen))
        _check(graph, frozen, fresh)
    return graph


def _check_shape(shape: tuple[int, ...]) -> None:
    whole = all(isinstance(size, int) and size > 0 for size in shape)
    if not shape or not whole or math.prod(shape) > _MOST_ENTRIES:
        raise CaptureError(
            f"expected an input shape of whole numbers above 0 without the batch, such as (3, 32, 32), got "
            f"{clean(tuple(shape))}"
        )


def _random(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Two samples in [0,1], the same on every device."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
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
    example = torch.empty(1, *input_shape, dtype=like.dtype, device="meta")
    with torch.no_grad():
        return reduce(_export(frozen, example), input_shape, like.dtype, fold=fold_shapes, prefix=_prefix(frozen))


def _frozen(model: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    """A copy without wrappers, whose parameters ask for no gradient; and a tensor of its type and device."""
    bare = _bare(model)
    training = [name or type(bare).__name__ for name, module in bare.named_modules() if module.training]
    if training:
        raise CaptureError(
            f"expected a model in eval mode, got {len(training)} modules in train mode (first: {training[0]}); "
            "call model.eval() first: certificates hold for eval mode only"
        )
    _check_tensors(bare)
    frozen = _copied(bare).requires_grad_(False)
    for parent in list(frozen.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = _bare(child)
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


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy; also of modules that keep a computed tensor, as the old `weight_norm` does."""
    held = [value for part in model.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    try:
        return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf})
    except Exception as error:  # whatever the user's module holds
        raise CaptureError(
            f"expected a model that can be copied, got {type(error).__name__}: {_first_line(error)}; keep what cannot "
            "be copied out of the module"
        ) from error


def _bare(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, `DataParallel` and `DistributedDataParallel`."""
    while True:
        if type(model).__name__ == "OptimizedModule":
            inner = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        else:
            return model
        if model._forward_hooks or model._forward_pre_hooks:
            raise CaptureError(
                f"expected no hooks on {type(model).__name__}, which is taken off, got some; put them on the model "
                "inside"
            )
        model = inner


def _prefix(model: nn.Module) -> str:
    return WRAPPED if isinstance(model, Normalised) else ""


def _run_eagerly(model: nn.Module, probe: torch.Tensor) -> None:
    """The model's own answer on two samples is plain logits, and the same alone, again, and with gradients."""
    both = _answer(model, probe)
    if not isinstance(both, torch.Tensor) or both.ndim != 2 or not both.is_floating_point() or not both.numel():
        got = tuple(both.shape) if isinstance(both, torch.Tensor) else type(both).__name__
        raise CaptureError(f"expected logits of shape (batch, classes), got {got}; wrap the model to return logits")
    if not bool(torch.isfinite(both).all()):
        raise CaptureError("expected finite logits on random inputs, got NaN or inf; check the weights")
    with torch.enable_grad():
        alone = _answer(model, probe[:1].clone().requires_grad_()).detach()
    if len(both) == 2 and _same(alone, both[:1]):
        return
    if not _same(_answer(model, probe), both):
        raise CaptureError("expected the same answer twice, got two different ones; the model is random in eval mode")
    if len(both) != 2 or not _same(_answer(model, probe[:1]), both[:1]):
        raise _mixed("another answer than it has alone")
    raise CaptureError(
        "expected the same answer with and without gradients, got two different ones; attacks would see another "
        "function than the one that is certified"
    )


def _answer(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The model's output, with nothing compiled; what it raises is the finding."""
    try:
        with torch.compiler.set_stance("force_eager"):
            return model(inputs.clone())
    except (Exception, SystemExit) as error:  # the model is the user's code
        raise CaptureError(
            f"expected the model to run on inputs of shape {tuple(inputs.shape)}, got "
            f"{type(error).__name__}: {_first_line(error)}; check the input shape and channel order"
        ) from error


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two logits are the same, but for rounding; not if there is a NaN in them."""
    scale = other.abs().max().clamp_min(1e-30)
    return one.shape == other.shape and bool((one - other).abs().max() <= SAME * scale)


def _export(model: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    try:
        with _quiet(), _without_the_check_for_zeros():
            program = torch.export.export(model, (example,), strict=False).run_decompositions({})
    except Exception as error:  # export raises many private types; the model is what is at fault
        raise CaptureError(
            f"expected a model whose operations do not depend on values, got {type(error).__name__} from "
            f"torch.export: {_first_line(error)}; rewrite the branch or loop that it comes from"
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
    functional = sys.modules.get("torchvision.transforms._functional_tensor")
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


def _check(graph: Graph, model: nn.Module, fresh: torch.Tensor) -> None:
    """The graph computes what the model computes, beside a sample of NaN; see Note [One image at a time]."""
    for place, sample in enumerate(fresh):
        inputs = torch.full_like(fresh, math.nan)
        inputs[place] = sample
        with plain_kernels():
            answer, computed = _answer(model, inputs)[place], evaluate(graph, sample)
        if not bool(torch.isfinite(answer).all()):
            raise _mixed("a path from one to the other")
        if not _same(computed, answer):
            difference = float((computed - answer).abs().max() / answer.abs().max().clamp_min(1e-30))
            raise CaptureError(
                f"expected the captured graph to compute what the model computes, got logits that differ by "
                f"{difference:.1e} of their size; the model probably branches on how it is called"
            )


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention as it is defined: the fused kernels turn a query of NaN into zeros."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _mixed(got: str) -> CaptureError:
    return CaptureError(
        f"expected the answer for a sample not to depend on the others in its batch, got {got}; batch statistics or "
        "operations across the batch cannot be certified"
    )


def _first_line(error: BaseException) -> str:
    """The first line of its message, and the innermost line of the model's code that it passed through."""
    line = clean(str(error).strip().split("\n", 1)[0], 200)
    frames = traceback.extract_tb(error.__traceback__)
    place = innermost((frame.filename, frame.lineno or 0) for frame in frames if frame.filename != __file__)
    return f"{line} ({place})" if place else line
