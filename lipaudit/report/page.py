"""The view models of the page from its title to the checks: finished texts and numbers, no markup."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lipaudit.report.bound_section import Bounds, bounds, claim
from lipaudit.report.crosscheck_section import (
    Arithmetics,
    CrossCheck,
    CurveRow,
    Curves,
    EstimateView,
    arithmetics,
    crosscheck,
    curves,
    estimates,
)
from lipaudit.report.figures.charts import Figure
from lipaudit.report.header import Top, title, top
from lipaudit.report.images_section import Images, images
from lipaudit.report.limits_section import Closing, closing
from lipaudit.results import metrics
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
    norms: tuple[tuple[str, CurveRow], ...] = ()
    """Every norm and budget, where there are several norms."""
    others: tuple[OtherNorm, ...] = ()


@dataclass(frozen=True)
class OtherNorm:
    """What was found in a further norm."""

    id: str
    norm: str
    headline: str
    sentences: tuple[str, ...]
    curves: Curves
    arithmetics: Arithmetics
    crosscheck: CrossCheck
    checks: tuple[Check, ...]
    """Those with another outcome than in the first norm."""
    bound: str


def page(audit: Audit) -> Page:
    """The whole report."""
    name = title(audit)
    views = audit.views
    drawn = [curves(view) for view in views]
    return Page(
        f"{name}: Lipschitz robustness audit",
        top(audit),
        checks(audit),
        drawn[0],
        arithmetics(audit),
        crosscheck(audit),
        bounds(audit),
        images(audit),
        closing(audit),
        tuple(one for view in views for one in estimates(view)),
        tuple((each.norm, row) for each in drawn for row in each.rows) if audit.other_norms else (),
        tuple(_other(view, each, audit) for view, each in zip(views[1:], drawn[1:], strict=True)),
    )


def _other(view: Audit, drawn: Curves, first: Audit) -> OtherNorm:
    compared, norm = crosscheck(view), view.norms[0]
    found, claimed = bounds(view), claim(view)
    said = [f"Lipschitz bound {found.value}.", found.note or found.reality]
    if claimed is not None:
        said.append(f"{claimed.said} {claimed.word}{', ' if claimed.value else ''}{claimed.value}.")
    return OtherNorm(
        f"in-{norm}",
        view.threat.norm,
        clean(view.verdict.headline, 300),
        tuple(clean(sentence, 600) for sentence in view.verdict.sentences),
        replace(drawn, figure=_apart(drawn.figure, norm), other=_apart(drawn.other, norm)),
        arithmetics(view),
        replace(compared, figure=_apart(compared.figure, norm)),
        tuple(map(_check, metrics.further_findings(first, view))),
        " ".join(filter(None, said)),
    )


def _apart(figure: Figure | None, norm: str) -> Figure | None:
    """The figure under names of its own, beside the same one of another norm."""
    if figure is None:
        return None
    wide, narrow = (replace(chart, id=f"{chart.id}-{norm}") for chart in (figure.wide, figure.narrow))
    return Figure(wide, narrow)


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
