"""Live progress bars on a terminal, plain lines elsewhere; the choice of one of them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TextIO

from rich import progress as bars
from rich.console import Console
from rich.table import Column
from rich.text import Text

from lipaudit.progress import EVERY, Lines, Progress, Silent, Stage, spell

Mode = Literal["auto", "plain", "off"]
NAME = 20
"""Columns for the name of a stage."""


class Bars:
    """One live line per stage: name, bar, count, time, and what is left or what came out."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        # Being a terminal is the stream's own matter: rich would also believe FORCE_COLOR, in a log of CI.
        # NO_COLOR is rich's business and takes the colours only.
        self._console = Console(file=stream, force_terminal=True, force_interactive=True, highlight=False)
        self._clock = clock
        self._stage: Stage | None = None
        self._live: bars.Progress | None = None

    def start(self, stage: str, total: int | None = None) -> None:
        self.close()
        self._stage = Stage(stage, total, self._clock())
        self._live = bars.Progress(
            *_columns(self._stage, self._console, self._clock),
            console=self._console,
            get_time=self._clock,
            refresh_per_second=4,
        )
        self._live.add_task(stage, total=total)
        self._live.start()

    def advance(self, units: int = 1, note: str = "") -> None:
        if self._stage is not None:
            self._stage.done += units
            self._stage.note = note or self._stage.note
        self._show(done=0 if self._stage is None else self._stage.done)

    def finish(self, note: str = "") -> None:
        if self._stage is not None:
            self._stage.note, self._stage.over = note, True
            if self._stage.total is None:  # it pulses while it runs and is full when it is over
                self._show(total=1, done=1)
        self.close()

    def say(self, text: str) -> None:
        self._console.print(Text(text))

    def close(self) -> None:
        """End the live line as it stands and give the cursor back; nothing happens without one."""
        if self._live is not None:
            self._live.stop()
        self._live, self._stage = None, None

    def _show(self, done: int, total: int | None = None) -> None:
        if self._live is not None:
            (task,) = self._live.task_ids
            self._live.update(task, completed=done, total=total)


class _Told(bars.ProgressColumn):
    """A column with a text that is asked for anew at each look."""

    def __init__(self, tell: Callable[[], str], column: Column, width: int | None = None) -> None:
        super().__init__(column)
        self._tell, self._width = tell, width

    def render(self, task: bars.Task) -> Text:
        del task
        text = Text(self._tell())
        if self._width is not None:  # cut here, not by the table: that would narrow the bar first
            text.truncate(self._width, overflow="ellipsis")
        return text


def _columns(stage: Stage, console: Console, clock: Callable[[], float]) -> tuple[bars.ProgressColumn, ...]:
    """Name, bar, count, time, notes; nothing wraps."""

    def notes() -> str:
        left = None if stage.over else stage.left(clock())
        return "  ".join(note for note in ("" if left is None else f"about {spell(left)} left", stage.note) if note)

    bar = 20 if console.width >= 100 else 10
    # rich's own colour for work in progress is red.
    return (
        _Told(lambda: stage.name, Column(width=NAME, no_wrap=True, overflow="ellipsis")),
        bars.BarColumn(bar, complete_style="blue", finished_style="green", table_column=Column(no_wrap=True)),
        _Told(stage.counted, Column(min_width=9, justify="right", no_wrap=True)),
        bars.TimeElapsedColumn(Column(min_width=7, justify="right", no_wrap=True)),
        _Told(notes, Column(no_wrap=True), max(8, console.width - bar - NAME - 21)),
    )


@contextlib.contextmanager
def terminal_progress(mode: Mode, stream: TextIO, every: float = EVERY) -> Iterator[Progress]:
    """Bars if `stream` is a terminal, else plain lines; `plain` and `off` ask for less."""
    if mode == "off":
        yield Silent()
    elif mode == "auto" and stream.isatty() and os.environ.get("TERM") != "dumb":
        live = Bars(stream)
        try:
            yield live
        finally:
            live.close()
    else:
        yield Lines(stream, every)


def print_lines(lines: Iterable[Sequence[tuple[str, str]]], stream: TextIO) -> None:
    """Lines of (text, style) pairs: styled on a terminal unless NO_COLOR is set, plain text elsewhere."""
    styled = stream.isatty()
    console = Console(file=stream, force_terminal=styled, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(Text.assemble(*line) if styled else Text("".join(text for text, _ in line)))
