"""What type checkers see of lipaudit from outside; its own code is checked by `mypy` in `.ci/run`."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lipaudit

ROOT = Path(__file__).parents[1]

GIVEN = """\
from typing import Any
import numpy, torch, lipaudit, lipaudit.nn
model: torch.nn.Module
images: torch.Tensor
labels: torch.Tensor
weight: torch.Tensor
matrix: torch.Tensor
x: numpy.ndarray
y: numpy.ndarray
classifier: Any
writer: Any
epochs: int
"""
"""What the examples of the README speak of without making it."""

MISTAKES = """\
lipaudit.audits  # type: ignore[attr-defined]
lipaudit.bound(model)  # type: ignore[call-arg]
lipaudit.certify(model, images, labels, settings=1)  # type: ignore[arg-type]
lipaudit.Settings(local=1)  # type: ignore[arg-type]
lipaudit.certify(model, images, labels).radii  # type: ignore[attr-defined]
lipaudit.nn.AOLLinear("1", 1)  # type: ignore[arg-type]
wrong: str = lipaudit.dense_norm(weight).value  # type: ignore[assignment]
"""
"""Each has to be found: an `ignore` without an error is one itself."""


@pytest.mark.slow
def test_user_code_is_checked(tmp_path: Path) -> None:
    """The examples of README and docs have no errors, every public name has a type, and mistakes are found."""
    pytest.importorskip("mypy")
    pages = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.stem != "claims")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    examples = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    examples = [code for code in examples if "import" in code and "model = " not in code]
    assert len(examples) >= 4
    names = "".join(f"lipaudit.{name}\n" for name in lipaudit.__all__)
    for number, code in enumerate([*examples, names + MISTAKES]):
        (tmp_path / f"script{number}.py").write_text(GIVEN + code, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", *sorted(path.name for path in tmp_path.glob("*.py"))]
    # Where Python finds packages mypy takes them as installed: only what they give out is looked at.
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stub_says_where_the_public_names_come_from() -> None:
    """`__init__.pyi`, which only type checkers read, against what the package gives out."""
    stub = ast.parse(Path(lipaudit.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    found = {}
    for line in stub.body:
        if isinstance(line, ast.ImportFrom):
            for alias in line.names:
                module = importlib.import_module(str(line.module))
                found[alias.asname or alias.name] = getattr(module, alias.name)
    assert sorted(found) == sorted(lipaudit.__all__)
    assert all(getattr(lipaudit, name) is value for name, value in found.items())
    assert ast.literal_eval(stub.body[-1].value) == sorted(found)
