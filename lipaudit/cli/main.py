"""The command line. torch, timm and the rest load inside the commands: `--help` answers at once."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from lipaudit import __version__
from lipaudit.cli.config_file import complaint, config_option, origin
from lipaudit.cli.interrupt import Interruption, Stoppable, interruption
from lipaudit.cli.options import (
    FILE,
    MODELS,
    attack_options,
    complete,
    data_options,
    estimate_options,
    local_options,
    model_options,
    norm_options,
    output_options,
    promise_options,
    proof_option,
    shard_options,
    text_or_json,
)
from lipaudit.cli.words import Commands
from lipaudit.errors import ExitCode, LipauditError, ResumeError
from lipaudit.progress import EVERY
from lipaudit.results.formatting import clean

if TYPE_CHECKING:
    from lipaudit.cli.resume import Resumable
    from lipaudit.results.audit import Audit

PACKAGES = (
    "torch", "torchvision", "timm", "adversarial-robustness-toolbox", "pyautoattack", "numpy", "scipy", "scikit-learn",
    "safetensors", "huggingface-hub", "click", "rich", "jinja2",
)  # fmt: skip

REPORTS = ("json", "html", "md")
LONGEST = 800
"""Letters of an error: what came from outside may have any number of them, or steer the terminal."""


@dataclass
class Session:
    """What the border needs to know when a command fails."""

    arguments: tuple[str, ...]
    verbose: int = 0
    running: Resumable | None = None
    stop: Interruption | None = None

    def hint(self) -> str:
        """How to continue what was interrupted."""
        return "" if self.running is None else self.running.hint()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; whatever goes wrong is one line on stderr, a traceback only if asked."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream that a test or an embedding put in place
            stream.reconfigure(errors="replace")
    session = Session(tuple(sys.argv[1:] if arguments is None else arguments))
    try:
        code = commands.main(list(session.arguments), "lipaudit", standalone_mode=False, obj=session)
        sys.exit(code or ExitCode.DONE)
    except click.exceptions.Abort:
        terminated = session.stop is not None and session.stop.terminated
        how, code = ("terminated", ExitCode.TERMINATED) if terminated else ("interrupted", ExitCode.INTERRUPTED)
        _fail(session, f"{how}; no report was written{session.hint()}", code)
    except click.ClickException as error:
        usage = getattr(error, "ctx", None)
        hint = f" ({usage.command_path} --help)" if usage is not None else ""
        _fail(session, f"{complaint(error)}{hint}", error.exit_code)
    except ResumeError as error:
        _fail(session, str(error), error.exit_code)
    except LipauditError as error:
        _fail(session, f"{error}{session.hint()}", error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of stdout went away; Python would complain about that once more
        sys.exit(ExitCode.CRASH)
    except Exception as error:  # noqa: BLE001  (the border: nothing passes it but one line and an exit code)
        hint = "" if session.verbose > 1 else "; run again with -vv for the traceback"
        if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
            hint = "; try --device cpu, a smaller --batch-size, or a machine with more memory"
        _fail(session, f"{type(error).__name__}: {error}{hint}{session.hint()}", ExitCode.CRASH)


def _fail(session: Session, message: str, code: int) -> NoReturn:
    if session.verbose > 1:
        traceback.print_exc()
    click.echo(f"lipaudit: {clean(message, LONGEST)}", err=True)
    sys.exit(code)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="lipaudit %(version)s")
@click.option("-v", "--verbose", count=True, help="-vv: logs and tracebacks.")
@click.pass_context
def commands(context: click.Context, verbose: int) -> None:
    """Audit image classifiers: provable Lipschitz bounds and certified radii, held against real attacks."""
    context.obj.verbose += verbose
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@commands.command(context_settings={"auto_envvar_prefix": "LIPAUDIT"})
@click.option(
    "--model",
    metavar="NAME",
    shell_complete=complete(MODELS),
    help="Network (`lipaudit models`), or package.module:factory (your code is run). [default: digits-aol]",
)
@model_options
@data_options
@norm_options
@local_options
@promise_options
@attack_options
@estimate_options
@shard_options
@output_options
@proof_option
@config_option
@click.option(
    "--resume",
    metavar="RUN",
    allow_from_autoenv=False,
    help="Continue an interrupted run: its folder, or its name in DIR.",
)
@click.pass_context
def run(context: click.Context, **chosen: Any) -> int:
    """Audit a model on a data set; writes DIR/<run>.json and .html.

    Until it is finished, DIR/<run>.partial keeps what is done: after Ctrl-C, SIGTERM or a crash, --resume continues.

    Without options: the bundled digits model. An option may also stand in the environment, as LIPAUDIT_SAMPLES, or
    in lipaudit.toml. Exit codes: 0 sound, 1 failed, 2 usage, 3 gate failed, 4 a certificate is contradicted,
    5 incomplete, 130 interrupted, 143 terminated.
    """
    with interruption() as stop:
        context.obj.stop = stop
        return _run(context, chosen, stop)


def _run(context: click.Context, chosen: dict[str, Any], stop: Interruption) -> int:
    from lipaudit.cli.resume import Resumable, resume
    from lipaudit.cli.run import check, run_audit
    from lipaudit.cli.terminal import terminal_progress

    session: Session = context.obj
    session.verbose += chosen["verbose"]
    if session.verbose > 1:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    running = Resumable(session.arguments)
    if chosen["resume"] is not None:
        typed = [name for name in chosen if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        running, chosen = resume(chosen, typed)
    else:
        chosen["origin"] = origin(context)
    session.running = running
    check(chosen)
    prepare_output(context, chosen)
    mode = "off" if chosen["quiet"] else chosen["progress"]
    every = 0.0 if session.verbose else EVERY
    # What libraries and user code print belongs to the reader, not to the result on stdout.
    with contextlib.redirect_stdout(sys.stderr), terminal_progress(mode, sys.stderr, every) as progress:
        audit = run_audit(chosen, running, Stoppable(progress, stop))
    deliver(audit, chosen, running)
    return spared(audit.exit_code, chosen["exit_zero"])


def prepare_output(context: click.Context, chosen: dict[str, Any]) -> None:
    """The folder of --out, there and writable, or one format for stdout."""
    from lipaudit.files import prepare_folder

    if chosen["out"] != "-":
        prepare_folder(Path(chosen["out"]))
    elif context.get_parameter_source("formats") is ParameterSource.DEFAULT:
        chosen["formats"] = ("json",)
    elif len(chosen["formats"]) > 1:
        raise click.UsageError("expected one --format with -o -, got several: stdout holds one")


def spared(code: int, exit_zero: bool) -> int:
    """The exit code; --exit-zero makes that of a gate which failed, and no other, 0."""
    return ExitCode.DONE if exit_zero and code == ExitCode.GATE_FAILED else code


def deliver(audit: Audit, chosen: dict[str, Any], running: Resumable | None = None) -> None:
    """Write the reports, all or none, and say on stderr what came out."""
    from lipaudit.cli.terminal import print_lines
    from lipaudit.files import write_all
    from lipaudit.report.terminal import summary

    texts = {kind: render(audit, kind) for kind in chosen["formats"]}
    files: dict[Path, str] = {}
    if chosen["out"] == "-":
        click.echo(*texts.values(), nl=False)
    else:
        files = {Path(chosen["out"]) / f"{audit.run}.{kind}": text for kind, text in texts.items()}
        write_all(files)
    if running is not None:
        running.finish()  # whatever becomes of the terminal
    paths = [("report", f"{path}  {len(text.encode()) / 1000:.0f} kB") for path, text in files.items()]
    if chosen["quiet"]:
        verdict = f"{audit.verdict.integrity}  {audit.verdict.headline}"
        click.echo("\n".join([verdict, *("  ".join(path) for path in paths)]), err=True)
    else:
        print_lines([(), *summary(audit, paths)], sys.stderr)


def render(audit: Audit, kind: str) -> str:
    """The audit in one of the formats."""
    if kind == "json":
        return audit.to_json()
    if kind == "html":
        return audit.to_html()
    if kind == "md":
        from lipaudit.report.terminal import to_markdown

        return to_markdown(audit)
    from lipaudit.results import leaderboards

    return leaderboards.to_robustbench(audit) if kind == "robustbench" else leaderboards.to_model_index(audit)


@commands.command()
@click.argument("model")
@model_options
@norm_options
@text_or_json
def bounds(model: str, dataset: str | None, tight: bool, kind: str, **given: Any) -> None:
    """Bound MODEL layer by layer: the table and the network bound, without data."""
    from lipaudit.certification.network_bound import bound
    from lipaudit.cli.terminal import terminal_progress
    from lipaudit.loading.model_names import PAIRS, canonical
    from lipaudit.loading.models import load_model
    from lipaudit.results.formatting import number, number_from_log10

    with contextlib.redirect_stdout(sys.stderr), terminal_progress("auto", sys.stderr) as progress:
        dataset = dataset or PAIRS.get(canonical(model))
        loaded = load_model(model, dataset=dataset, progress=progress, **given)
        method = "tight" if tight else "best"
        shape = loaded.facts.input_shape
        network = bound(loaded.module, shape, domain=(0.0, 1.0), method=method, progress=progress)
    if kind == "json":
        from lipaudit.results.json import bound_to_json

        click.echo(bound_to_json(loaded.facts.name, method, network), nl=False)
        return
    rows = [("layer", "op", "bound", "so far", "by")]
    for line in network.layers:
        so_far = number_from_log10(line.log10_so_far)
        rows.append((line.name, line.op, number(line.upper.value), so_far, line.upper.method))
    _table(rows)
    shape = "×".join(map(str, network.input_shape))
    click.echo(f"\nnetwork bound {number_from_log10(network.log10)} (L2, {shape} inputs in [0,1] to logits)")


@commands.command()
@click.argument("word", default="")
@click.option("--coverage", is_flag=True, help="Capture and bound a small model of every family; takes a while.")
@click.option("--family", "families", multiple=True, metavar="NAME", help="With --coverage: this family; repeat.")
@click.option("--library", type=click.Choice(["timm", "torchvision", "both"]), help="With --coverage. [default: both]")
@click.option("--variants", is_flag=True, help="With --coverage: every structural variant, without values.")
@click.option("--slopes", is_flag=True, help="With --coverage: the steepest slope seen, held against each bound.")
@click.option("--markdown", is_flag=True, help="With --coverage: a Markdown table.")
@click.option("--json", "file", type=FILE, metavar="FILE", help="With --coverage: also write all of it as JSON.")
def models(word: str, coverage: bool, **chosen: Any) -> int | None:
    """List the models with known weights; with WORD, search torchvision and timm as well.

    --coverage shows which families of timm and torchvision can be audited, and what blocks the others.
    """
    if coverage:
        return _coverage(word, **chosen)
    given = next((name for name, value in chosen.items() if value), None)
    if given is not None:
        option = {"families": "family", "file": "json"}.get(given, given)
        raise click.UsageError(f"--{option} belongs to --coverage; add --coverage")
    from lipaudit.loading.models import known_models

    found = known_models(word)
    if not found:
        raise click.UsageError(f"no model of lipaudit, torchvision or timm has {word!r} in its name")
    rows = [("name", "trained on", "source", "licence", "size", "here")]
    rows += [(m.name, m.dataset, m.source, m.licence, m.size, "yes" if m.cached else "no") for m in found]
    _table(rows)
    if not word:
        click.echo("\ntorchvision:NAME, timm:NAME       `lipaudit models WORD` searches them")
        click.echo("package.module:factory            your own code, with --checkpoint FILE if it loads no weights")
    return None


def _coverage(word: str, families: tuple[str, ...], library: str | None, variants: bool, **more: Any) -> int:
    from lipaudit.cli.survey import print_coverage
    from lipaudit.runs.survey import LIBRARIES

    if word:
        raise click.UsageError(f"expected --family {word} with --coverage, got the search word {word!r}")
    if variants and more["slopes"]:
        raise click.UsageError("expected --variants or --slopes, got both: there are no slopes without values")
    libraries = [name for name in LIBRARIES if library in (None, "both", name)]
    return print_coverage(libraries, families, structures=variants, **more)


@commands.command()
def datasets() -> None:
    """List the data sets."""
    from lipaudit.loading.datasets import known_datasets
    from lipaudit.loading.downloads import cache_dir

    rows = [("name", "images", "shape", "here", "licence", "what")]
    for d in known_datasets():
        rows.append((d.name, d.images, d.shape, "yes" if d.cached else "no", d.licence, d.what))
    _table(rows)
    click.echo(
        f"\nWhat is not here is fetched on first use, into {cache_dir()}; --data-dir DIR reads files that you have."
    )


@commands.command()
def env() -> None:
    """Print versions and hardware, to paste into a bug report."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    rows = [
        ("lipaudit", __version__),
        ("python", platform.python_version()),
        ("platform", platform.platform()),
    ]
    for package in PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    rows += [("cuda", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")]
    rows += [("threads", f"{torch.get_num_threads()} of {os.cpu_count()}")]
    rows += [(name, value) for name, value in sorted(os.environ.items()) if name.startswith("LIPAUDIT_")]
    _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Rows on stdout, each column as wide as its widest entry."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
