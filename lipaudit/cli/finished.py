"""The commands that read finished results: `check`, `compare`; and `explain`, which says what their checks mean."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipaudit.cli.commands import commands
from lipaudit.cli.config import config_option
from lipaudit.cli.options import FILE, gate_option, text_or_json
from lipaudit.errors import ExitCode

if TYPE_CHECKING:
    from lipaudit.results import Audit


@commands.command(context_settings={"auto_envvar_prefix": "LIPAUDIT"})
@click.argument("result", type=FILE)
@gate_option
@config_option
@click.option("--exit-zero", is_flag=True, help="Exit 0 where a gate fails; hides nothing else.")
@text_or_json
def check(result: Path, gate: tuple[str, ...], config: Path | None, exit_zero: bool, kind: str) -> int:
    """Hold RESULT, a result file, against gates without running it again.

    The gates are those of --gate, else of the configuration file, else those that the result was made with. Exit
    codes are those of `lipaudit run`.
    """
    del config  # its gates are the default of --gate
    from lipaudit.cli.terminal import print_lines
    from lipaudit.findings import incomplete, integrity_of
    from lipaudit.gates import conditions, exit_code, judge
    from lipaudit.report.json import load_audit

    audit = load_audit(result)
    wanted = conditions(gate or [stored.expression for stored in audit.gates])
    stated = audit.verdict.integrity
    integrity = integrity_of(audit) if stated == "SOUND" else stated
    audit = replace(audit, gates=judge(audit, wanted, integrity))
    code = exit_code(audit.gates, integrity, incomplete(audit))
    if kind == "json":
        click.echo(json.dumps(_plain_check(audit, integrity, code), indent=1, ensure_ascii=False))
    else:
        print_lines(_check_lines(audit, integrity), sys.stdout)
    return ExitCode.DONE if exit_zero and code == ExitCode.GATE_FAILED else code


def _plain_check(audit: Audit, integrity: str, code: int) -> dict[str, Any]:
    from dataclasses import asdict

    from lipaudit.gates import state_of

    gates = [asdict(gate) for gate in audit.gates]
    return {"run": audit.run, "integrity": integrity, "gate": state_of(audit.gates), "exit_code": code, "gates": gates}


def _check_lines(audit: Audit, integrity: str) -> list[Any]:
    from lipaudit.findings import incomplete
    from lipaudit.gates import state_of
    from lipaudit.report.sections import title
    from lipaudit.report.text import LAMP_STYLES, gate_lines

    state = state_of(audit.gates)
    lamps = [("integrity ", "dim"), (integrity, LAMP_STYLES.get(integrity, "bold"))]
    lamps += [("   gate ", "dim"), (state.upper(), LAMP_STYLES.get(state, "bold"))]
    lines = [[(title(audit), "")], *gate_lines(audit.gates), lamps]
    if not audit.gates:
        lines.append([("no gate: add one by --gate, or under [gate] in lipaudit.toml", "")])
    if integrity == "SOUND" and incomplete(audit):
        lines.append([("the audit is incomplete: something that was asked for was not done", "")])
    return lines


@commands.command()
@click.argument("base", type=FILE)
@click.argument("new", type=FILE)
@click.option(
    "--max-drop", type=click.FloatRange(0, 1), metavar="D", help="Exit 3 if a share falls by more, such as 0.02."
)
@click.option("--force", is_flag=True, help="Compare what is not alike; the output is marked NOT COMPARABLE.")
@text_or_json
def compare(base: Path, new: Path, max_drop: float | None, force: bool, kind: str) -> int:
    """Hold NEW against BASE, two result files of the same images, image by image.

    Refuses results of other images, budgets, attacks or preprocessing. Exit codes: 0, 3 past --max-drop, 4 if NEW is
    INVALID, 5 if --max-drop cannot be judged.
    """
    from lipaudit.cli.terminal import print_lines
    from lipaudit.comparison import compare as held_against
    from lipaudit.comparison import to_plain
    from lipaudit.report.contrast import comparison_lines, drop_lines
    from lipaudit.report.json import load_audit

    found = held_against(load_audit(base), load_audit(new), force=force)
    code = found.exit_code(max_drop)
    if kind == "json":
        plain = {**to_plain(found), "max_drop": max_drop, "exit_code": code}
        click.echo(json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_lines([*comparison_lines(found), *drop_lines(found, max_drop)], sys.stdout)
    return code


def _check_ids(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """For completion in a shell."""
    del context, parameter
    from lipaudit.explanations import PAGES

    return [name for name in PAGES if name.startswith(typed.upper())]


@commands.command()
@click.argument("check_id", metavar="[ID]", default="", shell_complete=_check_ids)
def explain(check_id: str) -> None:
    """Say what a check asks, why it matters and what to do; without ID, list the checks."""
    from lipaudit.explanations import PAGES, question
    from lipaudit.explanations import explain as page_of

    if check_id:
        click.echo(page_of(check_id), nl=False)
    else:
        for name in PAGES:
            click.echo(f"{name}  {question(name)}")
