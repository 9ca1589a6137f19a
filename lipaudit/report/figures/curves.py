"""Figure 1: at each perturbation size, how many images are certified, broken, or neither.

Every vertical cut divides all audited images into four: certified (bottom), unknown, broken by an attack, and
misclassified (top).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from lipaudit.report.figures.charts import (
    Box,
    Chart,
    Edge,
    Figure,
    Mark,
    Path,
    Reference,
    line,
    px,
    rect,
    reference_lines,
    reference_rows,
    roomiest,
    text,
    text_width,
    x_axis,
    y_axis,
)
from lipaudit.report.figures.scales import Scale, linear_ticks, log10, log_ticks
from lipaudit.results import metrics
from lipaudit.results.audit import Audit
from lipaudit.results.formatting import clean, decades, percent
from lipaudit.results.threat import eps_value

WIDE_GAP = 2.0
"""Decades between radius and attack from which a linear axis stands first, and the gap is named."""


@dataclass(frozen=True)
class Survival:
    """Share of `total` images that hold out beyond a size: `values` break there, `forever` never do."""

    values: tuple[float, ...]
    forever: int
    total: int

    def share(self, size: float) -> float:
        return (len(self.values) - bisect_right(self.values, size) + self.forever) / self.total


@dataclass(frozen=True)
class Band:
    """The two curves; None where nothing was proved (or the proofs are withdrawn), or nothing attacked."""

    certified: Survival | None
    empirical: Survival | None
    clean: float
    gap: float | None
    """Decades between the medians of radius and attack."""


def band(audit: Audit) -> Band | None:
    """What Fig. 1 shows; None without images."""
    s, rows = audit.samples, metrics.correct_rows(audit)
    total = len(s.label)
    if not total:
        return None
    radii = [s.radius[row] for row in rows if s.radius[row] > 0]
    distances = [s.distance[row] for row in rows]
    proved = empirical = None
    if metrics.holds(audit):
        finite = sorted(r for r in radii if math.isfinite(r))
        proved = Survival(tuple(finite), len(radii) - len(finite), total)
    if metrics.was_attacked(audit):
        broken = sorted(d for d in distances if d is not None)
        empirical = Survival(tuple(broken), len(distances) - len(broken), total)
    gap = metrics.median_gap(audit) if proved else None
    return Band(proved, empirical, len(rows) / total, gap)


def figure(audit: Audit, shown: Band, log: bool = True) -> Figure | None:
    """Fig. 1, or its linear twin; None if there is no curve to draw."""
    if not (shown.certified and (shown.certified.values or shown.certified.forever)) and shown.empirical is None:
        return None
    name = "fig1" if log else "fig1-linear"
    wide = _draw(audit, shown, log, f"{name}-wide", 860, 400)
    return Figure(wide, _draw(audit, shown, log, f"{name}-narrow", 340, 380))


def _references(audit: Audit, long: bool) -> list[tuple[float, str]]:
    step = audit.dataset.smallest_change_text
    named = {audit.dataset.smallest_change: metrics.smallest_change_words(audit) if long else step}
    return list(({eps_value(eps): clean(eps, 12) for eps in audit.threat.eps} | named).items())


def _range(audit: Audit, shown: Band, log: bool, wide: bool) -> tuple[float, float]:
    """The sizes to show: the bulk of both curves and every reference."""
    ends: list[float] = [size for size, _ in _references(audit, long=False)]
    for curve in (shown.certified, shown.empirical):
        if curve and curve.values:
            last = len(curve.values) - 1
            ends += [curve.values[round(0.03 * last)], curve.values[round(0.995 * last)]]
    if not log:
        return 0.0, 1.08 * max(ends)
    low, high = log10(min(end for end in ends if end > 0)), log10(max(ends))
    span = high - low
    # Room for the names of the outer regions.
    return low - max(0.2, (0.09 if wide else 0.2) * span), high + max(0.15, (0.03 if wide else 0.08) * span)


def _draw(audit: Audit, shown: Band, log: bool, name: str, width: int, height: int) -> Chart:
    wide = width > 500
    low, high = _range(audit, shown, log, wide)
    plot = Box(38, 44, width - 12, height - 48)
    sizes = Scale(low, high, plot.left, plot.right)
    references = [Reference(sizes(log10(v) if log else v), words) for v, words in _references(audit, wide)]
    plot = Box(plot.left, 28 + 15 * reference_rows(plot, references), plot.right, plot.bottom)
    shares = Scale(0.0, 100.0, plot.bottom, plot.top)
    most = 11 if wide else 5
    ticks = log_ticks(low, high, most) if log else linear_ticks(low, high, most)
    place = _Place(plot, sizes, shares, log, tuple(reference.x for reference in references))
    marks: list[Mark] = [
        *_regions(place, shown),
        *_curves(place, shown),
        *y_axis(plot, shares, linear_ticks(0, 100, 6), "% of the audited images", plot.top - 12),
        *x_axis(plot, sizes, ticks, _axis_name(audit, log, wide)),
        *reference_lines(plot, references),
        *_labels(place, shown, audit.verdict.integrity == "INVALID"),
    ]
    return Chart(name, width, height, plot, "Certified, broken and unknown", summary(audit), tuple(marks))


def _axis_name(audit: Audit, log: bool, wide: bool) -> str:
    units = f"{audit.threat.norm} norm, {clean(audit.threat.units, 30)}, " if wide else ""
    return f"size of the change, ε ({units}{'log' if log else 'linear'} scale)"


@dataclass(frozen=True)
class _Place:
    """Where a curve is drawn."""

    plot: Box
    sizes: Scale
    shares: Scale
    log: bool
    references: tuple[float, ...]

    def edge(self, curve: Survival) -> Edge:
        """Height of the curve in pixels at a pixel."""

        def y(x: float) -> float:
            size = self.sizes.back(x)
            if self.log:
                size = 10.0**size if size < 308 else math.inf
            return self.shares(100 * curve.share(size))

        return y

    def level(self, share: float) -> Edge:
        return lambda _x: self.shares(100 * share)

    def steps(self, curve: Survival, css: str) -> Path:
        """The step curve closed along the base line, so that one path is line and area; the ends are clipped.

        No more vertices than pixels, or every second for many: of several steps within one, the last counts.
        """
        digits, grain = (1, 1) if len(curve.values) <= 400 else (0, 1 if len(curve.values) <= 1000 else 2)
        after: dict[float, int] = {}
        for rank, value in enumerate(curve.values, 1):
            size = log10(value) if self.log else value
            if size <= self.sizes.low:
                after[self.plot.left - 3] = rank
            elif size < self.sizes.high:
                after[round(self.sizes(size) / grain, digits) * grain] = rank
        alive = len(curve.values) + curve.forever
        start = after.pop(self.plot.left - 3, 0)
        height = self.shares(100 * (alive - start) / curve.total)
        d = [f"M{px(self.plot.left - 3)} {px(self.plot.bottom)}V{px(height)}"]
        d += [f"H{px(x)}V{px(self.shares(100 * (alive - rank) / curve.total))}" for x, rank in after.items()]
        d.append(f"H{px(self.plot.right + 3)}V{px(self.plot.bottom)}")
        return Path("".join(d), css, clipped=True)


def _regions(place: _Place, shown: Band) -> list[Mark]:
    """The ground: wrong above the clean accuracy; broken below it, which the curves paint over."""
    plot, top = place.plot, place.shares(100 * shown.clean)
    ground = "area-broken" if shown.empirical else "area-unknown"
    return [
        rect(plot.left, plot.top, plot.width, top - plot.top, "area-wrong"),
        rect(plot.left, top, plot.width, plot.bottom - top, ground),
    ]


def _curves(place: _Place, shown: Band) -> list[Mark]:
    marks: list[Mark] = []
    if shown.empirical:
        marks.append(place.steps(shown.empirical, "curve empirical"))
    else:
        top = place.shares(100 * shown.clean)
        marks.append(line(place.plot.left, top, place.plot.right, top, "clean"))
    if shown.certified:
        marks.append(place.steps(shown.certified, "curve proved"))
    return marks


def _labels(place: _Place, shown: Band, withdrawn: bool) -> list[Mark]:
    """Each region named where it has most room; a region without room is left to the caption's key."""
    plot = place.plot
    base, roof = (lambda _x: plot.bottom), (lambda _x: plot.top)
    clean_level = place.level(shown.clean)
    empirical = place.edge(shown.empirical) if shown.empirical else clean_level
    proved = place.edge(shown.certified) if shown.certified else base
    gap = shown.gap is not None and shown.gap > WIDE_GAP
    unknown = f"{decades(shown.gap or 0)} between radius and attack" if gap else "neither certified nor broken"
    if not shown.certified:
        unknown = "the certificates are withdrawn" if withdrawn else "nothing is certified"
    regions = [
        ("certified", "no change of this size alters the answer", proved, base, "label proved"),
        ("unknown", unknown, empirical, proved, "label unknown"),
        ("broken", "an attack alters the answer", clean_level, empirical, "label broken"),
        ("misclassified", "without any change", roof, clean_level, "label wrong"),
    ]
    marks: list[Mark] = []
    for head, tail, top, bottom, css in regions:
        absent = (head == "broken" and not shown.empirical) or (head == "certified" and not shown.certified)
        marks += [] if absent else _label(place, head, tail, top, bottom, css)
    return marks


def _label(place: _Place, head: str, tail: str, top: Edge, bottom: Edge, css: str) -> list[Mark]:
    plot, avoid = place.plot, place.references
    spot = roomiest(plot, top, bottom, max(text_width(head, 14), text_width(tail)) + 12, 50, avoid)
    if spot:
        x, y = spot
        return [text(x, y - 3, head, css, "middle"), text(x, y + 14, tail, "sublabel", "middle")]
    spot = roomiest(plot, top, bottom, text_width(head, 14) + 4, 22, avoid)
    return [text(spot[0], spot[1] + 5, head, css, "middle")] if spot else []


def summary(audit: Audit) -> str:
    """The finding in words: the rates at each budget."""
    parts = []
    for eps in audit.threat.eps:
        proved, empirical = metrics.rate_at(audit.certified, eps), metrics.rate_at(audit.empirical, eps)
        said = [f"{percent(proved.value)} certified"] if proved else []
        said += [f"{percent(empirical.value)} not broken"] if empirical else []
        if said:
            parts.append(f"at ε = {clean(eps, 20)} {' and '.join(said)}")
    share = f"{percent(audit.clean.value)} of the images are classified correctly without any perturbation"
    return f"{share}; {'; '.join(parts)}." if parts else f"{share}."
