"""`--model`: a name becomes a network with weights, raw inputs in [0,1] to logits, and the facts about it.

Nothing is guessed: a name without weights is refused with the remedy, an untrained network is audited only on
request, and no normalisation is put in front of a network unless its publisher or the user states it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from lipaudit.errors import LoadError
from lipaudit.graph.wrappers import Normalise, Normalised, as_module
from lipaudit.loading import datasets
from lipaudit.loading.checkpoints import check_finite, load_checkpoint, tensors_of
from lipaudit.loading.hashes import sha256_of_file, sha256_of_tensors
from lipaudit.loading.model_names import Built, Request, build, canonical, known_models
from lipaudit.loading.user_code import one_line
from lipaudit.progress import Progress, Silent
from lipaudit.results.audit import ModelFacts

__all__ = ["LoadedModel", "Normalise", "Normalised", "as_module", "known_models", "load_model"]

Statistics = Sequence[float] | Literal["none"] | None


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be audited."""

    module: nn.Module
    """Raw inputs in [0,1] to logits; on the CPU, in evaluation mode, its parameters frozen."""
    facts: ModelFacts
    weights_file: Path | None = None
    """Where the weights came from, if from a file."""


def load_model(
    name: str,
    *,
    dataset: str | None = None,
    checkpoint: Path | None = None,
    checkpoint_key: str | None = None,
    mean: Statistics = None,
    std: Statistics = None,
    num_classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    random_weights: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
    seed: int = 0,
) -> LoadedModel:
    """The network called `name`, with weights, normalisation and facts.

    `name`: `digits-aol`, `digits-cnn`, `resnet18` (with dataset `cifar10`), `timm:NAME`, `torchvision:NAME`,
    a bare name that only one of the two has, or `package.module:factory`. `input_shape` is (c, h, w); shape
    and number of classes follow from a named data set. `checkpoint_key` says which weights of a `checkpoint` are meant
    if it holds several that fit. `mean`, `std`: per channel, in units of [0,1], or
    "none".
    Raises `LoadError` whenever name, weights, shape and classes do not fit together.
    """
    name, dataset = canonical(name), datasets.canonical(dataset) if dataset else None
    outline = datasets.outline(dataset)
    shape = tuple(input_shape) if input_shape else outline.shape
    if checkpoint is not None and random_weights:
        raise LoadError("--checkpoint and --random-weights contradict each other; give one of them")
    if checkpoint_key is not None and checkpoint is None:
        raise LoadError("--checkpoint-key says which weights of a file are meant; add --checkpoint FILE")
    request = Request(
        name=name,
        classes=num_classes or outline.classes,
        channels=shape[0] if shape else None,
        pretrained=checkpoint is None and not random_weights,
        offline=offline,
        progress=progress or Silent(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build(request, dataset)
    if checkpoint is not None:
        notes = load_checkpoint(built.module, checkpoint, checkpoint_key)
        how = f"{checkpoint.name} ({', '.join(notes)})" if notes else checkpoint.name
        if notes:
            request.progress.say(f"weights of {how}")
        built = replace(built, source=f"{built.source}; weights of {how}", weights_file=checkpoint)
    network = _prepared(built.module, name)
    shape = shape or built.input_shape
    if shape is None:
        raise LoadError(f"the input shape of {name} is unknown; add --input-shape 3,32,32 (channels,height,width)")
    mean, std = _statistics(mean, std, built, shape, given=checkpoint is not None)
    module = Normalised(network, mean, std).eval() if mean else network
    classes = _count_classes(module, name, shape, request.classes)
    facts = _facts(name, built, network, shape, classes, mean, std, random_weights)
    return LoadedModel(module, facts, built.weights_file)


def _prepared(module: nn.Module, name: str) -> nn.Module:
    """On the CPU, in evaluation mode, frozen, all floats in single precision and finite."""
    module = module.cpu().eval().requires_grad_(False)
    check_finite(module, f"--model {name}")
    for label, tensor in tensors_of(module).items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise LoadError(f"--model {name}: {label} is {tensor.dtype}, expected torch.float32; return model.float()")
    return module


def _statistics(
    mean: Statistics, std: Statistics, built: Built, shape: tuple[int, ...], *, given: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation to put in front, empty for none. `given`: by a user's checkpoint."""
    if mean == "none":
        if std not in (None, "none"):
            raise LoadError("--mean none with numbers in --std; give both, or --mean none alone")
        return (), ()
    if mean is None and std is None:
        if given and not built.raw:
            raise LoadError(
                "which input normalisation was this checkpoint trained with? expected --mean and --std with "
                "one number per channel in units of [0,1], or --mean none; lipaudit does not guess it"
            )
        return built.mean, built.std
    if mean is None or std is None or std == "none":
        raise LoadError("--mean and --std belong together: one number per channel each, or --mean none")
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    channels = shape[0]
    if not len(mean) == len(std) == channels:
        raise LoadError(f"expected {channels} numbers in --mean and --std, got {len(mean)} and {len(std)}")
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise LoadError(f"expected finite --mean and positive --std, got {mean} and {std}")
    if max(map(abs, mean)) > 1 or max(std) > 1:
        raise LoadError(f"--mean {mean} --std {std} are not in units of [0,1]; divide them by 255")
    return mean, std


@torch.no_grad()
def _count_classes(module: nn.Module, name: str, shape: tuple[int, ...], expected: int | None) -> int:
    """The length of the logits on one image; also that they are logits of one image, and finite."""
    try:
        image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
        logits = module(image)
    except (Exception, SystemExit) as error:
        raise LoadError(
            f"{name} fails on an input of shape {shape}: {one_line(error)}; check --input-shape and --dataset"
        ) from error
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise LoadError(f"{name}: expected a tensor of logits, got {got}; return the logits alone")
    if logits.ndim != 2 or len(logits) != 1 or logits.shape[1] < 2:
        raise LoadError(
            f"{name}: expected logits of shape (1, classes) for one input of shape {shape}, got "
            f"{tuple(logits.shape)}; lipaudit audits classifiers with two classes or more"
        )
    if not torch.isfinite(logits).all():
        raise LoadError(f"{name} gives NaN or infinite logits on an input in [0,1]; check weights and normalisation")
    if expected not in (None, logits.shape[1]):
        raise LoadError(
            f"{name} has {logits.shape[1]} classes, expected {expected}; give a network for this data set, "
            "or the right --num-classes"
        )
    return int(logits.shape[1])


def _facts(
    name: str,
    built: Built,
    network: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    random_weights: bool,
) -> ModelFacts:
    file = built.weights_file
    return ModelFacts(
        name=name,
        source=built.source,
        architecture=type(network).__name__,
        parameters=sum(p.numel() for p in network.parameters()),
        weights="random" if random_weights else "trained",
        weights_sha256=sha256_of_tensors(sorted(tensors_of(network).items())),
        weights_file="" if file is None else file.name,
        weights_file_sha256="" if file is None else sha256_of_file(file),
        dtype="float32",
        input_shape=shape,
        classes=classes,
        mean=mean,
        std=std,
        licence=built.licence,
    )
