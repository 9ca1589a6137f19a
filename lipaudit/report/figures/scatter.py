"""Figure 2: each image's certified radius against the smallest perturbation that any attack found.

A point under the line y = x is a witness inside a certified radius. Nothing that bears on that is dropped:
images that were never broken stand as triangles on the upper edge, contradictions and the lowest ratios are
never merged with their neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipaudit.report.figures.charts import (
    Box,
    Chart,
    Figure,
    Mark,
    Path,
    dot,
    line,
    px,
    text,
    text_width,
    x_axis,
    y_axis,
)
from lipaudit.report.figures.curves import WIDE_GAP
from lipaudit.report.figures.scales import Scale, log10, log_ticks
from lipaudit.results import metrics
from lipaudit.results.audit import Audit
from lipaudit.results.formatting import decades, number, number_from_log10, plural
from lipaudit.results.metrics import smallest_change_words

MERGE_ABOVE = 1000
NEVER_MERGED = 50
MOST_NAMED = 6


@dataclass(frozen=True)
class Point:
    """log10 of radius and distance (None: never broken) of one row."""

    row: int
    radius: float
    distance: float | None


@dataclass(frozen=True)
class Cloud:
    broken: tuple[Point, ...]
    """By ascending distance over radius."""
    never: tuple[Point, ...]
    false: frozenset[int]
    """Rows with a witness within the radius."""
    gap: float | None


def cloud(audit: Audit) -> Cloud:
    """The tested images with a finite positive radius."""
    broken, never = [], []
    for row in metrics.tested_rows(audit):
        radius, distance = audit.samples.radius[row], audit.samples.distance[row]
        if math.isinf(radius):
            continue
        if distance is None:
            never.append(Point(row, log10(radius), None))
        elif distance > 0:
            broken.append(Point(row, log10(radius), log10(distance)))
    broken.sort(key=lambda p: ((p.distance or 0.0) - p.radius, p.row))
    false = frozenset(one.row for one in metrics.contradictions(audit))
    return Cloud(tuple(broken), tuple(never), false, metrics.median_gap(audit))


def figure(audit: Audit, shown: Cloud) -> Figure | None:
    """Fig. 2; None if no certified image was attacked."""
    if not (shown.broken or shown.never):
        return None
    return Figure(_draw(audit, shown, "fig2-wide", 860, 440), _draw(audit, shown, "fig2-narrow", 340, 400))


def _ranges(shown: Cloud) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of x and y: the same while points and line are close, else each its own."""
    points = shown.broken + shown.never
    radii = [p.radius for p in points]
    distances = [p.distance for p in shown.broken if p.distance is not None]
    x_low, x_high = min(radii), max(radii)
    everything = radii + distances
    if shown.gap is None or shown.gap < WIDE_GAP:
        low, high = _sides(min(everything), max(everything))
        return (low, high), (low, high)
    x_low, x_high = _sides(x_low, x_high)
    return (x_low, x_high), (x_low, _sides(x_low, max(everything))[1])


def _sides(low: float, high: float) -> tuple[float, float]:
    pad = max(0.12, 0.06 * (high - low))
    return low - pad, high + pad


def _draw(audit: Audit, shown: Cloud, name: str, width: int, height: int) -> Chart:
    wide = width > 500
    plot = Box(52, 58, width - 12, height - 48)
    (x_low, x_high), (y_low, y_high) = _ranges(shown)
    xs, ys = Scale(x_low, x_high, plot.left, plot.right), Scale(y_low, y_high, plot.bottom, plot.top)
    claimed = "certified" if metrics.holds(audit) else "claimed"
    radius = f"{claimed} radius ({audit.threat.norm}, log scale)"
    marks: list[Mark] = [
        *_forbidden(plot, xs, ys, wide),
        *y_axis(
            plot,
            ys,
            log_ticks(y_low, y_high, 9),
            f"smallest adversarial perturbation found ({audit.threat.norm})",
            plot.top - 12,
        ),
        *x_axis(plot, xs, log_ticks(x_low, x_high, 11 if wide else 6), radius),
        *_floor(plot, ys, audit),
        *_gap(shown, xs, ys, wide),
        *_cloud(shown, xs, ys, metrics.holds(audit)),
        *_never(shown, plot, xs),
        *_violations(audit, shown, plot, xs, ys),
    ]
    title = "Certified radius against the smallest adversarial perturbation found"
    return Chart(name, width, height, plot, title, summary(audit, shown), tuple(marks))


def _forbidden(plot: Box, xs: Scale, ys: Scale, wide: bool) -> list[Mark]:
    """The region under y = x, shaded and named."""
    left, right = ys(xs.low), ys(xs.high)
    area = f"M{px(plot.left)} {px(left)}L{px(plot.right)} {px(right)}V{px(plot.bottom)}H{px(plot.left)}Z"
    words = "below the line: the certificate is false" if wide else "certificate is false"
    return [
        Path(area, "forbidden"),
        line(plot.left, left, plot.right, right, "diagonal"),
        text(plot.right - 8, plot.bottom - 10, words, "label false", "end"),
    ]


def _floor(plot: Box, ys: Scale, audit: Audit) -> list[Mark]:
    at = log10(audit.dataset.smallest_change)
    if not ys.low < at < ys.high:
        return []
    y = ys(at)
    words = smallest_change_words(audit)
    # Above the line where the axis is close below it.
    beside = y - 5 if y + 22 > plot.bottom else y + 15
    return [line(plot.left, y, plot.right, y, "reference"), text(plot.left + 6, beside, words, "tick")]


def _gap(shown: Cloud, xs: Scale, ys: Scale, wide: bool) -> list[Mark]:
    """From the line up to the cloud at the median radius, where that is far."""
    if shown.gap is None or shown.gap < WIDE_GAP:
        return []
    middle = shown.broken[(len(shown.broken) - 1) // 2]
    x, low, high = xs(middle.radius), ys(middle.radius), ys(middle.radius + shown.gap)
    words = f"{decades(shown.gap)} apart" if wide else f"{shown.gap:.1f} decades apart"
    left = x + 8 + text_width(words, 14) > xs.end
    label = text(x - 8 if left else x + 8, (low + high) / 2, words, "label unknown", "end" if left else "start")
    return [line(x, low, x, high, "reference"), label]


def _cloud(shown: Cloud, xs: Scale, ys: Scale, holds: bool) -> list[Mark]:
    """All points that are no contradiction, as one path of round caps; of many, one per 2 pixels."""
    places: dict[tuple[int, int], tuple[float, float]] = {}
    merge = len(shown.broken) > MERGE_ABOVE
    for rank, point in enumerate(shown.broken):
        if point.distance is None or point.row in shown.false:
            continue
        x, y = xs(point.radius), ys(point.distance)
        if merge and rank >= NEVER_MERGED:
            x, y = 2 * round(x / 2), 2 * round(y / 2)
            places.setdefault((x, y), (x, y))
        else:
            places[-1, rank] = x, y
    if not places:
        return []
    css = " ".join(filter(None, ("points", "dense" if merge else "", "" if holds else "withdrawn")))
    return [Path("".join(f"M{px(x)} {px(y)}h0" for x, y in places.values()), css)]


def _never(shown: Cloud, plot: Box, xs: Scale) -> list[Mark]:
    """Hollow triangles on the upper edge: an attack would have to look further."""
    at = sorted({round(xs(point.radius)) for point in shown.never})
    if not at:
        return []
    y = plot.top - 4
    triangles = "".join(f"M{x - 4} {px(y)}h8l-4 -7z" for x in at)
    return [Path(triangles, "never"), text(plot.right, plot.top - 18, "△ never broken", "tick", "end")]


def _violations(audit: Audit, shown: Cloud, plot: Box, xs: Scale, ys: Scale) -> list[Mark]:
    """Contradictions, large and named; the first few, as far as their names do not touch."""
    marks: list[Mark] = []
    boxes: list[Box] = []
    for point in shown.broken:
        if point.distance is None or point.row not in shown.false:
            continue
        s, x, y = audit.samples, xs(point.radius), ys(point.distance)
        words = f"#{s.index[point.row]}"
        tip = f"{words}: claimed {number(s.radius[point.row])}, broken at {number(s.distance[point.row])}"
        marks.append(dot(x, y, 6, "violation", tip))
        wide = text_width(words, 13)
        left = x + 10 if x + 10 + wide < plot.right else x - 10 - wide
        box = Box(left, y - 8, left + wide, y + 8)
        if len(boxes) < MOST_NAMED and not any(box.meets(other) for other in boxes):
            boxes.append(box)
            marks.append(text(left, y + 5, words, "label false"))
    return marks


def summary(audit: Audit, shown: Cloud) -> str:
    """The finding in words."""
    wrong = len(metrics.contradictions(audit))
    verdict = f"{plural(wrong, 'point lies', 'points lie')} below the line" if wrong else "No point lies below the line"
    ratios = metrics.log10_ratios(audit)
    tail = f" The smallest ratio of distance to radius is {number_from_log10(min(ratios))}." if ratios else ""
    return f"{plural(len(shown.broken), 'image')} broken, {len(shown.never)} never broken. {verdict}.{tail}"
