"""Coverage: every family has a model, every model a row, and every operation of the zoo a rule."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from quick import mostly_slow
from torch import nn
from torchvision import models as torchvision_models

from lipaudit import cli
from lipaudit.domains.lipschitz import RULES
from lipaudit.errors import LoadError
from lipaudit.graph.capture import outline
from lipaudit.runs import survey as coverage
from lipaudit.runs.survey import SMALL, Choice, Row, build, choices, survey, variants

CHOICES = choices()


# --- the list


def test_every_family_is_represented() -> None:
    covered = {(choice.library, choice.family) for choice in CHOICES}

    assert covered >= {("timm", family) for family in timm.list_modules()}
    builders = map(torchvision_models.get_model_builder, torchvision_models.list_models(module=torchvision_models))
    assert covered >= {("torchvision", builder.__module__.rpartition(".")[2]) for builder in builders}
    assert len({(choice.library, choice.model) for choice in CHOICES}) == len(CHOICES)


def test_the_list_names_models_that_exist_and_no_more() -> None:
    """With the version of timm that the list was made for; a family that it lacks is filled in by its smallest."""
    for library, names in SMALL.items():
        assert set(names.split()) == {choice.model for choice in CHOICES if choice.library == library}


def test_an_unknown_family_is_represented_by_its_smallest_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SMALL, "timm", "resnet18 no_such_model")

    found = choices(["timm"], ["vgg", "resnet"])
    assert [choice.model for choice in found] == ["resnet18", "vgg11"]


def test_families_are_chosen_by_name_in_either_library() -> None:
    assert {(c.library, c.family) for c in choices(only=["vgg"])} == {("timm", "vgg"), ("torchvision", "vgg")}
    assert {c.library for c in choices(["torchvision"])} == {"torchvision"}
    with pytest.raises(LoadError, match=r"unknown family 'resnext' .*did you mean .*resnest"):
        choices(only=["vgg", "resnext"])


def test_variants_are_the_smallest_of_each_structure() -> None:
    found = variants(["timm"], ["vgg"])
    assert {choice.model for choice in found} == {"vgg11", "vgg11_bn"}


@pytest.mark.parametrize(
    "choice", [Choice("timm", "resnet", "resnet10t"), Choice("torchvision", "regnet", "regnet_x_400mf")]
)
def test_models_are_built_with_the_same_random_weights_each_time(choice: Choice) -> None:
    state = torch.get_rng_state()
    (one, shape), (other, _) = build(choice), build(choice)
    empty, _ = build(choice, meta=True)

    assert shape[0] == 3
    assert not one.training
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert torch.equal(torch.get_rng_state(), state)


# --- rows


class Tiny(nn.Module):
    """Ends in `function` of four logits."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 4)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.layer(x.flatten(1)))


def broken(x: torch.Tensor) -> torch.Tensor:
    raise MemoryError(f"no room for\n {tuple(x.shape)}")


ZOO: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": torch.relu,
    "product": lambda x: x * torch.sigmoid(x.sum(1, keepdim=True)),
    "odd": lambda x: torch.lgamma(x.abs() + 1),
    "mask": lambda x: torch.where(x > 0, x + 1, -x),
    "broken": broken,
}


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> list[Choice]:
    """A library of five small models, one of which is not even built."""

    def make(choice: Choice, *, meta: bool = False) -> tuple[nn.Module, tuple[int, ...]]:
        if choice.model == "unbuilt":
            raise FileNotFoundError("no such file")
        with torch.device("meta" if meta else "cpu"):
            return Tiny(ZOO[choice.model]).eval(), (3, 2, 2)

    monkeypatch.setattr(coverage, "build", make)
    return [Choice("timm", f"family of {name}", name) for name in [*ZOO, "unbuilt"]]


def test_whatever_a_model_does_is_a_row(zoo: list[Choice]) -> None:
    rows = {row.model: row for row in survey(zoo)}

    assert [row.outcome for row in rows.values()] == ["bounded", "bounded", "refused", "refused", "refused", "failed"]
    assert rows["plain"].log10 == pytest.approx(math.log10(2), abs=2)
    assert not rows["plain"].needs_domain
    assert rows["product"].needs_domain
    assert rows["plain"].operations == 3
    assert "lgamma.default x1" in rows["odd"].reason
    assert rows["odd"].operations == 5
    assert "bool values computed from the input by gt.Scalar" in rows["mask"].reason
    assert rows["mask"].operations is None
    assert "MemoryError: no room for" in rows["broken"].reason
    assert rows["unbuilt"].reason == "FileNotFoundError: no such file"
    assert all("\n" not in row.reason for row in rows.values())
    assert all(row.seconds > 0 for row in rows.values())
    assert all(row.log10 is None for row in rows.values() if row.outcome != "bounded")


def test_without_values_a_row_says_whether_every_operation_has_a_rule(zoo: list[Choice]) -> None:
    rows = {row.model: row for row in survey(zoo, meta=True)}

    assert [rows[name].outcome for name in ("plain", "product", "odd")] == ["covered", "covered", "refused"]
    assert all(row.log10 is None for row in rows.values())


def test_slopes_are_held_against_the_bound(zoo: list[Choice], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = next(survey(zoo[:1], slopes=True))
    assert plain.log10 is not None
    assert plain.slope is not None
    assert plain.log10 - 1 < plain.slope < plain.log10

    monkeypatch.setattr(coverage, "network_bound", lambda _: (-2.0, False))
    lie = next(survey(zoo[:1], slopes=True))
    assert lie.outcome == "failed"
    assert "expected no slope above the bound of 10^-2.0, got one of 10^-0." in lie.reason


def test_the_bound_is_a_bound() -> None:
    """Of a small network, against its dense truth."""
    model = Tiny(lambda x: x).eval()
    log10, _ = coverage.network_bound(coverage.capture(model, (3, 2, 2)))
    assert 10**log10 >= float(torch.linalg.matrix_norm(model.layer.weight.detach().double(), 2))


# --- the command


def row(model: str, outcome: str, **more: Any) -> Row:
    known = {
        "operations": 50,
        "log10": None,
        "needs_domain": False,
        "slope": None,
        "reason": "",
        "seconds": 1.25,
        **more,
    }
    return Row("timm", f"family of {model}", model, (3, 8, 8), outcome, **known)


ROWS = [
    row("plain", "bounded", log10=6.94),
    row("product", "bounded", log10=150.81, needs_domain=True),
    row("odd", "refused", reason="got 1 without: lgamma.default x1 (first: layer a|b, nets.py:3)"),
    row("broken", "failed", reason="MemoryError: no room", operations=None),
]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A survey that finds `ROWS` at once, and what it was asked for."""
    asked: dict[str, Any] = {}

    def choose(libraries: Sequence[str], families: Sequence[str], *_: object) -> list[Choice]:
        asked.update(libraries=list(libraries), families=list(families))
        return [Choice(row.library, row.family, row.model) for row in ROWS]

    def survey(chosen: Sequence[Choice], *, meta: bool, slopes: bool) -> list[Row]:
        print("a library prints something")  # noqa: T201
        asked["meta"], asked["slopes"] = meta, slopes
        if asked.get("interrupt") == chosen[0].model:
            raise KeyboardInterrupt
        return [row for row in ROWS if row.model == chosen[0].model]

    monkeypatch.setattr("lipaudit.cli.survey.choices", choose)
    monkeypatch.setattr("lipaudit.cli.survey.variants", choose)
    monkeypatch.setattr("lipaudit.cli.survey.survey", survey)
    return asked


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def invoke(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["survey", *map(str, arguments)])
        return int(ended.value.code or 0), *capsys.readouterr()

    return invoke


Command = Callable[..., tuple[int, str, str]]


def test_the_table_states_its_terms_and_totals(command: Command, table: dict[str, Any]) -> None:
    code, out, err = command()
    lines = out.splitlines()

    assert code == 1, "a failure is a defect"
    assert "random weights (seed 0)" in " ".join(lines[:3])
    assert "layer norms by schur" in " ".join(lines[:3])
    assert [line.split()[2:7] for line in lines if "plain" in line] == [["of", "plain", "plain", "50", "ops"]]
    assert sum(" 10^150.8* " in line for line in lines) == 1
    assert any("lgamma.default x1" in line for line in lines)
    assert lines[-1] == "timm: 4 models, 3 captured, 2 bounded, 1 refused with a reason, 1 failed"
    assert "coverage" in err
    assert table == {"libraries": ["timm", "torchvision"], "families": [], "meta": False, "slopes": False}


def test_what_is_asked_for_is_surveyed(command: Command, table: dict[str, Any]) -> None:
    command("--family", "vgg", "--family", "dla", "--library", "timm", "--variants")

    assert table == {"libraries": ["timm"], "families": ["vgg", "dla"], "meta": True, "slopes": False}


@pytest.mark.usefixtures("table")
def test_markdown_and_json(command: Command, tmp_path: Path) -> None:
    _, out, _ = command("--markdown", "--json", tmp_path / "coverage.json")
    rows = [line for line in out.splitlines() if line.startswith("|")]
    written = json.loads((tmp_path / "coverage.json").read_text())

    assert len(rows) == 2 + len(ROWS)
    assert {line.replace(r"\|", "").count("|") for line in rows} == {8}
    assert [found["model"] for found in written["models"]] == [one.model for one in ROWS]
    assert written["models"][0]["log10"] == 6.94
    assert written["values"] == "random weights, seed 0"
    assert written["versions"]["timm"] == timm.__version__


@pytest.mark.usefixtures("table")
def test_slopes_have_two_columns(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipaudit.cli.survey.survey", lambda *_, **__: [row("plain", "bounded", log10=6.94, slope=1.5)])
    _, out, _ = command("--slopes", "--markdown")

    assert "| 10^6.9 | 10^1.5 | 5.4 |" in out
    assert "| bound | steepest seen | decades between | seconds |" in out


@pytest.mark.usefixtures("table")
def test_variants_say_that_nothing_was_bounded(command: Command) -> None:
    assert "without values" in " ".join(command("--variants")[1].split())


def test_an_interruption_prints_what_there_is(command: Command, table: dict[str, Any]) -> None:
    table["interrupt"] = "product"
    code, out, err = command()

    assert code == 130
    assert out.splitlines()[-1] == "timm: 1 models, 1 captured, 1 bounded, 0 refused with a reason, 0 failed"
    assert err.splitlines()[-1] == "lipaudit: interrupted; the table ends where the survey did"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--slopes", "--variants"], "expected --variants or --slopes, got both"),
        (["--family", "vggg"], "did you mean vgg?"),
        (["resnet"], "Got unexpected extra argument (resnet)"),
        (["--library", "keras"], "torchvision"),
    ],
)
def test_bad_usage_is_one_line(command: Command, arguments: list[str], says: str) -> None:
    code, out, err = command(*arguments)

    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


# --- the zoo itself


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids=[f"{choice.library}:{choice.model}" for choice in CHOICES])
def test_every_operation_of_the_zoo_has_a_rule(choice: Choice) -> None:
    """Captured on the meta device; `lipaudit survey --variants` does the same for all variants."""
    graph = outline(*build(choice, meta=True))

    missing = {f"{node.op} in {node.title} ({node.source})" for node in graph.nodes if node.op not in RULES}
    assert not missing


@pytest.mark.parametrize("family", mostly_slow(("resnet", "deit"), 1))
def test_small_models_have_finite_bounds(family: str) -> None:
    (row,) = survey(choices(["timm"], [family]))
    assert (row.outcome, row.reason) == ("bounded", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(timm.list_models("test_*")))
def test_no_slope_of_a_network_with_harmful_weights_exceeds_its_bound(name: str) -> None:
    """timm's small test networks, whole architectures all: each parameter at another scale, some switched off."""
    model = timm.create_model(name, num_classes=5).eval()
    generator = torch.Generator().manual_seed(len(name))
    shape = (3, *timm.data.resolve_model_data_config(model)["input_size"][1:])
    for harm in (0.0, 1.0):
        with torch.no_grad():
            for parameter in model.parameters():
                scale = 10 ** (harm * (2 * torch.rand((), generator=generator) - 1))
                parameter.mul_(scale * (torch.rand((), generator=generator) > 0.05 * harm))
        log10, _ = coverage.network_bound(coverage.capture(model, shape))
        assert coverage.steepest(model, shape) <= log10


@pytest.mark.slow
@pytest.mark.skipif("LIPAUDIT_ALL_VARIANTS" not in os.environ, reason="takes 20 minutes: LIPAUDIT_ALL_VARIANTS=1")
def test_every_structural_variant_is_captured_and_has_a_rule_for_every_operation() -> None:
    """What `lipaudit survey --variants` prints; CI holds the representatives of the families to it."""
    rows = list(survey(variants(), meta=True))
    assert len(rows) >= 360
    assert [row for row in rows if row.outcome != "covered"] == []
