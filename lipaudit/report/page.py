"""The view models of the page from its title to the checks: finished texts and numbers, no markup."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipaudit.report.bound_section import Bounds, bounds
from lipaudit.report.crosscheck_section import CrossCheck, Curves, crosscheck, curves
from lipaudit.report.estimates import EstimateView, estimates
from lipaudit.report.header import Part, divide
from lipaudit.report.images_section import Images, images
from lipaudit.report.lamps import Condition, Lamp, conditions, lamps, look
from lipaudit.report.limits_section import Closing, closing
from lipaudit.report.promised import Promises, promises
from lipaudit.results import metrics
from lipaudit.results.audit import Audit, Finding
from lipaudit.results.formatting import clean, count, digest, eps_text, eps_value, interval, number, percent, plural

RANDOM = "Random weights: this network was never trained. Nothing on this page describes a trained model."
QUESTION = (
    "Can a small change of the pixels alter the answer of this network? For each image, a proof says up to which size "
    "of change that is ruled out"
)
TESTED = ", and attacks look for the smallest change that does it. A proof and an attack must never disagree."
UNTESTED = ". No attack was run to test the proofs."
PARTIAL = "Incomplete run: something that was asked for was not done. The checks say what."

MARKS = {"fail": "✕", "warn": "!", "pass": "✓", "info": "i", "not run": "–"}
"""States of a check, worst first, each with its sign."""


@dataclass(frozen=True)
class Tile:
    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Top:
    run: str
    title: str
    facts: tuple[tuple[str, str], ...]
    question: str
    alarms: tuple[str, ...]
    look: str
    headline: str
    sentences: tuple[str, ...]
    lamps: tuple[Lamp, ...]
    gates: tuple[Condition, ...]
    tiles: tuple[Tile, ...]
    eps: str
    feel: str
    parts: tuple[Part, ...]


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
    open: bool


@dataclass(frozen=True)
class Checks:
    tally: str
    rows: tuple[Check, ...]
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """Everything the template prints."""

    title: str
    top: Top
    checks: Checks
    curves: Curves
    promises: Promises
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
        promises(audit),
        crosscheck(audit),
        bounds(audit),
        images(audit),
        closing(audit),
        estimates(audit),
    )


def title(audit: Audit) -> str:
    data = " ".join(filter(None, (clean(audit.dataset.name, 40), clean(audit.dataset.split, 20))))
    return f"{clean(audit.model.name, 60)} on {data}"


def top(audit: Audit) -> Top:
    """Title, verdict, lamps, tiles and the bar at the first budget."""
    eps = audit.threat.eps[0] if audit.threat.eps else ""
    return Top(
        clean(audit.run, 60),
        title(audit),
        _facts(audit),
        QUESTION + (TESTED if metrics.was_attacked(audit) else UNTESTED),
        _alarms(audit),
        look(audit, eps),
        clean(audit.verdict.headline, 300),
        tuple(clean(sentence, 600) for sentence in audit.verdict.sentences),
        lamps(audit),
        conditions(audit),
        _tiles(audit, eps),
        eps_text(eps) if eps else "",
        _feel(audit, eps),
        divide(audit, eps),
    )


def _facts(audit: Audit) -> tuple[tuple[str, str], ...]:
    d, m, version = audit.dataset, audit.model, audit.environment.get("lipaudit")
    data = " ".join(filter(None, (clean(d.name, 40), clean(d.split, 20))))
    when = clean(audit.started, 40).replace("T", " ", 1)[:16]
    return (
        ("model", f"{clean(m.name, 60)}, {count(m.parameters)} parameters, weights sha256 {digest(m.weights_sha256)}"),
        ("data", f"{plural(d.samples, 'image')} of {count(d.available)} from {data}, seed {d.seed}"),
        ("changes", f"measured by {audit.threat.norm} norm, {clean(audit.threat.units, 40)}"),
        ("made", f"{when} UTC by lipaudit {clean(version or '', 20)}".rstrip()),
    )


def _alarms(audit: Audit) -> tuple[str, ...]:
    """What a reader must not overlook, above the verdict."""
    said = []
    if audit.model.weights == "random":
        said.append(RANDOM)
    if audit.status == "partial":
        said.append(PARTIAL)
    return tuple(said)


def _tiles(audit: Audit, eps: str) -> tuple[Tile, ...]:
    clean_tile = Tile(
        percent(audit.clean.value), "clean accuracy", f"95% CI {interval(audit.clean.low, audit.clean.high)}"
    )
    return clean_tile, _robust_tile(audit, eps), _radius_tile(audit), _contradiction_tile(audit)


def _robust_tile(audit: Audit, eps: str) -> Tile:
    proved, unbroken = metrics.rate_at(audit.proved, eps), metrics.rate_at(audit.unbroken, eps)
    label = f"robust accuracy at ε = {clean(eps, 20)}"
    upper = percent(unbroken.value if unbroken else audit.clean.value)
    if not metrics.correct_rows(audit):
        return Tile("none", label, "no image is answered correctly")
    if proved:
        return Tile(f"{percent(proved.value)} – {upper}", label, "proved – unbroken" if unbroken else "proved – clean")
    why = {"INVALID": "proof withdrawn", "UNPROVED": "nothing is proved"}.get(audit.verdict.integrity, "not computed")
    return Tile(f"at most {upper}", label, f"{why}; {'unbroken' if unbroken else 'clean accuracy'}")


def _radius_tile(audit: Audit) -> Tile:
    if audit.verdict.integrity == "INVALID":
        return Tile("withheld", "median certified radius", "certificates are contradicted")
    if audit.verdict.integrity == "UNPROVED":
        return Tile("none", "median certified radius", "no certificate was issued")
    radius = metrics.median_radius(audit)
    local = metrics.local_rows(audit)
    where = f", {local} by affine forms around the image" if local else ""
    return Tile(number(radius), "median certified radius", f"L2, of correctly classified images{where}")


def _contradiction_tile(audit: Audit) -> Tile:
    label = "certificates contradicted by an attack"
    if audit.verdict.integrity == "UNPROVED":
        return Tile("none", label, "no certificate was issued")
    tested = sum(audit.samples.attacked)
    if not tested:
        return Tile("not tested", label, "no image was attacked")
    return Tile(f"{count(len(metrics.contradictions(audit)))} / {count(tested)}", label, "attacked images")


def _feel(audit: Audit, eps: str) -> str:
    """What a budget means to the eye: spread evenly over all values of an image."""
    values = math.prod(audit.model.input_shape)
    span = audit.threat.high - audit.threat.low
    if not eps or values < 1 or not 0 < span < math.inf:
        return ""
    levels = number(255 * eps_value(eps) / span / math.sqrt(values))
    spread = f"spread evenly over all {count(values)} values of an image"
    return f"{spread}, {levels} of 255 brightness levels each"


def checks(audit: Audit) -> Checks:
    """Worst first, in the order of their ids within a state."""
    order = list(MARKS)
    rows = sorted(audit.findings, key=lambda finding: (order.index(finding.state), finding.id))
    counts = [(sum(f.state == state for f in rows), state) for state in MARKS]
    return Checks(
        " · ".join(f"{many} {state}" for many, state in counts if many) or "none",
        tuple(_check(finding) for finding in rows),
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
        finding.state in ("fail", "warn"),
    )
