"""Where results go: a folder or stdout, in which formats, with which exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from lipaudit.errors import ExitCode
from lipaudit.results.formats import FORMATS
from lipaudit.settings import RunSettings

if TYPE_CHECKING:
    from lipaudit.cli.resume import Resumable
    from lipaudit.results.audit import Audit


def prepare_output(context: click.Context, settings: RunSettings) -> RunSettings:
    """The settings with the folder of --out there and writable, or one format for stdout."""
    from lipaudit.files.atomic import prepare_folder

    if settings.out != "-":
        prepare_folder(Path(settings.out))
    elif context.get_parameter_source("formats") is ParameterSource.DEFAULT:
        return replace(settings, formats=("json",))
    elif len(settings.formats) > 1:
        raise click.UsageError("expected one --format with -o -, got several: stdout holds one")
    return settings


def spared(code: int, exit_zero: bool) -> int:
    """The exit code; --exit-zero makes that of a gate which failed, and no other, 0."""
    return ExitCode.DONE if exit_zero and code == ExitCode.GATE_FAILED else code


def deliver(audit: Audit, settings: RunSettings, running: Resumable | None = None) -> None:
    """Write the reports, all or none, and say on stderr what came out."""
    from lipaudit.cli.terminal import print_lines
    from lipaudit.files.atomic import write_all
    from lipaudit.report.terminal import summary

    texts = {FORMATS[kind].ending: FORMATS[kind].write(audit) for kind in settings.formats}
    files: dict[Path, str] = {}
    if settings.out == "-":
        click.echo("".join(texts.values()), nl=False)
    else:
        files = {Path(settings.out) / f"{audit.run}.{ending}": text for ending, text in texts.items()}
        write_all(files)
    if running is not None:
        running.finish()  # whatever becomes of the terminal
    _tell_github(audit)
    paths = [("report", f"{path}  {len(text.encode()) / 1000:.0f} kB") for path, text in files.items()]
    if settings.quiet:
        verdict = f"{audit.verdict.integrity}  {audit.verdict.headline}"
        click.echo("\n".join([verdict, *("  ".join(path) for path in paths)]), err=True)
    else:
        print_lines([(), *summary(audit, paths)], sys.stderr)


def _tell_github(audit: Audit) -> None:
    """In a GitHub workflow: annotations in its log, and the summary of the step."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    from lipaudit.results.exports import workflow_commands

    for line in workflow_commands(audit):
        click.echo(line, err=True)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(FORMATS["md"].write(audit))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows on stdout, each column as wide as its widest entry."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
