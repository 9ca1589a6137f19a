"""Figure 4: how far the logit of the true class lies above the next, over all audited images."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from lipaudit.report.figures.charts import Box, Chart, Figure, Mark, rect, text, text_width, x_axis, y_axis
from lipaudit.report.figures.scales import Scale, linear_ticks
from lipaudit.results.audit import Audit
from lipaudit.results.formatting import count, number, plural

MOST_BARS = 36
TAIL = 0.005
"""Share of the images at either end that the outermost bars take in, however far they lie."""

NO_IMAGE = "There is no margin to show: no image was audited."
ONE_VALUE = "There is nothing to draw: {images}, with {margins}."


@dataclass(frozen=True)
class Bar:
    """Images with a margin in [low, high); beyond the ends in the outermost bars."""

    low: float
    high: float
    images: int

    @property
    def wrong(self) -> bool:
        return self.high <= 0


@dataclass(frozen=True)
class Histogram:
    """Bars of one width, none across zero."""

    bars: tuple[Bar, ...]
    images: int
    wrong: int
    lowest: float
    highest: float

    @property
    def clipped(self) -> bool:
        return bool(self.bars) and (self.lowest < self.bars[0].low or self.highest >= self.bars[-1].high)


def histogram(audit: Audit) -> Histogram | None:
    """Of all finite margins; None without two that can be told apart in a drawing."""
    s = audit.samples
    rows = [row for row, margin in enumerate(s.margin) if math.isfinite(margin)]
    values = sorted(s.margin[row] for row in rows)
    if not values or not _apart(values[0], values[-1]):
        return None
    cut = int(TAIL * len(values))
    low, high = values[cut], values[-1 - cut]
    if not _apart(low, high):
        low, high = values[0], values[-1]
    step = _step(high - low)
    first, last = math.floor(low / step), math.floor(high / step)
    edges = [k * step for k in range(first, last + 2)]
    below = [0, *(bisect_left(values, edge) for edge in edges[1:-1]), len(values)]
    bars = tuple(Bar(edges[k], edges[k + 1], below[k + 1] - below[k]) for k in range(len(edges) - 1))
    wrong = sum(s.label[row] != s.prediction[row] for row in rows)
    return Histogram(bars, len(values), wrong, values[0], values[-1])


def _apart(low: float, high: float) -> bool:
    return 1e-200 < high - low < 1e200 and high - low > 1e-9 * max(abs(low), abs(high))


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that zero is an edge and the bars are few."""
    base = 10.0 ** math.floor(math.log10(span / MOST_BARS))
    return next(base * k for k in (1, 2, 5, 10, 20) if span / (base * k) <= MOST_BARS - 2)


def note(audit: Audit) -> str:
    """What to say where there is no Fig. 4."""
    values = sorted(value for value in audit.samples.margin if math.isfinite(value))
    if not values:
        return NO_IMAGE
    low, high = number(values[0]), number(values[-1])
    margins = f"a margin of {low}" if low == high else f"margins of {low} to {high}"
    return ONE_VALUE.format(images=plural(len(values), "image"), margins=margins)


def figure(shown: Histogram) -> Figure:
    """Fig. 4."""
    return Figure(_draw(shown, "fig4-wide", 860, 250), _draw(shown, "fig4-narrow", 340, 240))


def _draw(shown: Histogram, name: str, width: int, height: int) -> Chart:
    wide = width > 500
    plot = Box(38, 44, width - 12, height - 48)
    # Zero stays in sight also where all images are right, or all wrong.
    low, high = min(0.0, shown.bars[0].low), max(0.0, shown.bars[-1].high)
    values = Scale(low, high, plot.left, plot.right)
    most = max(bar.images for bar in shown.bars)
    counts = Scale(0.0, most, plot.bottom, plot.top)
    ticks = [tick for tick in linear_ticks(0, most, 5) if tick.at == int(tick.at)]
    marks: list[Mark] = [
        *y_axis(plot, counts, ticks, "images", plot.top - 12),
        *x_axis(plot, values, linear_ticks(low, high, 9 if wide else 5), "logit margin (true class minus next)"),
        *(_bar(bar, values, counts, plot) for bar in shown.bars if bar.images),
        rect(values(0.0) - 0.5, plot.top - 8, 1, plot.bottom - plot.top + 8, "zero"),
        *_sides(shown, values(0.0), plot),
    ]
    return Chart(name, width, height, plot, "Margins of all audited images", summary(shown), tuple(marks))


def _bar(bar: Bar, values: Scale, counts: Scale, plot: Box) -> Mark:
    left, right, top = values(bar.low), values(bar.high), counts(bar.images)
    return rect(
        left + 0.5, top, max(0.8, right - left - 1), plot.bottom - top, "bar wrong" if bar.wrong else "bar right"
    )


def _sides(shown: Histogram, zero: float, plot: Box) -> list[Mark]:
    """The names of both sides of zero, where there is room."""
    marks: list[Mark] = []
    right, wrong = f"right: {count(shown.images - shown.wrong)}", f"wrong: {count(shown.wrong)}"
    if zero + 6 + text_width(right, 14) < plot.right:
        marks.append(text(zero + 6, plot.top - 12, right, "label proved"))
    elif shown.images > shown.wrong:
        marks.append(text(plot.right, plot.top - 26, right, "label proved", "end"))
    if zero - 6 - text_width(wrong, 14) > 0:
        marks.append(text(zero - 6, plot.top - 12, wrong, "label wrong", "end"))
    return marks


def summary(shown: Histogram) -> str:
    """The finding in words."""
    return (
        f"{count(shown.images - shown.wrong)} of {plural(shown.images, 'image')} are classified correctly, "
        f"{count(shown.wrong)} wrongly. Margins reach from {number(shown.lowest)} to {number(shown.highest)}."
    )
