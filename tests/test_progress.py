"""Progress: bars on a terminal, plain lines elsewhere, nothing in a library; colours are another matter."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest

from lipaudit.cli.terminal import Bars, print_lines, terminal_progress
from lipaudit.progress import Lines, Silent, Stage, spell


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def visible(stream: io.StringIO) -> str:
    """What is left on the screen, without control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())


def test_silent_accepts_everything() -> None:
    progress = Silent()
    progress.start("stage", 3)
    progress.advance(2, "note")
    progress.finish("done")
    progress.say("hello")


def test_lines_tell_start_and_end() -> None:
    out, clock = io.StringIO(), Clock()
    lines = Lines(out, clock=clock)

    lines.start("layer bounds", 37)
    clock.now += 14
    lines.advance(37)
    lines.finish("L = 1.6×10¹¹")

    assert out.getvalue() == "layer bounds 0/37 …\nlayer bounds  37/37  14 s  L = 1.6×10¹¹\n"


def test_lines_come_at_most_every_thirty_seconds() -> None:
    out, clock = io.StringIO(), Clock()
    lines = Lines(out, clock=clock)
    told: list[float] = []

    lines.start("attack", 1000)
    for _ in range(1000):
        clock.now += 0.25
        before = len(out.getvalue())
        lines.advance(1, "broken: 3")
        if len(out.getvalue()) > before:
            told.append(clock.now)

    assert told[0] == 130.0
    assert all(later - earlier >= 30 for earlier, later in pairwise(told))
    assert len(told) == 8
    assert "attack  120/1000  30 s  broken: 3  about 3 min 40 s left" in out.getvalue()


def test_every_step_on_request() -> None:
    out = io.StringIO()
    lines = Lines(out, every=0.0)

    lines.start("attack", 3)
    for _ in range(3):
        lines.advance()

    assert len(out.getvalue().splitlines()) == 4


def test_a_stage_of_unknown_length_makes_no_promise() -> None:
    out, clock = io.StringIO(), Clock()
    lines = Lines(out, clock=clock)

    lines.start("thinking")
    clock.now += 31
    lines.advance(5)
    lines.finish("found")

    assert out.getvalue() == "thinking …\nthinking  5  31 s\nthinking  5  31 s  found\n"


def test_a_call_without_a_stage_is_harmless() -> None:
    out = io.StringIO()
    for progress in (Lines(out), Bars(Terminal())):
        progress.advance(1)
        progress.finish("nothing")

    assert out.getvalue() == ""


def test_bars_show_name_count_time_and_result() -> None:
    out, clock = Terminal(), Clock()
    bars = Bars(out, clock=clock)

    bars.start("layer bounds", 37)
    bars.advance(12, "conv1")
    clock.now += 74
    bars.advance(25)
    bars.finish("L = 1.6×10¹¹")

    last = visible(out).splitlines()[-1]
    assert re.search(r"layer bounds +━+ +37/37 +0:01:14 +L = 1.6×10¹¹", last)


def test_bars_say_what_is_left() -> None:
    out, clock = Terminal(), Clock()
    bars = Bars(out, clock=clock)

    bars.start("attack", 100)
    bars.advance(25)
    clock.now += 30
    bars.close()

    assert "25/100" in visible(out)
    assert "about 1 min 30 s left" in visible(out)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_bar_never_takes_two_lines(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = Terminal()
    bars = Bars(out)

    bars.start("a stage with a name that is far too long", 10_000)
    bars.advance(1, "and a note that would not fit on any terminal, " * 5)
    bars.finish("and a result that would not fit on any terminal, " * 5)

    assert max(map(len, visible(out).splitlines())) <= width
    if width >= 60:
        assert visible(out).splitlines()[-1].count("━") == (20 if width >= 100 else 10)


def test_text_is_not_markup_and_survives_a_live_bar() -> None:
    out = Terminal()
    bars = Bars(out)

    bars.start("stage [bold]", 1)
    bars.say("[red]fetching[/red] {x}")
    bars.advance(1, "[0, 1]")
    bars.finish("[0, 1]")

    assert "[red]fetching[/red] {x}" in visible(out)
    assert "stage [bold]" in visible(out)
    assert "[0, 1]" in visible(out)


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def test_the_cursor_comes_back_when_a_stage_fails() -> None:
    out = Terminal()

    def fail() -> None:
        with terminal_progress("auto", out) as progress:
            progress.start("stage", 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert out.getvalue().count(HIDE) == out.getvalue().count(SHOW) > 0


@pytest.mark.parametrize(
    ("mode", "terminal", "expected"),
    [
        ("auto", True, Bars),
        ("auto", False, Lines),
        ("plain", True, Lines),
        ("plain", False, Lines),
        ("off", True, Silent),
    ],
)
def test_the_stream_and_the_mode_decide(
    mode: str, terminal: bool, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with terminal_progress(mode, Terminal() if terminal else io.StringIO()) as progress:  # type: ignore[arg-type]
        assert isinstance(progress, expected)


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_no_variable_switches_bars_on_in_a_log(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    out = io.StringIO()

    with terminal_progress("auto", out) as progress:
        progress.start("stage", 1)
        progress.finish()

    assert "\x1b" not in out.getvalue()


def test_no_color_takes_the_colours_and_leaves_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured, plain = Terminal(), Terminal()
    for out in (coloured, plain):
        if out is plain:
            monkeypatch.setenv("NO_COLOR", "1")
        bars = Bars(out)
        bars.start("stage", 2)
        bars.advance(1)
        bars.finish("done")

    colour = re.compile(r"\x1b\[[0-9;]*m")
    assert colour.search(coloured.getvalue())
    assert not colour.search(plain.getvalue())
    assert "━" in plain.getvalue()
    assert "1/2" in plain.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")

    with terminal_progress("auto", Terminal()) as progress:
        assert isinstance(progress, Lines)


def test_styled_lines_are_plain_text_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = [(("verdict ", "bold"), ("[SOUND]", "green")), (), (("x" * 300, ""),)]
    file, terminal = io.StringIO(), Terminal()

    print_lines(lines, file)
    print_lines(lines, terminal)

    assert file.getvalue() == f"verdict [SOUND]\n\n{'x' * 300}\n"
    assert visible(terminal) == file.getvalue()
    assert "\x1b[1m" in terminal.getvalue()


def test_times() -> None:
    assert [spell(s) for s in (0.2, 59.4, 60, 151, 3900)] == ["0 s", "59 s", "1 min 0 s", "2 min 31 s", "1 h 5 min"]


def test_the_time_left_needs_a_pace() -> None:
    stage = Stage("s", 100, began=0.0)
    assert stage.left(10.0) is None
    stage.done = 10
    assert stage.left(1.0) is None
    assert stage.left(10.0) == 90.0
    stage.done = 100
    assert stage.left(10.0) is None
