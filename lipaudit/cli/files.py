"""Files that are complete or absent."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from lipaudit.errors import ReportError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`: it becomes `path` if the block succeeds, otherwise it vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_all(texts: Mapping[Path, str]) -> None:
    """Write each text to its path; no path is touched before all are on the disk.

    Raises `ReportError` if the disk says no.
    """
    try:
        with contextlib.ExitStack() as stack:
            for path, text in texts.items():
                stack.enter_context(replacing(path)).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ReportError(
            f"cannot write {error.filename2 or error.filename}: {error.strerror}; nothing was written"
        ) from error


def prepare_folder(folder: Path) -> None:
    """Make the folder and see that files can be written there, before hours of work.

    Raises `ReportError` that names the folder and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(4)}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ReportError(f"cannot write reports into {folder}: {reason}; choose a folder by --out DIR") from error
