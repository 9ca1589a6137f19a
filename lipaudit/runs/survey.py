"""How much of timm and torchvision can be audited: one small model per family, captured and bounded, one row each.

Weights are random, as the library initialises them: the rows say which operations have a rule and a finite bound, not
how tight the bounds are. Layer norms come from the Schur test, which takes a moment and is a proof like the others.
"""

from __future__ import annotations

import difflib
import gc
import math
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lipaudit.crosscheck.slope import largest_slope
from lipaudit.domains.graph import Graph
from lipaudit.domains.interpreter import refuse_unknown, walk
from lipaudit.domains.lipschitz import RULES, Ledger, Value
from lipaudit.domains.lipschitz.blocks import whole_blocks
from lipaudit.domains.lipschitz.propagator import INPUT
from lipaudit.errors import CaptureError, LoadError, NotLipschitz, UnsupportedOp
from lipaudit.graph.capture import capture, outline
from lipaudit.progress import Progress, Silent
from lipaudit.rounding import log10_up

Library = Literal["timm", "torchvision"]
LIBRARIES: tuple[Library, ...] = ("timm", "torchvision")
Outcome = Literal["bounded", "covered", "refused", "failed"]

SEED = 0
DOMAIN = (0.0, 1.0)
"""Of the pixels, for operations whose bound needs one."""
METHOD = "schur"
POINTS = 4
"""Random images at which slopes are looked for, of models with at most `LARGEST` parameters: float64 takes memory."""
LARGEST = 10**8

SMALL: dict[Library, str] = {
    "timm": """
        beit_base_patch16_224 halonet_h1 mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
        convnext_zepto_rms cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
        deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1
        efficientformerv2_s0 mobilenetv2_035 efficientvim_m1 efficientvit_b0 efficientvit_m0
        vit_pe_core_tiny_patch16_384 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m
        ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t
        inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0
        mambaout_femto maxvit_pico_rw_256 poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050 mobilenetv5_base
        mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small
        nf_regnet_b0 pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050
        repvit_m1 res2next50 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s
        shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window16_256
        swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny
        vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_srelpos_small_patch16_224 samvit_base_patch16_224
        vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224
    """,
    "torchvision": """
        alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t
        mnasnet0_5 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18
        resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0 swin_t swin_v2_t vgg11 vgg11_bn vit_b_16
        wide_resnet50_2
    """,
}
"""The smallest model of each family of timm (test models aside); of each of torchvision, its main variants."""


@dataclass(frozen=True)
class Choice:
    """A model to try."""

    library: Library
    family: str
    """The library's module that defines it."""
    model: str


@dataclass(frozen=True)
class Row:
    """What came of one model."""

    library: Library
    family: str
    model: str
    input_shape: tuple[int, ...]
    outcome: Outcome
    """bounded: a finite bound; covered: every operation has a rule, nothing was bounded; refused: by name, see
    `reason`; failed: anything else, which is a defect."""
    operations: int | None
    """In the captured graph; None if it was not captured."""
    log10: float | None
    """Of the network bound, L2 to L2; None without one."""
    needs_domain: bool
    """Whether the bound holds only for pixels in `DOMAIN`."""
    slope: float | None
    """log10 of the steepest slope seen in `DOMAIN`, of two logits over the root of two; None if none was looked for."""
    reason: str
    """What blocks it: operation, layer, source line. Empty where nothing does."""
    seconds: float


def families(library: Library) -> list[str]:
    """The library's modules that define classifiers."""
    if library == "timm":
        import timm

        return list(timm.list_modules())
    from torchvision import models

    return sorted({_torchvision_family(name) for name in models.list_models(module=models)})


def choices(libraries: Sequence[Library] = LIBRARIES, only: Collection[str] = ()) -> list[Choice]:
    """The models of the survey: at least one per family, of the families called `only` if any are.

    A family that `SMALL` does not know, of another version of timm, is represented by its smallest model; to find it,
    all are built on the meta device. Raises `LoadError` for a family that no library has.
    """
    return [
        Choice(library, family, model)
        for library, family in _families(libraries, only)
        for model in [name for name in SMALL[library].split() if name in _members(library, family)]
        or [_smallest(library, family)]
    ]


def variants(
    libraries: Sequence[Library] = LIBRARIES, only: Collection[str] = (), progress: Progress | None = None
) -> list[Choice]:
    """The smallest model of every structurally distinct variant, found by building all on the meta device.

    Two models have one structure if they are of one class, with the same classes of modules and the same names of
    parameters in them.
    """
    progress = progress or Silent()
    all_of_them = [
        Choice(library, family, model)
        for library, family in _families(libraries, only)
        for model in _members(library, family)
    ]
    progress.start("building all", len(all_of_them))
    smallest: dict[tuple[object, ...], tuple[int, Choice]] = {}
    for choice in all_of_them:
        module, _ = build(choice, meta=True)
        key, size = (choice.library, choice.family, *_structure(module)), _size(module)
        if key not in smallest or size < smallest[key][0]:
            smallest[key] = (size, choice)
        progress.advance(note=choice.model)
    progress.finish(f"{len(smallest)} variants")
    return [choice for _, choice in smallest.values()]


def survey(chosen: Iterable[Choice], *, meta: bool = False, slopes: bool = False) -> Iterator[Row]:
    """One row per model, with one model in memory at a time; whatever a model raises is in its row.

    `meta`: on the meta device, without values: the graph, and whether every operation has a rule. `slopes`: each bound
    is held against the steepest slope that gradients find, and one below it is a failure.
    """
    for choice in chosen:
        yield _row(choice, meta, slopes)
        gc.collect()


def _row(choice: Choice, meta: bool, slopes: bool) -> Row:
    began = time.perf_counter()
    shape: tuple[int, ...] = ()
    operations: int | None = None
    log10, needs_domain, slope, reason = None, False, None, ""
    outcome: Outcome = "covered" if meta else "bounded"
    try:
        module, shape = build(choice, meta=meta)
        graph = outline(module, shape) if meta else capture(module, shape)
        operations = len(graph.nodes)
        if meta:
            refuse_unknown(graph, RULES)
        else:
            log10, needs_domain = network_bound(graph)
            del graph
            slope = steepest(module, shape) if slopes and _size(module) <= LARGEST else None
            if slope is not None and slope > log10:
                raise AssertionError(f"expected no slope above the bound of 10^{log10}, got one of 10^{slope}")
    except (CaptureError, UnsupportedOp, NotLipschitz) as error:
        outcome, reason = "refused", str(error)
    except Exception as error:  # noqa: BLE001  (the row is where it is reported)
        outcome, reason = "failed", " ".join(f"{type(error).__name__}: {error}".split())
    return Row(
        choice.library,
        choice.family,
        choice.model,
        shape,
        outcome,
        operations,
        log10,
        needs_domain,
        slope,
        reason,
        time.perf_counter() - began,
    )


def network_bound(graph: Graph) -> tuple[float, bool]:
    """log10 of a proved bound, and whether it holds in `DOMAIN` only; nothing is measured from below."""
    ledger = Ledger(graph, torch.device("cpu"), method=METHOD, measure=False, domain=DOMAIN)
    with torch.no_grad():
        logits = ledger.settle(walk(graph, RULES, Value(INPUT), ledger, instead=whole_blocks(ledger)))
    log10 = log10_up(ledger.so_far[logits.step])
    if math.isnan(log10) or log10 == math.inf:
        raise NotLipschitz(f"expected a finite bound, got 10^{log10}")
    return log10, ledger.used_domain


def steepest(module: nn.Module, shape: tuple[int, ...]) -> float:
    """log10 of the steepest slope that gradients find at random images of `DOMAIN`: not above that of L.

    A difference of two logits changes by at most the root of two times what the logits do, in L2.
    """
    points = torch.rand(POINTS, *shape, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        labels = torch.cat([module(point[None]).argmax(1) for point in points])
    low, high = DOMAIN
    seen = largest_slope(module, points, labels, low=low, high=high, others=1, batch_size=1).value
    return math.log10(seen / math.sqrt(2)) - 1e-12 if seen else -math.inf


def build(choice: Choice, *, meta: bool = False) -> tuple[nn.Module, tuple[int, ...]]:
    """The model with random weights, in eval mode, and its default input shape (channels, height, width).

    `meta`: without values. A model without a classifier gets one for 1000 classes.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # about initialisation and renamed models
        torch.manual_seed(SEED)
        make = _timm if choice.library == "timm" else _torchvision
        module, shape = make(choice.model, torch.device("meta" if meta else "cpu"))
    return module.eval(), shape


def _timm(name: str, device: torch.device) -> tuple[nn.Module, tuple[int, ...]]:
    import timm

    with device:
        module = timm.create_model(name, pretrained=False)
        if not module.num_classes:
            module = timm.create_model(name, pretrained=False, num_classes=1000)
    return module, tuple(timm.data.resolve_model_data_config(module)["input_size"])


def _torchvision(name: str, device: torch.device) -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision import models

    # Some constructors read values, so that they cannot run on the meta device.
    module = models.get_model(name, weights=None).to(device)
    size = models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    return module, (3, size, size)


def _families(libraries: Sequence[Library], only: Collection[str]) -> list[tuple[Library, str]]:
    known = [(library, family) for library in libraries for family in families(library)]
    names = sorted({family for _, family in known})
    for name in only:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else f"there are: {', '.join(names)}"
            raise LoadError(f"unknown family {name!r} of {' and '.join(libraries)}; {hint}")
    return [pair for pair in known if not only or pair[1] in only]


def _members(library: Library, family: str) -> list[str]:
    if library == "timm":
        import timm

        return [name for name in timm.list_models(module=family) if not name.startswith("test_")]
    from torchvision import models

    return [name for name in models.list_models(module=models) if _torchvision_family(name) == family]


def _torchvision_family(name: str) -> str:
    from torchvision import models

    return models.get_model_builder(name).__module__.rpartition(".")[2]


def _smallest(library: Library, family: str) -> str:
    return min(_members(library, family), key=lambda name: _size(build(Choice(library, family, name), meta=True)[0]))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _structure(module: nn.Module) -> tuple[object, ...]:
    classes = frozenset(type(part).__name__ for part in module.modules())
    leaves = frozenset(name.rpartition(".")[2] for name, _ in module.named_parameters())
    return type(module).__name__, classes, leaves
