"""Disks, devices, processes and clocks that fail: files are whole or absent, and nothing that was computed is lost."""

from __future__ import annotations

import ast
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import audits
import numpy as np
import pytest
import torch
from hostile.networks import NAME, stored
from sources import FILES
from torch import nn

import lipaudit
from lipaudit import cli
from lipaudit.crosscheck import runner
from lipaudit.errors import ReportError
from lipaudit.files.atomic import write_all
from lipaudit.norms import verified_eigenvalues
from lipaudit.results.audit import Audit

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a small audit, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.save(stored(), tmp_path / "weights.pt")
    x = np.random.default_rng(0).random((6, 1, 6, 6), dtype=np.float32)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(6) % 3)
    return [
        "run", "--model", NAME, "--checkpoint", "weights.pt", "--mean", "none", "--dataset", "npz:images.npz",
        "--attacks", "deepfool", "--local", "off", "--progress", "off", "--batch-size", "2",
    ]  # fmt: skip


def call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code, and the last line on stderr."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return int(ended.value.code or 0), (text.strip().splitlines() or [""])[-1]


def reports(folder: Path = Path("reports")) -> list[str]:
    return sorted(path.suffix for path in folder.glob("*") if path.is_file())


def failing(monkeypatch: pytest.MonkeyPatch, name: str, count: int, error: Exception) -> None:
    """The count-th call of that method of a path, on a file that becomes a report, fails; the others are real."""
    real, calls = getattr(Path, name), []

    def method(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if path.name.endswith(".part") and path.name.startswith(".la-"):
            calls.append(path)
            if len(calls) == count:
                raise error
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(Path, name, method)


@pytest.mark.parametrize(("step", "count"), [("write_text", 2), ("replace", 1), ("replace", 2)])
def test_a_full_disk_leaves_no_report_and_loses_nothing(
    step: str, count: int, run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        failing(patched, step, count, NO_SPACE)
        code, line = call(run, capsys)
    assert (code, reports()) == (2, [])
    assert "No space left on device; nothing was written" in line
    command = line.partition("continue with: lipaudit ")[2].split()
    calls: list[object] = []
    monkeypatch.setattr(runner, "_run_batch", lambda *_: calls.append(None))
    code, _ = call([*command, "--progress", "off"], capsys)
    assert not calls, "an attack was run again"
    assert (code in (0, 5), reports()) == (True, [".html", ".json"])


def test_a_folder_that_is_read_only_is_found_before_the_work(
    run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr("lipaudit.cli.auditing.run_audit", lambda *_: pytest.fail("the work began"))
    code, line = call(run, capsys)
    assert (code, reports()) == (2, [])
    assert "cannot write reports into reports: Read-only file system" in line


def test_older_reports_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.html"
    old.write_text("old")
    real = Path.write_text

    def write(path: Path, *arguments: Any, **keywords: Any) -> int:
        if ".new.html." in path.name:
            raise NO_SPACE
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "write_text", write)
    with pytest.raises(ReportError, match="nothing was written"):
        write_all({old: "changed", new: "page"})
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert old.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_pipe_that_is_full_is_one_line(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text(audits.filed(audits.strong(20)).to_json())
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lipaudit", "report", str(result), "-o", "-"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("lipaudit: OSError: [Errno 28] No space left on device")
    assert done.stderr.count("\n") == 1, done.stderr


KILLED = """
import os, signal, sys
from pathlib import Path
from lipaudit.files.atomic import write_all

folder, step, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
real, calls = getattr(Path, step), []

def method(path, *arguments, **keywords):
    calls.append(path)
    if len(calls) == count:
        if step == "write_text":
            real(path, arguments[0][:1000], **keywords)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, *arguments, **keywords)

setattr(Path, step, method)
write_all({folder / "a.json": "j" * 100_000, folder / "a.html": "h" * 100_000})
"""


@pytest.mark.parametrize(
    ("step", "count", "whole"), [("write_text", 1, 0), ("write_text", 2, 0), ("replace", 1, 0), ("replace", 2, 1)]
)
def test_a_kill_while_reports_are_written_leaves_whole_files_only(
    step: str, count: int, whole: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), step, str(count)]
    done = subprocess.run(command, check=False, env=ENVIRONMENT)
    assert done.returncode == -signal.SIGKILL
    left = [file for file in tmp_path.iterdir() if not file.name.startswith(".")]
    assert len(left) == whole
    assert all(file.stat().st_size == 100_000 for file in left)


# --- devices and workers


def test_an_attack_without_memory_is_recorded_and_the_rest_goes_on(
    run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = runner._run_batch

    def batch(state: Any, entry: Any, *others: Any) -> Any:
        if entry.name == "deepfool":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return real(state, entry, *others)

    monkeypatch.setattr(runner, "_run_batch", batch)
    arguments = [*run, "--attacks", "deepfool,pgd-at-radius"]
    code, _ = call(arguments, capsys)
    assert (code, reports()) == (5, [".html", ".json"])
    (file,) = Path("reports").glob("*.json")
    first, second = json.loads(file.read_text())["attacks"]
    assert (first["status"], second["status"]) == ("failed", "done")
    assert "OutOfMemoryError: CUDA out of memory" in first["why"]


def test_a_bound_without_memory_is_one_line(
    run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr("lipaudit.domains.lipschitz.propagator.norm_bound", fail)
    code, line = call(run, capsys)
    assert (code, reports()) == (1, [])
    assert "CUDA out of memory. Tried to allocate 20 GiB" in line


def test_a_device_without_memory_says_what_to_try(
    run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr("lipaudit.cli.auditing.audit", fail)
    code, line = call(run, capsys)
    assert (code, reports()) == (1, [])
    assert line.startswith("lipaudit: OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB; try --device cpu")


@pytest.mark.parametrize("error", [MemoryError("a worker"), RuntimeError("a worker"), KeyboardInterrupt("a worker")])
def test_a_worker_that_dies_proves_nothing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = torch.linalg.cholesky_ex, []

    def factorise(*arguments: Any, **keywords: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise error
        return real(*arguments, **keywords)

    matrices = torch.rand(64, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    verified_eigenvalues._pool.cache_clear()
    whole = verified_eigenvalues.largest_singular_value(matrices)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", factorise)
    try:
        with pytest.raises(type(error), match="a worker"):
            verified_eigenvalues.largest_singular_value(matrices)
        monkeypatch.setattr(torch.linalg, "cholesky_ex", real)
        assert verified_eigenvalues.largest_singular_value(matrices) == whole
    finally:
        verified_eigenvalues._pool.cache_clear()


# --- clocks


def test_no_length_of_time_is_taken_from_the_wall_clock() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                assert node.attr in ("monotonic", "perf_counter", "sleep"), file


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    inputs = torch.rand(4, 4)

    def audit() -> Audit:
        return lipaudit.audit(
            model, inputs, model(inputs).argmax(1), attacks=["deepfool"], time_limit=600.0, local="off"
        )

    expected = audit()
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(-1e9, 4e9))
    found = audit()
    assert (found.samples, found.verdict, found.exit_code) == (expected.samples, expected.verdict, expected.exit_code)
    assert all(0 <= seconds < 600 for seconds in found.timing.values())
