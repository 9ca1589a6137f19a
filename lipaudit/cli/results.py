"""The commands that read what is finished: `report`, `check`, `compare`, `merge`, `verify`; and `schema`, `explain`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipaudit.cli.config_file import config_option
from lipaudit.cli.main import commands
from lipaudit.cli.options import FILE, in_groups, options, text_or_json
from lipaudit.cli.output import deliver, prepare_output, spared
from lipaudit.errors import ExitCode
from lipaudit.results.formats import FORMATS, TABLES, of_file
from lipaudit.results.threat import NORMS
from lipaudit.settings import OUTPUT, RunSettings

if TYPE_CHECKING:
    from lipaudit.results.audit import Audit


@commands.command("gate")
@click.argument("result", type=FILE)
@options("gates", variables=True)
@config_option
@options("exit_zero", variables=True)
@text_or_json
def evaluate_gates(result: Path, gates: tuple[str, ...], config_file: Path | None, exit_zero: bool, kind: str) -> int:
    """Evaluate gates on a result, without running the audit again.

    The gates are those of --gate, else of the configuration file, else those that the result was made with. Exit
    codes are those of `lipaudit run`.
    """
    del config_file  # its gates are the default of --gate
    from lipaudit.cli.terminal import print_lines
    from lipaudit.verdict.consistency import load_audit
    from lipaudit.verdict.gates import conditions, exit_code, judge
    from lipaudit.verdict.verdict import incomplete, integrity_of

    audit = load_audit(result)
    wanted = conditions(gates or [stored.expression for stored in audit.gates])
    stated = audit.verdict.integrity
    integrity = integrity_of(audit) if stated == "SOUND" else stated
    audit = replace(audit, gates=judge(audit, wanted, integrity))
    code = exit_code(audit.gates, integrity, incomplete(audit))
    if kind == "json":
        click.echo(json.dumps(_plain_check(audit, integrity, code), indent=1, ensure_ascii=False))
    else:
        print_lines(_check_lines(audit, integrity), sys.stdout)
    return spared(code, exit_zero)


def _plain_check(audit: Audit, integrity: str, code: int) -> dict[str, Any]:
    from dataclasses import asdict

    from lipaudit.verdict.gates import state_of

    gates = [asdict(gate) for gate in audit.gates]
    return {"run": audit.run, "integrity": integrity, "gate": state_of(audit.gates), "exit_code": code, "gates": gates}


def _check_lines(audit: Audit, integrity: str) -> list[Any]:
    from lipaudit.report.header import title
    from lipaudit.report.terminal import LAMP_STYLES, gate_lines
    from lipaudit.verdict.gates import state_of
    from lipaudit.verdict.verdict import incomplete

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
@click.option("--force", is_flag=True, help="Compare even if inputs differ; the output is marked NOT COMPARABLE.")
@text_or_json
def compare(base: Path, new: Path, max_drop: float | None, force: bool, kind: str) -> int:
    """Compare two results image by image: what NEW gained and lost against BASE.

    Refuses results of other images, budgets, attacks or preprocessing. Exit codes: 0, 3 past --max-drop, 4 if NEW is
    INVALID, 5 if --max-drop cannot be evaluated.
    """
    from lipaudit.cli.terminal import print_lines
    from lipaudit.report.comparison import comparison_lines, drop_lines
    from lipaudit.verdict.comparison import compare as held_against
    from lipaudit.verdict.comparison import to_plain
    from lipaudit.verdict.consistency import load_audit

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
    from lipaudit.verdict.checks import CHECKS

    return [name for name in CHECKS if name.startswith(typed.upper())]


@commands.command()
@click.argument("check_id", metavar="[ID]", default="", shell_complete=_check_ids)
def explain(check_id: str) -> None:
    """Explain a check: what it asks, why it matters, what to do. Without ID, list the checks."""
    from lipaudit.verdict.checks import CHECKS
    from lipaudit.verdict.explain import explain as page_of

    if check_id:
        click.echo(page_of(check_id), nl=False)
    else:
        for check in CHECKS.values():
            click.echo(f"{check.id}  {check.asks}")


@commands.command()
@click.argument("result", type=FILE)
@click.option("-o", "--out", required=True, metavar="FILE", help="Its ending says the format; - is HTML on stdout.")
@click.option(
    "--format",
    "kind",
    type=click.Choice([*FORMATS]),
    help="; ".join(f"{name}: {form.about}" for name, form in FORMATS.items()) + ". [default: by the ending of FILE]",
)
@click.option("--norm", type=click.Choice(NORMS), help="Of a result in several norms: which comes first.")
def report(result: Path, out: str, kind: str | None, norm: str | None) -> None:
    """Write the report of a result again."""
    from lipaudit.files.atomic import write_all
    from lipaudit.verdict.consistency import load_audit

    kind = kind or ("html" if out == "-" else of_file(out))
    if kind is None:
        endings = ", ".join(f".{form.ending}" for form in FORMATS.values())
        raise click.UsageError(f"expected a file that ends in one of {endings}, got {out!r}; or add --format")
    audit = load_audit(result)
    text = FORMATS[kind].write(audit if norm is None else audit.in_norm(norm))
    if out == "-":
        click.echo(text, nl=False)
    else:
        write_all({Path(out): text})


@commands.command()
@click.argument("results", type=FILE, nargs=-1, required=True, metavar="RESULT...")
@click.option("--format", "kind", type=click.Choice(TABLES), default="md", show_default=True)
@click.option("-o", "--out", default="-", metavar="FILE", help="Where to; - is stdout.  [default: -]")
def table(results: tuple[Path, ...], kind: str, out: str) -> None:
    """Print a table with one row per result: for a paper, or as the index of a folder of reports.

    `lipaudit table reports/*.json --format html -o reports/index.html` can be sorted, and links the reports beside it.
    """
    from lipaudit.files.atomic import write_all
    from lipaudit.report.table import to_table
    from lipaudit.verdict.consistency import load_audit

    here = Path(out).parent if out != "-" else Path()
    pages = [file.with_suffix(".html") for file in results]
    links = [os.path.relpath(page, here).replace(os.sep, "/") if page.is_file() else "" for page in pages]
    text = to_table([load_audit(file) for file in results], kind, links)
    if out == "-":
        click.echo(text, nl=False)
    else:
        write_all({Path(out): text})


@commands.command()
def schema() -> None:
    """Print the JSON Schema of result files."""
    from lipaudit.results.json_schema import to_schema

    click.echo(to_schema(), nl=False)


@commands.command()
@click.argument("proof", type=FILE)
@click.option("--checkpoint", type=FILE, required=True, metavar="FILE", help="The safetensors file that it is about.")
@click.option("--samples", type=click.IntRange(1), metavar="N", help="Check at most so many samples.")
def verify(proof: Path, checkpoint: Path, samples: int | None) -> int:
    """Check a proof file: derive every bound, logit and radius in it again.

    `lipaudit run --proof FILE` writes one.

    The checker shares no code with the rest of lipaudit, and runs without it: lipaudit/checker.py. Exit codes:
    0 accepted, 4 rejected, 2 a file that cannot be read.
    """
    from lipaudit.checker import Rejected, check, once
    from lipaudit.errors import LoadError

    try:
        claims, weights = json.loads(proof.read_bytes(), object_pairs_hook=once), checkpoint.read_bytes()
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"cannot read {proof} and {checkpoint}: {error}") from error
    except Rejected as error:
        click.echo(f"lipaudit: REJECTED: {error}", err=True)
        return ExitCode.INTEGRITY
    if not isinstance(claims, dict) or "schema" in claims:
        raise LoadError(f"expected a proof, got {proof}, a result; add --proof FILE to `lipaudit run`, and check FILE")
    if weights[8:9] != b"{":
        raise LoadError(f"expected safetensors, got {checkpoint}; a proof about other files comes with its own weights")
    try:
        click.echo(check(claims, weights, samples, lambda line: click.echo(line, err=True)))
    except Rejected as error:
        click.echo(f"lipaudit: REJECTED: {error}", err=True)
        return ExitCode.INTEGRITY
    return ExitCode.DONE


@commands.command()
@click.argument("results", type=FILE, nargs=-1, required=True, metavar="SHARD.json...")
@options(*(name for name in in_groups(OUTPUT) if name != "proof"), variables=True)
@click.pass_context
def merge(context: click.Context, /, results: tuple[Path, ...], **chosen: Any) -> int:
    """Merge shard results.

    They come from `lipaudit run --shard I/N`.
    """
    from lipaudit.runs.shards import merge as merged
    from lipaudit.verdict.consistency import load_audit

    command = ("lipaudit", *context.obj.arguments)
    settings = RunSettings(**chosen)
    audit = merged([load_audit(file) for file in results], command, gates=settings.gates)
    deliver(audit, prepare_output(context, settings))  # no folder for shards that do not fit together
    return spared(audit.exit_code, settings.exit_zero)
