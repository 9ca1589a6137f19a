"""`lipaudit run`."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any

import click
from click.core import ParameterSource

from lipaudit.cli.config_file import config_option, origin
from lipaudit.cli.interrupt import Interruption, Stoppable, interruption
from lipaudit.cli.main import Session, commands
from lipaudit.cli.options import every, options, renamed
from lipaudit.cli.output import deliver, prepare_output, spared
from lipaudit.progress import EVERY
from lipaudit.settings import RunSettings


@commands.command()
@options(*(name for name in every() if name not in ("config_file", "resume")), variables=True)
@config_option
@options("resume")
@click.pass_context
def run(context: click.Context, /, **chosen: Any) -> int:
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
    from lipaudit.cli.auditing import check, run_audit
    from lipaudit.cli.resume import Resumable, resume
    from lipaudit.cli.terminal import terminal_progress

    session: Session = context.obj
    session.verbose += chosen["verbose"]
    if session.verbose > 1:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    older = renamed(context, chosen)
    settings, running = RunSettings(**chosen), Resumable(session.arguments, origin=origin(context, older))
    if settings.resume is not None:
        sources = {name: context.get_parameter_source(older.get(name, name)) for name in chosen}
        running, settings = resume(settings, [n for n, s in sources.items() if s is ParameterSource.COMMANDLINE])
    session.running = running
    check(settings)
    settings = prepare_output(context, settings)
    mode = "off" if settings.quiet else settings.progress
    every_second = 0.0 if session.verbose else EVERY
    # What libraries and user code print belongs to the reader, not to the result on stdout.
    with contextlib.redirect_stdout(sys.stderr), terminal_progress(mode, sys.stderr, every_second) as progress:
        audit = run_audit(settings, running, Stoppable(progress, stop))
    deliver(audit, settings, running)
    return spared(audit.exit_code, settings.exit_zero)
