"""The view models of the page from its title to the checks: finished texts and numbers, no markup."""

from __future__ import annotations

from dataclasses import dataclass

from lipaudit.report.bound_section import Bounds, bounds
from lipaudit.report.crosscheck_section import (
    Arithmetics,
    CrossCheck,
    Curves,
    EstimateView,
    arithmetics,
    crosscheck,
    curves,
    estimates,
)
from lipaudit.report.header import Top, title, top
from lipaudit.report.images_section import Images, images
from lipaudit.report.limits_section import Closing, closing
from lipaudit.results.audit import Audit, Finding
from lipaudit.results.formatting import clean

MARKS = {"fail": "✕", "warn": "!", "pass": "✓", "info": "i", "not run": "–"}
"""States of a check, worst first, each with its sign."""
WORDS = {"pass": "passed", "info": "for information", "not run": "not run"}
"""States of checks that are folded away."""


@dataclass(frozen=True)
class Check:
    id: str
    state: str
    look: str
    sign: str
    title: str
    value: str
    why: str
    fix: str


@dataclass(frozen=True)
class Checks:
    tally: str
    rows: tuple[Check, ...]
    """What failed or warned."""
    rest: tuple[Check, ...]
    folded: str
    """What `rest` is, in a few words."""
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """Everything the template prints."""

    title: str
    top: Top
    checks: Checks
    curves: Curves
    arithmetics: Arithmetics
    crosscheck: CrossCheck
    bounds: Bounds
    images: Images
    closing: Closing
    estimates: tuple[EstimateView, ...] = ()


def page(audit: Audit) -> Page:
    """The whole report."""
    name = title(audit)
    return Page(
        f"{name}: Lipschitz robustness audit",
        top(audit),
        checks(audit),
        curves(audit),
        arithmetics(audit),
        crosscheck(audit),
        bounds(audit),
        images(audit),
        closing(audit),
        estimates(audit),
    )


def checks(audit: Audit) -> Checks:
    """Worst first, in the order of their ids within a state."""
    order = list(MARKS)
    rows = sorted(audit.findings, key=lambda finding: (order.index(finding.state), finding.id))
    counts = [(sum(f.state == state for f in rows), state) for state in MARKS]
    rest = [f"{many} {WORDS[state]}" for many, state in counts if many and state in WORDS]
    return Checks(
        " · ".join(f"{many} {state}" for many, state in counts if many) or "none",
        tuple(_check(finding) for finding in rows if finding.state not in WORDS),
        tuple(_check(finding) for finding in rows if finding.state in WORDS),
        ", ".join(rest),
        tuple((clean(skip.what, 80), clean(skip.why, 300)) for skip in audit.skipped),
        tuple(clean(warning, 300) for warning in audit.warnings),
    )


def _check(finding: Finding) -> Check:
    return Check(
        clean(finding.id, 12),
        finding.state,
        finding.state.replace(" ", "-"),
        MARKS[finding.state],
        clean(finding.title, 160),
        clean(finding.value, 60),
        clean(finding.why, 800),
        clean(finding.fix, 800),
    )
