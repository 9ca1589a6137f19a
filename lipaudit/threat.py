"""The threat model of an audit: in which range raw inputs lie, and by how much they may move."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from lipaudit.errors import BadThreat
from lipaudit.graph.wrappers import PIXELS
from lipaudit.results.audit import Threat
from lipaudit.results.formatting import budgets, eps_value

DEFAULT_EPS = ("36/255", "0.25", "0.5", "1")
"""Budgets for pixels in [0, 1]; times the width of the range elsewhere."""

Box = tuple[float, float]


def box_of(domain: Box | None) -> Box:
    """The range of the entries of raw inputs, [0, 1] if nobody says otherwise. Raises `BadThreat` if it is none."""
    low, high = map(float, domain or PIXELS)
    if not -math.inf < low < high < math.inf:
        raise BadThreat(f"expected a domain with finite low < high, such as (0, 1), got {low:g} to {high:g}")
    return low, high


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


def doubt_of(points: torch.Tensor) -> str:
    """What a user should know of inputs whose range nobody stated; empty for those that may be meant so."""
    low, high = float(points.min()), float(points.max())
    images = points.ndim > 2 or points[0].numel() >= 64  # flat ones of 8 × 8 pixels or more
    scale = _scale(low, high) if images else ""
    return scale and (
        f"inputs go from {low:.3g} to {high:.3g}, and most networks take pixels from 0 to 1: divide them by {scale}, "
        f"or say that it is meant so by domain=(0, {scale})"
    )


def _scale(low: float, high: float) -> str:
    """By what pixels of this range are to be divided; empty if they look like none of 8 or 16 bits."""
    if low < 0 or not 2 < high <= 65535:
        return ""
    return "255" if high <= 255 else "65535"


def as_pixels(points: torch.Tensor, box: Box) -> torch.Tensor:
    """Points of the box as pixels in [0, 1], for the eye: rounded."""
    return points if box == PIXELS else ((points - box[0]) / (box[1] - box[0])).clamp(0, 1)


def threat_of(eps: str | float | Iterable[str | float] | None, box: Box) -> Threat:
    """L2 budgets as written, in ascending order, in units of the inputs. Raises `BadThreat` for what is no budget."""
    width = box[1] - box[0]
    if eps is None:
        eps = DEFAULT_EPS if width == 1 else [width * eps_value(e) for e in DEFAULT_EPS]
    try:
        found = budgets(eps)
    except (TypeError, ValueError) as error:
        raise BadThreat(str(error)) from None
    if not found:
        raise BadThreat("expected at least one eps such as 36/255, got none")
    return Threat(found) if box == PIXELS else Threat(found, "L2", *box, f"inputs in [{box[0]:g}, {box[1]:g}]")
