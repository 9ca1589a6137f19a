"""Which classes of a network the folders of images are, from their names alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lipaudit.errors import LoadError
from lipaudit.loading.dataset_registry import Batch, ImageSet
from lipaudit.results.formatting import clean, letters

IMAGENET = 1000
"""Networks with so many classes have those of ImageNet, in the order of their WordNet ids."""
WORDNET = re.compile(r"n\d{8}")
FIRST = 4
"""Folders that a message names."""


def with_labels_of(images: ImageSet, name: str, classes: int, model: str) -> ImageSet:
    """The folders of images with the labels that a network of so many classes gives them.

    Raises `LoadError` where the names of the folders do not say which class each of them is.
    """
    folders = images.class_names
    labels, by = _known(folders, classes)
    if labels is None:
        found = f"{name} has {len(folders)} folders ({_few(folders)}), {model} has {classes} classes"
        if len(folders) > classes:
            raise LoadError(f"{found}; choose a data set and a model that belong together")
        ids = ", by their WordNet ids (n01440764)" if classes == IMAGENET else ""
        raise LoadError(
            f"{found}: which are they? name the folders by the numbers of the classes (0 to {classes - 1}){ids}, or "
            "write images and labels into npz:FILE"
        )
    names = [f"class {number}" for number in range(classes)]
    for label, folder in zip(labels, folders, strict=True):
        names[label] = folder
    warning: tuple[str, ...] = ()
    if by == "by number" and labels != list(range(len(labels))) and len(labels) == classes:
        warning = (f"folders are the numbers of classes; torchvision's ImageFolder would count {_few(folders)}",)

    def read(index: np.ndarray, shape: tuple[int, ...] | None) -> Batch:
        batch = images.read(index, shape)
        return replace(batch, labels=np.array(labels)[batch.labels], warnings=batch.warnings + warning)

    source = f"{images.source}, {by}" if by else images.source
    return replace(images, source=source, classes=classes, class_names=tuple(names), read=read)


def _known(folders: Sequence[str], classes: int) -> tuple[list[int] | None, str]:
    """The class of each folder and how it is known; None where it is not."""
    if all(re.fullmatch(r"\d+", folder, re.ASCII) for folder in folders):
        numbers = [int(folder) for folder in folders]
        if max(numbers) < classes and len(set(numbers)) == len(numbers):
            return numbers, "by number"
        if numbers != sorted(numbers):
            return None, ""
    if classes == IMAGENET and (ids := _positions(folders, _imagenet_ids())):
        return ids, "by WordNet id"
    if classes == IMAGENET and (names := _positions(folders, _imagenet_names())):
        return names, "by the names of ImageNet's classes"
    if len(folders) == classes:
        return list(range(classes)), ""
    return None, ""


def _positions(folders: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the names of the folders stand among others, whatever their case and signs; none unless all do."""
    place = {letters(name): position for position, name in enumerate(names)}
    found = [place.get(letters(folder), -1) for folder in folders]
    return found if min(found) >= 0 and len(set(found)) == len(found) else []


def _imagenet_ids() -> list[str]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_label_name(position) for position in range(info.num_classes())]


def _imagenet_names() -> list[str]:
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.DEFAULT.meta["categories"])


def _few(folders: Sequence[str]) -> str:
    return ", ".join(clean(folder, 30) for folder in folders[:FIRST]) + (", …" if len(folders) > FIRST else "")
