"""`lipaudit run --resume`: what ended a run, and when, makes no difference to what it finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Call, call, written
from safetensors.torch import load_file, save_file
from usermodels import SHAPE, SMALL, Small, Write, user_module

from lipaudit.crosscheck import runner

__all__ = ["call", "user_module"]

HELPERS = Path(__file__).parent / "helpers"


def found(file: Path) -> dict[str, Any]:
    """All of a result but its name and how long things took."""
    result = json.loads(file.read_text(encoding="utf-8"))
    for name in ("run", "started", "timing", "command"):
        del result[name]
    result["bound"].pop("seconds")
    for line in (*result["bound"]["layers"], *result["attacks"]):
        line.pop("seconds")
    return result


def only(folder: Path) -> Path:
    (file,) = folder.glob("*.json")
    return file


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_ten_kills_lose_nothing(tmp_path: Path) -> None:
    """Ten runs end by SIGKILL at random moments; each is resumed, until it is done."""
    script = [sys.executable, str(HELPERS / "killed.py"), str(tmp_path)]
    ran = subprocess.run(script, capture_output=True, text=True, timeout=540, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert sum(line[0] == "killed" for line in lines) == 10
    assert any(int(line[2]) > int(line[1]) for line in lines), "no run got anywhere before it was killed"
    expected = found(only(tmp_path / "whole"))
    finished = list((tmp_path / "killed").glob("*.json"))
    assert finished
    for file in finished:
        assert found(file) == expected
    assert not list((tmp_path / "killed").glob("*.partial"))
    assert len(list((tmp_path / "killed").glob("*.html"))) == len(finished)


def interrupt(monkeypatch: pytest.MonkeyPatch, batch: int, error: BaseException) -> None:
    """The run ends by this error at a batch; the next one goes on."""
    real, calls = runner._outcome, []

    def outcome(*arguments: Any) -> Any:
        calls.append(batch)
        if len(calls) == batch:
            raise error
        return real(*arguments)

    monkeypatch.setattr(runner, "_outcome", outcome)


@pytest.fixture
def pair(user_module: Write, tmp_path: Path) -> list[object]:
    """Options of a small run: a network, images that it gets right, a few batches."""
    torch.manual_seed(0)
    network, images = Small().eval(), torch.rand(9, *SHAPE)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    with torch.no_grad():
        np.savez(tmp_path / "data.npz", x=images.numpy(), y=network(images).argmax(1).numpy())
    return [
        "--model", f"{user_module(SMALL)}:Small", "--dataset", f"npz:{tmp_path / 'data.npz'}",
        "--checkpoint", "w.safetensors", "--mean", "none", "--samples", 9, "--attacks", "deepfool,apgd-ce",
        "--eps", 0.5, "--batch-size", 4, "--local", "off",
    ]  # fmt: skip


@pytest.fixture
def begun(call: Call, pair: list[object], monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a run that Ctrl-C ended after its first batch."""
    with monkeypatch.context() as patch:
        interrupt(patch, 2, KeyboardInterrupt())
        result = call("run", *pair)
    (folder,) = Path("reports").glob("*.partial")
    name = folder.name.removesuffix(".partial")
    assert result.code == 130
    line = f"lipaudit run --resume reports/{name}"
    assert result.err.splitlines()[-1] == (
        f"lipaudit: interrupted; no report was written; what is finished is kept, continue with: {line}"
    )
    assert f"interrupt any time, then: {line}" in result.err
    assert written() == [folder.name]
    return name


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        pytest.param("reports/{}", marks=pytest.mark.slow),
        pytest.param("reports/{}.partial", marks=pytest.mark.slow),
        "reports/{}.partial/",
    ],
)
def test_ctrl_c_leaves_what_resume_ends(call: Call, pair: list[object], begun: str, form: str) -> None:
    result = call("run", "--resume", form.format(begun))

    assert result.code == 0, result.err
    assert written() == [f"{begun}.html", f"{begun}.json"]
    call("run", *pair, "--out", "whole")
    assert found(only(Path("reports"))) == found(only(Path("whole")))
    command = json.loads(only(Path("reports")).read_text())["command"]
    assert command[:2] == ["lipaudit", "run"]
    assert "--resume" not in command


def test_another_interruption_is_survived(call: Call, begun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 1, KeyboardInterrupt())
        assert f"continue with: lipaudit run --resume reports/{begun}" in call("run", "--resume", begun).err
    assert written() == [f"{begun}.partial"]
    assert call("run", "--resume", begun, "-q").code == 0


def test_a_crash_says_how_to_go_on(call: Call, begun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lipaudit.runs.audit.largest_slope", lambda *_, **__: 1 / 0)
        result = call("run", "--resume", begun, "-q")
    assert result.code == 1
    assert result.err.endswith(f"continue with: lipaudit run --resume reports/{begun}\n")
    assert call("run", "--resume", begun, "-q").code == 0


def test_output_options_may_change(call: Call, begun: str) -> None:
    result = call("run", "--resume", begun, "--format", "md", "-q")

    assert result.code == 0
    assert written() == [f"{begun}.md"]


def test_a_resumed_run_can_end_on_stdout(call: Call, begun: str) -> None:
    result = call("run", "--resume", f"reports/{begun}", "-o", "-")

    assert json.loads(result.out)["run"] == begun
    assert written() == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seed", "1"], "--seed: a run goes on with the options that it was begun with; leave --seed out"),
        (["--samples", "10"], "leave --samples out"),
        (["--eps", "1"], "leave --eps out"),
        (["--model", "digits-aol"], "leave --model out"),
    ],
)
def test_other_options_are_refused(call: Call, begun: str, arguments: list[str], says: str) -> None:
    result = call("run", "--resume", begun, *arguments)

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("lipaudit: ")
    assert says in result.err
    assert written() == [f"{begun}.partial"]


def test_the_same_options_may_be_repeated(call: Call, begun: str) -> None:
    assert call("run", "--resume", begun, "--eps", "0.5", "--batch-size", "4").code == 0


def test_other_weights_and_images_are_refused(call: Call, begun: str) -> None:
    weights, data = load_file("w.safetensors"), dict(np.load("data.npz"))
    changed = weights | {"linear.bias": weights["linear.bias"] + torch.tensor([0, 0, 1e-6])}
    for says, state, images in (("another network", changed, data["x"]), ("another images", weights, data["x"][::-1])):
        save_file(state, "w.safetensors")
        np.savez("data.npz", x=images, y=data["y"])
        result = call("run", "--resume", begun, "-q")
        assert result.code == 2
        assert says in result.err
        assert "continue with" not in result.err
    np.savez("data.npz", **data)
    assert call("run", "--resume", begun, "-q").code == 0


def test_what_is_no_interrupted_run_is_refused(call: Call, begun: str) -> None:
    result = call("run", "--resume", "la-1")
    assert result.code == 2
    assert result.err == (
        f"lipaudit: --resume la-1: expected the folder or name of an interrupted run; there are: {begun}\n"
    )
    assert "there is none in elsewhere" in call("run", "--resume", "la-1", "-o", "elsewhere").err
    call("run", "--resume", begun, "-q")
    assert "this run is finished" in call("run", "--resume", begun).err
    assert "this run is finished" in call("run", "--resume", f"reports/{begun}").err


def test_a_run_on_stdout_keeps_nothing(call: Call, pair: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 2, KeyboardInterrupt())
    result = call("run", *pair, "-o", "-")

    assert result.code == 130
    assert result.err.splitlines()[-1] == "lipaudit: interrupted; no report was written"
    assert written() == []


def test_gates_and_their_origin_go_on_with_the_run(
    call: Call, pair: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("lipaudit.toml").write_text("[gate]\nclean_accuracy = 0.5\n")
    with monkeypatch.context() as patch:
        interrupt(patch, 2, KeyboardInterrupt())
        call("run", *pair, "--exit-zero")
    (folder,) = Path("reports").glob("*.partial")
    name = folder.name.removesuffix(".partial")
    Path("lipaudit.toml").write_text("[gate]\nclean_accuracy = 0.9\n")

    assert "--gate" in call("run", "--resume", name, "--gate", "clean_accuracy>=0.9").err
    result = call("run", "--resume", name)

    assert result.code == 0, result.err
    made = json.loads(only(Path("reports")).read_text())
    assert [gate["expression"] for gate in made["gates"]] == ["clean_accuracy>=0.5"]
    assert made["config"]["origin"]["gates"] == "lipaudit.toml"


def test_a_run_that_an_older_lipaudit_began_goes_on(call: Call, begun: str) -> None:
    file = Path("reports", f"{begun}.partial", "options.json")
    kept = json.loads(file.read_text())
    for name in ("gate", "exit_zero", "origin", "config"):
        kept["options"].pop(name, None)
    file.write_text(json.dumps(kept))

    result = call("run", "--resume", begun)

    assert result.code == 0, result.err
