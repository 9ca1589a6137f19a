"""Runs that can be interrupted: where one keeps what is finished, and how `--resume RUN` continues it."""

from __future__ import annotations

import datetime
import secrets
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lipaudit.errors import ReportError, ResumeError
from lipaudit.files.journal import FORMAT, SUFFIX, discard, holds_parts, read_json, write_json
from lipaudit.settings import File, RunSettings, named, options_of

OPTIONS = "options.json"
FREE = named("output")
"""Settings that may change from one interruption to the next: they say how things are shown, not what is done."""


@dataclass
class Resumable:
    """One run of the command line and its journal `NAME.partial` in the output folder."""

    arguments: tuple[str, ...]
    """Of the command that began it."""
    folder: Path | None = None
    """None before the work begins, and where results go to stdout."""
    resumed: bool = False
    origin: Mapping[str, str] = field(default_factory=dict)
    """Where the settings come from that are no defaults."""

    def begin(self, settings: RunSettings, samples: int, attacks: Sequence[str]) -> Path:
        """The folder of the journal: made, with the settings in it, unless the run is one that goes on.

        `samples` and `attacks` are what was settled on: chosen by time, they would be others the next time.
        """
        if self.folder is not None:
            return self.folder
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        folder = Path(settings.out) / f"la-{day}-{secrets.token_hex(3)}{SUFFIX}"
        content = {
            "format": FORMAT,
            "arguments": self.arguments,
            "origin": dict(self.origin),
            "options": {name: _plain(value) for name, value in vars(settings).items()},
            "samples": samples,
            "attacks": list(attacks),
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


def resume(settings: RunSettings, given: Collection[str]) -> tuple[Resumable, RunSettings]:
    """The interrupted run that `--resume` names, and the settings with which it goes on.

    `given` are the names of the options on the command line: they may not contradict those of the run. Raises
    `ResumeError` if there is no such run, or they do.
    """
    assert settings.resume is not None
    folder = _find(settings.resume, Path(settings.out))
    kept = read_json(folder / OPTIONS)
    assert kept is not None
    for name in given:
        one = options_of()[name]
        if name not in FREE and _plain(getattr(settings, name)) != kept["options"].get(name, _plain(one.default)):
            raise ResumeError(
                f"{one.typed}: a run goes on with the options that it was begun with; leave {one.typed} out"
            )
    # A run that an older lipaudit began does not know all of them, or knows some that are no more.
    known = {name: kept["options"][name] for name in options_of() if name in kept["options"]}
    known |= {"samples": kept["samples"], "attacks": kept["attacks"]}
    now = FREE & (set(given) | {"resume", "quiet", "verbose", "progress"})
    again = replace(settings, **{name: _read(name, value) for name, value in known.items() if name not in now})
    again = again if settings.out == "-" else replace(again, out=str(folder.parent))
    return Resumable(tuple(kept["arguments"]), folder, resumed=True, origin=kept.get("origin", {})), again


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


def _read(name: str, value: Any) -> Any:
    """A setting from what `_plain` made of it."""
    if isinstance(options_of()[name].kind, File) and value is not None:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """A setting as JSON knows it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
