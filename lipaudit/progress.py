"""How long work tells where it is. The library is silent; the command line shows bars or plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TextIO

EVERY = 30.0
"""Seconds between two lines of `Lines` within one stage."""


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


@dataclass
class Stage:
    """Where one stage stands."""

    name: str
    total: int | None
    began: float
    done: int = 0
    note: str = ""
    over: bool = False

    def counted(self) -> str:
        """`310/494`, or `310` if the end is unknown; nothing before the first unit of an unknown number."""
        if self.total is None:
            return str(self.done) if self.done else ""
        return f"{self.done}/{self.total}"

    def left(self, now: float) -> float | None:
        """Seconds to go at the pace so far; None as long as that says nothing."""
        elapsed = now - self.began
        if self.total is None or not 0 < self.done < self.total or elapsed < 3:
            return None
        return elapsed / self.done * (self.total - self.done)


@dataclass
class Lines:
    """Plain lines for logs and pipes: each stage at its start and end, and at most every `every` seconds."""

    stream: TextIO
    every: float = EVERY
    clock: Callable[[], float] = time.monotonic
    _stage: Stage | None = field(default=None, init=False)
    _last: float = field(default=0.0, init=False)

    def start(self, stage: str, total: int | None = None) -> None:
        self._stage = Stage(stage, total, self.clock())
        self._last = self._stage.began
        self.say(f"{stage} …" if total is None else f"{stage} 0/{total} …")

    def advance(self, units: int = 1, note: str = "") -> None:
        if self._stage is None:
            return
        self._stage.done += units
        self._stage.note = note or self._stage.note
        now = self.clock()
        if now - self._last >= self.every:
            self._last = now
            left = self._stage.left(now)
            self._line(self._stage, self._stage.note, "" if left is None else f"about {spell(left)} left")

    def finish(self, note: str = "") -> None:
        if self._stage is None:
            return
        self._line(self._stage, note)
        self._stage = None

    def say(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()

    def _line(self, stage: Stage, *notes: str) -> None:
        parts = [stage.name, stage.counted(), spell(self.clock() - stage.began), *notes]
        self.say("  ".join(part for part in parts if part))


def spell(seconds: float) -> str:
    """`14 s`, `2 min 31 s`, `1 h 5 min`: whole seconds, and no seconds beside hours."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
