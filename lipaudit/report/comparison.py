"""A comparison of two audits as lines of (text, style) pairs for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from lipaudit.report.terminal import Line, Span
from lipaudit.results.formatting import clean, number, number_from_log10, percent, percents, plural
from lipaudit.verdict.comparison import Change, Comparison

MOST_IMAGES = 10
WORDS = {"worse": ("← worse", "bold red"), "better": ("← better", "bold green")}
GAINED = {"clean": "newly right", "certified": "newly certified", "empirical": "no longer broken"}
LOST = {"clean": "newly wrong", "certified": "no longer certified", "empirical": "newly broken"}


def comparison_lines(found: Comparison) -> list[Line]:
    """What is alike, what changed and by how much, which layers moved, which images."""
    lines: list[Line] = [(Span(f"base  {found.base}   new  {found.new}"),)]
    if found.unlike:
        lines.append((Span("NOT COMPARABLE  ", "bold red"), Span("; ".join(found.unlike))))
    else:
        lines.append((Span("same images, same budgets, same attacks"),))
    lines += [(Span(f"  {note}", "dim"),) for note in found.notes]
    lines += [(), (Span(f"{'':<20}{'base':>10}{'new':>10}   change (95% CI)", "dim"),)]
    if found.log10_bound is not None:
        lines.append(_bound(*found.log10_bound))
    lines += [_change(change) for change in found.changes]
    if found.layers:
        moved = [f"{y.name} {number(y.base)} → {number(y.new)}" for y in found.layers]
        lines += [(), (Span("layers that moved most: "), Span(", ".join(moved)))]
    images = [line for change in found.changes for line in _images(change)]
    return [*lines, *([()] if images else []), *images]


def drop_lines(found: Comparison, most: float | None) -> list[Line]:
    """What --max-drop makes of it."""
    if most is None:
        return []
    if found.unlike or found.integrity != ("SOUND", "SOUND"):
        return [(), (Span("--max-drop cannot be evaluated on results that are not SOUND, or not comparable", "bold"),)]
    dropped = found.dropped(most)
    if not dropped:
        return [(), (Span("passed", "bold green"), Span(f"  no share fell by more than {_points(most, most)[1]}"))]
    lines: list[Line] = [()]
    for change in dropped:
        fall, limit = _points(-change.difference, most)
        lines.append((Span("failed", "bold red"), Span(f"  {_name(change)} fell by {fall}, more than {limit}")))
    return lines


def _points(fall: float, most: float) -> tuple[str, ...]:
    """Both in points, with digits enough to tell them apart."""
    return tuple(text.replace("%", " pts") for text in percents(fall, most))


def _bound(base: float, new: float) -> Line:
    shown = f"{number_from_log10(base):>10}{number_from_log10(new):>10}"
    change = "" if base == new else f"   {_signed(new - base, 2)} decades"
    return (Span(f"{'Lipschitz bound':<20}{shown}{change}"),)


def _change(change: Change) -> Line:
    base, new = percent(change.base / change.total), percent(change.new / change.total)
    row = f"{_name(change):<20}{base:>10}{new:>10}   "
    if change.word == "no change":
        return (Span(row), Span("no image changed", "dim"))
    ends = f"{_signed(100 * change.low, 1)}, {_signed(100 * change.high, 1)}"
    row += f"{_signed(100 * change.difference, 1)} pts [{ends}]  McNemar p = {number(change.p)}  "
    return (Span(row), Span(*WORDS.get(change.word, (change.word, "dim"))))


def _name(change: Change) -> str:
    return f"{change.measure}{_of(change)} {clean(change.eps, 12)}".rstrip()


def _of(change: Change) -> str:
    return f"[{change.norm}]" if change.norm else ""


def _images(change: Change) -> list[Line]:
    return [
        (Span(f"{plural(len(indices), 'image')} {words[change.measure]}{_at(change)}: {_listed(indices)}"),)
        for indices, words in ((change.lost, LOST), (change.gained, GAINED))
        if indices
    ]


def _at(change: Change) -> str:
    return f"{_of(change)} at {clean(change.eps, 12)}" if change.eps else ""


def _listed(indices: Sequence[int]) -> str:
    more = f" and {len(indices) - MOST_IMAGES} more" if len(indices) > MOST_IMAGES else ""
    return " ".join(f"#{index}" for index in indices[:MOST_IMAGES]) + more


def _signed(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{decimals}f}"
