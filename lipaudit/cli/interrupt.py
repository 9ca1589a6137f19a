"""Ctrl-C and SIGTERM that cannot get lost.

Of a SIGTERM, which batch systems and containers send before they kill, Python makes nothing; here it ends a run as
Ctrl-C does. Python raises KeyboardInterrupt wherever it happens to be: inside an import that tries one library after
another with a bare `except`, for instance, which swallows it. So it is remembered as well, and raised again where work
next says where it stands.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from lipaudit.progress import Progress


@dataclass
class Interruption:
    """Whether Ctrl-C was pressed, or SIGTERM came."""

    asked: bool = False
    terminated: bool = False
    """By SIGTERM."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: remember, and try at once."""
        del frame
        self.asked, self.terminated = True, self.terminated or number == signal.SIGTERM
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if an earlier one did not get through."""
        if self.asked:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruption() -> Iterator[Interruption]:
    """What remembers both for as long as the block lasts. Outside of the main thread there are no signals."""
    found = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.signal(number, found.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Stoppable:
    """A progress whose work stops where it reports, once it is asked to."""

    shown: Progress
    stop: Interruption

    def start(self, stage: str, total: int | None = None) -> None:
        self.stop.check()
        self.shown.start(stage, total)

    def advance(self, units: int = 1, note: str = "") -> None:
        self.shown.advance(units, note)
        self.stop.check()

    def finish(self, note: str = "") -> None:
        self.shown.finish(note)
        self.stop.check()

    def say(self, text: str) -> None:
        self.stop.check()
        self.shown.say(text)
