"""Figure 3: where the bound comes from, one row per stage; and the dot strips of the layer table."""

from __future__ import annotations

from collections.abc import Sequence

from lipaudit.report.figures.charts import Box, Chart, Figure, Mark, Path, line, px, rect, text, text_width, x_axis
from lipaudit.report.figures.layer_groups import Stage
from lipaudit.report.figures.scales import Scale, log10, log_ticks
from lipaudit.results.bounds import LayerBound, NetworkBound
from lipaudit.results.formatting import NONE, clean, factor, number, number_from_log10

NEARLY_ONE = 0.01
"""log10: 2.3 %. If no stage gains or loses more, a sentence says more than bars without length."""
ROW = 22
STRIP = Box(6, 0, 154, 16)


def all_nearly_one(stages: Sequence[Stage]) -> bool:
    return all(abs(stage.gain) < NEARLY_ONE for stage in stages)


def figure(bound: NetworkBound, stages: Sequence[Stage], slope: float | None) -> Figure:
    """Fig. 3; needs at least one stage."""
    wide = _draw(bound, stages, slope, "fig3-wide", 860)
    return Figure(wide, _draw(bound, stages, slope, "fig3-narrow", 340))


def label(stage: Stage, letters: int) -> str:
    """Its name; `layer1.0 (+ 0)` where a branch inside is zero."""
    return clean(stage.name, letters) + (" (+ 0)" if stage.idle else "")


def share(stage: Stage, bound: NetworkBound) -> str:
    """The stage's part of log10 of the bound; a dash where the bound is too small for parts to mean much."""
    return f"{100 * stage.gain / bound.log10:.0f}%".replace("-", "−") if bound.log10 > 0.3 else NONE


def _draw(bound: NetworkBound, stages: Sequence[Stage], slope: float | None, name: str, width: int) -> Chart:
    wide = width > 500
    letters = 28 if wide else 13
    longest = max(text_width(label(stage, letters)) for stage in stages)
    plot = Box(longest + 14, 44, width - (150 if wide else 82), 44 + ROW * len(stages) + 6)
    ends = [0.0, *(stage.after for stage in stages), *([log10(slope)] if slope and slope > 0 else [])]
    low, high = min(ends), max(ends)
    pad = 0.04 * max(high - low, 0.5)
    scale = Scale(low - pad, high + pad, plot.left, plot.right)
    ticks = log_ticks(scale.low, scale.high, 8 if wide else 4)
    title = "Lipschitz bound from the input up to here (log scale)" if wide else "bound so far (log scale)"
    marks: list[Mark] = [line(scale(t.at), plot.top, scale(t.at), plot.bottom, "grid") for t in ticks]
    marks += [
        line(scale(0), plot.top, scale(0), plot.bottom, "axis"),
        *x_axis(plot, scale, ticks, title),
        *_heads(plot, width, wide),
        *_slope(plot, scale, slope, wide),
    ]
    for k, stage in enumerate(stages):
        after = stages[k + 1] if k + 1 < len(stages) else None
        marks += _row(plot, scale, stage, plot.top + 4 + ROW * k, after is not None, letters)
        marks += _columns(width, stage, bound, plot.top + 4 + ROW * k, wide)
    height = round(plot.bottom + 48)
    head = "The bound, stage by stage"
    return Chart(name, width, height, plot, head, summary(bound, stages), tuple(marks))


def _row(plot: Box, scale: Scale, stage: Stage, y: float, more: bool, letters: int) -> list[Mark]:
    """Name, bar from the bound before to the bound after, and the thread to the next row."""
    before, after = scale(stage.before), scale(stage.after)
    css = "bar shrinks" if stage.gain < 0 else "bar grows"
    marks: list[Mark] = [
        text(plot.left - 8, y + 13, label(stage, letters), "row", "end"),
        rect(min(before, after) - 0.5, y + 2, abs(after - before) + 1, ROW - 6, css),
    ]
    if more:
        marks.append(line(after, y + ROW - 4, after, y + ROW + 2, "thread"))
    return marks


def _columns(width: int, stage: Stage, bound: NetworkBound, y: float, wide: bool) -> list[Mark]:
    marks: list[Mark] = [text(width - 64 if wide else width, y + 13, factor(stage.gain), "value", "end")]
    if wide:
        marks.append(text(width, y + 13, share(stage, bound), "tick", "end"))
    return marks


def _heads(plot: Box, width: int, wide: bool) -> list[Mark]:
    y = plot.top - 8
    marks: list[Mark] = [text(width - 64 if wide else width, y, "factor", "name", "end")]
    if wide:
        marks.append(text(width, y, "share", "name", "end"))
    return marks


def _slope(plot: Box, scale: Scale, slope: float | None, wide: bool) -> list[Mark]:
    """The largest slope seen: no true constant is below it."""
    if not slope or not slope > 0:
        return []
    x = scale(log10(slope))
    words = f"largest slope measured: {number(slope)}" if wide else f"slope seen: {number(slope)}"
    half = text_width(words) / 2
    middle = min(max(x, half), plot.right - half)
    return [
        line(x, plot.top - 16, x, plot.bottom, "measured"),
        text(middle, plot.top - 22, words, "measure", "middle"),
    ]


def summary(bound: NetworkBound, stages: Sequence[Stage]) -> str:
    """The finding in words."""
    most = max(stages, key=lambda stage: stage.gain)
    whole = f"The bound of the whole network is {number_from_log10(bound.log10)}"
    return f"{whole}. The largest factor, {factor(most.gain)}, comes from {clean(most.name, 40)}."


def strip_scale(layers: Sequence[LayerBound]) -> Scale:
    """One scale for every strip of the layer table, with 1× inside."""
    values = [0.0]
    for entry in layers:
        numbers = [upper.value for upper in entry.candidates] + [entry.upper.value, entry.lower or 1.0]
        values += [log10(v) for v in numbers if 0 < v < 1e300]
    low, high = min(values), max(values)
    pad = 0.05 * max(high - low, 0.2)
    return Scale(low - pad, high + pad, STRIP.left, STRIP.right)


def strip(entry: LayerBound, scale: Scale) -> tuple[Path, ...]:
    """● the bound used, ○ valid but looser, | measured from below, over a line at 1×."""

    def at(value: float) -> str:
        return px(scale(log10(value)))

    looser = {at(u.value) for u in entry.candidates if entry.upper.value < u.value < 1e300} - {at(entry.upper.value)}
    marks = [Path(f"M{px(scale(0))} 0v16", "one")]
    if looser:
        marks.append(Path("".join(f"M{x} 8h0" for x in sorted(looser, key=float)), "looser"))
    if 0 < entry.upper.value < 1e300:
        marks.append(Path(f"M{at(entry.upper.value)} 8h0", "used"))
    if entry.lower:
        marks.append(Path(f"M{at(entry.lower)} 2v12", "below"))
    return tuple(marks)
