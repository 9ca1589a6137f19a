"""The result in the terminal: pure functions of an `Audit`.

`summary` gives lines of (text, style) pairs in the words of `rich` styles: `Text.assemble(*line)` takes them.
`to_text` drops the styles. The verdict comes last, where the eye of a terminal is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from lipaudit.report.bound_section import claim
from lipaudit.report.crosscheck_section import arithmetics, estimates, published
from lipaudit.report.header import title
from lipaudit.report.page import MARKS
from lipaudit.results import metrics
from lipaudit.results.audit import Audit, Finding, Gate
from lipaudit.results.formatting import NONE, clean, interval, number, number_from_log10, percent, plural, points
from lipaudit.results.threat import eps_text, eps_value, spoken
from lipaudit.verdict.gates import compared

WIDTH = 96
STYLES = {"fail": "bold red", "warn": "yellow", "pass": "green", "info": "dim", "not run": "dim"}
LAMP_STYLES = {
    "SOUND": "bold green", "INVALID": "bold red", "UNPROVED": "bold yellow",
    "failed": "bold red", "passed": "bold green", "vacuous": "bold yellow",
}  # fmt: skip


class Span(NamedTuple):
    """A piece of a line and its `rich` style."""

    text: str
    style: str = ""


Line = tuple[Span, ...]


def summary(audit: Audit, paths: Sequence[tuple[str, str]] = ()) -> tuple[Line, ...]:
    """Budgets, checks, verdict, and where the files are: `paths` holds (kind, path) pairs."""
    measured = [
        block
        for number, view in enumerate(audit.views)
        for block in (_budgets(view), _arithmetics(view, explained=number == 0))
    ]
    judged = [_checks(audit), gate_lines(audit.gates), _verdict(audit)]
    blocks = [_head(audit), *measured, *judged, _paths(paths)]
    lines: list[Line] = []
    for block in blocks:
        if block:
            lines += [(), *block]
    return tuple(lines[1:])


def to_text(audit: Audit, paths: Sequence[tuple[str, str]] = ()) -> str:
    """`summary` without styles."""
    return "\n".join("".join(span.text for span in line).rstrip() for line in summary(audit, paths)) + "\n"


def brief(audit: Audit) -> str:
    """An audit in five lines, for whoever prints it."""
    v, bound = audit.verdict, NONE if audit.bound is None else number_from_log10(audit.bound.log10)
    rates = [f"{percent(rate.value)} proved at {rate.eps}" for rate in audit.certified[:3]]
    rates += [f"{percent(rate.value)} empirical at {rate.eps}" for rate in audit.empirical[:3]]
    lines = (
        f"Audit {audit.run}: {title(audit)}, {plural(audit.dataset.samples, 'image')}",
        f"{v.integrity}, strength {v.strength or 'withheld'}, gate {v.gate}",
        v.headline,
        f"Lipschitz bound {bound}, median certified radius {number(metrics.median_radius(audit))}",
        ", ".join([f"{percent(audit.clean.value)} right", *rates]),
    )
    return "\n".join(clean(line, 160) for line in lines)


def _head(audit: Audit) -> list[Line]:
    d = audit.dataset
    about = f"{plural(d.samples, 'image')} · seed {d.seed} · {' and '.join(map(spoken, audit.norms))}"
    lines: list[Line] = [(Span(title(audit), "bold"), Span(f" · {about}"))]
    if audit.model.weights == "random":
        lines.append((Span("RANDOM WEIGHTS: this network was never trained.", "bold red"),))
    if audit.bound is not None and metrics.holds(audit):
        radius = number(metrics.median_radius(audit))
        bound = number_from_log10(audit.bound.log10)
        local = metrics.local_rows(audit)
        where = f" ({local} local)" if local else ""
        lines.append((Span(f"Lipschitz bound {bound} · median certified radius {radius}{where}"),))
    if (claimed := claim(audit)) is not None:
        word = Span(claimed.word, STYLES[claimed.look.replace("-", " ")])
        lines.append((Span(f"{claimed.said} ", "dim"), word, Span(f", {claimed.value}" if claimed.value else "")))
    return lines


def _budgets(audit: Audit) -> list[Line]:
    if not metrics.correct_rows(audit):
        return [(Span(f"clean accuracy {percent(audit.clean.value)}: nothing to certify or attack", "bold"),)]
    lines: list[Line] = [
        (Span(f"{f'ε ({audit.threat.norm})':<18}{'certified ≥':>12}{'not broken ≤':>14}{'unknown':>14}", "dim"),)
    ]
    missing = "withdrawn" if audit.verdict.integrity == "INVALID" else NONE
    for eps in sorted(audit.threat.eps, key=eps_value):
        proved, empirical = metrics.rate_at(audit.certified, eps), metrics.rate_at(audit.empirical, eps)
        low = percent(proved.value) if proved else missing
        high = percent(empirical.value) if empirical else NONE
        gap = points((empirical or audit.clean).value - (proved.value if proved else 0.0))
        lines.append((Span(f"{eps_text(eps):<18}{low:>12}{high:>14}{gap:>14}"),))
    for one in published(audit):
        best = f"best published {one.kind} accuracy at {one.eps}: {percent(one.value)}, {one.title}, {one.year}"
        lines.append((Span(clean(best, 140), "dim"),))
    clean_rate = audit.clean
    ci = interval(clean_rate.low, clean_rate.high)
    lines.append((Span(f"clean accuracy {percent(clean_rate.value)}, 95% CI {ci}", "dim"),))
    for view in estimates(audit):
        lines.append((Span(f"estimate, not proved: {view.name}, median {view.median} ({view.certainty})", "dim"),))
    return lines


def _arithmetics(audit: Audit, *, explained: bool) -> list[Line]:
    """Certified accuracy under each arithmetic, and what each is about where that is to be explained."""
    found = arithmetics(audit)
    if not found.rows or not metrics.holds(audit) or not metrics.correct_rows(audit):
        return []
    lines: list[Line] = [(Span(f"{'certified accuracy':<24}{''.join(f'{eps:>16}' for eps in found.eps)}", "dim"),)]
    for row in found.rows:
        cells = "".join(f"{cell:>16}" for cell in row.cells)
        lines.append((Span(f"{row.name:<24}{cells}", "bold" if row.headline else ""),))
    for row in found.rows if explained else [row for row in found.rows if row.why_not]:
        said = f"{row.name}: " + (f"not certified: {row.why_not}" if row.why_not else row.sentence)
        lines += [(Span(part, "dim"),) for part in textwrap.wrap(said, WIDTH, subsequent_indent="   ")]
    return lines


def _checks(audit: Audit) -> list[Line]:
    """What failed or warns, one line each; the rest counted."""
    lines: list[Line] = []
    findings = metrics.all_findings(audit)
    for state in ("fail", "warn"):
        lines += [_check(finding) for finding in findings if finding.state == state]
    tally = [(sum(f.state == state for f in findings), state) for state in ("pass", "info", "not run")]
    said = " · ".join(f"{many} {state}" for many, state in tally if many)
    if said:
        lines.append((Span(f"{MARKS['pass']} ", STYLES["pass"]), Span(said)))
    lines += [(Span("– not done  ", "dim"), Span(f"{clean(s.what, 40)}: {clean(s.why, 80)}")) for s in audit.skipped]
    return lines


def _check(finding: Finding) -> Line:
    sign = f"{MARKS[finding.state]} {finding.state.upper():<5}"
    return (
        Span(sign, STYLES[finding.state]),
        Span(f" {clean(finding.id, 12)}  {clean(finding.title, 100)}  "),
        Span(clean(finding.value, 40), "bold"),
    )


def gate_lines(gates: Sequence[Gate]) -> list[Line]:
    """Each condition, and what was compared, or why nothing was."""
    width = max((len(clean(gate.expression, 60)) for gate in gates), default=0)
    lines: list[Line] = []
    for gate in gates:
        look = gate_look(gate)
        sign = f"{MARKS[look]} {'GATE' if look in ('fail', 'warn') else 'gate':<5}"
        said = Span(compared(gate), "bold") if gate.value is not None else Span(f"{gate.state}: {clean(gate.why, 120)}")
        lines.append((Span(sign, STYLES[look]), Span(f" {clean(gate.expression, 60):<{width}}  "), said))
    return lines


def gate_look(gate: Gate) -> str:
    """The state of a check that a gate looks like."""
    if gate.state == "failed":
        return "fail" if gate.level == "error" else "warn"
    return "pass" if gate.state == "passed" else "not run"


def _verdict(audit: Audit) -> list[Line]:
    v = audit.verdict
    badges = [("integrity", v.integrity), ("strength", v.strength or "withheld"), ("gate", v.gate)]
    first: list[Span] = []
    for name, state in badges:
        first += [
            Span(f"{'   ' if first else ''}{name} ", "dim"),
            Span(state.upper(), LAMP_STYLES.get(state, "bold")),
        ]
    each = [view.verdict for view in audit.views]
    said = [part for one in each for part in (clean(one.headline, 300), *(clean(s, 600) for s in one.sentences))]
    lines: list[Line] = [tuple(first)]
    for rank, sentence in enumerate(said):
        style = "bold" if rank == 0 else ""
        lines += [(Span(row, style),) for row in textwrap.wrap(sentence, WIDTH)]
    return lines


def _paths(paths: Sequence[tuple[str, str]]) -> list[Line]:
    return [(Span(f"{kind:<8}", "dim"), Span(str(path))) for kind, path in paths]
