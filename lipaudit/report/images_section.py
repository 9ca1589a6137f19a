"""The view models of the images: margins, classes, the most fragile ones to look at, and the table of samples."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lipaudit.report.figures import margins
from lipaudit.report.figures.charts import Figure
from lipaudit.report.figures.classes import Classes, classes
from lipaudit.results import metrics
from lipaudit.results.audit import Audit, Thumbnail
from lipaudit.results.formatting import NONE, clean, count, number, number_from_log10, plural

MOST_TRIPLETS = 8
MOST_BYTES, MANY, FEWER_BYTES = 110_000, 1000, 42_000
"""Of all pictures together, and from how many samples on less: the page stays below 300 kB."""
SHOWN = 20
FOLDED, FEWER_FOLDED = 80, 40
"""Rows of the table in sight and folded away, fewer where samples are many; the result file has all."""
_PNG = re.compile(r"data:image/(?:png|webp);base64,[A-Za-z0-9+/]{1,40000}={0,2}")


@dataclass(frozen=True)
class Triplet:
    index: str
    label: str
    fooled: str
    distance: str
    attack: str
    radius: str
    original: str
    perturbed: str
    difference: str
    amplified: str
    """Empty if it is the same for all, and said once."""


@dataclass(frozen=True)
class SampleRow:
    index: str
    label: str
    prediction: str
    wrong: bool
    margin: str
    radius: str
    distance: str
    fooled: str
    attack: str
    ratio: str


@dataclass(frozen=True)
class Margins:
    """Fig. 4, and each bar as a row: from, to, images."""

    figure: Figure | None
    note: str
    clipped: bool
    certified: bool
    rows: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Images:
    margins: Margins
    classes: Classes
    triplets: tuple[Triplet, ...]
    note: str
    amplified: str
    shrunk: bool
    attacked: bool
    order: str
    rows: tuple[SampleRow, ...]
    more: tuple[SampleRow, ...]
    left_out: str
    norm: str


def images(audit: Audit) -> Images:
    """The eight thumbnails that broke most easily, and the rows that tell most."""
    thumbnails = _thumbnails(audit)
    factors = {one.amplified for one in thumbnails}
    drawn = [_triplet(audit, one, len(factors) > 1) for one in thumbnails]
    ranked = metrics.fragile_rows(audit)
    folded = FEWER_FOLDED if len(ranked) > MANY else FOLDED
    shown = tuple(_row(audit, row) for row in ranked[: SHOWN + folded])
    rest = len(ranked) - len(shown)
    return Images(
        _margins(audit),
        classes(audit),
        tuple(drawn),
        "" if drawn else _no_triplets(audit),
        f"{factors.pop():g} times" if len(factors) == 1 else "",
        max(audit.model.input_shape[-2:], default=0) > 64,
        metrics.was_attacked(audit),
        _order(audit),
        shown[:SHOWN],
        shown[SHOWN:],
        f"{plural(rest, 'more image is', 'more images are')} in the result file." if rest else "",
        audit.threat.norm,
    )


def _margins(audit: Audit) -> Margins:
    shown = margins.histogram(audit)
    if shown is None:
        return Margins(None, margins.note(audit), False, metrics.holds(audit), ())
    rows = [(number(bar.low), number(bar.high), count(bar.images)) for bar in shown.bars if bar.images]
    return Margins(margins.figure(shown), "", shown.clipped, metrics.holds(audit), tuple(rows))


def _thumbnails(audit: Audit) -> list[Thumbnail]:
    """Those that can be shown and fit the budget of the page."""
    shown: list[Thumbnail] = []
    size = 0
    most = FEWER_BYTES if len(audit.samples.label) > MANY else MOST_BYTES
    for one in filter(_drawable, audit.thumbnails):
        size += len(one.original) + len(one.perturbed) + len(one.difference)
        if len(shown) < MOST_TRIPLETS and size <= most:
            shown.append(one)
    return shown


def _drawable(one: Thumbnail) -> bool:
    """Nothing but an inline picture ever becomes the source of an image."""
    return all(_PNG.fullmatch(uri) for uri in (one.original, one.perturbed, one.difference))


def _no_triplets(audit: Audit) -> str:
    if not metrics.was_attacked(audit):
        return "There are no adversarial examples to look at: no image was attacked."
    if all(distance is None for distance in audit.samples.distance):
        return "There are no adversarial examples to look at: no attack broke any image."
    return "This result holds no thumbnails."


def _order(audit: Audit) -> str:
    if metrics.holds(audit) and metrics.was_attacked(audit):
        return "Ordered by attack over radius: the images whose certificate and attack are closest come first."
    if metrics.holds(audit):
        return "Ordered by certified radius, the smallest first."
    return "Ordered by the size of the smallest attack. Certified radii are not shown: none is valid."


def _radius(audit: Audit, row: int) -> str:
    if metrics.holds(audit):
        local = audit.samples.method and audit.samples.method[row] == "local"
        return f"{number(audit.samples.radius[row])}{' (local)' if local else ''}"
    return "withdrawn" if audit.verdict.integrity == "INVALID" else "none"


def _triplet(audit: Audit, one: Thumbnail, own_factor: bool) -> Triplet:
    s, row = audit.samples, one.sample
    return Triplet(
        f"#{s.index[row]}",
        clean(metrics.class_name(audit, s.label[row]), 24),
        clean(metrics.class_name(audit, s.adversarial_prediction[row]), 24),
        number(s.distance[row]),
        clean(s.attack[row] or NONE, 24),
        _radius(audit, row),
        one.original,
        one.perturbed,
        one.difference,
        f"×{one.amplified:g}" if own_factor else "",
    )


def _row(audit: Audit, row: int) -> SampleRow:
    s = audit.samples
    distance = s.distance[row]
    ratio = metrics.log10_ratio(audit, row) if metrics.holds(audit) else None
    return SampleRow(
        count(s.index[row]),
        clean(metrics.class_name(audit, s.label[row]), 20),
        clean(metrics.class_name(audit, s.prediction[row]), 20),
        s.label[row] != s.prediction[row],
        number(s.margin[row]),
        _radius(audit, row),
        number(distance) if s.attacked[row] and distance is not None else _undisturbed(s.attacked[row]),
        clean(metrics.class_name(audit, s.adversarial_prediction[row]), 20),
        clean(s.attack[row] or NONE, 20),
        number_from_log10(ratio) if ratio is not None else NONE,
    )


def _undisturbed(attacked: bool) -> str:
    return "never broken" if attacked else "not attacked"
