"""The finished parts of a run, on disk: what an interrupted run need not do again.

Note [Whole or absent]
    A part is written beside its place and renamed into it: a process that is killed at any moment leaves no part of it
    under its name. A file that a crash of the machine cut short fails the CRC inside it, and counts as absent. So does
    a part that was made from anything else than what is asked for: each carries a fingerprint of what went into it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipaudit.errors import ResumeError
from lipaudit.files.atomic import replacing, write_text

SUFFIX = ".partial"
"""A journal in the folder `X.partial` belongs to the run `X`."""
MANIFEST = "manifest.json"
FORMAT = 1
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a file raises that is not the whole one."""


class Parts:
    """Finished parts in a folder, one file each."""

    def __init__(self, folder: Path | str, version: str = "") -> None:
        """`version` says of what software parts are that say nothing of it themselves."""
        self.folder, self.version = Path(folder), version
        self.restored = 0.0
        """Seconds that the parts took which were read back so far."""
        self.failure = ""
        """Why parts are no longer written; the run itself goes on."""

    def get(self, part: str, fingerprint: str) -> dict[str, np.ndarray] | None:
        """The arrays of a finished part, or None if it is not there, not whole, or made from something else."""
        try:
            with self._path(part).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                if str(file["fingerprint"]) != fingerprint:
                    return None
                arrays = {name: file[name] for name in file.files}
        except _BROKEN:
            return None
        self.restored += float(arrays["seconds"])
        return arrays

    def put(self, part: str, fingerprint: str, seconds: float, **arrays: np.ndarray) -> None:
        """Keeps a part that took so many seconds. A disk that says no ends the journal, not the run (`failure`)."""
        if self.failure:
            return
        try:
            with replacing(self._path(part)) as partial, partial.open("wb") as file:
                np.savez(file, fingerprint=np.array(fingerprint), seconds=np.array(seconds), **arrays)  # type: ignore[arg-type]  # none is named allow_pickle
        except OSError as error:
            self.failure = f"what was finished could not be kept in {self.folder}: {error.strerror}"

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}.npz"


class Journal(Parts):
    """A folder with a manifest, which says what is audited and how, and one file per finished part."""

    def __init__(self, folder: Path | str, audited: Mapping[str, Mapping[str, Any]], started: str) -> None:
        """Opens the journal of exactly this audit, or begins one.

        `audited` are named groups of settings, as JSON knows them. Raises `ResumeError` if the folder holds the journal
        of another audit (the message names what differs), or cannot be read or written.
        """
        super().__init__(folder)
        self.run = self.folder.name.removesuffix(SUFFIX) if self.folder.name.endswith(SUFFIX) else ""
        mine = {"format": FORMAT, "started": started, "audited": json.loads(json.dumps(audited))}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = read_json(self.folder / MANIFEST)
            if held is None:
                write_json(self.folder / MANIFEST, mine)
                held = mine
        except OSError as error:
            raise ResumeError(f"cannot keep a journal in {self.folder}: {error.strerror}") from error
        _compare(self.folder, held, mine)
        self.started: str = held["started"]


def fingerprint(*values: Any) -> str:
    """SHA-256 of arrays (dtype, shape, bytes) and of the `repr` of anything else."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}|{value.shape}\0".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(f"{value!r}\0".encode())
    return digest.hexdigest()


def holds_parts(folder: Path) -> bool:
    """Whether anything in a journal is finished."""
    return any(folder.glob("*.npz")) or any(folder.glob("shard-*.json"))


def discard(folder: Path) -> None:
    """Removes a journal; where that fails, it stays without harm."""
    shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """As `write_text`."""
    write_text(path, json.dumps(content, indent=1))


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None if there is no file. Raises `ResumeError` for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResumeError(
            f"expected a file of this lipaudit at {path}, got another; delete {path.parent} and start anew"
        )
    return content


def _compare(folder: Path, held: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuses a journal of another audit, and says what differs."""
    then, now = held["audited"], mine["audited"]
    changes = []
    for group in {**then, **now}:
        old, new = then.get(group, {}), now.get(group, {})
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        spoken = [(name.replace("_", " "), _short(old.get(name)), _short(new.get(name))) for name in names]
        changes += [f"{name} (was {before}, is {after})" for name, before, after in spoken]
    if changes:
        raise ResumeError(
            f"expected the audit that was begun in {folder}, got another {', another '.join(changes)}; "
            "put that back, or begin a new run"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
