"""The norm as a setting: an audit in several norms is what audits in each of them are, and says which is which."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipaudit
from lipaudit import load_audit
from lipaudit.errors import BadThreat, ReportError
from lipaudit.integrations.pytest_plugin import assert_certified
from lipaudit.report.html import to_html
from lipaudit.report.markdown import to_markdown
from lipaudit.report.table import rows_of
from lipaudit.report.terminal import to_text
from lipaudit.results.audit import Audit, InNorm
from lipaudit.results.exports import to_cyclonedx
from lipaudit.results.json import from_json, to_json
from lipaudit.results.leaderboards import to_model_index, to_robustbench
from lipaudit.results.threat import Norm, norm_of, norms_of, threats_of
from lipaudit.verdict.comparison import compare
from lipaudit.verdict.gates import conditions
from lipaudit.verdict.verdict import conclude

EPS = {"linf": ("0.02", "0.1"), "l2": ("0.1", "0.5"), "l1": ("0.5",)}
GATES = ("certified_accuracy[l2]@0.1>=0.1", "certified_accuracy@0.02>=0.1", "clean_accuracy>=0.5")


def task() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.rand(6, 1, 6, 6)
    return model, x, model(x).argmax(1)


def made(norm: Any, **more: Any) -> Audit:
    norms = norms_of(norm)
    given: dict[str, Any] = {"eps": {name: EPS[name] for name in norms}, "attacks": "quick", "local_samples": 2}
    return lipaudit.audit(*task(), norm=norm, **given | more)


@pytest.fixture(scope="module")
def both() -> Audit:
    return made("linf,l2", gates=GATES)


@pytest.fixture(scope="module")
def single() -> dict[str, Audit]:
    return {norm: made(norm) for norm in ("linf", "l2")}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in ("seconds", "why")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_norm_of_one_run_is_what_a_run_of_its_own_finds(both: Audit, single: dict[str, Audit], norm: Norm) -> None:
    one, other = both.in_norm(norm), single[norm]
    left, right = (without_times(json.loads(replace(a, other_norms=()).to_json())) for a in (one, other))
    for name in ("threat", "clean", "certified", "empirical", "bound", "slope", "samples", "attacks", "arithmetics"):
        assert left[name] == right[name], name
    assert len(both.norms) == 2
    assert other.norms == (norm,)


def test_a_norm_in_front_is_the_same_audit(both: Audit, tmp_path: Path) -> None:
    turned = both.in_norm("l2")
    assert turned.norms == ("l2", "linf")
    assert turned.in_norm(np.inf) == both
    assert turned.in_norm(2) is turned
    assert {f.name for f in fields(InNorm)} >= {"radius", "attacks", "verdict", "bound"}
    with pytest.raises(BadThreat, match="expected a norm of this audit, linf, l2, got l1"):
        both.in_norm("l1")
    for name, text in (("result.json", to_json(both)), ("page.html", to_html(both)), ("turned.json", to_json(turned))):
        (tmp_path / name).write_text(text)
        again = load_audit(tmp_path / name)
        assert again.in_norm("linf").norms == both.norms
        assert again.in_norm("linf").verdict == both.verdict
        assert again.in_norm("l2").certified == turned.certified
    assert from_json(to_json(both)) == both


def test_gates_name_their_norm(both: Audit) -> None:
    assert [gate.expression for gate in both.gates] == [GATES[0], "certified_accuracy[linf]@0.02>=0.1", GATES[2]]
    assert [gate.value for gate in both.gates] == [
        both.in_norm("l2").certified_accuracy(0.1),
        both.certified_accuracy(0.02),
        both.clean_accuracy,
    ]
    asked = conclude(both, conditions("certified_accuracy[l1]@1>=0"))
    assert asked.gates[0].state == "cannot be evaluated"
    assert "L1 were not audited; audit with --norm linf,l2,l1" in asked.gates[0].why
    assert (asked.exit_code, asked.verdict.gate) == (5, "cannot be evaluated")


def test_reports_name_every_norm(both: Audit, single: dict[str, Audit]) -> None:
    html, text, markdown = to_html(both), to_text(both), to_markdown(both)
    for norm, other in (("Linf", single["linf"]), ("L2", single["l2"])):
        for report in (html, text, markdown):
            assert f"ε ({norm})" in report
        assert f"in {norm}" in both.in_norm(norm).verdict.headline
        assert f"measured by {norm} norm" in to_html(other)
    assert html.count('id="in-l2"') == 1
    assert html.count('id="fig1-wide-title"') == html.count('id="fig1-wide-l2-title"') == 1
    assert "All norms side by side" in html
    assert "All norms side by side" not in to_html(single["linf"])
    assert [f.id for f in single["linf"].findings].count("LA301") == 0
    assert [f.id for f in both.in_norm("l2").findings].count("LA301") == 0
    assert [f.id for f in single["l2"].findings].count("LA301") == 1
    assert "in Linf" in single["linf"].verdict.headline
    assert " in L2" not in single["l2"].verdict.headline


def test_what_is_wrong_in_one_norm_is_believed_in_none(both: Audit) -> None:
    (l2,) = both.other_norms
    row = next(k for k, found in enumerate(l2.distance) if found is not None and l2.radius[k] > 0)
    lie = tuple(2 * (l2.distance[row] or 0) if k == row else r for k, r in enumerate(l2.radius))
    arithmetics = tuple(replace(a, radius=lie) if a.headline else a for a in l2.arithmetics)
    planted = conclude(replace(both, other_norms=(replace(l2, radius=lie, arithmetics=arithmetics),)))
    for view in (planted, planted.in_norm("l2")):
        assert view.verdict.integrity == "INVALID"
        assert view.certified == ()
        assert "in L2" in view.verdict.headline
    assert planted.exit_code == 4
    assert from_json(to_json(planted)) == planted


FORGED = {
    "radius": lambda part: {"radius": [9.0, *part["radius"][1:]]},
    "rates": lambda part: {"certified": [{**part["certified"][0], "count": 6, "value": 1.0}, *part["certified"][1:]]},
    "norm": lambda part: {"threat": {**part["threat"], "norm": "Linf"}},
    "bound": lambda part: {"bound": {**part["bound"], "log10": part["bound"]["log10"] - 1}},
    "short": lambda part: {"attacked": part["attacked"][:-1]},
    "verdict": lambda part: {"verdict": {**part["verdict"], "strength": "vacuous"}},
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_norm_is_refused(both: Audit, how: str, tmp_path: Path) -> None:
    data = json.loads(to_json(both))
    data["other_norms"][0] |= FORGED[how](data["other_norms"][0])
    (tmp_path / "forged.json").write_text(json.dumps(data))
    with pytest.raises(ReportError):
        load_audit(tmp_path / "forged.json")


def test_shards_in_several_norms_are_merged() -> None:
    given = {"attacks": ("apgd-ce",), "local": "off"}
    whole = made(("linf", "l1"), **given)
    merged = lipaudit.merge(from_json(made(("linf", "l1"), **given, shard=(k, 2)).to_json()) for k in (1, 2))
    assert merged.norms == whole.norms == ("linf", "l1")
    for norm in whole.norms:
        one, other = merged.in_norm(norm), whole.in_norm(norm)
        assert one.certified == other.certified
        assert one.samples.radius == other.samples.radius
        assert one.bound is not None
        assert one.bound.pairwise == other.bound.pairwise
        assert [r.attacked for r in one.attacks] == [r.attacked for r in other.attacks]
        assert all(d is None or math.isfinite(d) for d in one.samples.distance)
    assert merged.exit_code == whole.exit_code
    with pytest.raises(ReportError, match=r"another settings in .*: eps, norm"):
        lipaudit.merge([made(("linf", "l1"), **given, shard=(1, 2)), made(("l1", "linf"), **given, shard=(2, 2))])


def test_comparisons_pair_every_norm(both: Audit, single: dict[str, Audit]) -> None:
    found = compare(both, both.in_norm("l2"))
    assert {(c.norm, c.eps) for c in found.changes if c.measure == "certified"} == {
        (norm, eps) for norm in both.norms for eps in EPS[norm]
    }
    assert all(change.word == "no change" for change in found.changes)
    forced = compare(both, single["l2"], force=True)
    assert [said for said in forced.unlike if said.startswith("norm")] == ["norm: L2, Linf, then L2"]


def test_exports_name_the_norm(both: Audit) -> None:
    assert "Linf" in json.loads(to_robustbench(both))["footnote"]
    assert json.loads(to_robustbench(both.in_norm("l2")))["eps"] == "0.1"
    index = to_model_index(both)
    assert index.count("norm: Linf") == index.count("norm: L2") == 4
    (head, row) = rows_of([both])
    assert {f"certified {norm} {eps}" for norm, eps in (("Linf", "0.02"), ("L2", "0.1"))} <= set(head)
    assert "–" not in row
    bom = json.loads(to_cyclonedx(both))
    assert {claim["bom-ref"] for claim in bom["declarations"]["claims"]} >= {"claim-linf-0.02", "claim-l2-0.1"}
    frame = both.to_dataframe()
    assert frame["radius[l2]"].tolist() == list(both.in_norm("l2").samples.radius)


def test_an_interrupted_run_in_several_norms_goes_on(both: Audit, tmp_path: Path) -> None:
    folder = tmp_path / "run.partial"
    first = made("linf,l2", gates=GATES, journal=folder)
    parts = {part.name for part in folder.glob("*.npz")}
    assert any("linf" in name for name in parts)
    again = made("linf,l2", gates=GATES, journal=folder)
    assert again.samples == first.samples == both.samples
    assert again.other_norms[0].distance == both.other_norms[0].distance
    with pytest.raises(lipaudit.errors.ResumeError, match="another norm"):
        made("l2,linf", gates=GATES, journal=folder)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (("linf", "8/255", (3, 32, 32)), {"linf": ("8/255",)}),
        (
            ("linf,l2", None, (3, 32, 32)),
            {"linf": ("1/255", "2/255", "4/255", "8/255"), "l2": ("36/255", "0.25", "0.5", "1")},
        ),
        (("linf", None, (1, 28, 28)), {"linf": ("0.1", "0.2", "0.3")}),
        (("linf", None, (1, 224, 224)), {"linf": ("1/255", "2/255", "4/255", "8/255")}),
        (("l1", None, (3, 32, 32)), {"l1": ("1", "4", "12")}),
        (("linf,l1", "linf:1/255,8/255,l1:3", ()), {"linf": ("1/255", "8/255"), "l1": ("3",)}),
        (((np.inf, 2), {"inf": 0.1}, ()), {"linf": ("0.1",), "l2": ("36/255", "0.25", "0.5", "1")}),
    ],
)
def test_budgets_go_to_their_norms(asked: Any, found: Any) -> None:
    norm, eps, shape = asked
    threats = threats_of(eps, norms_of(norm), (0.0, 1.0), shape)
    assert {norm_of(threat.norm): threat.eps for threat in threats} == found


def test_the_plugin_takes_a_norm() -> None:
    model, x, y = task()
    audit = assert_certified(model, (x, y), eps="0.001", norm="linf", at_least=0.1)
    assert audit.norms == ("linf",)
    with pytest.raises(BadThreat, match="expected eps, a budget in Linf"):
        assert_certified(model, (x, y), norm="linf")
    with pytest.raises(AssertionError, match=r"\(Linf\)"):
        assert_certified(model, (x, y), eps=0.9, norm="linf")
