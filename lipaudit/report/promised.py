"""The view model of certified accuracy under each promise."""

from __future__ import annotations

from dataclasses import dataclass

from lipaudit.results import metrics
from lipaudit.results.audit import Audit, PromiseResult
from lipaudit.results.formatting import NONE, clean, eps_text, eps_value, percent

NAMES = {"R": "the exact function", "F": "as executed", "D": "in float64"}
"""What each promise is about, in short."""


@dataclass(frozen=True)
class PromiseRow:
    promise: str
    name: str
    headline: bool
    cells: tuple[str, ...]
    """Certified accuracy at each budget."""
    sentence: str
    """About which function the certificates speak."""
    why_not: str
    """Why nothing is certified; empty if something is."""


@dataclass(frozen=True)
class Promises:
    eps: tuple[str, ...]
    rows: tuple[PromiseRow, ...]


def promises(audit: Audit) -> Promises:
    """A row for each promise that was looked at; none in results that were written before there were several."""
    budgets = sorted(audit.threat.eps, key=eps_value)
    return Promises(tuple(map(eps_text, budgets)), tuple(_row(audit, found, budgets) for found in audit.promises))


def _row(audit: Audit, found: PromiseResult, budgets: list[str]) -> PromiseRow:
    rates = [metrics.rate_at(found.proved, eps) if metrics.holds(audit) else None for eps in budgets]
    missing = "withdrawn" if audit.verdict.integrity == "INVALID" else NONE if found.certified else "not certified"
    cells = tuple(percent(rate.value) if rate else missing for rate in rates)
    sentence = clean(found.sentence.removeprefix(f"{found.promise}: "), 600)
    return PromiseRow(found.promise, NAMES[found.promise], found.headline, cells, sentence, clean(found.why_not, 300))
