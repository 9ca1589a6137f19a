"""The best accuracies that others have published: `published.toml`, one figure a data set, norm, budget and kind."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

from lipaudit.results.formatting import letters
from lipaudit.results.threat import PIXELS, Box, Norm, eps_value, norm_of

Kind = Literal["certified", "empirical"]
"""Proved, or left by attacks."""
SAME = 1e-12
"""Two budgets are one if they differ by no more: what the width of a range leaves of a fraction."""


@dataclass(frozen=True)
class Published:
    """One figure, and where it stands."""

    kind: Kind
    dataset: str
    norm: Norm
    eps: str
    """For pixels in [0, 1], as written."""
    value: float
    """A share of the images, from 0 to 1."""
    title: str
    """Of the work that it is from."""
    year: int
    link: str
    place: str
    """Where it stands behind the link."""


def published_at(dataset: str, norm: str, eps: str | float, kind: Kind, box: Box = PIXELS) -> Published | None:
    """The best published figure at exactly this data set, norm and budget; None where the table has none.

    Names of data sets may be written with capitals and dashes, and carry a folder behind a colon. `eps` is in units of
    inputs in `box`: that of pixels in [0, 1] times its width.
    """
    asked = (kind, letters(dataset.partition(":")[0]), norm_of(norm))
    size = eps_value(eps) / (box[1] - box[0])
    same = (one for one in _shipped() if (one.kind, one.dataset, one.norm) == asked)
    return next((one for one in same if math.isclose(eps_value(one.eps), size, rel_tol=SAME)), None)


@cache
def _shipped() -> tuple[Published, ...]:
    return figures(resources.files(__package__).joinpath("published.toml").read_text(encoding="utf-8"))


def figures(text: str) -> tuple[Published, ...]:
    """The figures of such a file. Raises `ValueError` where it gives two for the same, or one that makes no sense."""
    given = tomllib.loads(text)
    found: dict[tuple[str, str, str, float], Published] = {}
    for entry in given["accuracy"]:
        kind, dataset, norm = entry["kind"], letters(entry["dataset"]), norm_of(entry["norm"])
        for eps, percent in entry["percent"].items():
            key = (kind, dataset, norm, eps_value(eps))
            if kind not in get_args(Kind) or not 0 < percent < 100 or key in found:
                raise ValueError(f"expected one accuracy in per cent of {dataset} in {norm} at {eps}, {kind}")
            found[key] = Published(kind, dataset, norm, eps, percent / 100, **given["sources"][entry["source"]])
    return tuple(found.values())
