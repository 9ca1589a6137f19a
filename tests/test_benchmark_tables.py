"""The tables of the page are those that were kept when the benchmarks ran."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).with_name("benchmarks")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tables")


def test_the_page_is_what_the_files_give(tables: ModuleType) -> None:
    """After a run: python tests/benchmarks/tables.py"""
    page = tables.PAGE.read_text("utf-8")
    assert tables.written(page) == page
    assert {name for name, _ in tables.PLACE.findall(page)} == {file.stem for file in tables.RESULTS.glob("*.json")}


def test_no_table_of_the_page_is_written_by_hand(tables: ModuleType) -> None:
    page = tables.PLACE.sub("", tables.PAGE.read_text("utf-8"))
    assert not re.findall(r"^\|", page, re.MULTILINE)


def test_an_edited_number_is_seen(tables: ModuleType) -> None:
    page = tables.PAGE.read_text("utf-8")
    place = tables.PLACE.search(page)
    cell = re.search(r"\d+\.\d+", page[place.start() :])
    edited = page[: place.start() + cell.start()] + "9.99" + page[place.start() + cell.end() :]
    assert edited != page
    assert tables.written(edited) == page


GOOD = "told\n\n| a | b |\n|---|---:|\n| 1 | 2 |\n"


def test_the_table_in_what_a_script_prints(tables: ModuleType) -> None:
    assert tables.table_of(GOOD) == ("| a | b |", "|---|---:|", "| 1 | 2 |")


@pytest.mark.parametrize(
    "printed", ["", "told", GOOD + "\n" + GOOD, "| a | b |\n|---|---|\n", "| a |\n| 1 |\n| 2 |\n", GOOD + "| 3 |\n"]
)
def test_what_is_no_one_table_is_refused(tables: ModuleType, printed: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        tables.table_of(printed)


def test_a_run_is_kept_with_its_command(tables: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('| a |\\n|---|\\n| 1 |')", "utf-8")
    found = tables.run([str(script)])
    assert found.command.startswith("python ")
    assert found.lines == ("| a |", "|---|", "| 1 |")
    assert f"torch {importlib.metadata.version('torch')}" in found.versions
    script.write_text("raise SystemExit(3)", "utf-8")
    with pytest.raises(ValueError, match="got 3"):
        tables.run([str(script)])
