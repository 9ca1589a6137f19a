"""Files that are complete or absent."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from lipaudit.errors import ReportError
from lipaudit.results.formatting import clean


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`: it becomes `path` if the block succeeds, otherwise it vanishes.

    `path` is whole, also after a power failure, or as it was. Raises `OSError`.
    """
    with _beside(path) as partial:
        yield partial
        _to_disk(partial)
        partial.replace(path)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """The name of a temporary file beside `path`, which is gone in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def write_all(texts: Mapping[Path, str]) -> None:
    """Write each text to its path; no path is touched before all are on the disk, and no new file stays without all.

    Raises `ReportError` if the disk says no.
    """
    placed: list[Path] = []
    try:
        with contextlib.ExitStack() as stack:
            partials = {path: stack.enter_context(_beside(path)) for path in texts}
            for path, partial in partials.items():
                partial.write_text(texts[path], encoding="utf-8", newline="\n")
                _to_disk(partial)
            for path, partial in partials.items():
                new = not path.exists()
                partial.replace(path)
                placed += [path] if new else []
    except OSError as error:
        for path in placed:
            path.unlink(missing_ok=True)
        raise ReportError(
            f"cannot write {error.filename2 or error.filename}: {error.strerror}; nothing was written"
        ) from error


def _to_disk(path: Path) -> None:
    """Waits until the content is on the disk: a name that is given to it afterwards never stands for an empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def prepare_folder(folder: Path) -> None:
    """Make the folder and see that files can be written there, before hours of work.

    Raises `ReportError` that names the folder and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(4)}.part"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ReportError(
            f"cannot write reports into {clean(folder, 300)}: {reason}; choose a folder by --out DIR"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes one file, as `replacing` does."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
