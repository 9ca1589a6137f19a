"""Settings from a file and from the environment: who comes first, where each came from, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import Call, audited, call, pair, refused
from usermodels import user_module

from lipaudit.verdict.gates import parse

__all__ = ["audited", "call", "pair", "user_module"]

FILE = """
[run]
eps = ["36/255", 0.5]
seed = 4
batch-size = 7
local = "off"
format = ["json", "md"]
time_limit = "90s"
tight = true

[gate]
certified_accuracy = [{eps = "36/255", min = 0.30, on = "ci_low", level = "error"}, {eps = 0.5, min = "10%"}]
empirical_robust_accuracy = {eps = "36/255", min = 0.45, level = "warn"}
clean_accuracy = 0.94
"""
GATES = (
    "certified_accuracy@36/255>=0.3,ci_low",
    "certified_accuracy@0.5>=10%",
    "empirical_robust_accuracy@36/255>=0.45,warn",
    "clean_accuracy>=0.94",
)


@pytest.mark.parametrize("name", ["lipaudit.toml", "pyproject.toml", "other.toml"])
def test_a_file_sets_what_nobody_typed(name: str, call: Call, audited: dict[str, Any], pair: list[object]) -> None:
    text = FILE
    if name == "pyproject.toml":
        text = FILE.replace("[run]", "[tool.lipaudit.run]").replace("[gate]", "[tool.lipaudit.gate]")
        text += '\n[tool.other]\nkey = "value"\n'
    Path(name).write_text(text)

    result = call("run", *pair, *(["--config", name] if name == "other.toml" else []))

    assert result.code == 0, result.err
    assert audited["eps"] == ("36/255", "0.5")
    assert (audited["seed"], audited["batch_size"], audited["time_limit"]) == (4, 7, 90.0)
    assert (audited["local"], audited["norms"], audited["gates"]) == ("off", "tight", GATES)
    assert {path.suffix for path in Path("reports").iterdir()} == {".json", ".md"}
    origin = audited["config"]["origin"]
    assert origin["seed"] == origin["eps"] == origin["gates"] == origin["batch_size"] == name
    assert origin["samples"] == "--samples"
    assert "device" not in origin
    assert audited["config"]["gates"] == list(GATES)
    json.dumps(audited["config"])


def test_option_before_environment_before_file(
    call: Call, audited: dict[str, Any], pair: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("lipaudit.toml").write_text(FILE)
    monkeypatch.setenv("LIPAUDIT_SEED", "5")
    monkeypatch.setenv("LIPAUDIT_BATCH_SIZE", "8")
    monkeypatch.setenv("LIPAUDIT_FORMAT", "html")

    call("run", *pair, "--seed", "6", "--gate", "clean_accuracy>=0.1")

    assert (audited["seed"], audited["batch_size"], audited["time_limit"]) == (6, 8, 90.0)
    assert audited["gates"] == ("clean_accuracy>=0.1",)
    assert {path.suffix for path in Path("reports").iterdir()} == {".html"}
    origin = audited["config"]["origin"]
    expected = {"seed": "--seed", "batch_size": "LIPAUDIT_BATCH_SIZE", "time_limit": "lipaudit.toml", "gates": "--gate"}
    assert {key: origin[key] for key in expected} == expected


def test_its_own_file_comes_before_pyproject(call: Call, audited: dict[str, Any], pair: list[object]) -> None:
    Path("lipaudit.toml").write_text("[run]\nseed = 1\n")
    Path("pyproject.toml").write_text("[tool.lipaudit.run]\nseed = 2\n")

    call("run", *pair)

    assert audited["seed"] == 1


@pytest.mark.parametrize("content", ["", "[tool.black]\nline-length = 3\n", "not TOML at all"])
def test_a_pyproject_about_other_things_is_none_of_ours(
    content: str, call: Call, audited: dict[str, Any], pair: list[object]
) -> None:
    Path("pyproject.toml").write_text(content)

    assert call("run", *pair).code == 0
    assert audited["config"]["origin"].keys() == {
        "model", "dataset", "checkpoint", "mean", "samples", "attacks",
    }  # fmt: skip


REFUSED = {
    "no TOML": ("run = ", "lipaudit.toml: expected TOML"),
    "table": ("[rum]\nseed = 1", "lipaudit.toml: unknown key 'rum'; did you mean run?"),
    "top": ("seed = 1", "lipaudit.toml: unknown key 'seed'; there are: run, gate"),
    "no table": ("run = 3", "lipaudit.toml run: expected a table, got 3"),
    "key": ("[run]\nsampels = 1", "lipaudit.toml: [run]: unknown key 'sampels'; did you mean samples?"),
    "resume": ('[run]\nresume = "x"', "unknown key 'resume'"),
    "gate among options": ('[run]\ngate = "x"', "unknown key 'gate'"),
    "text for number": ('[run]\nsamples = "many"', "[run] samples: expected a number, got 'many'"),
    "flag": ('[run]\ntight = "yes"', "[run] tight: expected true or false, got 'yes'"),
    "true for text": ("[run]\nmodel = true", "[run] model: expected a text or a number, got true"),
    "table for text": ("[run]\nmodel = {a = 1}", "[run] model: expected a text or a number"),
    "range": ("[run]\nsamples = 0", "[run] samples: 0 is not in the range x>=1"),
    "choice": ('[run]\nlocal = "maybe"', "[run] local: 'maybe' is not one of 'auto', 'on', 'thorough', 'off'"),
    "time": ('[run]\ntime-limit = "soon"', "[run] time-limit: expected a time such as 90"),
    "eps": ('[run]\neps = ["x"]', "[run] eps: expected eps above 0, a budget such as 36/255 or 0.5, got 'x'"),
    "format": ('[run]\nformat = "pdf"', "[run] format: expected some of json,html,md"),
    "measure": ("[gate]\nclean_acuracy = 0.3", "[gate]: unknown key 'clean_acuracy'; did you mean clean_accuracy?"),
    "no min": ('[gate]\ncertified_accuracy = {eps = "1"}', "[gate] certified_accuracy: expected min"),
    "no eps": ("[gate]\ncertified_accuracy = 0.3", "[gate] certified_accuracy: certified_accuracy needs a budget"),
    "gate key": ("[gate]\nclean_accuracy = {min = 0.3, lvl = 1}", "unknown key 'lvl'; did you mean level?"),
    "gate share": ("[gate]\nclean_accuracy = 94", "[gate] clean_accuracy: expected a share from 0 to 1"),
    "gate type": ("[gate]\nclean_accuracy = {min = true}", "[gate] clean_accuracy min: expected a text or a number"),
    "gate on": ('[gate]\nclean_accuracy = {min = 1, on = "ci"}', "expected value or ci_low, got 'ci'"),
}


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_wrong_is_one_line_with_its_place(case: str, call: Call, audited: dict[str, Any]) -> None:
    content, says = REFUSED[case]
    Path("lipaudit.toml").write_text(content)

    line = refused(call("run", "--model", "digits-aol"))

    assert says in line
    assert "lipaudit.toml" in line
    assert "model" not in audited


def test_a_file_that_is_not_there_is_one_line(call: Call, audited: dict[str, Any]) -> None:
    assert "cannot read none.toml" in refused(call("run", "--config", "none.toml"))
    Path("folder").mkdir()
    assert "cannot read folder" in refused(call("run", "--config", "folder"))
    Path("latin.toml").write_bytes(b"# \xff")
    assert "latin.toml: expected TOML" in refused(call("run", "--config", "latin.toml"))
    assert audited["audit"]


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LIPAUDIT_SAMPLES", "many", "LIPAUDIT_SAMPLES in the environment: Invalid value for '--samples': 'many'"),
        ("LIPAUDIT_TIGHT", "perhaps", "LIPAUDIT_TIGHT in the environment"),
        ("LIPAUDIT_FORMAT", "pdf", "LIPAUDIT_FORMAT in the environment"),
        ("LIPAUDIT_TIME_LIMIT", "soon", "LIPAUDIT_TIME_LIMIT in the environment"),
        ("LIPAUDIT_CONFIG", "none.toml", "cannot read none.toml"),
        ("LIPAUDIT_GATE", "clean_accuracy", "expected MEASURE@EPS>=SHARE"),
        ("LIPAUDIT_EPS", "0.5 x", "'x'"),
    ],
)
def test_a_variable_that_is_wrong_is_one_line(
    name: str, value: str, says: str, call: Call, audited: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    assert says in refused(call("run"))
    assert "model" not in audited


def test_help_needs_no_file(call: Call) -> None:
    Path("lipaudit.toml").write_text("[rum]")

    assert call("run", "--help").code == 0
    assert call("gate", "--help").code == 0


def test_the_docs_show_settings_and_gates_that_work(call: Call, audited: dict[str, Any]) -> None:
    text = (Path(__file__).parent.parent / "docs/tutorial/gate-in-ci.md").read_text(encoding="utf-8")
    Path("lipaudit.toml").write_text(text.partition("```toml\n")[2].partition("```")[0])

    assert call("run", "--attacks", "none").code == 0
    assert audited["eps"] == ("36/255", "0.5")
    assert len(audited["gates"]) == 3
    for gate in re.findall(r"--gate '([^']+)'", text):
        assert parse(gate).expression
