"""`--dataset`: a name becomes images in [0,1] with labels, and the facts about them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lipaudit.errors import LoadError
from lipaudit.loading import image_files  # noqa: F401  (registers imagefolder and npz)
from lipaudit.loading.classes import with_labels_of
from lipaudit.loading.dataset_registry import DATASETS, NAMED, ImageSet, Outline, Wanted, is_cached
from lipaudit.loading.hashes import sha256_of_tensors
from lipaudit.progress import Progress, Silent
from lipaudit.results.audit import DataFacts, ModelFacts
from lipaudit.results.formatting import letters

__all__ = [
    "NAMED",
    "KnownDataset",
    "LoadedData",
    "Outline",
    "canonical",
    "check_fit",
    "for_model",
    "known_datasets",
    "load_dataset",
    "open_dataset",
    "outline",
    "read_images",
]


@dataclass(frozen=True)
class LoadedData:
    """Images ready to be audited, in the order of the data set."""

    inputs: torch.Tensor
    """(n, c, h, w), float32, in [0,1]."""
    labels: torch.Tensor
    """(n,), int64."""
    index: tuple[int, ...]
    """Position of each image in the data set."""
    facts: DataFacts
    warnings: tuple[str, ...] = ()
    """What a reader of the report has to know about them."""


@dataclass(frozen=True)
class KnownDataset:
    """One line of `lipaudit datasets`."""

    name: str
    what: str
    images: str
    shape: str
    licence: str
    cached: bool
    """Whether it is on this machine."""


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    offline: bool = False,
    input_shape: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> LoadedData:
    """`samples` images of the data set called `name`, drawn without replacement, or all of them.

    `name`: `digits`, `cifar10`, `cifar100`, `mnist`, `fashion-mnist`, `imagefolder:DIR`, `npz:FILE`.
    `input_shape` (c, h, w) is the network's, for images that must follow it. Raises `LoadError` if there are
    no such images, or if they are not in [0,1].
    """
    name = canonical(name)
    opened = open_dataset(name, data_dir=data_dir, offline=offline, input_shape=input_shape, progress=progress)
    return read_images(opened, name, samples=samples, seed=seed, input_shape=input_shape)


def open_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    offline: bool = False,
    input_shape: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> ImageSet:
    """What the data set is, before its images are read or fetched. Raises `LoadError` for an unknown name."""
    name = canonical(name)
    kind, _, argument = name.partition(":")
    shape = tuple(input_shape) if input_shape else None
    return DATASETS[kind](Wanted(name, argument, data_dir, shape, offline, progress or Silent()))


def canonical(name: str) -> str:
    """The name as the table has it: `CIFAR-10` is `cifar10`. Raises `LoadError` where there is none, with a hint."""
    kind, colon, rest = name.partition(":")
    known = {letters(each): each for each in DATASETS}
    found = known.get(letters(kind))
    if found is not None and (found in NAMED) != bool(colon):
        return found + colon + rest
    if found is not None and not colon:
        hint = f"expected {found}: and a path behind it;"
    elif found is not None:
        hint = f"did you mean {found}? its files are where --data-dir DIR says;"
    elif path := _as_path(name):
        hint = f"did you mean {path}?"
    else:
        close = difflib.get_close_matches(letters(name), list(known), n=1)
        hint = f"did you mean {known[close[0]]}?" if close else f"expected {', '.join(NAMED)},"
    raise LoadError(f"unknown data set {name!r}; {hint} imagefolder:DIR and npz:FILE read your own images")


def _as_path(name: str) -> str:
    """How a folder or file is given as a data set; empty if the name is of none."""
    path = Path(name).expanduser()
    if not name or "\0" in name or len(name) > 1000:
        return ""
    if path.suffix == ".npz":
        return f"npz:{name}"
    return f"imagefolder:{name}" if path.is_dir() or "/" in name or "\\" in name else ""


def read_images(
    opened: ImageSet, name: str, *, samples: int | None, seed: int, input_shape: Sequence[int] | None
) -> LoadedData:
    """Draw and read the images of an opened data set; see `load_dataset`."""
    index = _choose(opened.available, samples, seed)
    batch = opened.read(index, tuple(input_shape) if input_shape else None)
    inputs = torch.from_numpy(np.ascontiguousarray(batch.inputs))
    inputs = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()
    labels = torch.from_numpy(np.ascontiguousarray(batch.labels)).long()
    warnings = batch.warnings
    if samples is not None and samples > opened.available:
        warnings += (f"{samples} images were asked for, {name} has {opened.available}: all were audited",)
    facts = DataFacts(
        name=name,
        split=opened.split,
        source=opened.source,
        sha256=sha256_of_tensors([("inputs", inputs), ("labels", labels)]),
        available=opened.available,
        samples=len(index),
        seed=seed,
        class_names=opened.class_names,
        levels=grid_levels(inputs),
    )
    return LoadedData(inputs, labels, tuple(map(int, index)), facts, warnings)


def outline(name: str | None) -> Outline:
    """Shape and number of classes of a named data set; empty where the user's files decide."""
    return NAMED.get(canonical(name), Outline()) if name else Outline()


def for_model(opened: ImageSet, name: str, model: ModelFacts) -> ImageSet:
    """The data set with labels that are the model's. Raises `LoadError` where nothing says which class is which."""
    if name.partition(":")[0] == "imagefolder":
        return with_labels_of(opened, name, model.classes, model.name)
    if opened.classes not in (None, model.classes):
        raise LoadError(
            f"{name} has {opened.classes} classes, {model.name} has {model.classes}; choose a data set and a model "
            "that belong together"
        )
    return opened


def check_fit(data: LoadedData, model: ModelFacts) -> None:
    """Refuse images of another shape than the network takes, and labels that it has no class for."""
    shape = tuple(data.inputs.shape[1:])
    if shape != model.input_shape:
        turned = sorted(shape) == sorted(model.input_shape)
        remedy = (
            "--input-shape is channels,height,width" if turned else "choose a data set and a model that belong together"
        )
        raise LoadError(
            f"{data.facts.name} has images of shape {shape}, {model.name} takes {model.input_shape}; {remedy}"
        )
    if data.facts.class_names and len(data.facts.class_names) != model.classes:
        raise LoadError(
            f"{data.facts.name} has {len(data.facts.class_names)} classes, {model.name} has {model.classes}; choose a "
            "data set and a model that belong together"
        )
    if int(data.labels.max()) >= model.classes:
        raise LoadError(
            f"{data.facts.name} has label {int(data.labels.max())}, {model.name} has {model.classes} classes "
            "(0 to n - 1); choose a data set and a model that belong together"
        )


def known_datasets() -> tuple[KnownDataset, ...]:
    """The table of `lipaudit datasets`."""
    named = [
        KnownDataset(
            name,
            DATASETS.claim(name),
            f"{o.available:,}",
            "×".join(map(str, o.shape or ())),
            o.licence,
            is_cached(name),
        )
        for name, o in NAMED.items()
    ]
    files = [("imagefolder", "imagefolder:DIR"), ("npz", "npz:FILE")]
    own = [KnownDataset(shown, DATASETS.claim(kind), "", "", "yours", True) for kind, shown in files]
    return (*named, *own)


def _choose(available: int, samples: int | None, seed: int) -> np.ndarray:
    """Ascending positions: all, or a random subset without replacement that the seed determines."""
    if available == 0:
        raise LoadError("the data set has no images; expected at least one")
    if samples is not None and samples < 1:
        raise LoadError(f"expected --samples 1 or more, got {samples}")
    if samples is None or samples >= available:
        return np.arange(available)
    return np.sort(np.random.default_rng(seed).choice(available, samples, replace=False))


def grid_levels(inputs: torch.Tensor, low: float = 0.0, high: float = 1.0) -> int:
    """The n of the grid low + (high - low) k/n on which every value lies, 0 if on none of those known.

    255: 8-bit images, 16: the digits. In another range than [0, 1], values may be off by the rounding of float32.
    """
    if (low, high) == (0.0, 1.0):
        return next((n for n in (255, 16) if torch.equal((inputs * n).round() / n, inputs)), 0)
    unit, slack = (inputs.double() - low) / (high - low), max(-low, high) / (high - low) * 2**-22
    return next((n for n in (255, 16) if bool(((unit * n).round() - unit * n).abs().max() <= n * slack)), 0)
