"""Options of the command line, made from the fields of `lipaudit.settings`; and what becomes of their older names."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from lipaudit.errors import RenamedWarning
from lipaudit.settings import (
    GROUPS,
    File,
    Flag,
    Kind,
    Number,
    OneOf,
    Option,
    Parsed,
    RunSettings,
    Settings,
    Text,
    Whole,
    options_of,
)

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)

text_or_json = click.option(
    "--format", "kind", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Format on stdout."
)


class Grouped(click.Option):
    """An option that `--help` lists under the heading of its group."""

    def __init__(self, *names: Any, group: str = "", **more: Any) -> None:
        super().__init__(*names, **more)
        self.group = group


def options(*names: str, variables: bool = False, **more: Any) -> Callable[[Command], Command]:
    """The options of these settings and, hidden, those of their older names, as one decorator.

    With `variables`, `LIPAUDIT_*` sets them too. `more` is handed to click.
    """
    known = options_of(RunSettings)

    def add(command: Command) -> Command:
        for name in reversed(names):
            one = known[name]
            if one.was is not None:
                older = _option(one, one.was.name, f"--{one.was.name}", one.was.kind, variables, hidden=True)
                command = older(command)
            command = _option(one, one.name, one.typed, one.kind, variables, **more)(command)
        return command

    return add


def in_groups(*groups: str) -> list[str]:
    """The settings of these groups that the command line has, what only `lipaudit run` knows first."""
    own = options_of(Settings)
    known = [one for one in options_of(RunSettings).values() if not one.library_only]
    return [one.name for group in groups for one in sorted(known, key=lambda o: o.name in own) if one.group == group]


def every() -> list[str]:
    """The settings of `lipaudit run`, in the order of its help."""
    return in_groups(*GROUPS)


def _option(
    one: Option, name: str, typed: str, kind: Kind, variables: bool, **more: Any
) -> Callable[[Command], Command]:
    """One option, as click takes it."""
    hidden = more.get("hidden", False)
    said: dict[str, Any] = {"help": one.help, "metavar": one.metavar, "group": one.group}
    if variables and one.variable:
        said["envvar"] = f"LIPAUDIT_{typed[2:].replace('-', '_').upper()}"
    said |= {"default": None} if hidden else _default(one)
    match kind:
        case Text(propose=proposed, several=several):
            said["multiple"] = several
            if several:
                said["callback"] = _or(one.default)
            if proposed:
                said["shell_complete"] = _proposing(proposed)
        case Whole(least=least):
            said["type"] = click.IntRange(least)
        case Number():
            said |= {"type": float, "callback": _above_zero}
        case Flag(count=count):
            said |= {"count": True} if count else {"is_flag": True}
        case OneOf(names=names):
            said["type"] = click.Choice(names)
        case File():
            said["type"] = FILE
        case Parsed(parse=parse, propose=proposed):
            said["callback"] = _parsing(parse)
            if proposed:
                said["shell_complete"] = _proposing(proposed)
    short = [one.short] if one.short and not hidden else []
    return click.option(*short, typed, name, cls=Grouped, **said | more)


def _above_zero(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"expected a finite number above 0, got {value:g}", context, parameter)
    return value


def _default(one: Option) -> dict[str, Any]:
    """The default, and whether `--help` shows it."""
    if one.shown:
        return {"default": None, "help": f"{one.help} [default: {one.shown}]"}
    if one.default is None or isinstance(one.kind, Flag) or one.default == ():
        return {"default": None if one.default == () else one.default}
    default = ",".join(one.default) if isinstance(one.default, tuple) else one.default
    return {"default": default, "show_default": True}


def _or(default: Any) -> Callable[..., Any]:
    """What nobody gave is the default, also where several may be given."""

    def read(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> Any:
        del context, parameter
        return values or default

    return read


def _parsing(parse: Callable[[str], Any]) -> Callable[..., Any]:
    def read(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        del context, parameter
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read


def _proposing(names: tuple[str, ...]) -> Callable[..., list[str]]:
    """Those of the names that begin with what has been typed."""

    def propose(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
        del context, parameter
        return [name for name in names if name.startswith(typed)]

    return propose


RANKS = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)
"""Where values come from, those first that win."""


def renamed(context: click.Context, chosen: dict[str, Any]) -> dict[str, str]:
    """Puts what came under older names under today's into `chosen`, and says so on stderr; by name, the older one.

    As everywhere, what is typed comes before the environment, and that before the file.
    """
    found = {}
    for name, one in options_of(RunSettings).items():
        if one.was is None or one.was.name not in chosen:
            continue
        value, source = chosen.pop(one.was.name), context.get_parameter_source(one.was.name)
        if source not in RANKS or value is None:
            continue
        newer = context.get_parameter_source(name)
        if newer in RANKS and RANKS.index(newer) < RANKS.index(source):
            continue
        if newer == source:
            raise click.UsageError(f"--{one.was.name} is called {one.typed} now; leave --{one.was.name} out", context)
        chosen[name], found[name] = one.was.values[value], one.was.name
        said = f"--{one.was.name} is called {one.typed} now: {one.typed} {shlex.quote(str(chosen[name]))}"
        warnings.warn(said, RenamedWarning, stacklevel=2)
    return found
