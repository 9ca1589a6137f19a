"""The view model of the head of the page: title, facts, verdict, tiles, the bar of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipaudit.report.verdict_section import VerdictView, levels_of, verdict
from lipaudit.results import metrics
from lipaudit.results.audit import Audit
from lipaudit.results.formatting import clean, count, digest, interval, number, percent, plural
from lipaudit.results.threat import eps_text, spoken

RANDOM = "Random weights: this network was never trained. Nothing on this page describes a trained model."
QUESTION = (
    "Can a small change of the pixels alter the answer of this network? For each image, a certificate rules that out "
    "up to some size of change"
)
TESTED = ", and attacks look for the smallest change that does it. A certificate and an attack must never disagree."
UNTESTED = ". No attack was run to test the certificates."
PARTIAL = "Incomplete run: something that was asked for was not done. The checks say what."


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
    proved, empirical = metrics.rate_at(audit.certified, eps), metrics.rate_at(audit.empirical, eps)
    if not total or not (proved or empirical):
        return ()
    low = proved.count if proved else 0
    high = empirical.count if empirical else audit.clean.count
    sizes = (
        ("proved", "certified", low),
        ("unknown", "unknown", high - low),
        ("broken", "broken by an attack", audit.clean.count - high),
        ("wrong", "misclassified", total - audit.clean.count),
    )
    parts, start = [], 0
    for css, name, size in sizes:
        at, width = f"{100 * start / total:.2f}", f"{100 * size / total:.2f}"
        parts.append(Part(css, name, at, width, percent(size / total), count(size)))
        start += size
    if not empirical:
        parts[2] = Part("broken", "broken: no attack was run", "0", "0", "untested", "–")
    if not proved:
        gone = "withdrawn" if audit.verdict.integrity == "INVALID" else "nothing"
        parts[0] = Part("proved", "certified", "0", "0", gone, "–")
    return tuple(parts)


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
    verdict: VerdictView
    tiles: tuple[Tile, ...]
    eps: str
    feel: str
    parts: tuple[Part, ...]


def title(audit: Audit) -> str:
    data = " ".join(filter(None, (clean(audit.dataset.name, 40), clean(audit.dataset.split, 20))))
    return f"{clean(audit.model.name, 60)} on {data}"


def top(audit: Audit) -> Top:
    """Title, verdict, tiles and the bar at the first budget."""
    eps = audit.threat.eps[0] if audit.threat.eps else ""
    return Top(
        clean(audit.run, 60),
        title(audit),
        _facts(audit),
        QUESTION + (TESTED if metrics.was_attacked(audit) else UNTESTED),
        _alarms(audit),
        verdict(audit, eps),
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
        ("changes", f"measured by {' and '.join(map(spoken, audit.norms))} norm, {clean(audit.threat.units, 40)}"),
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
    proved, empirical = metrics.rate_at(audit.certified, eps), metrics.rate_at(audit.empirical, eps)
    label = f"robust accuracy at ε = {clean(eps, 20)}{metrics.measured_in(audit)}"
    upper = percent(empirical.value if empirical else audit.clean.value)
    if not metrics.correct_rows(audit):
        return Tile("none", label, "no image is answered correctly")
    if proved:
        note = f"certified – {'not broken' if empirical else 'clean accuracy'}"
        return Tile(f"{percent(proved.value)} – {upper}", label, note)
    reasons = {"INVALID": "certificates withdrawn", "UNPROVED": "nothing is certified"}
    why = reasons.get(audit.verdict.integrity, "not computed")
    return Tile(f"at most {upper}", label, f"{why}; {'not broken' if empirical else 'clean accuracy'}")


def _radius_tile(audit: Audit) -> Tile:
    if audit.verdict.integrity == "INVALID":
        return Tile("withheld", "median certified radius", "certificates are contradicted")
    if audit.verdict.integrity == "UNPROVED":
        return Tile("none", "median certified radius", "no certificate was issued")
    radius = metrics.median_radius(audit)
    local = metrics.local_rows(audit)
    where = f", {local} by affine forms around the image" if local else ""
    return Tile(
        number(radius), "median certified radius", f"{audit.threat.norm}, of correctly classified images{where}"
    )


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
    levels = levels_of(audit, eps)
    if levels is None:
        return ""
    if audit.threat.norm == "Linf":
        return f"each value of an image changes by at most {number(levels)} of 255 brightness levels"
    spread = f"spread evenly over all {count(math.prod(audit.model.input_shape))} values of an image"
    return f"{spread}, {number(levels)} of 255 brightness levels each"
