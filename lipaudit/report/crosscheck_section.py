"""The view models of what is proved and what attacks found: curves, arithmetic, estimates, the cross-check."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from lipaudit.report.figures import curves as fig1
from lipaudit.report.figures import scatter
from lipaudit.report.figures.charts import Figure
from lipaudit.report.header import Part, divide
from lipaudit.results import metrics
from lipaudit.results.audit import ArithmeticResult, AttackRecord, Audit, Estimate, Rate
from lipaudit.results.formatting import (
    NONE,
    clean,
    count,
    duration,
    interval,
    number,
    number_from_log10,
    percent,
    plural,
    points,
)
from lipaudit.results.published import Kind, Published, published_at
from lipaudit.results.threat import eps_text, eps_value

WITHDRAWN = "withdrawn"
MOST_CONTRADICTIONS = 20

CURVE_WITHDRAWN = "The certified curve is withdrawn: a certificate is contradicted, so do not rely on any."
CURVE_UNPROVED = "There is no certified curve: part of the network has no proved bound."
CURVE_UNATTACKED = "No image was attacked, so nothing is known to be broken: clean accuracy is the only ceiling."
NO_CURVE = "There is no curve to draw: no image has a certified radius above zero, and none was attacked."
NO_CERTIFICATE = "There is no certificate to compare with attacks: part of the network has no proved bound."
NO_TEST = "No image was attacked, so nothing has tested these certificates."
NO_RADIUS = "No attacked image has a certified radius above zero: there is nothing to compare with attacks."


@dataclass(frozen=True)
class CurveRow:
    eps: str
    certified: str
    certified_ci: str
    empirical: str
    empirical_ci: str
    unknown: str
    parts: tuple[Part, ...]
    best: str
    """The best published figures at the same data set, norm and budget; empty where the table has none."""


@dataclass(frozen=True)
class Curves:
    figure: Figure | None
    other: Figure | None
    """The same on the other kind of axis."""
    other_scale: str
    note: str
    norm: str
    rows: tuple[CurveRow, ...]
    levels: int
    smallest: str
    """The smallest change of such an image: `1/255`."""
    has_proof: bool
    has_attack: bool
    sources: tuple[str, ...]
    """Where published figures are from."""


@dataclass(frozen=True)
class AttackRow:
    name: str
    library: str
    settings: str
    attacked: str
    broken: str
    closest: str
    median: str
    seconds: str
    remark: str


@dataclass(frozen=True)
class FalseClaim:
    index: str
    label: str
    radius: str
    distance: str
    attack: str
    ratio: str


@dataclass(frozen=True)
class CrossCheck:
    figure: Figure | None
    note: str
    counted: str
    ratio: str
    attacks: tuple[AttackRow, ...]
    false_claims: tuple[FalseClaim, ...]
    more_false: str
    norm: str


def curves(audit: Audit) -> Curves:
    """Fig. 1 and its table."""
    shown = fig1.band(audit)
    # Where radii lie decades below attacks, a logarithmic axis is grey for most of its length.
    far = shown is not None and (shown.gap is None or shown.gap >= fig1.WIDE_GAP)
    figure = fig1.figure(audit, shown, log=not far) if shown else None
    other = fig1.figure(audit, shown, log=far) if shown and figure and shown.gap is not None else None
    return Curves(
        figure,
        other,
        "logarithmic" if far else "linear",
        _curve_note(audit, figure is not None),
        audit.threat.norm,
        tuple(_curve_row(audit, eps) for eps in sorted(audit.threat.eps, key=eps_value)),
        audit.dataset.levels,
        audit.dataset.smallest_change_text,
        metrics.holds(audit),
        metrics.was_attacked(audit),
        tuple(dict.fromkeys(f"{one.title}, {one.year}, {one.link}" for one in published(audit))),
    )


def published(audit: Audit, budgets: Sequence[str] = ()) -> list[Published]:
    """The best published accuracies at these budgets, or at those of the audit."""
    t, kinds = audit.threat, get_args(Kind)
    pairs = [(eps, kind) for eps in budgets or sorted(t.eps, key=eps_value) for kind in kinds]
    found = (published_at(audit.dataset.name, t.norm, eps, kind, (t.low, t.high)) for eps, kind in pairs)
    return [one for one in found if one is not None]


def _curve_note(audit: Audit, drawn: bool) -> str:
    said = []
    if audit.verdict.integrity == "INVALID":
        said.append(CURVE_WITHDRAWN)
    if audit.verdict.integrity == "UNPROVED":
        said.append(CURVE_UNPROVED)
    if not metrics.was_attacked(audit):
        said.append(CURVE_UNATTACKED)
    if not drawn:
        said.append(NO_CURVE)
    return " ".join(said)


def _curve_row(audit: Audit, eps: str) -> CurveRow:
    proved, empirical = metrics.rate_at(audit.certified, eps), metrics.rate_at(audit.empirical, eps)
    missing = WITHDRAWN if audit.verdict.integrity == "INVALID" else NONE
    ceiling = empirical or audit.clean
    return CurveRow(
        eps_text(eps),
        percent(proved.value) if proved else missing,
        _ci(proved),
        percent(empirical.value) if empirical else NONE,
        _ci(empirical),
        points(ceiling.value - (proved.value if proved else 0.0)),
        divide(audit, eps),
        ", ".join(f"{percent(one.value)} {one.kind}" for one in published(audit, (eps,))),
    )


def _ci(rate: Rate | None) -> str:
    return interval(rate.low, rate.high) if rate else NONE


def crosscheck(audit: Audit) -> CrossCheck:
    """Fig. 2, what each attack did, and every contradiction."""
    shown = scatter.cloud(audit)
    figure = scatter.figure(audit, shown)
    false = metrics.contradictions(audit)
    ratios = metrics.log10_ratios(audit)
    more = len(false) - MOST_CONTRADICTIONS
    return CrossCheck(
        figure,
        "" if figure else _crosscheck_note(audit),
        _counted(audit, shown),
        number_from_log10(min(ratios)) if ratios else "",
        tuple(_attack_row(record) for record in audit.attacks),
        tuple(_false_claim(audit, one) for one in false[:MOST_CONTRADICTIONS]),
        f"{plural(more, 'more contradiction')} in the result file." if more > 0 else "",
        audit.threat.norm,
    )


def _crosscheck_note(audit: Audit) -> str:
    if audit.verdict.integrity == "UNPROVED":
        return NO_CERTIFICATE
    return NO_RADIUS if metrics.was_attacked(audit) else NO_TEST


def _counted(audit: Audit, shown: scatter.Cloud) -> str:
    said = [f"{plural(len(shown.broken), 'certified image')} with an adversarial example."]
    if shown.never:
        never = plural(len(shown.never), "more was", "more were")
        said.append(f"{never} never broken (triangles on the upper edge).")
    lost = sum(audit.samples.radius[row] == 0 for row in metrics.correct_rows(audit))
    if lost:
        without = plural(lost, "correct image has", "correct images have")
        said.append(f"{without} radius 0 and no place on a logarithmic axis.")
    return " ".join(said)


def _attack_row(record: AttackRecord) -> AttackRow:
    remarks = []
    if record.status != "done":
        remarks.append(": ".join(filter(None, (record.status, clean(record.why, 120)))))
    if record.rejected:
        remarks.append(f"{plural(record.rejected, 'claim')} did not survive re-evaluation")
    remarks += [f"flag: {clean(flag, 160)}" for flag in record.flags]
    done = record.status == "done" or record.attacked > 0
    return AttackRow(
        clean(record.name, 30),
        clean(record.library, 40),
        clean(record.settings, 80),
        count(record.attacked) if done else NONE,
        count(record.broken) if done else NONE,
        count(record.closest) if done else NONE,
        number(record.median_distance),
        duration(record.seconds),
        "; ".join(remarks),
    )


def _false_claim(audit: Audit, one: metrics.Contradiction) -> FalseClaim:
    s = audit.samples
    return FalseClaim(
        f"#{s.index[one.row]}",
        clean(metrics.class_name(audit, s.label[one.row]), 24),
        number(one.radius),
        number(one.distance),
        clean(s.attack[one.row] or NONE, 30),
        number(one.distance / one.radius),
    )


@dataclass(frozen=True)
class ArithmeticRow:
    name: str
    headline: bool
    cells: tuple[str, ...]
    """Certified accuracy at each budget."""
    sentence: str
    """About which function the certificates speak."""
    why_not: str
    """Why nothing is certified; empty if something is."""


@dataclass(frozen=True)
class Arithmetics:
    eps: tuple[str, ...]
    rows: tuple[ArithmeticRow, ...]


def arithmetics(audit: Audit) -> Arithmetics:
    """A row for each arithmetic that was looked at; none in results that were written before there were several."""
    budgets = sorted(audit.threat.eps, key=eps_value)
    return Arithmetics(tuple(map(eps_text, budgets)), tuple(_row(audit, found, budgets) for found in audit.arithmetics))


def _row(audit: Audit, found: ArithmeticResult, budgets: list[str]) -> ArithmeticRow:
    rates = [metrics.rate_at(found.certified, eps) if metrics.holds(audit) else None for eps in budgets]
    missing = "withdrawn" if audit.verdict.integrity == "INVALID" else NONE if found.is_certified else "not certified"
    cells = tuple(percent(rate.value) if rate else missing for rate in rates)
    sentence = clean(found.sentence.partition(": ")[2] or found.sentence, 600)
    return ArithmeticRow(found.arithmetic, found.headline, cells, sentence, clean(found.why_not, 300))


@dataclass(frozen=True)
class EstimateView:
    """One estimate in words."""

    name: str
    about: str
    settings: str
    certainty: str
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
    certainty = "an estimate: no guarantee"
    if estimate.probability is not None:
        draws = f", {count(estimate.draws)} draws" if estimate.draws else ""
        certainty = f"each radius with probability {estimate.probability:g}{draws}"
    shares = tuple(
        (eps_text(eps), percent(sum(value > eps_value(eps) for value in known) / max(1, len(estimate.values))))
        for eps in sorted(audit.threat.eps, key=eps_value)
    )
    return EstimateView(
        name=clean(estimate.name, 40),
        about=clean(estimate.about, 400),
        settings=f"{clean(estimate.library, 40)}: {clean(estimate.settings, 300)}",
        certainty=certainty,
        median=number(statistics.median(known)) if known else NONE,
        shares=shares,
        seconds=duration(estimate.seconds),
    )
