"""The result as Markdown, for a pull request."""

from __future__ import annotations

from lipaudit.report.bound_section import claim
from lipaudit.report.crosscheck_section import arithmetics, estimates
from lipaudit.report.header import title
from lipaudit.report.terminal import gate_look
from lipaudit.results import metrics
from lipaudit.results.audit import Audit
from lipaudit.results.formatting import NONE, clean, interval, percent, plural
from lipaudit.results.threat import eps_text, eps_value, spoken
from lipaudit.verdict.gates import compared


def to_markdown(audit: Audit) -> str:
    """A short summary for a pull request: verdict, budgets, and every check that did not pass."""
    v = audit.verdict
    lines = [f"### {_escaped(title(audit))}", "", f"**{_escaped(clean(v.headline, 300))}**", ""]
    if audit.model.weights == "random":
        lines[2:2] = ["**Random weights: this network was never trained.**", ""]
    lines += [_escaped(clean(sentence, 600)) + "  " for sentence in v.sentences]
    badges = f"integrity **{v.integrity}** · strength **{v.strength or 'withheld'}** · gates **{v.gate}**"
    lines += ["", badges, "", *_each_norm(audit), *_markdown_gates(audit)]
    lines += [
        _escaped(f"Estimate, not proved: {view.name}, median {view.median} ({view.certainty}). {view.about}") + "\n"
        for view in estimates(audit)
    ]
    if (claimed := claim(audit)) is not None:
        said = ", ".join(filter(None, (claimed.word, claimed.value)))
        lines.append(_escaped(f"{claimed.said} {said}.") + "\n")
    lines += _markdown_checks(audit)
    d = audit.dataset
    about = f"{plural(d.samples, 'image')}, seed {d.seed}, {' and '.join(map(spoken, audit.norms))} norm"
    scope = "One kind of change, one sample, one set of weights: not a statement that the model is fit for use."
    return "\n".join([*lines, f"<sub>{about}; run {_escaped(clean(audit.run, 60))}. {scope}</sub>"]) + "\n"


def _each_norm(audit: Audit) -> list[str]:
    """The tables of every norm; of those behind the first, with the verdict."""
    lines: list[str] = []
    for view in audit.views:
        if lines:
            said = [clean(view.verdict.headline, 300), *(clean(s, 600) for s in view.verdict.sentences)]
            lines += [_escaped(" ".join(said)), ""]
        lines += [*_markdown_budgets(view), "", *_markdown_arithmetics(view, explained=not lines)]
    return lines


def _markdown_budgets(audit: Audit) -> list[str]:
    if not metrics.correct_rows(audit):
        return [f"Clean accuracy {percent(audit.clean.value)}: nothing to certify or attack."]
    lines = [f"| ε ({audit.threat.norm}) | certified, at least | not broken, at most |", "|---|---:|---:|"]
    missing = "withdrawn" if audit.verdict.integrity == "INVALID" else NONE
    for eps in sorted(audit.threat.eps, key=eps_value):
        proved, empirical = metrics.rate_at(audit.certified, eps), metrics.rate_at(audit.empirical, eps)
        cells = [f"{percent(r.value)} ({interval(r.low, r.high)})" if r else "" for r in (proved, empirical)]
        lines.append(f"| {_escaped(eps_text(eps))} | {cells[0] or missing} | {cells[1] or NONE} |")
    return [*lines, f"| clean | | {percent(audit.clean.value)} |"]


def _markdown_arithmetics(audit: Audit, *, explained: bool) -> list[str]:
    found = arithmetics(audit)
    if not found.rows or not metrics.holds(audit) or not metrics.correct_rows(audit):
        return []
    names = " | ".join(f"{'**' * row.headline}{row.name}{'**' * row.headline}" for row in found.rows)
    lines = [f"| certified accuracy | {names} |", f"|---|{'---:|' * len(found.rows)}"]
    for place, eps in enumerate(found.eps):
        lines.append(f"| ε = {_escaped(eps)} | {' | '.join(row.cells[place] for row in found.rows)} |")
    said = [
        (row.name, f"not certified: {row.why_not}" if row.why_not else row.sentence)
        for row in found.rows
        if explained or row.why_not
    ]
    return [*lines, "", *(f"{arithmetic}: {_escaped(sentence)}  " for arithmetic, sentence in said), ""]


def _markdown_gates(audit: Audit) -> list[str]:
    if not audit.gates:
        return []
    lines = ["| gate | | |", "|---|---|---|"]
    for gate in audit.gates:
        said = compared(gate) if gate.value is not None else clean(gate.why, 160)
        state = "missed, warns" if gate_look(gate) == "warn" else gate.state
        lines.append(f"| {_escaped(clean(gate.expression, 60))} | {state} | {_escaped(said)} |")
    return [*lines, ""]


def _markdown_checks(audit: Audit) -> list[str]:
    loud = [f for state in ("fail", "warn") for f in metrics.all_findings(audit) if f.state == state]
    if not loud:
        return []
    cells = [(f.state, clean(f.id, 12), clean(f.title, 160), clean(f.value, 60)) for f in loud]
    rows = [f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in cells]
    return ["| | check | | value |", "|---|---|---|---|", *rows, ""]


def _escaped(text: str) -> str:
    """So that Markdown and the HTML in it show the text as it is."""
    for sign in "\\`*_[]|~#@":
        text = text.replace(sign, f"\\{sign}" if sign != "@" else "@\u2060")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
