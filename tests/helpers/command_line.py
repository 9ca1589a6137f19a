"""The command line, called in this process: fixtures, and what a refusal looks like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import audits
import numpy as np
import pytest
from safetensors.torch import save_file
from usermodels import SHAPE, SMALL, Small, Write

from lipaudit import cli
from lipaudit.cli import auditing
from lipaudit.graph.wrappers import Prepared
from lipaudit.results.audit import Audit
from lipaudit.runs.provenance import Source, plain
from lipaudit.settings import Settings


class Result:
    """Exit code and streams of one call of the command line."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Call = Callable[..., Result]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call("run", "--eps", "1")` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def invoke(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return Result(int(ended.value.code or 0), *capsys.readouterr())

    return invoke


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A pipeline that finds `audited["audit"]` at once, and what it was called with."""
    seen: dict[str, Any] = {"audit": audits.strong(40)}

    def audit(network: Prepared, inputs: Any, labels: Any, settings: Settings, source: Source, **options: Any) -> Audit:
        seen.update(vars(settings) | vars(source) | options, model=network.module, inputs=inputs, labels=labels)
        seen["config"] = plain(settings.config()) | dict(source.config)
        print("a library prints something")  # noqa: T201
        return seen["audit"]

    monkeypatch.setattr(auditing, "audit", audit)
    return seen


@pytest.fixture
def pair(user_module: Write, tmp_path: Path) -> list[object]:
    """Options that name a small network with weights, and data for it."""
    save_file(Small().state_dict(), tmp_path / "w.safetensors")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((30, *SHAPE)), y=np.arange(30) % 3)
    return [
        "--model", f"{user_module(SMALL)}:Small", "--dataset", f"npz:{tmp_path / 'data.npz'}",
        "--checkpoint", tmp_path / "w.safetensors", "--mean", "none", "--samples", "20", "--attacks", "quick",
    ]  # fmt: skip


def written(folder: Path = Path("reports")) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def refused(result: Result, code: int = 2) -> str:
    """The one line on stderr of a refusal that wrote nothing."""
    lines = [line for line in result.err.splitlines() if not line.startswith("a library")]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("lipaudit: ")
    assert result.out == ""
    assert result.code == code
    assert written() == []
    return lines[0]
