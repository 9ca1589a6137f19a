"""The images of a user: their shape, their range, their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lipaudit.errors import BadThreat
from lipaudit.results.threat import PIXELS, Box, _scale


def within(points: torch.Tensor, box: Box) -> torch.Tensor:
    """The points, which lie in the box. Raises `BadThreat` if they do not."""
    low, high = float(points.min()), float(points.max())
    if low < box[0] or high > box[1]:
        remedy = "undo the normalisation and pass mean and std instead, or the range that they have as domain"
        if box == PIXELS and (scale := _scale(low, high)):
            remedy = f"divide them by {scale}, or pass the range that they have as domain"
        raise BadThreat(
            f"expected inputs in [{box[0]:g}, {box[1]:g}], got values from {low:.3g} to {high:.3g}; {remedy}"
        )
    return points


def as_pixels(points: torch.Tensor, box: Box) -> torch.Tensor:
    """Points of the box as pixels in [0, 1], for the eye: rounded."""
    return points if box == PIXELS else ((points - box[0]) / (box[1] - box[0])).clamp(0, 1)


def check_inputs(inputs: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Inputs as a floating tensor (n, ...), finite. Raises `BadThreat`."""
    points = _tensor(inputs)
    if points.ndim < 2 or not len(points):
        raise BadThreat(f"expected inputs of shape (n, ...), n >= 1, got {tuple(points.shape)}")
    if points.is_meta or points.layout != torch.strided or points.is_quantized:
        raise BadThreat("expected inputs with all values one by one, got a sparse, quantised or empty tensor")
    if not points.is_floating_point():
        remedy = "take the real parts" if points.is_complex() else as_pixels_remedy(points.cpu().numpy())
        raise BadThreat(f"expected floating-point inputs in the units of the radius, got {points.dtype}; {remedy}")
    points = points if points.dtype == torch.float64 else points.to(torch.float32)
    if not bool(torch.isfinite(points).all()):
        raise BadThreat("expected finite inputs, got NaN or inf")
    return points


def as_pixels_remedy(array: np.ndarray) -> str:
    """How whole numbers become pixels in [0, 1]."""
    if array.dtype == bool:
        return "as pixels of 0 and 1 they are x.astype('float32')"
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    top = np.iinfo(array.dtype).max if array.dtype in (np.uint8, np.uint16) else 255 if high <= 255 else 65535
    if low < 0 or high > top:
        return f"they go from {low} to {high}: shift and scale them into [0, 1]"
    return f"as pixels in [0, 1] they are x / {top}"


def _tensor(data: Any) -> torch.Tensor:
    """Tensors, arrays and nested lists as a tensor without history; also arrays that torch does not take as they are.

    Those are read-only, reversed or of the other byte order, as what reads image files may hand out.
    """
    if isinstance(data, torch.Tensor):
        return data.detach()
    try:
        array = np.ascontiguousarray(data)
    except ValueError:
        raise BadThreat("expected an array of numbers, got rows of different lengths") from None
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    try:
        array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
        return torch.from_numpy(array)
    except TypeError:
        raise BadThreat(f"expected an array of numbers, got {array.dtype}") from None


def check_labels(labels: torch.Tensor | np.ndarray | Sequence[int], count: int, classes: int) -> list[int]:
    """Labels (integers, also in a column, or one-hot rows) as a list.

    Raises `BadThreat`, also for shares of classes ("soft" labels).
    """
    if labels is None:
        raise BadThreat(f"expected {count} labels, got none; pass them behind the inputs")
    answers = _tensor(labels)
    answers = answers if answers.is_floating_point() or answers.is_complex() else answers.long()
    if answers.ndim == 2 and answers.shape[1] == 1 < classes:
        answers = answers[:, 0]
    if answers.ndim == 2 and answers.shape[1] == classes > 1:
        if not bool(((answers == 0) | (answers == 1)).all()) or not bool((answers.sum(1) == 1).all()):
            raise BadThreat(
                "expected one-hot labels, a single 1 in each row, got other numbers (soft or several labels?); "
                "certificates are about one class per input: pass labels.argmax(1) if that is what is meant"
            )
        answers = answers.long().argmax(1)
    if answers.ndim != 1 or len(answers) != count or answers.dtype != torch.int64:
        raise BadThreat(
            f"expected {count} integer or one-hot labels, got {answers.dtype} of shape {tuple(answers.shape)}"
        )
    if bool((answers < 0).any()) or bool((answers >= classes).any()):
        raise BadThreat(
            f"expected labels from 0 to {classes - 1}, got {int(answers.min())} to {int(answers.max())}; "
            "model and data set do not have the same classes"
        )
    return answers.tolist()


def doubt_of(points: torch.Tensor) -> str:
    """What a user should know of inputs whose range nobody stated; empty for those that may be meant so."""
    low, high = float(points.min()), float(points.max())
    images = points.ndim > 2 or points[0].numel() >= 64  # flat ones of 8 × 8 pixels or more
    scale = _scale(low, high) if images else ""
    return scale and (
        f"inputs go from {low:.3g} to {high:.3g}, and most networks take pixels from 0 to 1: divide them by {scale}, "
        f"or say that it is meant so by domain=(0, {scale})"
    )
