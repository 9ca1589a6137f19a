"""The model on trial: whether it is one function of one image, and the one that its graph computes.

Note [One image at a time]
    The graph, every bound and every certificate are about x -> model(x[None])[0], one image at a time: they need
    nothing from the other samples of a batch. That the model computes the same in a batch is what its users rely on,
    and it is checked here on batches of two, three and four: the answers are those of batches of one, and when one of
    two samples is NaN throughout, it leaves no trace in the answer for the other, which is that of the graph. Every
    operation that has a rule hands a NaN on to all that depends on it, however small its weight and whatever the other
    values are (held by a test; `HIDES_NAN` has the exceptions). So this shows that no path leads from one sample to
    the other, where comparing numbers shows only that none has mattered. Nothing is promised for a model that treats
    larger batches in another way: what it answers in those is held against the graph on every audited image.

Note [One function]
    Python code may tell calls apart by anything. Values of the input it may not see (watching.py). Gradients, inference
    mode, strides, type and batch size are varied here, one at a time, and each answer is held against the graph. What
    the model keeps is compared before and after a call: generators of random numbers must not move, and nothing may
    change from the second call to the third. A cache that the first call fills from the weights passes; one that is
    filled from the input is overwritten with NaN, which must not show in the next answer.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lipaudit.domains.graph import Graph, evaluate
from lipaudit.domains.transforms import TRANSFORMS
from lipaudit.errors import CaptureError
from lipaudit.graph.agreement import Agreement
from lipaudit.graph.lowering import innermost
from lipaudit.graph.snapshot import State
from lipaudit.graph.watching import Watch
from lipaudit.results.formatting import clean
from lipaudit.rounding import short_formats

HIDES_NAN = {"sort.default", "topk.default", "fmax.default", "fmin.default", "kthvalue.default", *TRANSFORMS}
"""They prefer numbers to NaN, move it away from entries that depended on it, or, as Fourier transforms, keep it to real
or imaginary parts: a path through them may stay hidden, and shows only where it changes the numbers. So do nanmean and
nansum, which are read as mean and sum."""

_TOGETHER = 8
"""Images given by the user that run at a time."""


_SETTINGS: dict[str, Callable[[], Any]] = {
    "the default type": torch.get_default_dtype,
    "the default device": torch.get_default_device,
    "the number of threads": torch.get_num_threads,
    "whether gradients are kept": torch.is_grad_enabled,
    "inference mode": torch.is_inference_mode_enabled,
    "autocast on CPUs": lambda: torch.is_autocast_enabled("cpu"),
    "autocast on GPUs": lambda: torch.is_autocast_enabled("cuda"),
    "whether algorithms are deterministic": torch.are_deterministic_algorithms_enabled,
    "the format of products": short_formats,
}
"""Those of torch that change what operations compute, as `torch.set_...` leaves them."""


def first_calls(model: nn.Module, probe: torch.Tensor) -> tuple[Watch, list[torch.Tensor]]:
    """Three calls with the batch `probe` of one: plain logits, nothing looked at, nothing random, nothing kept.

    Gives what was seen, and the answers. Raises `CaptureError` for the first thing that is wrong.
    """
    before, watch = State(model, entries=False), Watch(model)
    first = answer(model, probe, watch.run)
    _check_logits(first, probe)
    after = State(model, entries=False)
    _check_generators(before, after, watch)
    _check_seen(watch)
    kept = [(place, tensor) for place, tensor in after.tensors if watch.depends([tensor])]
    places = [place for place, _ in kept]
    states, answers = [], []
    for _ in range(2):
        _spoil(kept)
        answers.append(answer(model, probe))
        states.append(State(model))
        if not bool(torch.isfinite(answers[-1]).all()):
            raise _written(places)
    _check_generators(after, State(model, entries=False), watch)
    changed = [place for place in states[0].changes(states[1]) if place not in places]
    if changed:
        raise _written(changed)
    if not _repeated(model, probe, *answers):
        raise CaptureError("expected the same answer twice, got two different ones; the model is random in eval mode")
    return watch, [first, *answers]


def answer(model: nn.Module, inputs: torch.Tensor, run: Callable[..., Any] | None = None) -> Any:
    """The model's output, with nothing compiled; what it raises is the finding. `run` calls it instead."""
    before = {name: read() for name, read in _SETTINGS.items()}
    try:
        with torch.compiler.set_stance("force_eager"):
            result = model(inputs.clone()) if run is None else run(model, inputs.clone())
    except CaptureError:
        raise
    except (Exception, SystemExit) as error:  # the model is the user's code
        raise CaptureError(
            f"expected the model to run on inputs of shape {tuple(inputs.shape)}, got "
            f"{type(error).__name__}: {first_line(error)}; check the input shape and channel order"
        ) from error
    for name, read in _SETTINGS.items():
        if read() != before[name]:
            raise CaptureError(
                f"expected a model that leaves torch as it is, got a forward that sets {name} to {read()}; set it "
                "where the model is made"
            )
    return result


def first_line(error: BaseException) -> str:
    """The first line of its message, and the innermost line of the model's code that it passed through."""
    line = clean(str(error).strip().split("\n", 1)[0], 200)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/lipaudit/" not in frame.filename]
    place = innermost((frame.filename, frame.lineno or 0) for frame in frames)
    return f"{line} ({place})" if place else line


def _check_logits(first: Any, probe: torch.Tensor) -> None:
    if not isinstance(first, torch.Tensor) or first.ndim != 2 or not first.is_floating_point() or not first.numel():
        got = tuple(first.shape) if isinstance(first, torch.Tensor) else type(first).__name__
        raise CaptureError(f"expected logits of shape (batch, classes), got {got}; wrap the model to return logits")
    if len(first) != len(probe):
        raise _mixed(f"{len(first)} answers for {len(probe)}")
    if not bool(torch.isfinite(first).all()):
        raise CaptureError("expected finite logits on random inputs, got NaN or inf; check the weights")


def _check_seen(watch: Watch) -> None:
    """Nothing that the model has seen beside its input may decide what it answers, and of that no number either."""
    if watch.looked:
        raise CaptureError(
            f"expected a model that does not look at values, got a number taken from the input by {watch.looked[0]}; "
            "control flow on values cannot be certified"
        )
    if watch.outside:
        raise CaptureError(
            "expected an answer that depends on nothing but the input, got a forward that asks for "
            f"{watch.outside[0]}; take that out"
        )


def _check_generators(before: State, after: State, watch: Watch) -> None:
    moved = [place for place in before.changes(after) if place in after.generators]
    if moved:
        by = f"by {watch.random[0]}" if watch.random else f"from {moved[0]}"
        raise CaptureError(f"expected a deterministic model, got random numbers {by}; the model is random in eval mode")


def _spoil(kept: list[tuple[str, torch.Tensor]]) -> None:
    """Overwrite what was computed from the input."""
    for place, tensor in kept:
        if not tensor.is_floating_point():
            raise _written([place])
        try:
            tensor.detach().fill_(math.nan)
        except RuntimeError as error:  # it shares its entries with itself
            raise _written([place]) from error


def _written(places: Any) -> CaptureError:
    names = ", ".join(sorted(places)[:3])
    return CaptureError(
        f"expected a model that does not write to itself in eval mode, got writes to {names}, so that a later call may "
        "have another answer; take them out of forward, or run the model once on real data first if they initialise it"
    )


def _repeated(model: nn.Module, probe: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two calls give the same bits; on one thread, where several may share a sum in another way each time.

    Kernels of GPUs need not repeat themselves; there the comparison with the graph has to do.
    """
    if torch.equal(one, other) or probe.device.type != "cpu":
        return True
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return threads > 1 and torch.equal(answer(model, probe), answer(model, probe))
    finally:
        torch.set_num_threads(threads)


def hold(
    graph: Graph,
    model: nn.Module,
    watch: Watch,
    probe: torch.Tensor,
    answers: list[torch.Tensor],
    domain: tuple[float, float],
    images: torch.Tensor | None = None,
) -> None:
    """The graph computes what the model computes: in every way to call it, at the ends of the domain, on `images`.

    `answers` are those of `first_calls` for `probe`.
    """
    trial, before = _Trial(graph, model, watch), State(model, entries=False)
    trial.alone(probe[0], answers[-1][0])
    if not trial.same(probe[0], answers[0][0]):
        raise _written(["something that the next one reads"])
    like = probe
    probes = [batch.to(like) for batch in _probes(graph.input_shape, domain)]
    for batch in [*probes, *(() if images is None else images.to(like).split(_TOGETHER))]:
        trial.together(batch)
    trial.beside_nan(probes[0][1:])
    sample = probes[0][-1]
    trial.otherwise("with and without gradients", sample, torch.enable_grad)
    for change in (torch.Tensor.requires_grad_, lambda batch: batch.requires_grad_().clone(), nn.Parameter):
        trial.otherwise("with and without gradients", sample, lambda: _gradients(model), change)
    trial.otherwise("for other strides of the input in memory", sample, torch.no_grad, _turned)
    trial.otherwise("for other strides of the input in memory", sample, torch.no_grad, _last_of_two)
    if like.dtype != torch.float64:
        trial.otherwise("for an input in float64", sample, torch.no_grad, torch.Tensor.double)
    trial.otherwise("in inference mode", sample, torch.inference_mode)  # last: what it caches allows no gradients
    _check_generators(before, State(model, entries=False), watch)


def _probes(shape: tuple[int, ...], domain: tuple[float, float]) -> list[torch.Tensor]:
    """Batches of three and four: both ends of the domain, flat and two-coloured images, and random ones."""
    low, high = domain
    generator = torch.Generator(device="cpu").manual_seed(1)
    random = torch.rand(3, *shape, generator=generator, dtype=torch.float64, device="cpu")
    stripes = (torch.arange(shape[0], device="cpu") % 2).to(random).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    zero = torch.zeros_like(random[0])
    unit = [zero, zero + 1, random[0], zero + 0.5, stripes, 1 - stripes, random[1].round()]
    images = low + (high - low) * torch.stack(unit)
    return [images[:3], images[3:]]


def _turned(batch: torch.Tensor) -> torch.Tensor:
    """The same entries, in another order in memory."""
    return batch.transpose(1, -1).contiguous().transpose(1, -1)


def _last_of_two(batch: torch.Tensor) -> torch.Tensor:
    return torch.cat([batch, batch])[1:]


class _Trial:
    """Answers of the model, held against those of its graph."""

    def __init__(self, graph: Graph, model: nn.Module, watch: Watch) -> None:
        self.graph, self.model, self.watch = graph, model, watch
        self.agreement = Agreement(graph)
        self.computed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Images, and what the graph computes for them: some are looked at several times."""

    def together(self, batch: torch.Tensor) -> None:
        """Images in a batch have the answers that they have alone, which are those of the graph."""
        got = self.watched(batch)
        for row, image in enumerate(batch):
            if len(got) != len(batch) or not self.same(image, got[row]):
                self.alone(image)
                raise _mixed("another answer than it has alone")

    def alone(self, image: torch.Tensor, got: torch.Tensor | None = None) -> None:
        """The graph computes what the model computes; `got` if that is known."""
        got = self.watched(image[None])[0] if got is None else got
        if not self.same(image, got):
            raise CaptureError(
                f"expected the captured graph to compute what the model computes, got logits that differ by "
                f"{self.share(image, got):.1e} of their size; the model probably branches on how it is called"
            )

    def beside_nan(self, pair: torch.Tensor) -> None:
        """A sample of NaN leaves no trace in the answer for the other one; see Note [One image at a time]."""
        for place, sample in enumerate(pair):
            inputs = torch.full_like(pair, math.nan)
            inputs[place] = sample
            with plain_kernels():
                got = self.watched(inputs)[place]
                same = self.same(sample, got)
            known = bool(torch.isfinite(self.expected(sample)).all())  # else it is NaN all by itself
            if known and not bool(torch.isfinite(got).all()):
                raise _mixed("a path from one to the other")
            if not same:
                self.alone(sample)
                raise _mixed("another answer than it has alone")

    def otherwise(
        self,
        how: str,
        image: torch.Tensor,
        context: Callable[[], Any],
        change: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.clone,
    ) -> None:
        """Called in another way, it gives the same answer, or none."""
        with context():
            try:
                got = self.watched(image[None], change)
            except CaptureError as error:
                if isinstance(error.__cause__, (Exception, SystemExit)):
                    return
                raise
            got = got.detach()
        if not self.same(image, got[0].clone()):
            raise CaptureError(
                f"expected the same answer {how}, got two different ones; attacks and users would see another function "
                "than the one that is certified"
            )

    def watched(
        self, inputs: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.clone
    ) -> torch.Tensor:
        got = answer(self.model, inputs, lambda model, copy: self.watch.run(model, change(copy)))
        _check_seen(self.watch)
        if not isinstance(got, torch.Tensor) or got.ndim != 2:
            raise _mixed("another kind of answer")
        return got

    def same(self, image: torch.Tensor, got: torch.Tensor) -> bool:
        computed = self.expected(image)
        if got.shape != computed.shape:
            return False
        same = self.agreement.same(image[None], got[None], computed[None])[0].to(got.device)
        return bool((same | (got == computed) | (got.isnan() & computed.isnan())).all())

    def expected(self, image: torch.Tensor) -> torch.Tensor:
        key = image.data_ptr()
        if key not in self.computed:
            self.computed[key] = (image, evaluate(self.graph, image))  # kept, so that nothing else comes to lie there
        return self.computed[key][1]

    def share(self, image: torch.Tensor, got: torch.Tensor) -> float:
        computed = self.expected(image)
        if got.shape != computed.shape:
            return math.inf
        return float(((computed - got).abs() / computed.abs().clamp_min(1e-30)).max())


@contextlib.contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    """With gradients, also of the parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            model.requires_grad_(False)


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
