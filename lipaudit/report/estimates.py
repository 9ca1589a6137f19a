"""The view models of what is estimated: numbers that no certificate rests on, apart from all that is proved."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from lipaudit.results.audit import Audit, Estimate
from lipaudit.results.formatting import NONE, clean, count, duration, eps_text, eps_value, number, percent

LABEL = "Estimated, not proved"


@dataclass(frozen=True)
class EstimateView:
    """One estimate in words."""

    name: str
    about: str
    settings: str
    promise: str
    """With which probability, of how many draws; or that there is none."""
    median: str
    """Over the samples that have a value."""
    shares: tuple[tuple[str, str], ...]
    """Budgets, and the share of all images whose value is above them."""
    seconds: str


def estimates(audit: Audit) -> tuple[EstimateView, ...]:
    """What was asked for, in the order of the result."""
    return tuple(_view(audit, estimate) for estimate in audit.estimates)


def _view(audit: Audit, estimate: Estimate) -> EstimateView:
    known = [value for value in estimate.values if value is not None]
    promise = "an estimate, it promises nothing"
    if estimate.probability is not None:
        draws = f", {count(estimate.draws)} draws" if estimate.draws else ""
        promise = f"each radius with probability {estimate.probability:g}{draws}"
    shares = tuple(
        (eps_text(eps), percent(sum(value > eps_value(eps) for value in known) / max(1, len(estimate.values))))
        for eps in sorted(audit.threat.eps, key=eps_value)
    )
    return EstimateView(
        name=clean(estimate.name, 40),
        about=clean(estimate.about, 400),
        settings=f"{clean(estimate.library, 40)}: {clean(estimate.settings, 300)}",
        promise=promise,
        median=number(statistics.median(known)) if known else NONE,
        shares=shares,
        seconds=duration(estimate.seconds),
    )
