"""One row per audit: the table of a paper, or the leaderboard of a team."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from lipaudit.report.html import environment
from lipaudit.results.audit import Audit, Rate
from lipaudit.results.formatting import NONE, PLAIN_DIGITS, clean, number_from_log10, percent
from lipaudit.results.metrics import dataset_name, rate_at
from lipaudit.results.threat import eps_value, norm_of

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def rows_of(audits: Sequence[Audit], *, exact: bool = False) -> list[list[str]]:
    """A head, then a row per audit: clean, certified and empirical accuracy at each budget of any, bound, verdict.

    Certified accuracy is a lower bound, empirical an upper one. Where an audit has no such budget or rate: a dash, or
    nothing if numbers are to be `exact`: shares from 0 to 1 then, and the logarithm of the bound.
    """
    threats = [view.threat for audit in audits for view in audit.views]
    budgets = sorted({(threat.norm, eps_value(eps), eps) for threat in threats for eps in threat.eps})
    # 36/255 and 0.1411... are one budget, under the first way in which it is written.
    kept = [(norm, eps) for i, (norm, size, eps) in enumerate(budgets) if (norm, size) != budgets[i - 1][:2] or not i]
    head = ["model", "data", "images", "clean"]
    head += [f"{kind} {norm} {eps}" for norm, eps in kept for kind in ("certified", "empirical")]
    bound = "log10 of the Lipschitz bound" if exact else "Lipschitz bound"
    return [[*head, bound, "verdict", "gate"], *(_row(audit, kept, exact) for audit in audits)]


def _row(audit: Audit, budgets: Sequence[tuple[str, str]], exact: bool) -> list[str]:
    def share(rate: Rate | None) -> str:
        if rate is None:
            return "" if exact else NONE
        return repr(rate.value) if exact else percent(rate.value)

    cells = [clean(audit.model.name), dataset_name(audit), str(audit.dataset.samples)]
    cells.append(share(audit.clean))
    for norm, eps in budgets:
        view = audit.in_norm(norm) if norm_of(norm) in audit.norms else None
        rates = ((), ()) if view is None else (view.certified, view.empirical)
        cells += [share(rate_at(each, eps)) for each in rates]
    log10 = None if audit.bound is None else audit.bound.log10
    bound = repr(log10) if exact else number_from_log10(log10) if log10 is not None else NONE
    strength = f", {audit.verdict.strength}" if audit.verdict.strength else ""
    return [
        *cells,
        "" if exact and log10 is None else bound,
        f"{audit.verdict.integrity}{strength}",
        audit.verdict.gate,
    ]


def to_table(audits: Sequence[Audit], kind: str, links: Sequence[str] = ()) -> str:
    """The rows in one of `TABLES`; `links`, if any, are the addresses of the reports, for `html`."""
    rows = rows_of(audits, exact=kind == "csv")
    if kind == "csv":
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(rows)
        return file.getvalue()
    if kind == "latex":
        return _latex(rows)
    if kind == "html":
        return environment().get_template("table.html.j2").render(rows=rows, links=links or [""] * len(audits))
    marked = [[cell.replace("\\", "\\\\").replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", "---", *(["--:"] * (len(rows[0]) - 4)), "---", "---"]
    return "".join(f"| {' | '.join(row)} |\n" for row in (marked[0], rule, *marked[1:]))


def _latex(rows: Sequence[Sequence[str]]) -> str:
    """A `tabular` for the package booktabs."""
    written = [" & ".join(map(_in_latex, row)) for row in rows]
    columns = f"ll{'r' * (len(rows[0]) - 4)}ll"
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rf"{written[0]} \\", r"\midrule"]
    lines += [rf"{row} \\" for row in written[1:]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _in_latex(cell: str) -> str:
    """Escaped; `3.12×10¹¹` becomes a formula."""
    escaped = "".join(_LATEX.get(sign, sign) for sign in cell).replace(NONE, "--")
    return re.sub(
        r"([\d.]+)×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)",
        lambda found: rf"${found[1]}\times10^{{{found[2].translate(PLAIN_DIGITS)}}}$",
        escaped,
    )
