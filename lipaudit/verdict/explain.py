"""The record of a check as a page, for `lipaudit explain` and docs/checks.md (`python -m lipaudit.verdict.explain`)."""

from __future__ import annotations

import difflib
import sys
import textwrap

from lipaudit.errors import ConfigError
from lipaudit.results.formatting import clean
from lipaudit.verdict.checks import CHECKS

WIDTH = 96


def explain(name: str) -> str:
    """The page of a check as text; raises `ConfigError` for an unknown id, with the nearest one."""
    name = name.upper()
    check = CHECKS.get(name)
    if check is None:
        close = difflib.get_close_matches(name, CHECKS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"no check {clean(name, 40)!r}; {hint}`lipaudit explain` lists them")
    lines = [f"{name}  {check.title}", "", "What it asks", _wrapped(check.asks), "", "Why it matters"]
    lines += [_wrapped(check.why), "", "What to do", _wrapped(check.fix), "", "States"]
    lines += [_wrapped(f"{state:<9}{meaning}", hang=9) for state, meaning in check.states.items()]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, hang: int = 0) -> str:
    indent = "  "
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent + " " * hang, break_on_hyphens=False
    )


def to_markdown() -> str:
    """The text of docs/checks.md: every check, as its record has it."""
    lines = [
        "# Checks",
        "",
        "Made by `python -m lipaudit.verdict.explain > docs/checks.md` from the records in `lipaudit/verdict/checks/`.",
        "",
        "| id | check | what it asks |",
        "| --- | --- | --- |",
        *(f"| [{check.id}](#{check.id.lower()}) | {check.title} | {check.asks} |" for check in CHECKS.values()),
    ]
    for check in CHECKS.values():
        effects = ["INVALID if it fails"] * check.refutes + ["withheld without valid certificates"] * (
            check.rests_on_bounds
        )
        lines += ["", f"## {check.id}", "", f"**{check.title}.** {check.asks}", "", check.why, ""]
        lines += [f"What to do: {check.fix}", "", *(f"- `{state}`: {text}" for state, text in check.states.items())]
        lines += ["", f"({'; '.join(effects)})"] if effects else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
