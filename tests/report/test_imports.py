"""`report/` runs where torch is not installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import lipaudit.report

FOLDER = Path(lipaudit.report.__file__).parent
FORBIDDEN = {"torch", "torchvision", "timm", "art", "numpy", "PIL", "autoattack", "pyautoattack"}


def imported(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_no_module_imports_torch_or_anything_that_does() -> None:
    for module in FOLDER.rglob("*.py"):
        names = imported(module)
        assert not {name.split(".")[0] for name in names} & FORBIDDEN, module.name
        ours = {name for name in names if name.startswith("lipaudit.")}
        allowed = (
            "lipaudit.report",
            "lipaudit.results",
            "lipaudit.errors",
            "lipaudit.verdict.gates",
            "lipaudit.verdict.comparison",
            "lipaudit.verdict.consistency",
        )
        assert all(name.startswith(allowed) for name in ours), ours


def test_importing_the_report_leaves_torch_alone() -> None:
    code = (
        "import sys, lipaudit.report.html, lipaudit.report.terminal, lipaudit.results.json; "
        f"print(sorted(set({sorted(FORBIDDEN)!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
