"""Figure 5: whether one class is weaker than others, by certified radius and smallest attack of its correct images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lipaudit.report.figures.charts import Box, Chart, Figure, Mark, Path, line, px, text, text_width, x_axis
from lipaudit.report.figures.scales import Scale, log10, log_ticks
from lipaudit.results import metrics
from lipaudit.results.audit import Audit
from lipaudit.results.formatting import NONE, clean, count, number, percent, plural
from lipaudit.results.threat import eps_text

ALL_SHOWN = 20
WEAKEST, STRONGEST = 10, 5
"""Classes: all up to 20; above, the ends of the order."""
ROW = 26
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)

ONE_CLASS = "There are no classes to compare: all audited images are of one class."
NONE_CORRECT = "There are no classes to compare: no image is classified correctly."
NOTHING_MEASURED = "There are no classes to compare: no image has a certified radius above zero, and none was broken."
WITHDRAWN = "There are no classes to compare: the certificates are withdrawn, and no image was attacked."
UNPROVED = "There are no classes to compare: there is no certificate, and no image was attacked."

Spread = tuple[float, ...]
"""Quantiles at `SHARES`, each the value of an image: 0 where nothing is proved, infinite where nothing broke."""


@dataclass(frozen=True)
class ClassSpread:
    name: str
    images: int
    correct: int
    radius: Spread | None
    """None if nothing may be shown as proved, or no image of the class is correct."""
    distance: Spread | None
    certified: str
    empirical: str


@dataclass(frozen=True)
class ClassRow:
    """A row of the table."""

    name: str
    correct: str
    radius: str
    distance: str
    certified: str
    empirical: str


@dataclass(frozen=True)
class Classes:
    figure: Figure | None
    note: str
    left_out: str
    rows: tuple[ClassRow, ...]
    eps: str
    has_proof: bool
    has_attack: bool


def classes(audit: Audit) -> Classes:
    """Fig. 5 and its table, the weakest class first."""
    ranked = spreads(audit)
    shown = [*ranked[:WEAKEST], *ranked[-STRONGEST:]] if len(ranked) > ALL_SHOWN else ranked
    said = _note(audit, ranked)
    hidden = len(ranked) - len(shown)
    left_out = f"The {count(WEAKEST)} weakest and {count(STRONGEST)} strongest of {count(len(ranked))} classes."
    eps = audit.threat.eps[0] if audit.threat.eps else ""
    return Classes(
        None if said else _figure(shown, hidden, audit.threat.norm),
        said,
        left_out if hidden else "",
        () if said else tuple(_row(one) for one in shown),
        eps_text(eps) if eps else "",
        metrics.holds(audit),
        metrics.was_attacked(audit),
    )


def spreads(audit: Audit) -> list[ClassSpread]:
    """Of every class with an audited image: by median radius, or by attack where no certificate holds."""
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(audit.samples.label):
        by_class.setdefault(label, []).append(row)
    found = [_spread(audit, label, rows) for label, rows in sorted(by_class.items())]

    def key(one: ClassSpread) -> tuple[float, float]:
        middle = [spread[2] if spread else -1.0 for spread in (one.radius, one.distance)]
        return (middle[0], middle[1]) if metrics.holds(audit) else (middle[1], middle[0])

    return sorted(found, key=key)


def _spread(audit: Audit, label: int, rows: Sequence[int]) -> ClassSpread:
    s = audit.samples
    right = [row for row in rows if s.prediction[row] == label]
    proved = empirical = None
    if right and metrics.holds(audit):
        proved = quantiles([s.radius[row] for row in right])
    tried = [s.distance[row] for row in right if s.attacked[row]]
    if tried:
        empirical = quantiles([math.inf if distance is None else distance for distance in tried])
    shares = [NONE, NONE]
    if audit.threat.eps:
        eps = metrics.budget(audit)
        kept = sum(s.radius[row] > eps for row in right)
        left = sum(distance is None or distance > eps for distance in (s.distance[row] for row in right))
        shares[0] = percent(kept / len(rows)) if metrics.holds(audit) else NONE
        shares[1] = percent(left / len(rows)) if metrics.was_attacked(audit) else NONE
    return ClassSpread(clean(metrics.class_name(audit, label), 24), len(rows), len(right), proved, empirical, *shares)


def quantiles(values: Sequence[float]) -> Spread:
    """Each the value of an image (the least that so many do not exceed): nothing is averaged with infinity."""
    ranked = sorted(values)
    return tuple(ranked[max(0, math.ceil(share * len(ranked)) - 1)] for share in SHARES)


def _note(audit: Audit, ranked: Sequence[ClassSpread]) -> str:
    """What to say where there is no Fig. 5."""
    if not any(one.correct for one in ranked):
        return NONE_CORRECT
    if len(ranked) == 1:
        return ONE_CLASS
    if not metrics.was_attacked(audit) and not metrics.holds(audit):
        return WITHDRAWN if audit.verdict.integrity == "INVALID" else UNPROVED
    return "" if _finite(ranked) else NOTHING_MEASURED


def _finite(shown: Sequence[ClassSpread]) -> list[float]:
    """log10 of every number that has a place on the axis."""
    spreads = [spread for one in shown for spread in (one.radius, one.distance) if spread]
    return [log10(value) for spread in spreads for value in spread if 0 < value < math.inf]


def _row(one: ClassSpread) -> ClassRow:
    radius = number(one.radius[2]) if one.radius else NONE
    distance = _words(one.distance[2]) if one.distance else NONE
    return ClassRow(one.name, f"{one.correct} of {one.images}", radius, distance, one.certified, one.empirical)


def _words(middle: float) -> str:
    return number(middle) if middle < math.inf else "never broken"


def _figure(shown: Sequence[ClassSpread], hidden: int, norm: str) -> Figure:
    return Figure(_draw(shown, hidden, norm, "fig5-wide", 860), _draw(shown, hidden, norm, "fig5-narrow", 340))


def _draw(shown: Sequence[ClassSpread], hidden: int, norm: str, name: str, width: int) -> Chart:
    wide = width > 500
    letters = 24 if wide else 13
    longest = max(text_width(clean(one.name, letters)) for one in shown)
    rows = len(shown) + bool(hidden)
    plot = Box(longest + 14, 34, width - 20, 34 + ROW * rows + 6)
    ends = _finite(shown)
    pad = max(0.1, 0.05 * (max(ends) - min(ends)))
    scale = Scale(min(ends) - pad, max(ends) + pad, plot.left, plot.right)
    ticks = log_ticks(scale.low, scale.high, 9 if wide else 5)
    marks: list[Mark] = [line(scale(t.at), plot.top, scale(t.at), plot.bottom, "grid") for t in ticks]
    marks += x_axis(plot, scale, ticks, f"{norm} (log scale)")
    marks += _key(shown, plot)
    ranges = []
    for k, one in enumerate(shown):
        gap = hidden and k >= WEAKEST
        y = plot.top + ROW * (k + bool(gap)) + ROW / 2 + 3
        marks.append(text(plot.left - 8, y + 4, clean(one.name, letters), "row", "end"))
        if one.correct == 0:
            marks.append(text(plot.left + 6, y + 4, "no image is right", "tick"))
        ranges += [(one.radius, y - 5, "proved"), (one.distance, y + 5, "broken")]
    if hidden:
        y = plot.top + ROW * WEAKEST + ROW / 2 + 7
        marks.append(text(plot.left - 8, y, f"{count(hidden)} more", "tick", "end"))
    marks += _ranges(ranges, scale)
    return Chart(name, width, round(plot.bottom + 48), plot, "Classes, the weakest first", summary(shown), tuple(marks))


def _key(shown: Sequence[ClassSpread], plot: Box) -> list[Mark]:
    """Which colour and shape is which, above the plot."""
    marks: list[Mark] = []
    x = plot.left
    for has, css, words in (
        (any(one.radius for one in shown), "proved", "● certified radius"),
        (any(one.distance for one in shown), "broken", "◆ smallest attack"),
    ):
        if has:
            marks.append(text(x, plot.top - 14, words, f"key {css}"))
            x += text_width(words) + 22
    return marks


def _ranges(ranges: Sequence[tuple[Spread | None, float, str]], scale: Scale) -> list[Mark]:
    """Thin from 10 to 90 %, thick from 25 to 75 %, a sign at the median; one path of each kind for all classes."""
    marks: list[Mark] = []
    for css in ("proved", "broken"):
        drawn = [(spread, y) for spread, y, which in ranges if spread and which == css]
        at = [([scale(_place(value, scale)) for value in spread], y) for spread, y in drawn]
        if not at:
            continue
        thin = "".join(f"M{px(x[0])} {px(y)}H{px(x[4])}" for x, y in at)
        thick = "".join(f"M{px(x[1])} {px(y)}H{px(max(x[3], x[1] + 0.1))}" for x, y in at)
        signs = "".join(_sign(x[2], y, css) for x, y in at)
        marks += [Path(thin, f"thin {css}"), Path(thick, f"thick {css}"), Path(signs, f"median {css}")]
    return marks


def _place(value: float, scale: Scale) -> float:
    """Where no logarithm is, the edge: zero at the left, never broken at the right."""
    return scale.low if value <= 0 else scale.high if math.isinf(value) else log10(value)


def _sign(x: float, y: float, css: str) -> str:
    if css == "broken":
        return f"M{px(x - 6)} {px(y)}l6 -6l6 6l-6 6z"
    return f"M{px(x - 5)} {px(y)}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z"


def summary(shown: Sequence[ClassSpread]) -> str:
    """The finding in words."""
    said = []
    for what, spreads in (
        ("certified radius", [(one.radius, one.name) for one in shown if one.radius]),
        ("smallest attack", [(one.distance, one.name) for one in shown if one.distance]),
    ):
        if spreads:
            (low, weak), (high, strong) = min(spreads, key=_middle), max(spreads, key=_middle)
            least, most = (_words(spread[2]) for spread in (low, high))
            said.append(f"The median {what} goes from {least} ({weak}) to {most} ({strong}).")
    return " ".join(said) or f"{plural(len(shown), 'class', 'classes')}."


def _middle(spread: tuple[Spread, str]) -> float:
    return spread[0][2]
