"""The published schema: it says what the reader of result files takes, and files of every version still render."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import audits
import jsonschema
import pytest
from pages import seen

from lipaudit.errors import ReportError
from lipaudit.report.html import to_html
from lipaudit.results import audit as results
from lipaudit.results import bounds
from lipaudit.results.json import _upgraded as upgraded
from lipaudit.results.json import from_json, to_json
from lipaudit.results.json_schema import json_schema, to_schema
from lipaudit.verdict.consistency import load_audit

# Made by the lipaudit of each version (1.0: commit 74bd0ec) with
# `lipaudit run --model digits-cnn --samples 12 --attacks quick --quiet`; only the name of the platform is shortened.
FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("result-*.json"))
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def data(name: str = "single") -> dict[str, Any]:
    return json.loads(to_json(audits.ALL[name]()))


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(to_schema()) == SCHEMA
    assert SCHEMA["title"] == results.SCHEMA


def test_it_names_every_field_of_every_type_and_requires_those_without_a_default() -> None:
    records = {**SCHEMA["$defs"], "Audit": SCHEMA}
    ours = {
        one.__name__: one for room in (bounds, results) for one in vars(room).values() if dataclasses.is_dataclass(one)
    }
    assert set(records) == set(ours) - {"Certificate", "Witness"}
    for name, record in records.items():
        fields = {field.name: field for field in dataclasses.fields(ours[name])}
        assert set(record["properties"]) == set(fields)
        missing = dataclasses.MISSING
        required = {n for n, f in fields.items() if f.default is missing and f.default_factory is missing}
        assert set(record["required"]) - {"schema"} == required


def test_what_the_source_says_of_a_field_is_in_the_schema() -> None:
    assert SCHEMA["$defs"]["Samples"]["properties"]["distance"]["description"].startswith("Smallest adversarial")
    assert "null stands for inf." in SCHEMA["$defs"]["Samples"]["properties"]["radius"]["description"]


@pytest.mark.parametrize("name", audits.ALL)
def test_every_result_is_valid(name: str) -> None:
    VALIDATOR.validate(data(name))


@pytest.mark.parametrize("file", FIXTURES, ids=lambda file: file.stem)
def test_results_of_every_version_are_valid_and_render(file: Path) -> None:
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert stored["schema"] == f"lipaudit-result/{file.stem.removeprefix('result-')}"
    of_today = stored["schema"].partition(".")[0] == results.SCHEMA.partition(".")[0]
    if of_today:
        VALIDATOR.validate(stored)
    audit = load_audit(file)
    parsed = seen(to_html(audit))
    assert "digits-cnn on digits test" in parsed.words()
    assert audit.verdict.headline in parsed.words()
    assert "nan" not in parsed.words().lower().split()
    # What was written then is written now, and what has been added since has its default.
    # Only its findings and sentences are those of today.
    for name in ("findings", "verdict"):
        del stored[name]
    known = stored if of_today else upgraded(stored)
    assert contains(json.loads(to_json(audit)), {**known, "arithmetic": audit.arithmetic})


def contains(new: Any, old: Any) -> bool:
    if isinstance(old, dict):
        return all(key in new and contains(new[key], value) for key, value in old.items())
    if isinstance(old, list):
        return len(new) == len(old) and all(map(contains, new, old))
    return new == old


def test_there_is_a_fixture_of_every_version() -> None:
    major, _, minor = results.SCHEMA.partition("/")[2].partition(".")
    assert major == "2"
    names = {file.stem for file in FIXTURES}
    assert names >= {"result-1.0", "result-1.1", *(f"result-2.{k}" for k in range(int(minor)))}


def places(value: Any, path: tuple[Any, ...] = ()) -> typing.Iterator[tuple[Any, ...]]:
    """Every place in a result, of a list its first entry only."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*path, key))


def changed(original: dict[str, Any], path: tuple[Any, ...], new: Any) -> dict[str, Any]:
    made = copy.deepcopy(original)
    at: Any = made
    for key in path[:-1]:
        at = at[key]
    if new is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return made


JUNK = ["x", -1, 1.5, None, [], {}, True, ...]


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_schema_and_reader_refuse_the_same(junk: Any, step: int) -> None:
    """One wrong value at a time, in every place or every fifth.

    The schema alone knows ranges of numbers, the reader alone whole columns.
    """
    original = data("single")
    refused = 0
    for path in list(places(original))[JUNK.index(junk) % step :: step]:
        if isinstance(path[-1], int) and junk is ...:
            continue  # a shorter column: the reader's business
        wrong = changed(original, path, junk)
        by_schema = not VALIDATOR.is_valid(wrong)
        try:
            from_json(json.dumps(wrong))
            by_reader = ""
        except ReportError as error:
            by_reader = str(error)
        refused += by_schema
        if by_schema and not by_reader:
            assert junk == -1 or (junk == 1.5 and path[-1] in ("value", "low", "high")), path
        if by_reader and not by_schema:
            reasons = ("columns of one length", "rows below", "square", "a budget such as", "threat.eps")
            assert any(reason in by_reader for reason in reasons), (path, by_reader)
    assert refused > 15 / step


@pytest.mark.parametrize("one", ["INVALID", "FINE"])
@pytest.mark.parametrize("two", ["weak", "solid"])
def test_words_are_those_of_the_types(one: str, two: str) -> None:
    wrong = changed(changed(data(), ("verdict", "integrity"), one), ("verdict", "strength"), two)
    assert VALIDATOR.is_valid(wrong) is (one == "INVALID" and two == "weak")


def test_a_later_minor_version_is_valid_and_another_family_is_not() -> None:
    later = {**data(), "schema": "lipaudit-result/2.9", "new": {"x": [1]}}
    assert VALIDATOR.is_valid(later)
    for schema in ("lipaudit-result/1.2", "lipaudit-result/3.0", "trivy/1.0", 1, None):
        assert not VALIDATOR.is_valid({**data(), "schema": schema})


def test_the_command_prints_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lipaudit", "schema"], capture_output=True, check=True, encoding="utf-8"
    )
    assert json.loads(done.stdout) == SCHEMA
