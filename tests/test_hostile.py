"""Hostile input, one table: each line gives a right answer, or one clear line and nothing else.

In each case also: no traceback, the exit code of its error class, no file left behind, a few seconds, little memory.
The tables are in `hostile/`.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import checkpoints, data, models, options
from hostile.case import Case

from lipaudit import cli
from lipaudit.errors import LipauditError

SECONDS = 10.0
"""Of processor time, for the slowest case on a slow machine; most take a tenth of one."""
MEGABYTES = 400
"""What the peak of memory may grow by."""

TABLES = {"checkpoint": checkpoints.CASES, "data": data.CASES, "model": models.CASES}
CALLS = {call.name: call for call in options.CASES}
LIBRARY = {f"{table}: {case.name}": case for table, cases in TABLES.items() for case in cases}


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Ends a case that waits, for a pipe say."""

    def ring(*_: object) -> None:
        pytest.fail("it takes more than a minute")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder for what a case prepares, and an empty current folder."""
    given, here = tmp_path / "given", tmp_path / "here"
    given.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here/cache"))
    return given, here


@pytest.mark.parametrize("name", LIBRARY)
def test_a_right_answer_or_one_clear_line(name: str, places: tuple[Path, Path]) -> None:
    case, (given, here) = LIBRARY[name], places
    act = case.make(given)
    before = files(given)
    began, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        act()
        error = None
    except LipauditError as raised:
        error = raised
    judge(case, error)
    assert time.process_time() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEGABYTES * 1024
    assert files(given) == before
    assert not files(here)


def judge(case: Case, error: LipauditError | None) -> None:
    if error is None:
        assert case.error is None or case.either, "accepted"
        return
    assert case.error is not None, f"refused: {error}"
    assert type(error) is case.error, repr(error)
    text = str(error)
    assert case.says in text, text
    assert text.isprintable(), "several lines, or signs that steer a terminal"
    assert len(text) < 700, text


@pytest.mark.parametrize("name", CALLS)
def test_one_line_on_stderr(name: str, places: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    call, (given, here) = CALLS[name], places
    arguments = call.make(given)
    before = files(given)
    began = time.process_time()
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    shown = capsys.readouterr()
    assert (shown.out, ended.value.code) == ("", call.code), shown
    *steps, last = shown.err.splitlines()
    assert last.startswith("lipaudit: ")
    assert not any(line.startswith(("Traceback", " ", "lipaudit:")) for line in steps), shown.err
    assert call.says in last, last
    assert last.isprintable()
    assert len(last) < 900, last
    assert time.process_time() - began < SECONDS
    assert files(given) == before
    assert not {path for path in files(here) if path != Path("reports")}, "half of a run is left"


def test_the_table_is_long_enough() -> None:
    assert len(LIBRARY) + len(CALLS) >= 500
    assert len(CALLS) == len(options.CASES)
    assert len(LIBRARY) == sum(map(len, TABLES.values()))
