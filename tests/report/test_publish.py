"""What other tools read of an audit: a data frame, RobustBench's model info, a Hugging Face model index."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from dataclasses import replace
from xml.etree import ElementTree

import audits
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard

from lipaudit.errors import ReportError
from lipaudit.report.table import rows_of, to_table
from lipaudit.results.audit import Rate
from lipaudit.results.exports import workflow_commands
from lipaudit.results.formats import FORMATS, of_file
from lipaudit.results.leaderboards import to_model_index, to_robustbench

FIELDS = (
    "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps",
    "clean_acc", "reported", "autoattack_acc",
)  # fmt: skip
"""Of RobustBench's own files."""


def test_robustbench_model_info() -> None:
    audit = audits.strong(40)
    info = json.loads(to_robustbench(audit))

    assert tuple(info)[: len(FIELDS)] == FIELDS
    assert info["eps"] == audit.threat.eps[0]
    assert float(info["clean_acc"]) == pytest.approx(100 * audit.clean.value, abs=0.005)
    assert float(info["certified_acc"]) == pytest.approx(100 * audit.certified[0].value, abs=0.005)
    assert float(info["unbroken_acc"]) == pytest.approx(100 * audit.empirical[0].value, abs=0.005)
    assert info["autoattack_acc"] is None
    assert audit.attacks[0].name in info["footnote"]
    other = json.loads(to_robustbench(audit, audit.threat.eps[-1]))
    assert other["eps"] == audit.threat.eps[-1]
    with pytest.raises(ReportError, match="one of the budgets"):
        to_robustbench(audit, "0.123")


def test_shares_are_rounded_to_the_side_on_which_they_stay_true() -> None:
    third = Rate("0.5", 2 / 3, 2, 3, 0.0, 1.0)
    audit = replace(
        audits.strong(3), threat=replace(audits.strong(3).threat, eps=("0.5",)), certified=(third,), empirical=(third,)
    )
    info = json.loads(to_robustbench(audit))

    assert (info["certified_acc"], info["unbroken_acc"]) == ("66.66", "66.67")


def test_a_model_index_as_the_hub_reads_it() -> None:
    audit = audits.strong(40)
    card = ModelCard(f"---\n{to_model_index(audit)}---\n# A model\n")

    results = card.data.eval_results
    assert card.data.model_name == audit.model.name
    assert [r.metric_value for r in results if r.metric_type == "accuracy"] == [audit.clean.value]
    proved = [(r.metric_args["eps"], r.metric_value) for r in results if r.metric_type == "certified_accuracy"]
    assert proved == [(rate.eps, rate.value) for rate in audit.certified]
    empirical = [(r.metric_args["eps"], r.metric_value) for r in results if r.metric_type == "robust_accuracy"]
    assert empirical == [(rate.eps, rate.value) for rate in audit.empirical]
    assert {r.task_type for r in results} == {"image-classification"}


@pytest.mark.parametrize("name", audits.ALL)
def test_every_true_audit_can_be_published(name: str) -> None:
    audit = audits.ALL[name]()
    if audit.verdict.integrity == "INVALID":
        with pytest.raises(ReportError, match="nothing to publish"):
            to_robustbench(audit)
        return

    info = json.loads(to_robustbench(audit))
    assert (info["certified_acc"] is None) == (not audit.certified)
    assert not any(sign in info["name"] for sign in "\x00\x1b\u202e")
    assert ModelCard(f"---\n{to_model_index(audit)}---\n").data.eval_results


def test_nothing_is_published_of_certificates_that_are_contradicted() -> None:
    for write in (to_robustbench, to_model_index):
        with pytest.raises(ReportError, match="nothing to publish"):
            write(audits.invalid(40))


def test_a_folder_of_images_is_not_named() -> None:
    audit = replace(audits.strong(5), dataset=replace(audits.strong(5).dataset, name="imagefolder:private/people"))
    assert "private" not in to_robustbench(audit) + to_model_index(audit)


@pytest.mark.parametrize("name", audits.ALL)
def test_every_audit_is_a_test_suite_a_badge_and_a_statement(name: str) -> None:
    audit = audits.ALL[name]()
    suite = ElementTree.fromstring(FORMATS["junit"].write(audit))[0]
    assert int(suite.get("tests", "")) == len(suite) == len(audit.findings) + len(audit.gates)
    failed = {case.get("classname") for case in suite if case.find("failure") is not None}
    assert {f"lipaudit.{finding.id}" for finding in audit.findings if finding.state == "fail"} <= failed
    assert len(suite.findall("testcase/failure")) == int(suite.get("failures", ""))

    badge = json.loads(FORMATS["badge"].write(audit))
    assert badge["schemaVersion"] == 1
    assert ("certified" in badge["message"]) == (audit.verdict.integrity == "SOUND")

    statement = json.loads(FORMATS["intoto"].write(audit))
    predicate = statement["predicate"]
    assert (predicate["result"] == "FAILED") == (audit.exit_code != 0)
    assert predicate["configuration"][0]["digest"]["sha256"] == hashlib.sha256(audit.to_json().encode()).hexdigest()
    assert len(statement["subject"][0]["digest"]) == 1

    commands = workflow_commands(audit)
    assert all(re.fullmatch(r"::(error|warning) title=lipaudit [\w.]+::[^\n]+", command) for command in commands)
    assert sum(command.startswith("::error") for command in commands) == int(suite.get("failures", ""))


@pytest.mark.parametrize("name", audits.ALL)
def test_a_bill_of_materials_is_valid(name: str) -> None:
    audit = audits.ALL[name]()
    text = FORMATS["cyclonedx"].write(audit)
    error = JsonStrictValidator(SchemaVersion.V1_7).validate_str(text)
    assert error is None, error
    declared = json.loads(text)["declarations"]
    known = {one["bom-ref"] for one in declared["evidence"]}
    assert len(declared["claims"]) == len(audit.threat.eps)
    for claim, rate in zip(declared["claims"], audit.empirical, strict=False):
        assert set(claim.get("evidence", [])) | set(claim.get("counterEvidence", [])) <= known
        assert ("counterEvidence" in claim) == (rate.count < rate.total)


def test_the_ending_of_a_file_says_its_format() -> None:
    assert {kind: of_file(f"a.b.{form.ending}") for kind, form in FORMATS.items()} == {kind: kind for kind in FORMATS}
    assert of_file("a.pdf") is None


def test_a_table_has_a_row_per_audit_and_a_column_per_budget() -> None:
    every = [make() for make in audits.ALL.values()]
    rows = rows_of(every, exact=True)
    assert len(rows) == 1 + len(every)
    assert {len(row) for row in rows} == {len(rows[0])}
    for audit, row in zip(every, rows[1:], strict=True):
        cells = dict(zip(rows[0], row, strict=True))
        assert float(cells["clean"]) == audit.clean.value
        for kind, rates in (("certified", audit.certified), ("empirical", audit.empirical)):
            known = {rate.eps: rate.value for rate in rates}
            shown = {eps: cells[f"{kind} {audit.threat.norm} {eps}"] for eps in audit.threat.eps}
            assert shown == {eps: repr(known[eps]) if eps in known else "" for eps in shown}
    assert list(csv.reader(to_table(every, "csv").splitlines())) == rows
    assert to_table(every, "md").count("\n") == len(rows) + 1
    latex = to_table([replace(every[0], model=replace(every[0].model, name="a_b & 100%"))], "latex")
    assert r"a\_b \& 100\%" in latex
    page = to_table([replace(every[0], model=replace(every[0].model, name="<b>"))], "html", ["a.html"])
    assert '<a href="a.html"><bdi>&lt;b&gt;</bdi></a>' in page


@pytest.mark.parametrize("name", audits.ALL)
def test_a_row_per_image(name: str) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    audit = audits.ALL[name]()
    frame = audit.to_dataframe()

    s = audit.samples
    assert len(frame) == len(s.label)
    assert frame["radius"].tolist() == list(s.radius)
    assert frame["correct"].tolist() == [label == guess for label, guess in zip(s.label, s.prediction, strict=True)]
    assert [None if pandas.isna(d) else d for d in frame["distance"]] == list(s.distance)
    assert [None if pandas.isna(p) else int(p) for p in frame["adversarial_prediction"]] == list(
        s.adversarial_prediction
    )
    assert [None if pandas.isna(a) else a for a in frame["attack"]] == list(s.attack)
    assert frame.attrs["integrity"] == audit.verdict.integrity
    assert frame.attrs["units"] == audit.threat.units


def test_without_pandas_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ReportError, match="pip install pandas"):
        audits.strong(3).to_dataframe()
