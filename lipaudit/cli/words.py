"""Words where an option or a command is expected: the usage error says what to type instead."""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lipaudit.errors import RenamedWarning
from lipaudit.results.formatting import clean, letters
from lipaudit.settings import DATASETS

MEANT = {
    "audit": "run", "certify": "run", "attack": "run", "eval": "run", "evaluate": "run", "test": "run",
    "bound": "bounds", "lipschitz": "bounds", "model": "models", "list": "models", "dataset": "datasets",
    "data": "datasets", "html": "report", "show": "report", "render": "report", "gates": "gate",
    "coverage": "survey", "diff": "compare",
    "info": "env", "version": "--version", "help": "--help", "resume": "run --resume RUN",
}  # fmt: skip
"""Commands that people try, and the one that they mean."""
WEIGHTS = (".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors")
COUNT = 6
"""Words that a message repeats."""


class Words(click.Command):
    """A command that takes options: told a bare word, it says which option the word belongs to."""

    allow_extra_args = True

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options under the headings of their groups."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            if (line := option.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(option, "group", "Options"), []).append(line)
        for group, lines in groups.items():
            with formatter.section(group):
                formatter.write_dl(lines)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        left = super().parse_args(ctx, args)
        if not left or ctx.resilient_parsing:
            return left
        typed = {name for name, value in ctx.params.items() if _is_typed(ctx, name)}
        options = {max(p.opts, key=len) for p in self.params if isinstance(p, click.Option) and p.name not in typed}
        placed = arguments(left, options)
        hint = f"; did you mean: {ctx.command_path} … {placed}?" if placed and typed else ""
        hint = f"; did you mean: {ctx.command_path} {placed}?" if placed and not typed else hint
        if results := [word for word in left if word.endswith(".json")]:
            hint = f", a result; did you mean: lipaudit gate {clean(results[0])}?"
        words = " ".join(clean(word) for word in left[:COUNT])
        raise click.UsageError(f"Got unexpected extra argument{'s' * (len(left) > 1)} ({words}){hint}", ctx)


class Commands(click.Group):
    """All commands."""

    command_class = Words

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        args = _todays(args)
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            word = args[0]
            meant = MEANT.get(letters(word))
            if meant is None and word.endswith(".json"):
                meant = f"gate {word}"
            if meant is None and (_option(word) != "--model" or re.search(r"\d|[:/]", word)):
                meant = f"run {arguments(args, {'--model', '--dataset', '--checkpoint', '--eps', '--resume'})}"
            if meant is None or ctx.resilient_parsing:
                raise
            raise click.UsageError(
                f"{error.message.rstrip('.')}; did you mean: lipaudit {clean(meant, 200)}?", ctx
            ) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            run = self.commands["run"]
            if not any(error.option_name in option.opts for option in run.params):
                raise
            raise click.UsageError(
                f"{error.option_name} is an option of a command; did you mean: lipaudit run {error.option_name} …?", ctx
            ) from None


def _todays(args: list[str]) -> list[str]:
    """The words of a command line with the names that commands have now."""
    older, newer = None, args
    if args[0] == "check":
        older, newer = "check", ["gate", *args[1:]]
    elif args[0] == "models" and "--coverage" in args:
        older, newer = "models --coverage", ["survey", *(word for word in args[1:] if word != "--coverage")]
    if older is not None:
        said = f"`lipaudit {older}` is called `lipaudit {newer[0]}` now"
        warnings.warn(said, RenamedWarning, stacklevel=2)
    return newer


def arguments(words: Sequence[str], options: set[str]) -> str:
    """The words behind the options to which they belong, each option once; empty if one is of no option."""
    placed: dict[str, str] = {}
    for word in words[:COUNT]:
        option = _option(word)
        if option not in options or option in placed:
            return ""
        placed[option] = word
    return " ".join(f"{option} {clean(shlex.quote(_value(option, word)))}" for option, word in placed.items())


def _option(word: str) -> str:
    """The option of `lipaudit run` that takes the word."""
    kind = word.partition(":")[0]
    if letters(kind) in {letters(name) for name in DATASETS} or word.endswith(".npz"):
        return "--dataset"
    if word.endswith(".partial"):
        return "--resume"
    if word.endswith(WEIGHTS):
        return "--checkpoint"
    if re.fullmatch(r"\d*\.?\d+(/\d+)?", word):
        return "--eps"
    return "--dataset" if _is_folder(word) else "--model"


def _value(option: str, word: str) -> str:
    if option != "--dataset" or ":" in word:
        return word
    if word.endswith(".npz"):
        return f"npz:{word}"
    known = {letters(name): name for name in DATASETS}
    return known.get(letters(word)) or f"imagefolder:{word}"


def _is_folder(word: str) -> bool:
    try:
        return bool(word) and Path(word).is_dir()
    except (OSError, ValueError):
        return False


def _is_typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
