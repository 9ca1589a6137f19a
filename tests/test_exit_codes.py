"""Every exit code of the command line, each reached once by what causes it, on the bundled digits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Call, call

from lipaudit.cli.interrupt import Interruption, Stoppable, interruption
from lipaudit.progress import Silent
from lipaudit.runs import audit

__all__ = ["call"]

QUICK = (
    "run", "--model", "digits-cnn", "--samples", 6, "--attacks", "deepfool", "--local", "off",
    "--global-method", "product", "-q",
)  # fmt: skip


def result() -> dict[str, Any]:
    (file,) = Path("reports").glob("*.json")
    return json.loads(file.read_text(encoding="utf-8"))


def test_0_a_sound_audit_whose_gates_pass(call: Call) -> None:
    ran = call(*QUICK, "--gate", "clean_accuracy>=0.5", "--gate", "empirical_robust_accuracy@36/255>=0.5,warn")

    assert ran.code == 0, ran.err
    assert (result()["exit_code"], result()["verdict"]["gate"]) == (0, "passed")
    assert result()["config"]["origin"] == {
        "model": "--model", "samples": "--samples", "attacks": "--attacks", "local": "--local", "gates": "--gate",
        "global_method": "--global-method",
    }  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_1_the_disk_is_full() -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "lipaudit", "explain"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    assert ran.returncode == 1
    assert ran.stderr.startswith("lipaudit: OSError: ")
    assert "No space left on device" in ran.stderr


def test_2_a_gate_that_is_none(call: Call) -> None:
    ran = call(*QUICK, "--gate", "clean_acuracy>=0.5")

    assert ran.code == 2
    assert ran.err.startswith("lipaudit: gate 'clean_acuracy>=0.5': ")
    assert not Path("reports").exists()


def test_3_a_gate_is_missed(call: Call) -> None:
    missed = ("--gate", "certified_accuracy@1>=0.99")

    ran = call(*QUICK, *missed)
    assert ran.code == 3, ran.err
    assert "Gate failed: 1 of 1 condition." in ran.err
    assert (result()["exit_code"], result()["status"]) == (3, "complete")
    file = next(Path("reports").glob("*.json"))
    assert call("gate", file).code == 3
    assert call("gate", file, "--exit-zero").code == 0
    assert call("gate", file, "--gate", "clean_accuracy>=0.1").code == 0
    assert call("gate", file, "--gate", "empirical_robust_accuracy@0.3>=0.01", "--exit-zero").code == 5


def test_4_a_planted_wrong_bound(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairwise bounds fifty times too small: an attack gets inside the radii that follow. No option hides it."""
    honest = audit.compose

    def lying(*arguments: Any, **options: Any) -> Any:
        made = honest(*arguments, **options)
        pairwise = tuple(tuple(value / 50 for value in row) for row in made.network.pairwise)
        return replace(made, network=replace(made.network, pairwise=pairwise))

    monkeypatch.setattr(audit, "compose", lying)
    ran = call(*QUICK, "--model", "digits-aol", "--gate", "clean_accuracy>=1", "--exit-zero")

    assert ran.code == 4, ran.err
    assert "INVALID" in ran.err
    assert {gate["state"] for gate in result()["gates"]} == {"cannot be evaluated"}
    assert call("gate", next(Path("reports").glob("*.json")), "--gate", "clean_accuracy>=0", "--exit-zero").code == 4


def test_5_an_attack_without_time(call: Call) -> None:
    ran = call(*QUICK, "--time-limit", "0.01s", "--gate", "clean_accuracy>=1", "--exit-zero")

    assert ran.code == 5, ran.err
    assert "Incomplete" in ran.err
    assert result()["status"] == "partial"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
@pytest.mark.parametrize(
    ("number", "code", "how"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.slow),
    ],
)
def test_130_ctrl_c_and_143_sigterm(number: int, code: int, how: str, tmp_path: Path) -> None:
    """A real signal in a real process, once something is finished that can be resumed."""
    command = [
        sys.executable, "-m", "lipaudit", "run", "--model", "digits-cnn", "--samples", "8",
        "--attacks", "deepfool,pgd-at-radius,apgd-ce",
        "--local", "off", "--global-method", "product", "--batch-size", "2",
    ]  # fmt: skip
    said = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith("attack pgd-at-radius"):
                process.send_signal(number)
    assert process.returncode == code
    (folder,) = (tmp_path / "reports").iterdir()
    name = f"reports/{folder.name.removesuffix('.partial')}"
    assert said[-1].startswith(f"lipaudit: {how}; no report was written; what is finished is kept")
    assert said[-1].endswith(f"continue with: lipaudit run --resume {name}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_somebody_swallows_comes_again(number: int) -> None:
    before = signal.getsignal(number)
    with interruption() as stop:
        progress = Stoppable(Silent(), stop)
        progress.start("one")
        try:
            signal.raise_signal(number)
        except BaseException:  # noqa: BLE001  (what the import of some libraries does)
            assert stop.asked
            assert stop.terminated == (number == signal.SIGTERM)
        for report in (lambda: progress.start("two"), progress.advance, progress.finish, lambda: progress.say("three")):
            with pytest.raises(KeyboardInterrupt):
                report()
    assert signal.getsignal(number) is before
    assert not Interruption().asked
