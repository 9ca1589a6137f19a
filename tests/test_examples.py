"""Every example runs without a warning, leaves nothing behind, and has its page and its line in the list."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
EXAMPLES = [
    path.relative_to(ROOT / "examples").as_posix()
    for path in sorted((ROOT / "examples").rglob("*.py"))
    if path.parent.name != "training"
]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    state = torch.get_rng_state()
    try:
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    finally:
        torch.set_rng_state(state)
    assert capsys.readouterr().out.strip()
    assert not list(tmp_path.iterdir())
    if name == "fine_tuning_gate.py" and importlib.util.find_spec("lightning") is None:
        pytest.skip("Lightning is not installed: its hooks were called by a plain loop")


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_has_a_page_and_a_line_in_the_list(name: str) -> None:
    mark = f"<!-- example: {name} -->"
    (page,) = (page for page in (ROOT / "docs" / "examples").glob("*.md") if page.read_text("utf-8").strip() == mark)
    assert f"examples/{page.name}" in (ROOT / "mkdocs.yml").read_text("utf-8")
    assert f"]({name})" in (ROOT / "examples" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_page_holds_all_of_it(name: str) -> None:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page, source = hooks.on_page_markdown(f"<!-- example: {name} -->"), (ROOT / "examples" / name).read_text("utf-8")
    assert page.startswith("# ")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    told = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    assert [line for line in code.splitlines() if line.strip() and not line.startswith("#")] == told
