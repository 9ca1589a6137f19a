"""The marks of a figure, its axes, and labels that do not collide. Geometry only: templates write the SVG.

Every figure is drawn twice, `wide` for a screen or paper and `narrow` for a phone, so that its text is never
shrunk below 11 px. Colours come from the style sheet, by class name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lipaudit.report.figures.scales import Scale, Tick

Anchor = Literal["start", "middle", "end"]
TEXT = 12.0
"""Size of figure text in pixels."""


@dataclass(frozen=True)
class Path:
    """A line or area; `clipped` to the plot."""

    kind: ClassVar[str] = "path"
    d: str
    css: str
    clipped: bool = False


@dataclass(frozen=True)
class Rect:
    kind: ClassVar[str] = "rect"
    x: str
    y: str
    width: str
    height: str
    css: str


@dataclass(frozen=True)
class Dot:
    """A circle with a tooltip."""

    kind: ClassVar[str] = "dot"
    x: str
    y: str
    r: str
    css: str
    tip: str = ""


@dataclass(frozen=True)
class Text:
    kind: ClassVar[str] = "text"
    x: str
    y: str
    text: str
    css: str = ""
    anchor: Anchor = "start"


Mark = Path | Rect | Dot | Text


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    def meets(self, other: Box) -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.bottom <= other.top or other.bottom <= self.top)


@dataclass(frozen=True)
class Chart:
    """One drawing: `plot` is the part between the axes, `summary` the finding for who cannot see it."""

    id: str
    width: int
    height: int
    plot: Box
    title: str
    summary: str
    marks: tuple[Mark, ...]

    @property
    def clip(self) -> Rect:
        p = self.plot
        return rect(p.left, p.top, p.right - p.left, p.bottom - p.top, "")


@dataclass(frozen=True)
class Figure:
    wide: Chart
    narrow: Chart


def px(value: float) -> str:
    """A coordinate with at most one decimal."""
    shown = f"{value:.1f}".removesuffix(".0")
    return "0" if shown == "-0" else shown


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> Path:
    return Path(f"M{px(x1)} {px(y1)}L{px(x2)} {px(y2)}", css)


def rect(x: float, y: float, width: float, height: float, css: str) -> Rect:
    return Rect(px(x), px(y), px(width), px(height), css)


def dot(x: float, y: float, r: float, css: str, tip: str = "") -> Dot:
    return Dot(px(x), px(y), px(r), css, tip)


def text(x: float, y: float, words: str, css: str = "", anchor: Anchor = "start") -> Text:
    return Text(px(x), px(y), words, css, anchor)


def text_width(words: str, size: float = TEXT) -> float:
    """A generous estimate: fonts are the reader's."""
    return size * sum(0.35 if letter in " .,:;il|'·" else 0.62 for letter in words)


def x_axis(plot: Box, scale: Scale, ticks: Iterable[Tick], title: str) -> list[Mark]:
    """Base line, tick labels under it, and the title under those."""
    marks: list[Mark] = [line(plot.left, plot.bottom, plot.right, plot.bottom, "axis")]
    edge = -1e9
    for tick in ticks:
        x, half = scale(tick.at), text_width(tick.label) / 2
        marks.append(line(x, plot.bottom, x, plot.bottom + 4, "axis"))
        if x - half > edge:
            marks.append(text(x, plot.bottom + 18, tick.label, "tick", "middle"))
            edge = x + half + 4
    marks.append(text((plot.left + plot.right) / 2, plot.bottom + 38, title, "name", "middle"))
    return marks


def y_axis(plot: Box, scale: Scale, ticks: Iterable[Tick], title: str, above: float = 10) -> list[Mark]:
    """Grid lines with labels at their left, the title above them: read without turning the head."""
    marks: list[Mark] = []
    for tick in ticks:
        y = scale(tick.at)
        marks.append(line(plot.left, y, plot.right, y, "grid"))
        marks.append(text(plot.left - 7, y + 4, tick.label, "tick", "end"))
    marks.append(text(0, plot.top - above, title, "name"))
    return marks


@dataclass(frozen=True)
class Reference:
    """A value worth a dotted line; `x` in pixels."""

    x: float
    label: str


def reference_lines(plot: Box, references: Sequence[Reference]) -> list[Mark]:
    """Dotted verticals, named in rows above the plot so that no two names touch."""
    marks: list[Mark] = []
    taken: list[float] = []
    for reference in sorted(references, key=lambda r: r.x):
        half = text_width(reference.label) / 2
        middle = min(max(reference.x, plot.left + half), plot.right - half)
        row = next((k for k, end in enumerate(taken) if end + 8 < middle - half), len(taken))
        taken[row : row + 1] = [middle + half]
        y = plot.top - 6 - 15 * row
        marks.append(line(reference.x, y + 3, reference.x, plot.bottom, "reference"))
        marks.append(text(middle, y, reference.label, "tick", "middle"))
    return marks


def reference_rows(plot: Box, references: Sequence[Reference]) -> int:
    """How many rows `reference_lines` needs above the plot."""
    heights = [float(mark.y) for mark in reference_lines(plot, references) if isinstance(mark, Text)]
    return len(set(heights))


Edge = Callable[[float], float]


def roomiest(
    plot: Box, top: Edge, bottom: Edge, width: float, height: float, avoid: Sequence[float] = ()
) -> tuple[float, float] | None:
    """Centre of the place between two curves with most air around a label; None if it fits nowhere.

    Verticals at `avoid` are crossed only where there is no other place.
    """
    step = 6.0
    columns = [plot.left + step * k for k in range(int(plot.width // step) + 1)]
    air = [(max(plot.top, top(x)), min(plot.bottom, bottom(x))) for x in columns]
    need = int(width // step) + 1
    best: tuple[float, float, float] | None = None
    for k in range(len(columns) - need):
        window = air[k : k + need + 1]
        upper, lower = max(edge[0] for edge in window), min(edge[1] for edge in window)
        # The nearer to the middle of the plot the better, where the room is the same.
        offset = abs(columns[k] + width / 2 - (plot.left + plot.right) / 2)
        crossed = sum(columns[k] - 4 < x < columns[k] + need * step + 4 for x in avoid)
        room = min(lower - upper, 90.0) - offset / 50 - 40 * crossed
        if lower - upper >= height and (best is None or room > best[0]):
            best = room, columns[k] + (need * step) / 2, (upper + lower) / 2
    return best[1:] if best else None
