"""How long work tells where it is. The library is silent; the command line shows bars or plain lines."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What the pipeline calls. Stages do not nest: `start`, any number of `advance`, `finish`."""

    def start(self, stage: str, total: int | None = None) -> None:
        """A stage begins; `total` is the number of its units, None if unknown."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """So many more units are done; `note` replaces the text behind the bar."""

    def finish(self, note: str = "") -> None:
        """The stage is over; `note` is its result in a few words."""

    def say(self, text: str) -> None:
        """One line for the reader, between stages or within one."""


class Silent:
    """Says nothing."""

    def start(self, stage: str, total: int | None = None) -> None:
        del stage, total

    def advance(self, units: int = 1, note: str = "") -> None:
        del units, note

    def finish(self, note: str = "") -> None:
        del note

    def say(self, text: str) -> None:
        del text
