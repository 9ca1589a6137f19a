"""Settings from a file: `lipaudit.toml`, or `[tool.lipaudit]` of `pyproject.toml`, in the working directory.

`[run]` has the options of `lipaudit run` by their names, `[gate]` the conditions. An option on the command line comes
before `LIPAUDIT_*` in the environment, that before the file, that before the default.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lipaudit.cli.options import options
from lipaudit.errors import BadThreat, ConfigError
from lipaudit.results.formatting import clean
from lipaudit.results.threat import eps_value, stated
from lipaudit.settings import options_of

NAMES = ("lipaudit.toml", "pyproject.toml")
KEY = "lipaudit.config"
"""Under which `click.Context.meta` holds the path of the file that was read."""
DEFAULT = "default"
"""The origin of what nobody set."""
NOT_IN_FILES = frozenset({"help", *(one.name for one in options_of().values() if not one.in_files)})
GATE_KEYS = ("eps", "min", "norm", "on", "level")


def load(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Callback of --config: what the file says becomes the defaults of the command's options."""
    del parameter
    if context.resilient_parsing:  # completion in a shell: no place for complaints
        return path
    path, tables = _read(path)
    defaults: dict[str, Any] = {}
    if tables.get("gate"):
        defaults["gates"] = gates(tables["gate"], f"{path}: [gate]")
    if context.command.name == "run":
        defaults |= _options(context, tables.get("run", {}), f"{path}: [run]")
    context.default_map = defaults
    context.meta[KEY] = path
    return path


config_option = options("config_file", variables=True, is_eager=True, callback=load)


def origin(context: click.Context, older: Mapping[str, str]) -> dict[str, str]:
    """Where the value of each setting comes from: `--seed`, `LIPAUDIT_SEED`, the file's name, `default`.

    `older` are the older names under which some were set (`options.renamed`).
    """
    found = {}
    params = {option.name or "": option for option in context.command.params}
    for name in params.keys() & options_of().keys():
        option = params[older.get(name, name)]
        source = context.get_parameter_source(older.get(name, name))
        if source is ParameterSource.ENVIRONMENT:
            found[name] = variable(option)
        elif source is ParameterSource.DEFAULT_MAP:
            found[name] = str(context.meta[KEY])
        else:
            found[name] = max(option.opts, key=len) if source is ParameterSource.COMMANDLINE else DEFAULT
    return found


def variable(option: click.Parameter) -> str:
    """The environment variable of an option."""
    return str(option.envvar)


def complaint(error: click.ClickException) -> str:
    """What click says, and which variable it speaks of if nobody typed the value."""
    context, option = getattr(error, "ctx", None), getattr(error, "param", None)
    said = error.format_message()
    if context is None or option is None or option.name is None:
        return said
    from_environment = context.get_parameter_source(option.name) is ParameterSource.ENVIRONMENT
    return f"{variable(option)} in the environment: {said}" if from_environment else said


def _read(path: Path | None) -> tuple[Path | None, Mapping[str, Any]]:
    """The file and its tables; nothing if there is none, or it has no settings."""
    import tomllib

    for file in [Path(name) for name in NAMES if Path(name).is_file()] if path is None else [path]:
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}; --config takes a TOML file") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            if path is None and file.name == NAMES[1]:
                continue  # not ours alone: its other readers will complain
            raise ConfigError(f"{file}: expected TOML, got something else ({clean(error, 100)})") from None
        if file.name == NAMES[1]:
            tables = _table(content.get("tool", {}), f"{file}: tool").get("lipaudit")
            if tables is None and path is None:
                continue
            where, tables = f"{file}: [tool.lipaudit]", _table(tables or {}, f"{file}: [tool.lipaudit]")
        else:
            where, tables = str(file), content
        for key in tables:
            _known(key, ("run", "gate"), where)
            _table(tables[key], f"{where} {key}")
        return file, tables
    return None, {}


def _options(context: click.Context, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The table of `[run]` as click takes defaults: by parameter name, as they would be typed."""
    options = {
        max(option.opts, key=len).removeprefix("--"): option
        for option in context.command.params
        if option.name not in NOT_IN_FILES
    }
    found = {}
    for key, value in table.items():
        option = options[_known(key.replace("_", "-"), options, where)]
        typed = _typed(option, value, f"{where} {key}")
        try:
            option.process_value(context, typed)
            if option.name == "eps":
                for _, size in stated(typed):  # which norms there are may be said elsewhere
                    eps_value(size)
        except (click.BadParameter, BadThreat, ValueError) as error:
            said = error.message if isinstance(error, click.BadParameter) else str(error)
            raise ConfigError(f"{where} {key}: {clean(said, 200)}") from None
        found[option.name or ""] = typed
    return found


def _typed(option: click.Parameter, value: Any, where: str) -> Any:
    """A value of TOML as one would type it; a flag stays true or false."""
    if getattr(option, "is_flag", False):
        return value if isinstance(value, bool) else _refuse("true or false", value, where)
    if isinstance(option.type, click.IntRange) or getattr(option, "count", False):
        return value if isinstance(value, int) and not isinstance(value, bool) else _refuse("a number", value, where)
    if isinstance(value, list) and not isinstance(option.type, click.Path | click.Choice):
        texts = [_text(item, where) for item in value]
        return tuple(texts) if option.multiple else ",".join(texts)
    text = _text(value, where)
    return (text,) if option.multiple else text


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return _refuse("a text or a number", value, where)
    return value if isinstance(value, str) else format(Decimal(repr(value)), "f")


def gates(table: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The table of `[gate]` as expressions; raises `ConfigError` that names the key."""
    from lipaudit.verdict.gates import MEASURES, OLDER, condition

    found = []
    for measure, value in table.items():
        place = f"{where} {_known(measure, [*MEASURES, *OLDER], where)}"
        for item in value if isinstance(value, list) else [value]:
            parts = item if isinstance(item, dict) else {"min": item}
            for key in parts:
                _known(key, GATE_KEYS, place)
            if "min" not in parts:
                raise ConfigError(f'{place}: expected min, the least share, such as {{eps = "36/255", min = 0.30}}')
            texts = {key: _text(part, f"{place} {key}") for key, part in parts.items()}
            try:
                made = condition(
                    measure,
                    texts.get("eps", ""),
                    texts["min"],
                    on=texts.get("on", "value"),
                    level=texts.get("level", "error"),
                    norm=texts.get("norm"),
                )
            except ConfigError as error:
                raise ConfigError(f"{place}: {error}") from None
            found.append(made.expression)
    return tuple(found)


def _known(key: str, allowed: Collection[str], where: str) -> str:
    """The key if it is allowed."""
    if key in allowed:
        return key
    close = difflib.get_close_matches(key, allowed, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(allowed)}"
    raise ConfigError(f"{where}: unknown key {clean(key, 40)!r}; {hint}")


def _table(value: Any, where: str) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _refuse("a table", value, where)


def _refuse(words: str, value: Any, where: str) -> Any:
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    raise ConfigError(f"{where}: expected {words}, got {clean(shown, 60)}")
