"""Inputs and labels in whichever form they are there: arrays, tensors, lists, DataLoaders, Datasets, names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lipaudit.errors import LoadError


def as_arrays(data: Any, *, samples: int | None = None, seed: int = 0) -> tuple[Any, Any]:
    """Inputs (n, ...) and labels of `data`; `samples` of them, drawn without replacement, if there are more.

    `data`: a pair (inputs, labels), a torch `Dataset` of such pairs, a `DataLoader` (its batches in order, as many as
    are needed), or a name that `lipaudit datasets` lists. Raises `LoadError` for anything else.
    """
    if samples is not None and samples < 1:
        raise LoadError(f"expected samples of 1 or more, got {samples}")
    if isinstance(data, str):
        from lipaudit.loading.datasets import load_dataset

        loaded = load_dataset(data, samples=samples, seed=seed)
        return loaded.inputs, loaded.labels
    if isinstance(data, DataLoader):
        return _of_batches(data, samples)
    if isinstance(data, torch.Tensor | np.ndarray):
        raise LoadError(f"expected a label for each input, got inputs alone, of shape {tuple(data.shape)}; add labels")
    if isinstance(data, tuple | list) and len(data) == 2 and all(hasattr(part, "__len__") for part in data):
        inputs, labels = (part if isinstance(part, torch.Tensor) else np.asarray(part) for part in data)
        if len(inputs) != len(labels):
            raise LoadError(f"expected one label per input, got {len(inputs)} inputs and {len(labels)} labels")
        rows = _drawn(len(inputs), samples, seed)
        return (inputs, labels) if rows is None else (inputs[rows], labels[rows])
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        rows = _drawn(len(data), samples, seed)
        return _stacked(data[int(row)] for row in (range(len(data)) if rows is None else rows))
    raise LoadError(
        f"expected (inputs, labels), a Dataset, a DataLoader or the name of a data set, got {type(data).__name__}"
    )


def _drawn(available: int, samples: int | None, seed: int) -> np.ndarray | None:
    """Ascending rows, or None for all: as `lipaudit run` draws them."""
    if available == 0:
        raise LoadError("expected at least one image, got none")
    if samples is None or samples >= available:
        return None
    return np.sort(np.random.default_rng(seed).choice(available, samples, replace=False))


def _of_batches(loader: Iterable[Sequence[Any]], samples: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels, count = [], [], 0
    for batch in loader:
        _check_pair(batch, "batches (inputs, labels) from the DataLoader")
        inputs.append(torch.as_tensor(batch[0]))
        labels.append(torch.as_tensor(batch[1]))
        count += len(labels[-1])
        if samples is not None and count >= samples:
            break
    if not count:
        raise LoadError("expected at least one batch from the DataLoader, got none")
    return torch.cat(inputs)[:samples], torch.cat(labels)[:samples]


def _check_pair(pair: Any, what: str) -> Any:
    if not isinstance(pair, tuple | list) or len(pair) < 2:
        more = f" of {', '.join(map(str, pair))}" if isinstance(pair, dict) else ""
        raise LoadError(f"expected {what}, got {type(pair).__name__}{more}; pass inputs and labels as two arrays")
    return pair


def _stacked(pairs: Iterable[Sequence[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    checked = (_check_pair(pair, "pairs (input, label) from the Dataset") for pair in pairs)
    inputs, labels = zip(*((pair[0], pair[1]) for pair in checked), strict=True)
    if not all(isinstance(one, torch.Tensor | np.ndarray) for one in inputs):
        raise LoadError(
            f"expected images as tensors from the Dataset, got {type(inputs[0]).__name__}; give it a transform that "
            "makes tensors, such as torchvision.transforms.ToTensor()"
        )
    return torch.stack([torch.as_tensor(one) for one in inputs]), torch.stack([torch.as_tensor(one) for one in labels])


def with_labels(inputs: Any, labels: Any) -> tuple[torch.Tensor | np.ndarray, Any]:
    """Inputs and labels; those of a DataLoader or Dataset are its own. Raises `LoadError` for two kinds of labels."""
    if not isinstance(inputs, DataLoader | Dataset) or isinstance(inputs, torch.Tensor):
        return inputs, labels
    if labels is not None:
        raise LoadError(f"a {type(inputs).__name__} brings its labels with it; leave the labels out")
    return as_arrays(inputs)
