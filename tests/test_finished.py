"""The commands on finished results: `check`, `compare`, `explain`; and what a shell completes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import audits
import pytest
from command_line import Call, call, refused

import lipaudit
from lipaudit import zoo
from lipaudit.errors import ConfigError
from lipaudit.loading.dataset_registry import DATASETS, NAMED
from lipaudit.loading.hubs import BUILDERS
from lipaudit.loading.model_names import PAIRS
from lipaudit.report.html import to_html
from lipaudit.results.audit import Audit, Finding
from lipaudit.results.bounds import Claim
from lipaudit.settings import DATASETS as PROPOSED_DATASETS
from lipaudit.settings import MODELS as PROPOSED_MODELS
from lipaudit.verdict.checks import CHECKS, Check, Outcome
from lipaudit.verdict.explain import explain, to_markdown
from lipaudit.verdict.gates import conditions
from lipaudit.verdict.verdict import conclude, examine

__all__ = ["call"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "base.json").write_text(audits.filed(audits.strong(60)).to_json())
    (tmp_path / "invalid.json").write_text(audits.filed(audits.invalid(60)).to_json())
    gated = audits.filed(audits.strong(60), "clean_accuracy>=0.999")
    (tmp_path / "gated.json").write_text(gated.to_json())
    (tmp_path / "empty.json").touch()
    (tmp_path / "newer.json").write_text('{"schema": "lipaudit-result/3.0"}')
    (tmp_path / "folder.json").mkdir()
    return tmp_path


# --- check


@pytest.mark.usefixtures("files")
def test_check_gates_again(call: Call) -> None:
    passed = call("gate", "base.json", "--gate", "certified_accuracy@0.3>=0.1")
    failed = call("gate", "base.json", "--gate", "certified_accuracy@0.3>=0.1", "--gate", "clean_accuracy>=0.999")

    assert (passed.code, failed.code) == (0, 3)
    assert "integrity SOUND   gate PASSED" in passed.out
    assert "✕ GATE  clean_accuracy>=0.999" in failed.out
    assert "gate FAILED" in failed.out
    assert "no gate" in call("gate", "base.json").out
    assert call("gate", "gated.json").code == 3
    assert call("gate", "gated.json", "--gate", "clean_accuracy>=0.1").code == 0
    assert call("gate", "invalid.json", "--gate", "clean_accuracy>=0").code == 4


@pytest.mark.usefixtures("files")
def test_check_reads_the_file_and_writes_json(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lipaudit.toml").write_text("[run]\nseed = 3\n[gate]\nclean_accuracy = 0.999\n")

    result = call("gate", "base.json", "--format", "json")

    assert result.code == 3
    found = json.loads(result.out)
    assert (found["integrity"], found["gate"], found["exit_code"]) == ("SOUND", "failed", 3)
    assert found["gates"][0]["expression"] == "clean_accuracy>=0.999"
    monkeypatch.setenv("LIPAUDIT_GATE", "clean_accuracy>=0.1 clean_accuracy>=0.2")
    assert len(json.loads(call("gate", "base.json", "--format", "json").out)["gates"]) == 2


@pytest.mark.usefixtures("files")
def test_a_result_that_claims_more_than_its_numbers_is_not_believed(call: Call) -> None:
    result = json.loads(Path("invalid.json").read_text())
    result["verdict"]["integrity"] = "SOUND"
    Path("edited.json").write_text(json.dumps(result))

    line = refused(call("gate", "edited.json", "--gate", "clean_accuracy>=0"))

    assert "result.verdict.integrity: expected 'INVALID', got 'SOUND'" in line


# --- compare


@pytest.mark.usefixtures("files")
def test_compare_prints_text_or_json(call: Call) -> None:
    same = call("compare", "base.json", "base.json", "--max-drop", "0")

    assert same.code == 0
    assert "same images, same budgets, same attacks" in same.out
    assert json.loads(call("compare", "base.json", "base.json", "--format", "json").out)["comparable"] is True
    assert call("compare", "base.json", "invalid.json").code == 4
    Path("other.json").write_text(audits.filed(audits.weak(40)).to_json())
    line = refused(call("compare", "base.json", "other.json"))
    assert "number of images: 60, then 40" in line
    forced = call("compare", "base.json", "other.json", "--force")
    assert (forced.code, "NOT COMPARABLE" in forced.out) == (0, True)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("command", [["gate"], ["compare", "base.json"], ["report", "-o", "x.html"]])
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("none.json", "No such file"),
        ("empty.json", "expected JSON"),
        ("newer.json", "install a newer lipaudit"),
        ("folder.json", "directory"),
    ],
)
def test_what_is_no_result_is_one_line(command: list[str], file: str, says: str, call: Call) -> None:
    line = refused(call(*command, file))

    assert says in line
    assert file in line


# --- explain


RECORDS = Path(lipaudit.__file__).parent / "verdict" / "checks"


def test_every_record_of_a_check_is_complete_and_in_order() -> None:
    assert list(CHECKS) == sorted(CHECKS)
    assert all(re.fullmatch(r"LA\d{3}", name) and check.id == name for name, check in CHECKS.items())
    for check in CHECKS.values():
        assert all((check.title, check.asks.endswith(("?", ".")), check.why, check.fix, check.states)), check.id
        assert all(check.states.values()), check.id
        assert not check.refutes or "fail" in check.states, check.id
        assert not check.rests_on_bounds or "not run" in check.states, check.id
    titles = [check.title for check in CHECKS.values()]
    assert len(set(titles)) == len(titles)


def test_a_module_of_checks_is_found_without_being_named() -> None:
    homes = {check.judge.__module__.rpartition(".")[2] for check in CHECKS.values()}
    assert homes == {file.stem for file in RECORDS.glob("*.py")} - {"__init__", "registry"}


def test_every_check_has_a_page() -> None:
    for name, check in CHECKS.items():
        text = explain(name)
        assert text.startswith(f"{name}  {check.title}\n")
        assert all(len(line) <= 96 for line in text.splitlines()[1:])
        said = " ".join(text.split())
        assert all(
            " ".join(part.split()) in said for part in (check.asks, check.why, check.fix, *check.states.values())
        )
        assert explain(name.lower()) == text


def test_the_page_of_checks_is_made_from_the_records() -> None:
    """After a change: python -m lipaudit.verdict.explain > docs/checks.md."""
    page = Path(lipaudit.__file__).parents[1] / "docs" / "checks.md"
    assert page.read_text(encoding="utf-8") == to_markdown()


def test_every_check_is_used_and_knows_every_state_that_it_takes() -> None:
    gates = conditions(
        ["certified_accuracy@1>=1", "empirical_robust_accuracy@0.3>=0", "clean_accuracy>=1,warn", "clean_accuracy>=0"]
    )
    seen: set[str] = set()
    for build in audits.ALL.values():
        for audit in (build(), conclude(build(), gates), replace(build(), claim=Claim(1.0, "the user"))):
            for finding in examine(audit)[0]:
                assert finding.state in CHECKS[finding.id].states, (finding.id, finding.state)
                seen.add(finding.id)
    assert seen == set(CHECKS)


@pytest.mark.parametrize("refutes", [True, False])
def test_a_check_is_added_by_one_record(refutes: bool, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    """The verdict, the report, `explain` and the page of checks have it from nowhere else."""
    states = {"fail": "it is wrong", "not run": "nothing to see"}

    def judge(audit: Audit) -> Outcome:
        return Outcome("fail", "The trial is wrong", str(len(audit.samples.label)))

    added = Check("LA998", "A trial", "Is the trial right?", "It matters.", "Mend it.", states, judge, refutes, refutes)
    monkeypatch.setitem(CHECKS, added.id, added)

    audit = conclude(audits.strong(60))
    assert audit.findings[-1] == Finding("LA998", "fail", "The trial is wrong", "60", "It matters.", "Mend it.")
    assert audit.verdict.integrity == ("INVALID" if refutes else "SOUND")
    assert audit.verdict.headline.startswith("Integrity failure: A trial.") == refutes
    assert "The trial is wrong" in to_html(audit)
    assert "LA998  Is the trial right?" in call("explain").out
    assert "Mend it." in explain("LA998")
    assert "## LA998" in to_markdown()


def test_explain_lists_shows_and_refuses(call: Call) -> None:
    listed = call("explain").out.splitlines()
    assert [line.split()[0] for line in listed] == list(CHECKS)
    assert "Why it matters" in call("explain", "la102").out
    assert "did you mean LA212?" in refused(call("explain", "LA12"))
    with pytest.raises(ConfigError, match="lists them"):
        explain("nonsense")


# --- completion, and the bare command


def test_a_shell_proposes_what_there_is() -> None:
    assert set(PROPOSED_DATASETS) == {*NAMED, *(f"{name}:" for name in DATASETS if name not in NAMED)}
    assert set(PROPOSED_MODELS) == {*zoo.MODELS, *PAIRS, *(f"{name}:" for name in BUILDERS)}


@pytest.mark.parametrize(
    ("typed", "proposed"),
    [
        ("lipaudit run --dataset ci", ["cifar10", "cifar100"]),
        ("lipaudit run --model digits", ["digits-aol", "digits-cnn"]),
        ("lipaudit explain LA30", ["LA301", "LA302", "LA303"]),
        ("lipaudit com", ["compare"]),
    ],
)
def test_completion_needs_no_torch(typed: str, proposed: list[str]) -> None:
    code = (
        "import sys, lipaudit.cli\n"
        "try: lipaudit.cli.main([])\n"
        "finally: print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    count = str(len(typed.split()) - 1)
    variables = {"_LIPAUDIT_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": count}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_with(variables), check=True
    )

    *lines, loaded = done.stdout.splitlines()
    assert [line.split(",")[1] for line in lines] == proposed
    assert loaded == "[]"


def _with(variables: dict[str, str]) -> dict[str, str]:
    import os

    return {**os.environ, **variables}


def test_the_bare_command_shows_its_help(call: Call) -> None:
    result = call()

    assert result.code == 0
    assert "Commands:" in result.out
    assert result.err == ""
