"""`lipaudit survey`: the survey of timm and torchvision on the terminal, as Markdown and as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lipaudit import __version__
from lipaudit.cli.terminal import terminal_progress
from lipaudit.errors import ExitCode
from lipaudit.files.atomic import write_all
from lipaudit.progress import Progress
from lipaudit.runs.survey import DOMAIN, METHOD, SEED, Choice, Library, Outcome, Row, choices, survey, variants

HEAD = ("library", "family", "model", "captured", "bound", "seconds", "blocked by")
SLOPES = ("steepest seen", "decades between")
"""Two columns more, after the bound, if slopes were looked for."""
NUMBERS = ("captured", "bound", *SLOPES, "seconds")
WIDTH = 160
"""Columns of the table where there is no terminal."""


def print_coverage(
    libraries: Sequence[Library],
    families: Sequence[str],
    *,
    structures: bool,
    slopes: bool,
    markdown: bool,
    file: Path | None,
) -> int:
    """Run the survey and print its table; the exit code. An interruption prints what there is.

    `structures`: every structural variant, without values. `slopes`: bounds are held against slopes. Raises
    `LoadError` for an unknown family.
    """
    rows: list[Row] = []
    interrupted = False
    with contextlib.redirect_stdout(sys.stderr), terminal_progress("auto", sys.stderr) as progress:
        try:
            chosen = variants(libraries, families, progress) if structures else choices(libraries, families)
            _run(chosen, partial(survey, meta=structures, slopes=slopes), rows, progress)
        except KeyboardInterrupt:
            interrupted = True
    intro = introduction(structures)
    click.echo(to_markdown(rows, intro) if markdown else to_text(rows, intro), nl=False)
    if file is not None:
        write_all({file: to_json(rows, structures)})
    if interrupted:
        click.echo("lipaudit: interrupted; the table ends where the survey did", err=True)
        return ExitCode.INTERRUPTED
    return ExitCode.CRASH if any(row.outcome == "failed" for row in rows) else ExitCode.DONE


def _run(
    chosen: Sequence[Choice], look: Callable[[list[Choice]], Iterable[Row]], rows: list[Row], progress: Progress
) -> None:
    progress.start("coverage", len(chosen))
    for choice in chosen:
        progress.advance(0, f"{choice.model} …")
        rows.extend(look([choice]))
        progress.advance(1, f"{choice.model}: {_bound(rows[-1])}")
    progress.finish(totals(rows)[-1])


def introduction(structures: bool) -> str:
    """What was done, in one sentence."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("timm", "torchvision", "torch"))
    if structures:
        return (
            f"lipaudit {__version__} on {versions}: the smallest model of every structural variant, captured without "
            "values; covered means that every operation has a rule."
        )
    low, high = DOMAIN
    return (
        f"lipaudit {__version__} on {versions}: a small model of every family at its default input size, with random "
        f"weights (seed {SEED}), so the bounds say that there is one, not how tight it is; L2, layer norms by "
        f"{METHOD}; * holds for pixels in [{low:g}, {high:g}] only."
    )


def totals(rows: Sequence[Row]) -> list[str]:
    """One line per library and, where there are several, one for all."""
    libraries = list(dict.fromkeys(row.library for row in rows))
    lines = [f"{library}: {_count([row for row in rows if row.library == library])}" for library in libraries]
    return lines if len(lines) == 1 else [*lines, f"all: {_count(rows)}"]


def _count(rows: Sequence[Row]) -> str:
    counts = Counter(row.outcome for row in rows)
    captured = sum(row.operations is not None for row in rows)
    finite: Outcome = "covered" if counts["covered"] else "bounded"
    return (
        f"{len(rows)} models, {captured} captured, {counts[finite]} {finite}, {counts['refused']} refused with a "
        f"reason, {counts['failed']} failed"
    )


def to_text(rows: Sequence[Row], intro: str) -> str:
    """The table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    head, *lines = _lines(rows)
    for name in head:
        table.add_column(name, justify="right" if name in NUMBERS else "left")
    for line in lines:
        table.add_row(*map(Text, line))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    with console.capture() as capture:
        console.print(Text(intro), "", table, "", Text("\n".join(totals(rows))), sep="\n")
    return capture.get()


def to_markdown(rows: Sequence[Row], intro: str) -> str:
    """The table for a README."""
    head, *cells = _lines(rows)
    rule = ["--:" if name in NUMBERS else "---" for name in head]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (head, rule, *cells)]
    return "\n".join([intro, "", *lines, "", *(f"* {line}" for line in totals(rows)), ""])


def to_json(rows: Sequence[Row], structures: bool) -> str:
    """Everything, for programs."""
    content = {
        "kind": "lipaudit coverage",
        "versions": {name: version(name) for name in ("lipaudit", "timm", "torchvision", "torch")},
        "values": "none" if structures else f"random weights, seed {SEED}",
        "method": None if structures else METHOD,
        "domain": None if structures else DOMAIN,
        "totals": totals(rows),
        "models": [dataclasses.asdict(row) for row in rows],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """The head of the table, and a line for each row."""
    slopes = any(row.slope is not None for row in rows)
    yield (*HEAD[:-2], *(SLOPES if slopes else ()), *HEAD[-2:])
    for row in rows:
        captured = "no" if row.operations is None else f"{row.operations} ops"
        cells = (row.library, row.family, row.model, captured, _bound(row))
        yield (*cells, *(_gap(row) if slopes else ()), f"{row.seconds:.1f}", row.reason)


def _gap(row: Row) -> tuple[str, str]:
    """The steepest slope seen, and the decades between it and the bound."""
    if row.slope is None or row.log10 is None:
        return "", ""
    return f"10^{row.slope:.1f}", f"{row.log10 - row.slope:.1f}"


def _bound(row: Row) -> str:
    """`10^12.3`, with a star if it needs the pixels' range; else what came instead."""
    if row.log10 is None:
        return row.outcome
    return f"10^{row.log10:.1f}{'*' if row.needs_domain else ''}"
