"""One line of the tables of hostile input: what is done, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lipaudit.errors import LipauditError

Act = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """`make(folder)` writes what is needed into the folder and gives the act.

    The act raises `error` with a message that contains `says`; without an `error`, it returns, and has itself
    asserted that what came out is right. `either`: both are fine (a flipped bit may hit what nobody reads).
    """

    name: str
    make: Callable[[Path], Act]
    error: type[LipauditError] | None = None
    says: str = ""
    either: bool = False


@dataclass(frozen=True)
class Call:
    """One call of the command line: its exit code, and what the last line on stderr contains.

    `make(folder)` writes what is needed and gives the arguments.
    """

    name: str
    make: Callable[[Path], list[str]]
    code: int
    says: str
