"""The result file: exact round trip, one meaning per null, one line per error."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import audits
import numpy as np
import pytest

from lipaudit.errors import ReportError
from lipaudit.report.html import to_html
from lipaudit.results.audit import Audit
from lipaudit.results.json import MOST_CLASSES, from_json, to_json
from lipaudit.verdict.consistency import load_audit

EXACT = [name for name in audits.ALL if name not in ("hostile", "thousand_classes")]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("name", EXACT)
def test_round_trip_is_exact(name: str) -> None:
    audit = audits.ALL[name]()
    assert from_json(to_json(audit)) == audit


@pytest.mark.parametrize("name", audits.ALL)
def test_second_trip_gives_the_same_bytes_of_strict_json(name: str) -> None:
    text = to_json(audits.ALL[name]())
    json.loads(text, parse_constant=refuse)
    assert to_json(from_json(text)) == text
    text.encode("utf-8")


def test_columns_take_one_line_each_and_the_schema_stands_first() -> None:
    lines = to_json(audits.strong(300)).splitlines()
    assert lines[1] == ' "schema": "lipaudit-result/2.1",'
    for column in ("index", "label", "margin", "radius", "distance", "attack"):
        (line,) = [line for line in lines if line.startswith(f'  "{column}": [')]
        assert line.count(",") >= 299


def test_nulls_have_one_meaning_each() -> None:
    audit = audits.strong(3)
    assert audit.bound is not None
    constant = replace(audit.bound.layers[0], log10_so_far=-math.inf)
    over = replace(audit.bound.layers[1], upper=replace(audit.bound.layers[1].upper, value=math.inf))
    bound = replace(audit.bound, layers=(constant, over), pairwise=((0.0, math.inf), (math.inf, 0.0)), log10=-math.inf)
    columns = replace(
        audit.samples, radius=(math.inf, 0.1, 0.2), margin=(math.nan, 1.0, 2.0), distance=(None, 1.0, None)
    )
    back = from_json(to_json(replace(audit, bound=bound, samples=columns, slope=math.nan, timing={"x": math.inf})))
    assert back.bound is not None
    assert back.bound == bound
    assert back.samples.radius == (math.inf, 0.1, 0.2)
    assert math.isnan(back.samples.margin[0])
    assert back.samples.distance == (None, 1.0, None)
    assert back.slope is None
    assert math.isnan(back.timing["x"])


def test_nan_in_a_proof_is_refused() -> None:
    audit = audits.strong(3)
    assert audit.bound is not None
    broken = [
        replace(audit, samples=replace(audit.samples, radius=(math.nan, 0.1, 0.2))),
        replace(audit, bound=replace(audit.bound, log10=math.nan)),
        replace(audit, bound=replace(audit.bound, pairwise=((0.0, 1.0), (1.0, math.nan)))),
    ]
    for one in broken:
        with pytest.raises(ReportError, match="NaN"):
            to_json(one)
    with pytest.raises(ReportError, match="got inf"):
        to_json(replace(audit, bound=replace(audit.bound, log10=math.inf)))


def test_many_class_pairs_are_left_out_and_said_to_be() -> None:
    audit = audits.thousand_classes()
    text = to_json(audit)
    assert len(text) < 400_000
    assert str(MOST_CLASSES) in json.loads(text)["bound"]["pairwise_omitted"]
    back = from_json(text)
    assert back.bound is not None
    assert audit.bound is not None
    assert back.bound.pairwise == ()
    assert back.bound.layers == audit.bound.layers


def test_numpy_columns_are_written_as_numbers() -> None:
    audit = audits.strong(5)
    s = audit.samples
    arrays = replace(s, radius=np.array(s.radius), margin=np.array(s.margin), label=tuple(np.array(s.label)))
    assert to_json(replace(audit, samples=arrays)) == to_json(audit)


def test_additions_of_a_later_minor_version_are_ignored() -> None:
    data = json.loads(to_json(audits.single()))
    data["schema"] = "lipaudit-result/1.9"
    data["new"] = data["model"]["new"] = {"x": [1]}
    assert from_json(json.dumps(data)).model == audits.single().model


BAD = [
    ("", "expected JSON"),
    ("{", "expected JSON"),
    ("[NaN]", "expected JSON"),
    ("[" * 100_000, "expected JSON"),
    ("[]", "expected a lipaudit result"),
    ('{"schema": "trivy/2"}', "expected a lipaudit result"),
    ('{"schema": "lipaudit-result/3.0"}', "install a newer lipaudit"),
    ('{"schema": "lipaudit-result/1.0"}', "without result.run"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_is_no_result_gets_one_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ReportError, match=said) as error:
        load_audit(file)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_a_missing_file_a_folder_and_bytes_get_one_line(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for path, said in [("none.json", "No such file"), ("", "cannot read"), ("bytes", "UTF-8")]:
        with pytest.raises(ReportError, match=said) as error:
            load_audit(tmp_path / path)
        assert "\n" not in str(error.value)


def change(data: Any, path: tuple[Any, ...], value: Any) -> str:
    data = copy.deepcopy(data)
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(data)


WRONG = [
    (("samples", "radius", 0), "far", r"result.samples.radius\[0\]: expected a number"),
    (("samples", "radius"), [], "columns of one length"),
    (("samples", "label", 0), 1.5, "a whole number"),
    (("verdict", "integrity"), "FINE", "one of SOUND, INVALID, UNPROVED"),
    (("verdict", "strength"), "solid", "one of vacuous, weak, substantial"),
    (("bound", "layers", 0, "upper", "value"), -1, "upper bound >= 0"),
    (("bound", "pairwise", 0), [1.0], "square"),
    (("threat", "eps"), ["1/0"], "a budget such as"),
    (("threat", "eps"), ["1e999999999"], "a budget such as"),
    (("thumbnails", 0, "sample"), 99, "rows below 1"),
    (("model"), None, "an object"),
    (("exit_code",), True, "a whole number"),
]


@pytest.mark.parametrize(("path", "value", "said"), WRONG)
def test_a_wrong_field_is_named(path: tuple[Any, ...] | str, value: Any, said: str) -> None:
    where = (path,) if isinstance(path, str) else path
    with pytest.raises(ReportError, match=said) as error:
        from_json(change(json.loads(to_json(audits.single())), where, value))
    assert "\n" not in str(error.value)


JUNK = ["x", "</script>", -1, 0, None, [], {}, True, 1e308, 5e-324, 10**25]


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_any_field_may_be_junk_and_ends_in_a_page_or_one_line(junk: Any, step: int) -> None:
    data = json.loads(to_json(audits.single()))
    places = [(key,) for key in data]
    places += [(key, inner) for key, value in data.items() if isinstance(value, dict) for inner in value]
    places += [("samples", name, 0) for name in data["samples"]]
    rendered: list[Audit] = []
    refused: list[str] = []
    for place in places[JUNK.index(junk) % step :: step]:
        try:
            rendered.append(from_json(change(data, place, junk)))
        except ReportError as error:
            refused.append(str(error))
    assert rendered
    assert refused
    assert not [line for line in refused if "\n" in line or not line.startswith(("result.", "expected"))]
    for audit in rendered[::7]:
        assert to_html(audit).endswith("</html>\n")


def test_load_audit_reads_what_to_json_wrote(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    audit = audits.filed(audits.invalid())
    file.write_text(audit.to_json(), encoding="utf-8")
    assert load_audit(file) == audit
    assert load_audit(str(file)).verdict.integrity == "INVALID"
