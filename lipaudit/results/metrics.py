"""What the report needs to know beyond the fields of an `Audit`, computed from its columns."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

from lipaudit.results.audit import Audit, Finding, Rate
from lipaudit.results.bounds import NetworkBound
from lipaudit.results.formatting import clean, number, number_from_log10
from lipaudit.results.threat import eps_value


@dataclass(frozen=True)
class Contradiction:
    """A witness inside a certified radius: proof that a bound is wrong."""

    row: int
    radius: float
    distance: float


def holds(audit: Audit) -> bool:
    """Certificates may be shown as holding: the verdict is SOUND."""
    return audit.verdict.integrity == "SOUND"


def was_attacked(audit: Audit) -> bool:
    return any(audit.samples.attacked)


def correct_rows(audit: Audit) -> tuple[int, ...]:
    """Rows whose prediction is the label."""
    return tuple(row for row, right in enumerate(audit.samples.correct()) if right)


def certified_rows(audit: Audit) -> tuple[int, ...]:
    """Rows with a claim that an attack could refute: a radius above zero."""
    return tuple(row for row, radius in enumerate(audit.samples.radius) if radius > 0)


def tested_rows(audit: Audit) -> tuple[int, ...]:
    """Certified rows that were attacked."""
    return tuple(row for row in certified_rows(audit) if audit.samples.attacked[row])


def contradictions(audit: Audit) -> tuple[Contradiction, ...]:
    """Rows with a witness within the radius, worst first."""
    radius, distance = audit.samples.radius, audit.samples.distance
    found = [Contradiction(row, radius[row], distance[row] or 0.0) for row in audit.samples.contradicted()]
    return tuple(sorted(found, key=lambda c: (c.distance / c.radius, c.row)))


def median(values: list[float] | tuple[float, ...]) -> float | None:
    """None of nothing."""
    return statistics.median(values) if values else None


def median_radius(audit: Audit) -> float | None:
    """Over the correctly classified images; None if there are none."""
    return median([audit.samples.radius[row] for row in correct_rows(audit)])


def local_rows(audit: Audit) -> int:
    """How many radii come from the affine forms around the image, being larger than those of the Lipschitz bounds."""
    return sum(method == "local" for method in audit.samples.method)


def log10_ratio(audit: Audit, row: int) -> float | None:
    """log10 of smallest distance over certified radius, negative for a contradiction; None without both."""
    distance, radius = audit.samples.distance[row], audit.samples.radius[row]
    if distance is None or not 0 < radius < math.inf or not distance > 0:
        return None
    return math.log10(distance) - math.log10(radius)


def log10_ratios(audit: Audit) -> tuple[float, ...]:
    """Of all images that have one, in their order."""
    rows = range(len(audit.samples.label))
    return tuple(ratio for row in rows if (ratio := log10_ratio(audit, row)) is not None)


def median_gap(audit: Audit) -> float | None:
    """Median of `log10_ratios`: orders of magnitude between proof and attack."""
    return median(log10_ratios(audit))


def share_reaching(audit: Audit, radius: float) -> float:
    """Share of the correctly classified images whose certified radius is at least `radius`."""
    rows = correct_rows(audit)
    return sum(audit.samples.radius[row] >= radius for row in rows) / max(1, len(rows))


def smallest_change_words(audit: Audit) -> str:
    """What the line at the smallest change is called in a figure."""
    words = {255: ": smallest 8-bit change", 0: ""}
    return audit.dataset.smallest_change_text + words.get(audit.dataset.levels, ": smallest change of an image")


def fragile_rows(audit: Audit) -> tuple[int, ...]:
    """All rows, the most telling first: smallest distance over radius, smallest radius, wrong ones."""
    s = audit.samples

    def key(row: int) -> tuple[int, float, int]:
        distance, ratio = s.distance[row], log10_ratio(audit, row)
        if s.label[row] != s.prediction[row]:
            return 2, s.margin[row], row
        if holds(audit) and ratio is not None:
            return 0, ratio, row
        if distance is not None:
            return 0, distance, row
        return 1, s.radius[row] if holds(audit) else s.margin[row], row

    return tuple(sorted(range(len(s.label)), key=key))


def budget(audit: Audit) -> float:
    """The first budget, which the page speaks of at its head."""
    return eps_value(audit.threat.eps[0])


def rate_at(rates: tuple[Rate, ...], eps: str) -> Rate | None:
    return next((rate for rate in rates if eps_value(rate.eps) == eps_value(eps)), None)


def measured_in(audit: Audit) -> str:
    """` in Linf`: what a sentence adds where the norm would not be clear. Of an audit in L2 alone, nothing."""
    return "" if audit.norms == ("l2",) else f" in {audit.threat.norm}"


def all_findings(audit: Audit) -> tuple[Finding, ...]:
    """Those in the first norm, and of every other one those with another outcome, which say in which norm."""
    return (*audit.findings, *(finding for view in audit.views[1:] for finding in further_findings(audit, view)))


def further_findings(first: Audit, view: Audit) -> tuple[Finding, ...]:
    """Findings in the first norm of `view` that are not those of `first`."""
    known = {(finding.id, finding.state, finding.title, finding.value) for finding in first.findings}
    rest = (one for one in view.findings if (one.id, one.state, one.title, one.value) not in known)
    return tuple(replace(one, title=f"{one.title} ({view.threat.norm})") for one in rest)


def dataset_name(audit: Audit) -> str:
    """Its name, without the folder on this machine."""
    return clean(audit.dataset.name.partition(":")[0])


def class_name(audit: Audit, label: int | None) -> str:
    """The name of a class, or its number."""
    names = audit.dataset.class_names
    if label is None:
        return "–"
    return names[label] if 0 <= label < len(names) else f"class {label}"


def refuted(bound: NetworkBound) -> list[str]:
    """Layers with a bound below what was measured."""
    return [line.name for line in bound.layers if line.lower is not None and line.lower > line.upper.value]


def reached(audit: Audit) -> float:
    """Share of the correctly classified images whose radius reaches the smallest change of such an image."""
    rows = [r for r, right in zip(audit.samples.radius, audit.samples.correct(), strict=True) if right]
    return sum(radius >= audit.dataset.smallest_change for radius in rows) / max(1, len(rows))


def unfinished(audit: Audit) -> list[str]:
    """Names of the attacks that did not run to the end."""
    return [record.name for record in audit.attacks if record.unfinished]


def put_to_the_test(audit: Audit) -> int:
    """How many images with a certified radius were attacked."""
    pairs = zip(audit.samples.radius, audit.samples.attacked, strict=True)
    return sum(radius > 0 and attacked for radius, attacked in pairs)


def held_against(audit: Audit) -> str:
    """The claimed constant beside the bound or slope that decides: `bound 0.98 ≤ 1`, `2.68 > 1, inputs 0.001 apart`."""
    claim, bound = audit.claim, audit.bound
    if claim is None:
        return ""
    standing, constant = claim.standing(bound), f"{claim.constant:.9g}"
    if standing == "refuted":
        assert claim.steepest is not None
        return f"{claim.slope:.7g} > {constant}, inputs {number(claim.steepest.distance)} apart"
    if standing == "confirmed":
        assert bound is not None
        if bound.value <= claim.constant:
            return f"bound {bound.value:.6g} ≤ {constant}"
        return f"bound {constant} × (1 + {bound.value / claim.constant - 1:.1e}), rounding"
    slope = f"slope {number(claim.slope)} ≤ {constant}" if claim.steepest else f"claim {constant}"
    return f"{slope} < bound {number_from_log10(bound.log10)}" if bound is not None else f"{slope}, no bound"
