"""The command line: every bad input is one line that says what to do, every good one leaves whole files."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import audits
import numpy as np
import pytest
import torch
from command_line import Call, audited, call, pair, refused, written
from PIL import Image
from safetensors.torch import save_file
from usermodels import SHAPE, SMALL, Small, Write, user_module

from lipaudit import __version__
from lipaudit.cli import auditing, terminal
from lipaudit.errors import LipauditError
from lipaudit.files import atomic
from lipaudit.results.audit import Audit
from lipaudit.results.threat import DEFAULT_EPS, threats_of
from lipaudit.runs import planning

__all__ = ["audited", "call", "pair", "user_module"]


# --- run


def test_in_a_github_workflow_the_log_and_the_summary_say_what_came_out(
    call: Call, audited: dict[str, Any], pair: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setattr("lipaudit.results.exports.workflow_commands", lambda _: ["::warning title=one::two"])
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = call("run", *pair, "--format", "junit,badge", "-q")
    run = audited["audit"].run
    assert written() == [f"{run}.badge.json", f"{run}.junit.xml"]
    assert summary.read_text().startswith("#")
    assert "::warning title=one::two" in result.err


def test_a_run_writes_whole_reports_and_says_so_on_stderr(
    call: Call, audited: dict[str, Any], pair: list[object]
) -> None:
    result = call("run", *pair)

    run = audited["audit"].run
    assert result.code == audited["audit"].exit_code == 0
    assert result.out == ""
    assert written() == [f"{run}.html", f"{run}.json"]
    assert Path(f"reports/{run}.json").read_text() == audited["audit"].to_json()
    assert Path(f"reports/{run}.html").read_text() == audited["audit"].to_html()
    assert f"reports/{run}.html" in result.err
    assert audited["audit"].verdict.headline in result.err


def test_what_the_options_say_reaches_the_pipeline(call: Call, audited: dict[str, Any], pair: list[object]) -> None:
    call("run", *pair, "--eps", "0.5,36/255", "--eps", "1", "--seed", "7", "--batch-size", "3", "--time-limit", "2m",
         "--arithmetic", "native")  # fmt: skip

    assert threats_of(audited["eps"], ("l2",))[0].eps == ("36/255", "0.5", "1")
    assert audited["attacks"] == ("quick",)
    assert audited["arithmetic"] == audited["config"]["arithmetic"] == "native"
    assert (audited["seed"], audited["batch_size"], audited["time_limit"]) == (7, 3, 120.0)
    assert audited["inputs"].shape == (20, *SHAPE)
    assert len(audited["labels"]) == len(audited["index"]) == 20
    assert audited["model_facts"].classes == 3
    assert audited["data_facts"].seed == 7
    assert audited["command"][:2] == ("lipaudit", "run")
    json.dumps(audited["config"])
    assert audited["config"]["samples"] == 20
    assert audited["config"]["mean"] == "none"
    assert threats_of(audited["config"]["eps"], ("l2",))[0].eps == ("36/255", "0.5", "1")


def test_the_key_of_a_checkpoint_comes_from_anywhere_and_is_said(
    call: Call, audited: dict[str, Any], pair: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Small().state_dict()
    torch.save({"model": state, "ema": {f"module.{n}": t + 1 for n, t in state.items()}}, tmp_path / "w.safetensors")

    assert "say which are meant: --checkpoint-key model" in refused(call("run", *pair))
    results = [call("run", *pair, "--checkpoint-key", "ema")]
    monkeypatch.setenv("LIPAUDIT_CHECKPOINT_KEY", "ema")
    results.append(call("run", *pair))
    monkeypatch.delenv("LIPAUDIT_CHECKPOINT_KEY")
    Path("lipaudit.toml").write_text('[run]\ncheckpoint-key = "ema"\n')
    results.append(call("run", *pair))
    for result in results:
        assert result.code == 0, result.err
        assert "weights of w.safetensors (under ema, without the prefix module.)" in result.err
        assert audited["model_facts"].source.endswith("(under ema, without the prefix module.)")
        assert audited["config"]["checkpoint_key"] == "ema"
        assert torch.equal(audited["model"].linear.bias, state["linear.bias"] + 1)
    assert "add --checkpoint FILE" in call("run", "--checkpoint-key", "ema").err


def test_folders_of_other_classes_never_reach_the_audit(
    call: Call, audited: dict[str, Any], pair: list[object], tmp_path: Path
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "set" / "val" / name).mkdir(parents=True)
        Image.new("RGB", SHAPE[1:]).save(tmp_path / "set" / "val" / name / "1.png")
    pair[3] = "imagefolder:set"
    assert "--dataset imagefolder:set/val" in refused(call("run", *pair, "--input-shape", "3,8,8"))
    pair[3] = "imagefolder:set/val"
    line = refused(call("run", *pair, "--input-shape", "3,8,8", "--num-classes", "3"))
    assert "has 2 folders (cat, dog)" in line
    assert "which are they?" in line
    (tmp_path / "set/val/cat").rename(tmp_path / "set/val/2")
    (tmp_path / "set/val/dog").rename(tmp_path / "set/val/0")
    assert call("run", *pair, "--input-shape", "3,8,8", "--num-classes", "3").code == 0
    assert sorted(audited["labels"].tolist()) == [0, 2]


@pytest.mark.parametrize("code", [0, 3, 4, 5])
def test_the_exit_code_is_the_audits(code: int, call: Call, audited: dict[str, Any], pair: list[object]) -> None:
    audited["audit"] = replace(audited["audit"], exit_code=code)

    assert call("run", *pair).code == code
    assert len(written()) == 2


def test_exit_zero_maps_a_missed_gate_and_nothing_else(call: Call, audited: dict[str, Any], pair: list[object]) -> None:
    for code, expected in ((0, 0), (3, 0), (4, 4), (5, 5)):
        audited["audit"] = replace(audited["audit"], exit_code=code)
        assert call("run", *pair, "--exit-zero").code == expected


def test_several_formats_do_not_fit_on_stdout(call: Call, audited: dict[str, Any], pair: list[object]) -> None:
    assert "expected one --format with -o -" in refused(call("run", *pair, "-o", "-", "--format", "json,html"))
    assert "model" not in audited
    call("run", *pair, "--format", "json,html,md")
    assert [Path(name).suffix for name in written()] == [".html", ".json", ".md"]


def test_stdout_gets_the_result_on_request_and_nothing_else(
    call: Call, audited: dict[str, Any], pair: list[object]
) -> None:
    result = call("run", *pair, "-o", "-")

    assert result.out == audited["audit"].to_json()
    assert written() == []
    assert call("run", *pair, "-o", "-", "--format", "html").out == audited["audit"].to_html()


def test_quiet_is_verdict_and_files(call: Call, audited: dict[str, Any], pair: list[object]) -> None:
    result = call("run", *pair, "-q", "--format", "md")

    verdict = audited["audit"].verdict
    lines = [line for line in result.err.splitlines() if not line.startswith("a library")]
    assert lines[0] == f"{verdict.integrity}  {verdict.headline}"
    assert len(lines) == 2
    assert written() == [f"{audited['audit'].run}.md"]


def test_more_images_than_there_are_is_a_warning(call: Call, audited: dict[str, Any], pair: list[object]) -> None:
    call("run", *pair, "--samples", "31")

    assert audited["warnings"][0].startswith("31 images were asked for")
    assert audited["config"]["samples"] == 30


def test_size_and_attacks_follow_the_time_where_nothing_was_chosen(
    call: Call, audited: dict[str, Any], pair: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "estimate_seconds", lambda *_, samples, **__: {"all": 0.001 * samples})
    free = pair[: pair.index("--samples")]

    call("run", *free)

    assert audited["attacks"] == ("standard",)
    assert len(audited["inputs"]) == 30


def test_help_names_the_default_budgets(call: Call) -> None:
    budgets = ", ".join(f"{norm}:{','.join(eps)}" for norm, eps in DEFAULT_EPS.items())
    assert f"[default: {budgets}]" in " ".join(call("run", "--help").out.split())


def test_without_options_the_bundled_digits_model_is_audited(call: Call, audited: dict[str, Any]) -> None:
    assert call("run").code == 0

    assert audited["model_facts"].name == "digits-aol"
    assert audited["data_facts"].name == "digits"


@pytest.mark.parametrize(
    ("model", "dataset", "expected"),
    [
        (None, None, ("digits-aol", "digits")),
        ("digits-cnn", None, ("digits-cnn", "digits")),
        ("resnet18", None, ("resnet18", "cifar10")),
        (None, "cifar10", ("resnet18", "cifar10")),
        (None, "digits", ("digits-aol", "digits")),
        ("timm:vgg11", "mnist", ("timm:vgg11", "mnist")),
    ],
)
def test_a_model_and_its_data_go_together(model: str | None, dataset: str | None, expected: tuple[str, str]) -> None:
    assert auditing._pair(model, dataset) == expected


@pytest.mark.slow
def test_a_real_audit_of_a_small_network(call: Call, pair: list[object]) -> None:
    result = call("run", *pair, "--samples", "8")

    assert result.code == 0, result.err
    assert result.out == ""
    report = json.loads(next(Path("reports").glob("*.json")).read_text())
    assert report["dataset"]["samples"] == 8
    assert report["verdict"]["integrity"] == "SOUND"


@pytest.mark.slow
def test_the_first_command_of_the_readme_ends_well(call: Call) -> None:
    result = call("run", "--samples", "4", "--attacks", "quick")

    assert result.code == 0, result.err


# --- refusals


USAGE: dict[str, tuple[Sequence[str], str]] = {
    "eps zero": (["--eps", "0"], "--eps: expected eps above 0, a budget such as 36/255 or 0.5, got '0'"),
    "eps negative": (["--eps=-1"], "36/255"),
    "eps nothing": (["--eps", "1/0"], "36/255"),
    "eps text": (["--eps", "small"], "'small'"),
    "eps nan": (["--eps", "nan"], "'nan'"),
    "eps infinite": (["--eps", "inf"], "'inf'"),
    "eps empty": (["--eps", ""], "--eps: expected eps above 0, a budget such as 36/255 or 0.5, got ''"),
    "one bad eps of several": (["--eps", "0.5,x"], "'x'"),
    "attack": (["--attacks", "apgd-ce,nonsense"], "nonsense"),
    "device": (["--device", "tpu"], "cuda"),
    "samples": (["--samples", "0"], "x>=1"),
    "claim": (["--claimed-lipschitz", "nan"], "--claimed-lipschitz': expected a finite number above 0, got nan"),
    "sigma": (["--smoothing", "-1"], "--smoothing': expected a finite number above 0, got -1"),
    "time": (["--time-limit", "soon"], "2h"),
    "format": (["--format", "pdf"], "json,html,md,junit"),
    "shape": (["--input-shape", "32"], "3,32,32"),
    "mean": (["--mean", "a,b,c"], "none"),
    "option": (["--models", "x"], "--model"),
    "model": (["--model", "resnet81", "--dataset", "cifar10"], "resnet18"),
    "data": (["--model", "resnet18", "--dataset", "cifar11"], "cifar10"),
    "attack nearly": (["--attacks", "deepfol"], "did you mean deepfool?"),
    "data folder": (["--model", "digits-cnn", "--data-dir", "none"], "leave it out with digits"),
    "gate": (["--gate", "clean_accuracy>=94"], "expected a share from 0 to 1"),
    "no data named": (["--model", "timm:resnet18"], "--dataset"),
    "no model named": (["--dataset", "mnist"], "--model"),
    "no weights": (["--model", "resnet18", "--dataset", "cifar100"], "--checkpoint"),
    "no data": (["--model", "resnet18", "--dataset", "cifar10", "--offline", "--attacks", "none", "--samples", "9"],
                "cifar-10-python.tar.gz"),
    "no hub weights": (["--model", "timm:test_resnet.r160_in1k", "--dataset", "npz:data.npz", "--offline"],
                       "test_resnet.r160_in1k/model.safetensors"),
    "no checkpoint": (["--model", "resnet18", "--checkpoint", "none.pt"], "no checkpoint at none.pt"),
    "no array": (["--dataset", "npz:none.npz", "--model", "digits-aol"], "none.npz"),
}  # fmt: skip


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("case", USAGE)
def test_bad_usage_is_one_line(case: str, call: Call, audited: dict[str, Any]) -> None:
    arguments, says = USAGE[case]

    assert says in refused(call("run", *arguments))
    assert "model" not in audited


def test_bad_files_are_one_line(call: Call, audited: dict[str, Any], pair: list[object], tmp_path: Path) -> None:
    weights, data = tmp_path / "w.safetensors", tmp_path / "data.npz"
    good = weights.read_bytes()

    weights.write_bytes(good[: len(good) // 2])
    assert "truncated" in refused(call("run", *pair))
    state = Small().state_dict()
    state["norm.running_mean"][1] = float("nan")
    save_file(state, weights)
    assert "norm.running_mean" in refused(call("run", *pair))
    save_file(Small(num_classes=5).state_dict(), weights)
    assert "--num-classes 5" in refused(call("run", *pair))
    weights.write_bytes(good)
    np.savez(data, x=np.full((30, *SHAPE), 255.0), y=np.arange(30) % 3)
    assert "divide them by 255" in refused(call("run", *pair))
    np.savez(data, x=np.zeros((30, *SHAPE)), y=np.arange(30))
    line = refused(call("run", *pair))
    assert 3 <= int(line.partition("has label ")[2].partition(",")[0]) <= 29
    assert "has 3 classes" in line
    assert "model" not in audited


def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    call: Call, audited: dict[str, Any], pair: list[object]
) -> None:
    Path("file").touch()

    line = refused(call("run", *pair, "--out", "file/reports"))

    assert "cannot write reports into file/reports" in line
    assert "--out" in line
    assert "model" not in audited


def test_a_report_that_fails_leaves_no_file(
    call: Call, audited: dict[str, Any], pair: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(audit: Audit) -> str:
        raise ZeroDivisionError(f"in the report of {audit.run}")

    monkeypatch.setattr("lipaudit.report.html.to_html", fail)

    line = refused(call("run", *pair, "-q"), code=1)

    assert "ZeroDivisionError: in the report of" in line
    assert "run again with -vv" in line
    assert "html" not in audited


def test_a_reader_that_goes_away_leaves_the_reports_and_no_journal(
    call: Call, audited: dict[str, Any], pair: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(terminal, "print_lines", broken)
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    assert call("run", *pair).code == 1
    assert written() == [f"{audited['audit'].run}.html", f"{audited['audit'].run}.json"]


def test_a_disk_that_is_full_leaves_no_file(
    call: Call, audited: dict[str, Any], pair: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_text

    def write(path: Path, text: str, **options: Any) -> int:
        if ".html." in path.name:
            real(path, text[:100], **options)
            raise OSError(28, "No space left on device", str(path))
        return real(path, text, **options)

    monkeypatch.setattr(Path, "write_text", write)

    assert "No space left on device" in refused(call("run", *pair, "-q"))
    assert audited["audit"]


def test_the_traceback_comes_on_request(
    call: Call, audited: dict[str, Any], pair: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "audit", lambda *_, **__: 1 / 0)

    assert "Traceback" not in refused(call("run", *pair, "-q"), code=1)
    for result in (call("run", *pair, "-q", "-vv"), call("-vv", "run", *pair, "-q")):
        assert "Traceback" in result.err
        assert result.err.splitlines()[-1] == "lipaudit: ZeroDivisionError: division by zero"
    assert "model" not in audited


def test_interruption_is_130_and_leaves_no_report(
    call: Call, audited: dict[str, Any], pair: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Audit:
        raise KeyboardInterrupt

    monkeypatch.setattr(auditing, "audit", interrupted)

    result = call("run", *pair)

    assert result.code == 130
    assert result.err.splitlines()[-1].startswith("lipaudit: interrupted")
    assert written() == []
    assert "model" not in audited


def test_every_error_class_has_its_exit_code(call: Call, pair: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    def subclasses(kind: type) -> list[type]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in subclasses(child))]

    for kind in subclasses(LipauditError):

        def fail(*_: object, kind: type = kind, **__: object) -> Audit:
            raise kind("expected this,\n got that")

        monkeypatch.setattr(auditing, "audit", fail)
        result = call("run", *pair, "-q")
        assert result.err == "lipaudit: expected this, got that\n"
        assert result.code == kind.exit_code  # type: ignore[attr-defined]


# --- files


def test_texts_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("before")

    with pytest.raises(LipauditError, match="nothing was written"):
        atomic.write_all({tmp_path / "old.json": "after", tmp_path / "old.json" / "x.html": "page"})

    assert (tmp_path / "old.json").read_text() == "before"
    assert written(tmp_path) == ["old.json"]


def test_reports_can_be_read_by_others(tmp_path: Path) -> None:
    atomic.write_all({tmp_path / "new" / "a.json": "ε\n"})

    assert (tmp_path / "new" / "a.json").read_bytes() == "ε\n".encode()
    (tmp_path / "plain").touch()
    assert (tmp_path / "new" / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- the other commands


def test_report_writes_formats_of_other_tools(call: Call, tmp_path: Path) -> None:
    audit = audits.filed(audits.strong(40))
    (tmp_path / "result.json").write_text(audit.to_json())

    assert call("report", "result.json", "-o", "Mine.json", "--format", "robustbench").code == 0
    assert call("report", "result.json", "-o", "-", "--format", "huggingface").out.startswith("model-index:")
    assert json.loads((tmp_path / "Mine.json").read_text())["eps"] == audit.threat.eps[0]
    (tmp_path / "invalid.json").write_text(audits.filed(audits.invalid(40)).to_json())
    assert "nothing to publish" in refused(call("report", "invalid.json", "-o", "-", "--format", "huggingface"))


def test_report_writes_the_same_page_again(call: Call, tmp_path: Path) -> None:
    audit = audits.filed(audits.vacuous(40))
    (tmp_path / "result.json").write_text(audit.to_json())

    assert call("report", "result.json", "-o", "page.html").code == 0
    assert call("report", "result.json", "-o", "note.md").code == 0

    assert (tmp_path / "page.html").read_text() == audit.to_html()
    assert (tmp_path / "note.md").read_text().startswith("### ")
    assert call("report", "result.json", "-o", "-").out == audit.to_html()


@pytest.mark.parametrize(
    ("content", "out", "says"),
    [
        ("{}", "page.html", "expected a lipaudit result"),
        ("not json", "page.html", "JSON"),
        (None, "page.html", "cannot read"),
        ("{}", "page.pdf", ".html"),
    ],
)
def test_bad_results_are_one_line(content: str | None, out: str, says: str, call: Call) -> None:
    if content is not None:
        Path("result.json").write_text(content)

    assert says in refused(call("report", "result.json", "-o", out))
    assert not Path(out).exists()


def test_bounds_prints_the_ledger_and_the_network_bound(call: Call, user_module: Write) -> None:
    name = user_module(SMALL)

    result = call("bounds", f"{name}:seeded", "--input-shape", "3,8,8")

    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].split()[:3] == ["layer", "op", "bound"]
    assert any(line.startswith("linear ") for line in lines)
    assert lines[-1].startswith("network bound ")
    assert "3×8×8" in lines[-1]


def test_bounds_prints_json(call: Call, user_module: Write) -> None:
    name = user_module(SMALL)

    result = call("bounds", f"{name}:seeded", "--input-shape", "3,8,8", "--format", "json")

    found = json.loads(result.out)
    assert found["kind"] == "lipaudit-bound/1.0"
    assert len(found["bound"]["pairwise"]) == 3
    assert found["bound"]["log10"] == found["bound"]["layers"][-1]["log10_so_far"]


def test_bounds_refuses_in_one_line(call: Call) -> None:
    assert "--input-shape" in refused(call("bounds", "resnet18.py:make", "--input-shape", "3,8"))
    assert "torchvision:vgg11" in refused(call("bounds", "vgg11"))


def test_models_and_datasets_are_listed(call: Call) -> None:
    models, data = call("models").out, call("datasets").out

    assert models.splitlines()[0].split()[:2] == ["name", "trained"]
    assert all(name in models for name in ("digits-aol", "digits-cnn", "resnet18", "timm:NAME"))
    assert all(name in data for name in ("digits", "cifar10", "npz:FILE", "imagefolder:DIR"))
    assert "timm:resnet18.a1_in1k" in call("models", "resnet18").out
    assert "'xyzzyq'" in refused(call("models", "xyzzyq"))


def test_env_prints_versions(call: Call) -> None:
    out = call("env").out

    assert f"lipaudit {__version__}" in " ".join(out.split())
    assert torch.__version__.partition("+")[0] in out


def test_an_unknown_command_is_one_line(call: Call) -> None:
    assert "frobnicate" in refused(call("frobnicate"))


def test_version(call: Call) -> None:
    assert call("--version").out == f"lipaudit {__version__}\n"


# --- start-up


def test_help_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, lipaudit.cli\n"
        "try: lipaudit.cli.main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'timm', 'art', 'rich', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_help_answers_at_once() -> None:
    """In processor time: what a busy machine adds says nothing about the program."""
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "lipaudit", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    assert min(taken) < 0.3
