"""The most fragile images, as PNG data URIs for the report: original, perturbed, difference."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image

from lipaudit.results.audit import Samples, Thumbnail

COUNT = 8
LARGEST = 64
"""Pixels per side beyond which an image is shrunk; the report says that these are not the tensors."""


def thumbnails(clean: torch.Tensor, perturbed: torch.Tensor, samples: Samples) -> tuple[Thumbnail, ...]:
    """The `COUNT` images with the closest adversarial examples; none if the inputs are not images of 1 or 3 channels.

    `clean` and `perturbed` are (n, c, h, w) in [0, 1].
    """
    if clean.ndim != 4 or clean.shape[1] not in (1, 3):
        return ()
    found = [row for row, distance in enumerate(samples.distance) if distance is not None]
    closest = sorted(found, key=lambda row: samples.distance[row] or 0.0)[:COUNT]
    shown = []
    for row in closest:
        before, after = clean[row].double().cpu(), perturbed[row].double().cpu()
        moved = after - before
        factor = float(f"{0.5 / max(float(moved.abs().max()), 1 / 510):.2g}")  # to the full range, in two digits
        shown.append(Thumbnail(row, _png(before), _png(after), _png((moved * factor + 0.5).clamp(0, 1)), factor))
    return tuple(shown)


def _png(image: torch.Tensor) -> str:
    pixels = (image * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))
    if max(picture.size) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
