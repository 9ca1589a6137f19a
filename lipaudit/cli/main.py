"""The command line. torch, timm and the rest load inside the commands: `--help` answers at once."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lipaudit import __version__
from lipaudit.cli.config_file import complaint
from lipaudit.cli.interrupt import Interruption
from lipaudit.cli.words import Commands
from lipaudit.errors import ExitCode, LipauditError, RenamedWarning, ResumeError
from lipaudit.results.formatting import clean

if TYPE_CHECKING:
    from lipaudit.cli.resume import Resumable

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
        if isinstance(stream, io.TextIOWrapper):  # a test or an embedding may have put another in place
            stream.reconfigure(errors="replace")
    session = Session(tuple(sys.argv[1:] if arguments is None else arguments))
    try:
        with older_names_told():
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
    except OSError as error:
        if error.filename is None:
            _fail(session, f"{type(error).__name__}: {error}{session.hint()}", ExitCode.CRASH)
        place = clean(os.fsdecode(error.filename), 300)
        _fail(session, f"cannot use {place}: {error.strerror}; check the path{session.hint()}", ExitCode.USAGE)
    except Exception as error:  # noqa: BLE001  (the border: nothing passes it but one line and an exit code)
        hint = "" if session.verbose > 1 else "; run again with -vv for the traceback"
        if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
            hint = "; try --device cpu, a smaller --batch-size, or a machine with more memory"
        _fail(session, f"{type(error).__name__}: {error}{hint}{session.hint()}", ExitCode.CRASH)


@contextlib.contextmanager
def older_names_told() -> Iterator[None]:
    """Says on stderr, in one line each, what older names are called now."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RenamedWarning)
        shown, told = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if not issubclass(category, RenamedWarning):
                shown(message, category, *rest, **more)
            elif str(message) not in told:
                told.add(str(message))
                click.echo(f"lipaudit: {clean(message, LONGEST)}", err=True)

        warnings.showwarning = show
        yield


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
    """Audit image classifiers: provable Lipschitz bounds and certified radii, tested by real attacks."""
    context.obj.verbose += verbose
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
