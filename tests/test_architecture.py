"""The laws of the house: who imports whom, what is exported, how large a room may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lipaudit

PACKAGE = Path(lipaudit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path, everywhere: bool) -> set[str]:
    """Modules imported at the top of a file, or anywhere in it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""}
    return names


def under(prefix: str) -> list[Path]:
    place = PACKAGE / prefix
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


@pytest.mark.parametrize("name", ["errors.py", "results/bounds.py", "results/audit.py", "registry.py", "progress.py"])
def test_the_ground_floor_needs_only_the_standard_library(name: str) -> None:
    outside = {m for m in imports(PACKAGE / name, everywhere=False) if m.split(".")[0] not in sys.stdlib_module_names}
    assert all(module.startswith("lipaudit") for module in outside), outside


CERTIFIED, RUNS = "lipaudit.certification", "lipaudit.runs"


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("crosscheck", ("lipaudit.norms", "lipaudit.domains", CERTIFIED)),
        ("norms", ("lipaudit.domains", CERTIFIED, "lipaudit.crosscheck")),
        ("domains", (CERTIFIED, "lipaudit.crosscheck", RUNS)),
        ("certification", ("lipaudit.crosscheck", RUNS, "lipaudit.report")),
        ("report", ("torch", "torchvision", "lipaudit.norms", "lipaudit.graph", RUNS, "lipaudit.rounding")),
        ("results", ("torch", "torchvision", "lipaudit.norms", "lipaudit.graph", RUNS, "lipaudit.rounding")),
        ("verdict", ("torch", RUNS, "lipaudit.crosscheck", CERTIFIED, "lipaudit.report", "lipaudit.cli")),
    ],
)
def test_who_may_import_whom(room: str, forbidden: tuple[str, ...]) -> None:
    for file in under(room):
        for module in imports(file, everywhere=True):
            assert not module.startswith(forbidden), f"{file.name} imports {module}"


def test_nothing_rests_on_the_integrations() -> None:
    for file in set(FILES) - set(under("integrations")):
        assert not any(module.startswith("lipaudit.integrations") for module in imports(file, everywhere=True)), file


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, lipaudit.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_exported_names() -> None:
    assert sorted(lipaudit.__all__) == [
        "audit", "bound", "certify", "claims", "conv_norm", "dense_norm", "errors", "load_audit", "merge", "nn",
        "results",
    ]  # fmt: skip
    for name in lipaudit.__all__:
        assert getattr(lipaudit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lipaudit.nonsense


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_room_says_what_it_is_for_and_stays_small(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)

    assert ast.get_docstring(tree), "no docstring"
    assert text.count("\n") <= 400
