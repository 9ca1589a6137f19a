"""The model, as it runs, held against the audited graph: on every image and adversarial example, logit by logit.

Note [Held against the model]
    Every bound and every certificate is about the captured graph. Capture holds it against the model on a few probes;
    here it is held against it on what an audit speaks of: each image, alone and in batches, in every mode that people
    run it in; a point beside each image; and what attacks claim. A logit of the model may differ from that of the
    graph, evaluated in float64 at the very input that the model reads, by no more than its own rounding as it is
    measured (Note [The same but for rounding]), and by no more than the proved error of native arithmetic where that
    is smaller.
    Cost, as measured: 0.9 % of a standard audit of a ResNet-18 on 16 images of 32 x 32 pixels, 1 to 5 % for networks of
    digits, 7 % of `certify`; the copy in float64 takes one more capture (1.9 % of that audit).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lipaudit.certification.exact_network import JUDGED_BYTES, ExactNetwork
from lipaudit.certification.network_bound import Composition
from lipaudit.domains.graph import Graph, Ref
from lipaudit.errors import CaptureError, LipauditError
from lipaudit.graph.agreement import Agreement as Comparison
from lipaudit.graph.capture import capture
from lipaudit.graph.snapshot import fix_parametrized
from lipaudit.graph.wrappers import bare, device_of, plain_copy
from lipaudit.results.bounds import Agreement, Disagreement
from lipaudit.results.formatting import clean
from lipaudit.rounding import plain_sums

TOGETHER = 256
ENOUGH = 8
"""Differences that are looked for at a time: to say that rounding does not explain one takes many passes."""
COMPUTED = 2.0**-16
"""Share of a constant by which float64 may compute another one than float32."""
BESIDE = 1 / 255
"""Size of the noise, in widths of the domain, that takes an image off whatever grid its values lie on."""

Limit = Callable[[int, float], float]
"""The proved error (L2, of the logits) of native arithmetic at so many rows' inputs, so far from the image of a row."""


@dataclass(frozen=True)
class Way:
    """How a model may be run."""

    name: str
    mode: Callable[[], Any]
    share: int = 1
    """In so many batches at least: what is looked for may hang on their size."""
    backwards: bool = False
    """The inputs in another order."""
    alone: bool = False


BATCH = Way("in a batch", torch.no_grad)
ALONE = Way("alone", torch.no_grad, alone=True)
EVERY = (
    BATCH,
    Way("in another batch, in inference mode", torch.inference_mode, share=2, backwards=True),
    Way("in a batch, with gradients", torch.enable_grad, share=3),
    ALONE,
)


@dataclass
class Held:
    """The model held against the graph. `differences` are what was found, one of each input at most."""

    composition: Composition
    judge: ExactNetwork = field(init=False)
    images: int = 0
    examples: int = 0
    """Adversarial examples, and claims of attacks that did not become any."""
    differences: list[Disagreement] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.judge = ExactNetwork(self.composition)
        self.model, graph = self.composition.model, self.composition.graph
        self.comparison = Comparison(graph)
        self.dtype, self.device = graph.dtype, device_of(self.model)
        entries = sum(math.prod(node.shape) for node in graph.nodes)
        self.size = min(TOGETHER, max(2, 4 * JUDGED_BYTES // (4 * entries)))

    def at_images(self, points: torch.Tensor, limit: Limit | None = None) -> None:
        """Holds every image (n, ...), and a point beside each of them."""
        rows = range(len(points))
        self.images += len(points)
        self._keep(self.look(rows, points, "image", EVERY, limit))
        low, high = self.composition.network.domain or (float(points.min()), float(points.max()))
        high = high if high > low else low + 1.0
        noise = torch.rand(points.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        step = (noise - 0.5).to(points.device) * (2 * BESIDE * (high - low))
        beside = (points.double() + step).clamp(low, high)
        reach = None if limit is None else (beside - points.double()).flatten(1).norm(dim=1).mul(1 + 1e-9).tolist()
        self._keep(self.look(rows, beside, "image with noise", (BATCH,), limit, reach))

    def at_examples(
        self, rows: Sequence[int], points: torch.Tensor, reach: Sequence[float], limit: Limit | None = None
    ) -> None:
        """Holds the adversarial examples of some rows, `reach` away from the images."""
        self.examples += len(rows)
        self._keep(self.look(rows, points, "adversarial example", EVERY, limit, reach))

    def once_more(self, points: torch.Tensor, limit: Limit | None = None) -> None:
        """Holds the images again: a model may have counted its calls."""
        self._keep(self.look(range(len(points)), points, "image, after the attacks,", (BATCH,), limit))

    def at_claims(self, rows: Sequence[int], points: torch.Tensor) -> list[Disagreement]:
        """What is different at points that an attack claims, of some rows."""
        return self.look(rows, points, "claim of an attack", (BATCH,))

    def found(self) -> Agreement:
        return Agreement(self.images, self.examples, tuple(self.differences))

    def _keep(self, found: Sequence[Disagreement]) -> None:
        known = {(each.sample, each.where) for each in self.differences}
        self.differences += [each for each in found if (each.sample, each.where) not in known]

    def look(
        self,
        rows: Sequence[int],
        points: torch.Tensor,
        where: str,
        ways: Sequence[Way],
        limit: Limit | None = None,
        reach: Sequence[float] | None = None,
    ) -> list[Disagreement]:
        """Ways in which the model differs at some points: no more than one of each, and no more than `ENOUGH`."""
        if not len(points):
            return []
        read = points.detach().to(self.device, self.dtype)
        with torch.no_grad():
            expected = self.judge(read.double()).cpu()
        moved = (read.double() - points.to(read.device).double()).flatten(1).norm(dim=1).mul(1 + 1e-9).tolist()
        found: dict[int, Disagreement] = {}
        for way in ways:
            for places, logits in self._run(read, way):
                for place, ours in zip(places, logits.to("cpu", torch.float64), strict=True):
                    if place in found or len(found) == ENOUGH:
                        continue
                    theirs = expected[place]
                    same = self.comparison.same(read[place][None], ours[None], theirs[None])[0]
                    away = moved[place] + (0.0 if reach is None else reach[place])
                    most = math.inf if limit is None else limit(rows[place], away)
                    apart = (ours - theirs).abs()
                    wrong = ~same | ~(apart <= most)
                    if bool(wrong.any()):
                        logit = int(apart.nan_to_num(math.inf).where(wrong, -1.0).argmax())
                        values = float(ours[logit]), float(theirs[logit])
                        found[place] = Disagreement(int(rows[place]), where, way.name, logit, *values)
        return [found[place] for place in sorted(found)]

    def _run(self, read: torch.Tensor, way: Way) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The model's own logits of some inputs at a time, as that way runs it."""
        order = list(range(len(read)))[:: -1 if way.backwards else 1]
        size = 1 if way.alone else max(2, min(self.size, len(order)) // way.share)
        for start in range(0, len(order), size):
            some = order[start : start + size]
            # A batch of one would be no batch.
            batch = some * 2 if len(some) == 1 and not way.alone else some
            yield some, self._logits(read[batch], way)[: len(some)]

    def _logits(self, batch: torch.Tensor, way: Way) -> torch.Tensor:
        try:
            with way.mode(), plain_sums(), torch.compiler.set_stance("force_eager"):
                asking = batch.clone().requires_grad_(torch.is_grad_enabled())
                output = self.model(asking.clone())  # which a model may write to
        except Exception as error:  # the model is the user's code
            said = clean(str(error).strip().split("\n", 1)[0], 200)
            raise CaptureError(
                f"expected the model to run on {len(batch)} inputs {way.name}, got {type(error).__name__}: {said}"
            ) from error
        expected = (len(batch), len(self.composition.network.pairwise))
        if not isinstance(output, torch.Tensor) or tuple(output.shape) != expected:
            got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise CaptureError(f"expected logits of shape {expected} from the model {way.name}, got {got}")
        return output.detach()


def refuse(differences: Sequence[Disagreement]) -> None:
    """Raises `CaptureError` for the first of them."""
    if differences:
        raise CaptureError(
            f"expected the model to compute what its graph computes, but {differences[0].said()}; it does something "
            "else on some inputs, or in some way of running it: take that branch out"
        )


def differs_in_double(composition: Composition, points: torch.Tensor) -> str:
    """Why `model.double()` is another network than the graph with its constants cast to float64; empty if it is that.

    The model may look at its dtype, go back to float32 or take constants from it: so its copy in float64, with the
    weights that run now, is captured as well, compared operation by operation, and held against the graph at `points`.
    """
    graph = composition.graph
    if graph.dtype == torch.float64:
        return ""
    try:
        twin = plain_copy(bare(composition.model))
        fix_parametrized(twin)
        twin = twin.double()
        other = capture(twin, graph.input_shape, domain=composition.network.domain)
        why = _unlike(graph, other)
        if why:
            return f"model.double() is another network: {why}"
        inside = Held(replace(composition, model=twin, graph=other))
        found = inside.look(range(len(points)), points.double(), "image", (BATCH, ALONE))
    except LipauditError as error:
        return f"model.double() cannot be audited: {error}"
    return f"model.double() is another network: {found[0].said()}" if found else ""


def _unlike(graph: Graph, other: Graph) -> str:
    """The first place at which two graphs, the second of the model in float64, are not the same."""
    if other.casts:
        return other.casts[0]
    names = {"input": "input"}
    for one, two in zip(graph.nodes, other.nodes, strict=False):
        names[two.name] = one.name
        if (one.op, one.output, one.shape, one.args.keys()) != (two.op, two.output, two.shape, two.args.keys()):
            return f"{two.op} ({two.title}, {two.source}) in place of {one.op} ({one.title}, {one.source})"
        for name, value in one.args.items():
            if not _same_argument(value, two.args[name], names):
                return f"another {name} in {one.op} ({one.title}, {one.source})"
    if len(graph.nodes) != len(other.nodes):
        return f"{len(other.nodes)} operations in place of {len(graph.nodes)}"
    return ""


def _same_argument(one: Any, other: Any, names: Mapping[str, str]) -> bool:
    """Whether it is the same in float64: a constant is what it was, or what float64 computes in its place."""
    if isinstance(one, list):
        same = isinstance(other, list) and len(one) == len(other)
        return same and all(_same_argument(a, b, names) for a, b in zip(one, other, strict=True))
    if isinstance(one, Ref):
        return isinstance(other, Ref) and names.get(other.name) == one.name
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or one.shape != other.shape:
            return False
        if not one.is_floating_point() or not other.is_floating_point():
            return torch.equal(one, other)
        single, double = one.double(), other.double()
        return bool(((single - double).abs() <= COMPUTED * single.abs()).logical_or(single == double).all())
    if isinstance(one, torch.dtype) and one.is_floating_point:
        return other == torch.float64
    return type(one) is type(other) and (one == other or one != one)
