"""All audited images divided at one budget: proved, not known, broken, wrong."""

from __future__ import annotations

from dataclasses import dataclass

from lipaudit.results import metrics
from lipaudit.results.audit import Audit
from lipaudit.results.formatting import count, percent


@dataclass(frozen=True)
class Part:
    """One part of the bar; `start` and `width` in percent of it."""

    css: str
    name: str
    start: str
    width: str
    share: str
    count: str


def divide(audit: Audit, eps: str) -> tuple[Part, ...]:
    """The four parts, which add up to all images; empty if the result holds no rate at this budget."""
    total = audit.clean.total
    proved, unbroken = metrics.rate_at(audit.proved, eps), metrics.rate_at(audit.unbroken, eps)
    if not total or not (proved or unbroken):
        return ()
    low = proved.count if proved else 0
    high = unbroken.count if unbroken else audit.clean.count
    sizes = (
        ("proved", "proved", low),
        ("unknown", "not known", high - low),
        ("broken", "broken by an attack", audit.clean.count - high),
        ("wrong", "wrong as they are", total - audit.clean.count),
    )
    parts, start = [], 0
    for css, name, size in sizes:
        at, width = f"{100 * start / total:.2f}", f"{100 * size / total:.2f}"
        parts.append(Part(css, name, at, width, percent(size / total), count(size)))
        start += size
    if not unbroken:
        parts[2] = Part("broken", "broken: no attack was run", "0", "0", "untested", "–")
    if not proved:
        gone = "withdrawn" if audit.verdict.integrity == "INVALID" else "nothing"
        parts[0] = Part("proved", "proved", "0", "0", gone, "–")
    return tuple(parts)
