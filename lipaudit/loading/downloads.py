"""Files fetched on first use: announced, hash-checked, complete or absent."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from lipaudit.errors import LoadError
from lipaudit.files.atomic import replacing
from lipaudit.progress import Progress

MEGABYTE = 1_000_000
TIMEOUT = 15.0
"""Seconds without a byte after which a server counts as unreachable."""


@dataclass(frozen=True)
class Remote:
    """A file that can be fetched, and how to tell that it is the right one."""

    urls: tuple[str, ...]
    """The same file in several places; tried in order."""
    path: Path
    """Where it lives once fetched."""
    digest: str
    """Hexadecimal, or the first digits of it."""
    algorithm: str
    """`sha256`, `md5`: the one its publisher states."""
    remedy: str
    """What the user can do without a network."""

    def is_here(self) -> bool:
        """Whether the file is at `path` and has the right hash."""
        return self.path.is_file() and _hash(self.path, self.algorithm).startswith(self.digest)


def cache_dir() -> Path:
    """Where fetched data sets live: `$XDG_CACHE_HOME/lipaudit`, usually `~/.cache/lipaudit`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lipaudit"


def is_offline(asked: bool) -> bool:
    """Whether the network is forbidden, by `--offline` or by `LIPAUDIT_OFFLINE=1`."""
    return asked or os.environ.get("LIPAUDIT_OFFLINE", "0") not in ("", "0")


def refuse_offline(file: str, remedy: str) -> LoadError:
    """The error for a file that would have to be fetched while that is forbidden."""
    return LoadError(f"{file} is not on this machine and fetching is forbidden (--offline); {remedy}")


def refuse_unreachable(file: str, error: Exception, remedy: str) -> LoadError:
    """The error for a file that could not be fetched."""
    return LoadError(f"cannot fetch {file} ({_reason(error)}); {remedy}")


def fetch(remote: Remote, *, offline: bool, progress: Progress) -> Path:
    """`remote.path`, fetched if it is not there yet. A wrong hash leaves no file behind.

    Raises `LoadError`, naming the file and the remedy, if fetching is forbidden, fails, or brings other bytes
    than its publisher promises.
    """
    if remote.is_here():
        return remote.path
    if is_offline(offline):
        raise refuse_offline(remote.path.name, remote.remedy)
    error: Exception | None = None
    for url in remote.urls:
        try:
            return _fetch_one(url, remote, progress)
        except (OSError, http.client.HTTPException) as problem:
            error = problem
    assert error is not None, "a Remote has at least one URL"
    raise refuse_unreachable(remote.path.name, error, remote.remedy) from error


def size_of(url: str) -> int | None:
    """Bytes behind the URL, None if its server does not say. Fails within seconds if there is no network.

    Raises `OSError` (of which `urllib.error.URLError` and `HTTPError` are kinds).
    """
    with _open(url, method="HEAD") as response:
        length = response.headers.get("X-Linked-Size") or response.headers.get("Content-Length")
    return int(length) if length else None


def megabytes(size: int | None) -> str:
    """A file size for a reader."""
    if size is None:
        return "size unknown"
    return f"{size / MEGABYTE:.1f} MB" if size >= MEGABYTE / 10 else f"{size / 1000:.0f} kB"


def _fetch_one(url: str, remote: Remote, progress: Progress) -> Path:
    with _open(url) as response, replacing(remote.path) as partial:
        size = response.length
        host = urlparse(url).netloc
        progress.say(f"fetching {remote.path.name}, {megabytes(size)}, from {host} into {remote.path.parent}")
        progress.start(f"fetch {remote.path.name}", None if size is None else -(-size // MEGABYTE))
        digest = hashlib.new(remote.algorithm, usedforsecurity=False)
        with partial.open("wb") as stream:
            while chunk := response.read(MEGABYTE):
                stream.write(chunk)
                digest.update(chunk)
                progress.advance(1, "MB")
        if not digest.hexdigest().startswith(remote.digest):
            progress.finish("refused: wrong hash")
            raise LoadError(
                f"{remote.path.name} from {host} has {remote.algorithm} {digest.hexdigest()[:16]}…, expected "
                f"{remote.digest[:16]}…: damaged or replaced, nothing was kept; try again, or {remote.remedy}"
            )
        progress.finish(f"{remote.algorithm} as published")
    return remote.path


def _open(url: str, method: str = "GET") -> http.client.HTTPResponse:
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "lipaudit"})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    return response


def _hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _reason(error: Exception) -> str:
    """The cause of a network error, without the `<urlopen error ...>` around it."""
    cause = getattr(error, "reason", None) or error
    return str(cause).strip() or type(error).__name__


def mirrors(bases: Sequence[str], name: str) -> tuple[str, ...]:
    """The URL of file `name` under each base address."""
    return tuple(f"{base.rstrip('/')}/{name}" for base in bases)
