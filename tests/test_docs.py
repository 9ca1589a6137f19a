"""The documentation does what it says: every block of Python runs, every command parses, every link leads somewhere."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lipaudit
from lipaudit import zoo
from lipaudit.cli.main import commands
from lipaudit.verdict.gates import parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[Any]:
    """Text of each fenced block of that kind, marked `notest` ones aside, under the name of its page and a number."""
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}:{number}")
        for page in PAGES
        for number, (found, marks, text) in enumerate(FENCE.findall(page.read_text("utf-8")))
        if found == kind and "notest" not in marks
    ]


@pytest.fixture(scope="module")
def few() -> Any:
    """A small network, some images, and what else the pages take for granted."""
    images, labels = (torch.from_numpy(array[:4]) for array in zoo.digits_split()[2:])
    return SimpleNamespace(model=zoo.load("digits-cnn"), images=images, labels=labels)


def test_there_are_blocks() -> None:
    assert len(blocks("python")) > 10
    assert len(blocks("console")) > 10


@pytest.mark.slow
@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs(
    text: str, few: Any, assert_certified: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {**vars(few), "epochs": 1, "writer": SimpleNamespace(add_scalar=print)}
    names |= {"matrix": few.model[-1].weight.detach(), "weight": few.model[0].weight.detach()}
    if "classifier" in text:
        names |= {"classifier": classifier(few.model), "x": few.images.numpy(), "y": few.labels.numpy()}
    if "load_audit" in text:
        audit = lipaudit.audit(few.model, few.images, few.labels, attacks="none", local="off")
        (tmp_path / "result.json").write_text(audit.to_json(), "utf-8")
        (tmp_path / "report.html").write_text(audit.to_html(), "utf-8")
    exec(compile(text, "block", "exec"), names)
    if "def test_certified" in text:
        names["test_certified"](
            lambda *given, **wanted: assert_certified(*given, **{**wanted, "eps": 0.001, "at_least": 0.25})
        )


def classifier(model: Any) -> Any:
    from art.estimators.classification import PyTorchClassifier
    from torch import nn

    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu")


@pytest.mark.parametrize("text", blocks("console"))
def test_commands_parse(text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        if not line.startswith("$ lipaudit"):
            assert line.startswith("$ "), line
            continue
        for command in line.removeprefix("$ ").partition(" #")[0].split("; "):
            words = shlex.split(command)[1:]
            if words:
                commands.commands[words[0]].make_context(words[0], words[1:])
                for gate in (word for before, word in itertools.pairwise(words) if before == "--gate"):
                    assert parse(gate).expression


@pytest.mark.parametrize("text", blocks("toml"))
def test_settings_parse(text: str) -> None:
    assert set(tomllib.loads(text)) <= {"run", "gate"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http://", "https://", "#")):
            continue
        assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_conda_recipe_asks_for_what_the_wheel_asks_for() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    recipe = (ROOT / "conda" / "meta.yaml").read_text("utf-8")

    def asked(part: str) -> list[str]:
        lines = re.search(rf"^  {part}:\n((?:    - .*\n)+)", recipe, re.MULTILINE)
        assert lines is not None
        return sorted(line.replace(" ", "").replace("pytorch>", "torch>") for line in re.findall(r"- (.*)\n", lines[1]))

    python = f"python{settings['project']['requires-python']}"
    assert asked("run") == sorted([python, *settings["project"]["dependencies"]])
    assert asked("host") == sorted([python, "pip", *settings["build-system"]["requires"]])
    assert settings["project"]["description"] in recipe
