"""Runs that can be interrupted: where one keeps what is finished, and how `--resume RUN` continues it."""

from __future__ import annotations

import datetime
import secrets
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipaudit.errors import ReportError, ResumeError
from lipaudit.files.journal import FORMAT, SUFFIX, discard, holds_parts, read_json, write_json

OPTIONS = "options.json"
FREE = frozenset({"resume", "out", "formats", "proof", "quiet", "verbose", "progress", "config", "exit_zero"})
"""Options that may change from one interruption to the next: they say how things are shown, not what is done."""


@dataclass
class Resumable:
    """One run of the command line and its journal `NAME.partial` in the output folder."""

    arguments: tuple[str, ...]
    """Of the command that began it."""
    folder: Path | None = None
    """None before the work begins, and where results go to stdout."""
    resumed: bool = False

    def begin(self, out: Path, chosen: Mapping[str, Any], samples: int, attacks: str) -> Path:
        """The folder of the journal: made, with the options in it, unless the run is one that goes on.

        `samples` and `attacks` are what was settled on: chosen by time, they would be others the next time.
        """
        if self.folder is not None:
            return self.folder
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        folder = out / f"la-{day}-{secrets.token_hex(3)}{SUFFIX}"
        content = {
            "format": FORMAT,
            "arguments": self.arguments,
            "options": {name: _plain(value) for name, value in chosen.items()},
            "samples": samples,
            "attacks": attacks,
        }
        try:
            folder.mkdir(parents=True)
            self.folder = folder
            write_json(folder / OPTIONS, content)
        except OSError as error:
            raise ReportError(f"cannot write into {folder}: {error.strerror}") from error
        return folder

    def command(self) -> str:
        """What to type to continue."""
        return f"lipaudit run --resume {shlex.quote(str(self.folder).removesuffix(SUFFIX))}"

    def hint(self) -> str:
        """How to continue, for a run that ended early; empty, and no folder left, if nothing was finished."""
        if self.folder is None or not self.folder.is_dir():
            return ""
        if not holds_parts(self.folder) and not self.resumed:
            discard(self.folder)
            return ""
        return f"; what is finished is kept, continue with: {self.command()}"

    def finish(self) -> None:
        """The reports are written: nothing is left to continue."""
        if self.folder is not None:
            discard(self.folder)


def resume(chosen: Mapping[str, Any], given: Collection[str]) -> tuple[Resumable, dict[str, Any]]:
    """The interrupted run that `--resume` names, and the options with which it goes on.

    `given` are the names of the options on the command line: they may not contradict those of the run. Raises
    `ResumeError` if there is no such run, or they do.
    """
    folder = _find(chosen["resume"], Path(chosen["out"]))
    kept = read_json(folder / OPTIONS)
    assert kept is not None
    options = {"origin": {}, **chosen}  # a run that an older lipaudit began does not know all of them
    options |= {name: tuple(value) if isinstance(value, list) else value for name, value in kept["options"].items()}
    for name in given:
        if name not in FREE and _plain(chosen[name]) != kept["options"].get(name):
            option = f"--{name.replace('_', '-')}"
            raise ResumeError(f"{option}: a run goes on with the options that it was begun with; leave {option} out")
    for name in ("checkpoint", "data_dir", "proof"):
        options[name] = None if options.get(name) is None else Path(options[name])
    options |= {name: chosen[name] for name in FREE & (set(given) | {"resume", "quiet", "verbose", "progress"})}
    options |= {"samples": kept["samples"], "attacks": kept["attacks"]}
    if chosen["out"] != "-":
        options["out"] = str(folder.parent)
    return Resumable(tuple(kept["arguments"]), folder, resumed=True), options


def _find(name: str, out: Path) -> Path:
    """The journal of a run, named by its folder, its path without the suffix, or its name in the output folder."""
    text = name.rstrip("/").removesuffix(SUFFIX)
    if not text:
        raise ResumeError("--resume: expected the folder or name of an interrupted run, got nothing")
    for path in (Path(text + SUFFIX), out / (text + SUFFIX)):
        if (path / OPTIONS).is_file():
            return path
    if any(path.with_name(path.name + ".json").is_file() for path in (Path(text), out / text)):
        raise ResumeError(f"--resume {name}: this run is finished; its report is there, nothing is left to do")
    there = sorted(path.parent.name.removesuffix(SUFFIX) for path in out.glob(f"*{SUFFIX}/{OPTIONS}"))
    known = f"there are: {', '.join(there)}" if there else f"there is none in {out}"
    raise ResumeError(f"--resume {name}: expected the folder or name of an interrupted run; {known}")


def _plain(value: Any) -> Any:
    """A value of an option as JSON knows it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
