"""A result that was edited by hand is refused, by the name of a field; one that lipaudit wrote never is."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import audits
import pytest
import torch
from command_line import Call, call, refused
from torch import nn

import lipaudit
from lipaudit.errors import ReportError
from lipaudit.results.audit import Audit
from lipaudit.results.json import from_json
from lipaudit.verdict.consistency import confirmed

__all__ = ["call"]

Data = dict[str, Any]


@pytest.fixture(scope="module")
def audit() -> Audit:
    """A small one, as lipaudit makes it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    labels = model(x).argmax(1)
    labels[4] = (labels[4] + 1) % 3
    gates = ["clean_accuracy>=0.5", "certified_accuracy@0.05>=0.1,ci_low"]
    return lipaudit.audit(model, x, labels, eps=("0.05", "0.2"), attacks=("deepfool",), gates=gates, local="off")


@pytest.fixture
def data(audit: Audit) -> Data:
    return json.loads(audit.to_json())


def load(data: Data) -> Audit:
    return confirmed(from_json(json.dumps(data)))


def test_what_lipaudit_wrote_is_read_as_it_was(audit: Audit, data: Data) -> None:
    assert load(data) == from_json(audit.to_json())


@pytest.mark.parametrize("name", [name for name in audits.ALL if name not in ("hostile", "unproved", "deep")])
def test_every_kind_of_result_is_read(name: str) -> None:
    made = audits.filed(audits.ALL[name]())
    confirmed(from_json(made.to_json()))


def scale(factor: float) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        for columns in (data["samples"], *data["arithmetics"]):
            columns["radius"] = [factor * radius for radius in columns["radius"]]
        for column in ("distance", "native_distance"):
            data["samples"][column] = [d and 100 * d for d in data["samples"][column]]

    return change


def drop_the_worst(data: Data) -> None:
    samples = data["samples"]
    row = samples["radius"].index(min(samples["radius"]))
    for column in samples.values():
        if column:
            del column[row]
    for arithmetic in data["arithmetics"]:
        if arithmetic["radius"]:
            del arithmetic["radius"][row]
    data["thumbnails"] = []


def turn_right(data: Data) -> None:
    data["samples"]["prediction"] = data["samples"]["label"]


def negative(data: Data) -> None:
    data["samples"]["margin"] = [-margin for margin in data["samples"]["margin"]]


def twice(data: Data) -> None:
    data["samples"]["index"][1] = data["samples"]["index"][0]


def other_labels(data: Data) -> None:
    right = [a == b for a, b in zip(data["samples"]["label"], data["samples"]["prediction"], strict=True)]
    row = right.index(True)
    data["samples"]["label"][row] = data["samples"]["prediction"][row] = (data["samples"]["label"][row] + 1) % 3


def smaller_bounds(data: Data) -> None:
    data["bound"]["pairwise"] = [[value / 10 for value in row] for row in data["bound"]["pairwise"]]


def forget(name: str) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        distances = data["samples"]
        row = next(k for k, found in enumerate(distances["distance"]) if found is not None)
        columns = ("distance", "native_distance", "adversarial_prediction", "attack")
        for column in columns[: 1 if name == "distance" else 4]:
            distances[column][row] = None

    return change


FORGED: dict[str, tuple[Callable[[Data], None], str]] = {
    "radii times ten": (scale(10), r"samples.radius\[\d+\]: expected at most margin / bound"),
    "the worst image dropped": (drop_the_worst, "samples: expected 12 rows"),
    "the wrong prediction changed": (turn_right, r"samples.margin\[4\]: expected 0 or more"),
    "margins negative": (negative, r"samples.margin\[0\]"),
    "an image twice": (twice, "samples.index: expected each image once"),
    "another label": (other_labels, "dataset.rows_sha256"),
    "smaller bounds of pairs": (smaller_bounds, r"slope_share|samples.margin\[\d+\]"),
    "a witness forgotten": (forget("all"), r"attacks.deepfool.closest|thumbnails\[\d\].sample"),
    "a distance forgotten": (forget("distance"), r"samples.distance\[0\]|thumbnails\[\d\].sample"),
    "a headline": (lambda d: d["verdict"].update(headline="Best of all."), "headline: expected '.*', got 'Best"),
    "a sentence": (lambda d: d["verdict"].update(sentences=[]), "verdict.sentences"),
    "a rate": (lambda d: d["certified"][0].update(value=0.99), r"certified\[0\].value: expected .*, got 0.99"),
    "an interval": (lambda d: d["clean"].update(low=0.9), "clean.low"),
    "a gate": (lambda d: d["gates"][1].update(state="cannot be evaluated"), r"gates\[1\].state"),
    "an easier gate": (lambda d: d["gates"][0].update(least=0.1), r"gates\[0\].least"),
    "a finding": (lambda d: d["findings"].pop(0), "findings: expected"),
    "the exit code": (lambda d: d.update(exit_code=5), "exit_code: expected 0, got 5"),
    "no bounds of pairs": (lambda d: d["bound"].update(pairwise=[]), "bound.pairwise"),
    "an infinite layer": (lambda d: d["bound"]["layers"][0]["upper"].update(value=None), "bound.layers"),
    "a layer": (lambda d: d["bound"]["layers"][0]["upper"].update(value=0.5), "bound.layers"),
    "the bound": (lambda d: d["bound"].update(log10=0.0), "bound.log10"),
    "a class that is none": (lambda d: d["samples"]["prediction"].__setitem__(4, 7), r"samples.prediction\[4\]"),
    "an arithmetic twice": (lambda d: d["arithmetics"].append(d["arithmetics"][-1]), "arithmetics: expected each"),
    "one order of a pair": (lambda d: d["bound"]["pairwise"][0].__setitem__(1, 0.5), "bound.pairwise|samples.radius"),
    "a time below 0": (lambda d: d["attacks"][0].update(seconds=-1.0), "seconds"),
    "a lower bound below 0": (lambda d: d["bound"]["layers"][0].update(lower=-1.0), r"bound.layers.*lower"),
    "no images": (lambda d: d["samples"].update(image=[]), "dataset.rows_sha256"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_result_is_refused_by_the_name_of_a_field(name: str, data: Data) -> None:
    change, says = FORGED[name]
    change(data)
    with pytest.raises(ReportError, match=says) as caught:
        load(data)
    assert "\n" not in str(caught.value)


def nudges(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every number, text and list in a value, changed."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from nudges(inner, (*path, key))
    elif isinstance(value, list):
        if value:
            yield path, value[:-1]
        for k, inner in enumerate(value):
            yield from nudges(inner, (*path, k))
    elif isinstance(value, bool):
        yield path, not value
    elif isinstance(value, int | float):
        yield path, value + 1
        yield path, -value - 1
    elif isinstance(value, str):
        yield path, f"{value}x"


def test_no_part_of_the_conclusion_can_be_changed_alone(data: Data) -> None:
    survived = []
    for top in ("clean", "certified", "empirical", "gates", "findings", "verdict", "status", "exit_code"):
        for path, value in nudges(data[top], (top,)):
            forged = copy.deepcopy(data)
            at = forged
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
            try:
                load(forged)
            except ReportError:
                continue
            survived.append(path)
    assert survived == []


FREE = {
    r"run|started|command\..*|timing\..*|environment\..*": "when, where and with what",
    r"(model|dataset)\.(name|source|split|architecture|licence|seed|available)": "what it was",
    r"model\.(parameters|weights.*)|dataset\.(sha256|class_names\..*)": "of files that are not in this one",
    r"bound\.layers\.\d+\.(name|op|source|shape\..*|(upper|candidates\.\d+)\.(method|because))": "what a layer is",
    r"bound\.layers\.\d+\.(step|lower|candidates\.\d+\.value)": "a bound that is not used, or said from below",
    r".*seconds": "measured",
    r"attacks\.\d+\.(library|settings|why|rejected)": "how an attack was run",
    r"samples\.(adversarial_prediction|prediction)\.\d+": "which wrong class",
    r"samples\.margin\.4": "of the image that is misclassified",
    r"samples\.(native_)?distance\.\d+": "measured, as far as radii, margins, bounds and medians allow it",
    r"arithmetics\.\d+\.radius\.\d+": "less than was certified",
    r"slope|slope_share|rounding": "measured; a rounding error that is taken off already",
    r"thumbnails\..*": "pictures",
    r"config\.(?!eps|domain|arithmetic|samples).*": "what was asked for",
}
"""Paths of what nothing else in a result determines, and why."""
CONCLUDED = {"threat", "certified", "empirical", "clean", "verdict", "findings", "gates", "status", "exit_code"}
CONCLUDED |= {"schema", "arithmetic", "agreement"}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Everything that is no list and no object; of long lists, some."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for k, inner in enumerate(value):
            if k in (0, 1, 4):
                yield from leaves(inner, (*path, k))
    else:
        yield path, value


def edits(value: Any, beside: list[Any]) -> Iterator[Any]:
    """Twice as much, the other sign, what stands beside it."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (2 * value, -value)
    else:
        yield f"{value} x"
    yield from [other for other in beside if type(other) is type(value)][:1]


def test_what_can_be_edited_is_what_nothing_else_determines(data: Data) -> None:
    found = list(leaves(data))
    tried, survived, unnamed = 0, list[str](), list[ReportError]()
    for path, value in found:
        place = data
        for key in path[:-1]:
            place = place[key]
        for new in edits(value, [other for p, other in found if p[:-1] == path[:-1] and other != value]):
            if new == value:
                continue
            place[path[-1]] = new
            tried += 1
            try:
                load(data)
            except ReportError as error:
                unnamed += [] if re.match(r"result[.:]|expected (schema|a lipaudit result)", str(error)) else [error]
            else:
                survived.append(".".join(map(str, path)))
            place[path[-1]] = value
    assert tried > 500
    assert unnamed == []
    assert [path for path in survived if not any(re.fullmatch(free, path) for free in FREE)] == []
    assert not {path.partition(".")[0] for path in survived}.intersection(CONCLUDED)
    # Of the numbers of images, most are held by others.
    of_images = [path for path, _ in found if path[0] in ("samples", "arithmetics")]
    assert sum(path.startswith(("samples", "arithmetics")) for path in survived) < len(of_images) / 2


LIES: dict[str, tuple[Callable[[Data], None], str]] = {
    "another range": (lambda d: d["threat"].update(high=2.0, units="inputs in [0, 2]"), "threat.(low|high)"),
    "another unit": (lambda d: d["threat"].update(units="grey levels"), "threat.units"),
    "what native means": (lambda d: d["arithmetics"][1].update(sentence="All is well."), r"arithmetics\[1\].sentence"),
    "what the headline means": (lambda d: d.update(arithmetic="All is well."), "arithmetic: expected 'Real"),
    "native beyond real": (
        lambda d: d["arithmetics"][1].update(radius=[1.01 * r for r in d["arithmetics"][1]["radius"]]),
        r"arithmetics.native.radius|native.*radius",
    ),
    "margins beyond radii": (
        lambda d: d["samples"].update(margin=[9 * m for m in d["samples"]["margin"]]), r"samples.margin\[0\]",
    ),
    "another median": (lambda d: d["attacks"][0].update(median_distance=0.9), "attacks.deepfool.median_distance"),
    "another arithmetic": (lambda d: d["config"].update(arithmetic="native"), "config.arithmetic"),
    "a lower bound above": (lambda d: d["bound"]["layers"][0].update(lower=1e6), "status: expected 'invalid'"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_what_follows_from_other_fields_is_derived_again(name: str, data: Data) -> None:
    change, says = LIES[name]
    change(data)
    with pytest.raises(ReportError, match=says):
        load(data)


@pytest.mark.parametrize("change", [{"schema": "lipaudit-result/1.1"}, {"environment": {"lipaudit": "9.9"}}])
def test_words_of_another_version_are_not_repeated_and_its_numbers_are_checked(change: Data, data: Data) -> None:
    honest = load(data)
    data.update(change)
    data["verdict"]["headline"] = "Best of all."
    assert load(data).verdict == honest.verdict
    data["verdict"]["strength"] = "weak" if honest.verdict.strength != "weak" else "vacuous"
    with pytest.raises(ReportError, match=r"verdict.strength"):
        load(data)


def test_radii_of_many_classes_are_held_to_what_the_file_keeps_of_the_bounds() -> None:
    data = json.loads(audits.filed(audits.thousand_classes()).to_json())
    assert data["bound"]["pairwise"] == []
    load(data)
    with pytest.raises(ReportError, match=r"samples.radius|bound.least"):
        load({**data, "bound": {**data["bound"], "least": [3 * value for value in data["bound"]["least"]]}})
    with pytest.raises(ReportError, match=r"bound.least"):
        load({**data, "bound": {**data["bound"], "least": []}})


def test_no_command_takes_a_forged_result(call: Call, data: Data) -> None:
    Path("true.json").write_text(json.dumps(data))
    data["verdict"]["headline"] = "Best of all."
    Path("forged.json").write_text(json.dumps(data))
    for command in (["gate"], ["compare", "true.json"], ["report", "-o", "x.html"]):
        assert "result.verdict.headline" in refused(call(*command, "forged.json"))
        assert call(*command, "true.json").code == 0


def test_positions_are_each_once() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(lipaudit.errors.BadThreat, match="positions"):
        lipaudit.audit(model, torch.rand(2, 1, 2, 2), [0, 1], attacks="none", index=[3, 3])
    found = lipaudit.audit(model, torch.rand(2, 1, 2, 2), [0, 1], attacks="none", index=[30, 3])
    assert confirmed(replace(found)).dataset.available == 31
