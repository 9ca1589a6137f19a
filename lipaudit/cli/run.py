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
from lipaudit.cli.options import (
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
)
from lipaudit.cli.output import deliver, prepare_output, spared
from lipaudit.progress import EVERY


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
