"""Live progress bars on a terminal, plain lines elsewhere; the choice of one of them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
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
        self._live: Live | None = None

    def start(self, stage: str, total: int | None = None) -> None:
        self.close()
        self._stage = Stage(stage, total, self._clock())
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
        self._live.start()

    def advance(self, units: int = 1, note: str = "") -> None:
        if self._stage is not None:
            self._stage.done += units
            self._stage.note = note or self._stage.note

    def finish(self, note: str = "") -> None:
        if self._stage is not None:
            self._stage.note, self._stage.over = note, True
        self.close()

    def say(self, text: str) -> None:
        self._console.print(Text(text))

    def close(self) -> None:
        """End the live line as it stands and give the cursor back; nothing happens without one."""
        if self._live is not None:
            self._live.stop()
        self._live, self._stage = None, None

    def _render(self) -> Table | Text:
        stage = self._stage
        if stage is None:
            return Text("")
        elapsed = self._clock() - stage.began
        left = None if stage.over else stage.left(self._clock())
        notes = ["" if left is None else f"about {spell(left)} left", stage.note]
        width = self._console.width
        bar = 20 if width >= 100 else 10
        text = Text("  ".join(note for note in notes if note))
        # Cut here, not by the table: that would narrow the bar first.
        text.truncate(max(8, width - bar - NAME - 19), overflow="ellipsis")
        # A stage of unknown length pulses while it runs and is full when it is over.
        total = stage.total if stage.total is not None else (1 if stage.over else None)
        done = 1 if stage.over and stage.total is None else stage.done
        line = _grid(bar)
        line.add_row(
            Text(stage.name),
            ProgressBar(
                total,
                done,
                width=bar,
                pulse=total is None,
                animation_time=elapsed,
                # rich's own colour for work in progress is red.
                complete_style="blue",
                finished_style="green",
            ),
            Text(stage.counted()),
            Text(clock_time(elapsed)),
            text,
        )
        return line


def _grid(bar: int) -> Table:
    """Name, bar, count, time, notes; nothing wraps."""
    return Table.grid(
        Column(width=NAME, no_wrap=True, overflow="ellipsis"),
        Column(width=bar, no_wrap=True),
        Column(min_width=9, justify="right", no_wrap=True),
        Column(min_width=5, justify="right", no_wrap=True),
        Column(no_wrap=True),
        padding=(0, 1),
    )


@contextlib.contextmanager
def terminal_progress(mode: Mode, stream: TextIO, every: float = EVERY) -> Iterator[Progress]:
    """Bars if `stream` is a terminal, else plain lines; `plain` and `off` ask for less."""
    if mode == "off":
        yield Silent()
    elif mode == "auto" and stream.isatty() and os.environ.get("TERM") != "dumb":
        bars = Bars(stream)
        try:
            yield bars
        finally:
            bars.close()
    else:
        yield Lines(stream, every)


def print_lines(lines: Iterable[Sequence[tuple[str, str]]], stream: TextIO) -> None:
    """Lines of (text, style) pairs: styled on a terminal unless NO_COLOR is set, plain text elsewhere."""
    styled = stream.isatty()
    console = Console(file=stream, force_terminal=styled, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(Text.assemble(*line) if styled else Text("".join(text for text, _ in line)))


def clock_time(seconds: float) -> str:
    """`14 s`, from a minute on `2:31`, from an hour on `1:05:09`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
