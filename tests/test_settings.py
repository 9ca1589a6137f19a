"""One field is a whole option; and what a setting was once called still works, and says what it is called now."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Call, audited, call, pair
from torch import nn
from usermodels import user_module

import lipaudit
from lipaudit import settings as house
from lipaudit.cli.main import commands
from lipaudit.errors import BadThreat, ConfigError
from lipaudit.settings import RunSettings, Settings, named, options_of, recorded

__all__ = ["audited", "call", "pair", "user_module"]

TRIAL = """
    trial_effort: int = option(3, "How hard to try.", PROOF, "proof", Whole(1), metavar="N")
"""
EVERYWHERE = """
import contextlib, io, json, os, sys, types, warnings
from pathlib import Path
import lipaudit

# `lipaudit.settings` with one line more.
home = Path(lipaudit.__file__).with_name("settings.py")
before, class_, after = home.read_text(encoding="utf-8").partition("    local: Local = option(")
module = sys.modules["lipaudit.settings"] = types.ModuleType("lipaudit.settings")
lipaudit.settings = module
exec(compile(before + TRIAL + class_ + after, str(home), "exec"), module.__dict__)

from lipaudit import cli
from lipaudit.cli import auditing

def call(*arguments):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in "12")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([*map(str, arguments)])
        except SystemExit as ended:
            code = int(ended.code or 0)
    for stream in (out, err):
        stream.seek(0)
    return code, out.read(), err.read()

found, honest = {}, auditing.audit
SMALL = ["run", "--samples", 2, "--attacks", "none", "--local", "off", "-q", "--format", "json"]
SMALL += ["--model", "digits-aol"]

def result(*arguments):
    code, out, err = call(*SMALL, "-o", "-", *arguments)
    assert code == 0, err
    return json.loads(out)["config"]

found["help"] = " ".join(call("run", "--help")[1].split())
os.environ.update({"_LIPAUDIT_COMPLETE": "bash_complete", "COMP_WORDS": "lipaudit run --tri", "COMP_CWORD": "2"})
found["completion"] = call()[1]
for name in ("_LIPAUDIT_COMPLETE", "COMP_WORDS", "COMP_CWORD"):
    del os.environ[name]
found["command line"] = result("--trial-effort", 4)["trial_effort"]
found["refused"] = call(*SMALL, "--trial-effort", 0)[2]
os.environ["LIPAUDIT_TRIAL_EFFORT"] = "5"
made = result()
found["environment"] = [made["trial_effort"], made["origin"]["trial_effort"]]
del os.environ["LIPAUDIT_TRIAL_EFFORT"]
Path("lipaudit.toml").write_text("[run]\\ntrial-effort = 6\\n")
found["file"] = result()["trial_effort"]
Path("lipaudit.toml").write_text('[run]\\ntrial-effort = "much"\\n')
found["file refused"] = call(*SMALL)[2]
Path("lipaudit.toml").unlink()

def interrupted(*arguments, **options):
    raise KeyboardInterrupt

from lipaudit.runs import audit as pipeline
slopes, pipeline._slopes = pipeline._slopes, interrupted
found["interrupted"] = call(*SMALL, "--trial-effort", 7)[0]
pipeline._slopes = slopes
(folder,) = Path("reports").glob("*.partial")
found["journal"] = json.loads((folder / "manifest.json").read_text())["audited"]["settings"]["trial_effort"]
found["resume refused"] = call("run", "--resume", folder.stem, "--trial-effort", 8)[2]
found["resume"] = call("run", "--resume", folder.stem, "-q")[0]
(made,) = Path("reports").glob("*.json")
found["resumed"] = json.loads(made.read_text())["config"]["trial_effort"]

import torch
from torch import nn
model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
x = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
y = model(x).argmax(1)
how = {"attacks": "none", "local": "off"}
base, new = (lipaudit.audit(model, x, y, trial_effort=effort, **how) for effort in (3, 9))
found["library"] = new.config["trial_effort"]
from lipaudit.verdict.comparison import compare
found["compare"] = compare(base, new).notes
shards = [lipaudit.audit(model, x, y, trial_effort=k, shard=(k, 2), **how) for k in (1, 2)]
try:
    lipaudit.merge(shards)
except lipaudit.errors.ReportError as error:
    found["shards"] = str(error)
from lipaudit.integrations.pytest_plugin import assert_certified
found["pytest"] = assert_certified(model, (x, y), eps=1e-9, at_least=0.1, trial_effort=10).config["trial_effort"]
from art.estimators.classification import PyTorchClassifier
from lipaudit.integrations.art import LipschitzAudit
classifier = PyTorchClassifier(
    model, nn.CrossEntropyLoss(), input_shape=(1, 2, 2), nb_classes=2, clip_values=(0, 1), device_type="cpu"
)
found["ART"] = LipschitzAudit(trial_effort=11, **how).evaluate(classifier, x.numpy(), y.numpy()).config["trial_effort"]
import inspect
found["signature"] = "trial_effort" in inspect.signature(lipaudit.audit).parameters
print(json.dumps(found))
"""
PLACES: dict[str, Any] = {
    "command line": lambda f: f == 4,
    "refused": lambda f: "Invalid value for '--trial-effort': 0 is not in the range x>=1" in f,
    "environment": lambda f: f == [5, "LIPAUDIT_TRIAL_EFFORT"],
    "file": lambda f: f == 6,
    "file refused": lambda f: "[run] trial-effort: expected a number, got 'much'" in f,
    "help": lambda f: "--trial-effort N How hard to try. [default: 3; x>=1]" in f,
    "completion": lambda f: f.strip() == "plain,--trial-effort",
    "interrupted": lambda f: f == 130,
    "journal": lambda f: f == 7,
    "resume refused": lambda f: "--trial-effort: a run goes on with the options that it was begun with" in f,
    "resume": lambda f: f == 0,
    "resumed": lambda f: f == 7,
    "library": lambda f: f == 9,
    "signature": lambda f: f is True,
    "compare": lambda f: "trial_effort 3 → 9: another effort at proving" in f,
    "shards": lambda f: "expected shards of one audit, got another settings" in f and "trial_effort" in f,
    "pytest": lambda f: f == 10,
    "ART": lambda f: f == 11,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of one line more in `settings.py`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"TRIAL = {TRIAL!r}\n{EVERYWHERE}"],
        cwd=tmp_path_factory.mktemp("trial"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("place", PLACES)
def test_one_field_is_a_whole_option(found: dict[str, Any], place: str) -> None:
    assert PLACES[place](found[place]), found[place]


def test_all_places_were_looked_at(found: dict[str, Any]) -> None:
    assert found.keys() == PLACES.keys()


def test_the_command_line_has_every_setting_once() -> None:
    typed = [flag for option in commands.commands["run"].params for flag in option.opts if not option.hidden]
    expected = [one.typed for one in options_of().values() if not one.library_only]
    assert sorted(flag for flag in typed if flag.startswith("--")) == sorted(expected)


def test_every_setting_belongs_somewhere() -> None:
    for one in options_of().values():
        assert one.help.endswith(".") or one.shown, one.name
        assert one.group in house.GROUPS
    assert named("question", "proof", "attack", "place", "output") == options_of().keys()


# --- older names


@pytest.mark.parametrize(
    ("given", "where", "says", "found"),
    [
        (["--promise", "F"], "--promise", "--promise is called --arithmetic now: --arithmetic native", "native"),
        (["--tight"], "--tight", "--tight is called --norms now: --norms tight", "tight"),
    ],
)
def test_an_older_option_works_and_says_what_it_is_called_now(
    call: Call, audited: dict[str, Any], pair: list[object], given: list[str], where: str, says: str, found: str
) -> None:
    result = call("run", *pair, *given)

    name = "norms" if where == "--tight" else "arithmetic"
    assert result.code == 0, result.err
    assert f"lipaudit: {says}" in result.err.splitlines()
    assert (audited[name], audited["config"]["origin"][name]) == (found, where)
    assert where not in call("run", "--help").out


def test_newer_and_typed_comes_before_older_in_a_file(
    call: Call, audited: dict[str, Any], pair: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("lipaudit.toml").write_text('[run]\ntight = true\npromise = "D"\n')
    monkeypatch.setenv("LIPAUDIT_PROMISE", "F")

    assert call("run", *pair, "--norms", "best").code == 0
    assert (audited["norms"], audited["arithmetic"]) == ("best", "native")
    assert audited["config"]["origin"]["arithmetic"] == "LIPAUDIT_PROMISE"
    assert "leave --promise out" in call("run", *pair, "--promise", "F", "--arithmetic", "real").err


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), torch.rand(3, 1, 2, 2)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"method": "global"}, {"local": "off"}),
        ({"method": "best"}, {"local": "auto"}),
        ({"method": "local"}, {"local": "on"}),
        ({"promise": "F", "local": "off"}, {"arithmetic": "native", "local": "off"}),
    ],
)
def test_older_keywords_of_certify(older: dict[str, Any], newer: dict[str, Any]) -> None:
    model, x = network()
    with pytest.warns(DeprecationWarning, match=r"certify\(\w+=...\) is called (local|arithmetic) now") as warned:
        found = lipaudit.certify(model, x, **older)
    assert warned[0].filename == __file__
    assert found.rows == lipaudit.certify(model, x, **newer).rows


def test_older_keywords_of_bound_and_audit() -> None:
    model, x = network()
    with pytest.warns(DeprecationWarning, match="bound.method=.* is called norms now: norms='tight'"):
        lipaudit.bound(model, (1, 2, 2), method="tight")
    with pytest.warns(DeprecationWarning, match="audit.promise=.* is called arithmetic now: arithmetic='float64'"):
        made = lipaudit.audit(model, x, model(x).argmax(1), attacks="none", local="off", promise="D")
    assert made.config["arithmetic"] == "float64"
    assert made.arithmetic.startswith("Float64")


def test_settings_of_older_results_are_read_by_todays_names() -> None:
    old = {"promise": "F", "tight": True, "local": "on"}
    assert [recorded(old, name) for name in ("arithmetic", "norms", "local", "seed")] == ["native", "tight", "on", 0]


# --- the library


def test_settings_and_keywords_say_the_same() -> None:
    model, x = network()
    labels = model(x).argmax(1)
    how = Settings(attacks="none", local="off", seed=3, mean=(0.5,), std=(0.25,))
    one = lipaudit.audit(model, x, labels, settings=how)
    two = lipaudit.audit(model, x, labels, attacks="none", local="off", seed=3, mean=(0.5,), std=(0.25,))
    assert one.config == two.config
    assert one.config.keys() >= Settings().config().keys()
    assert lipaudit.audit(model, x, labels, settings=how, seed=4).config["seed"] == 4


@pytest.mark.parametrize(
    ("keywords", "error", "says"),
    [
        ({"norm": "best"}, BadThreat, "expected a norm, l2, linf, l1, got 'best'"),
        ({"norm": ()}, BadThreat, "expected a norm, l2, linf, l1, got none"),
        ({"eps": 1, "norm": "linf,l2"}, BadThreat, "which norm is the budget 1 for"),
        ({"eps": "l1:1", "norm": "linf"}, BadThreat, "budget 1 is for l1, which is not asked for"),
        ({"gates": "certified_accuracy[l1]@1>=0.5"}, ConfigError, r"expected l2; audit with --norm l2,l1"),
        ({"norm": "linf", "clever": True}, BadThreat, "clever is about L2: add l2"),
        ({"samples": 3}, TypeError, "unexpected keyword argument 'samples'"),
        ({"local": "maybe"}, ConfigError, "local: expected auto, on, thorough, off, got 'maybe'"),
        ({"arithmetic": "F"}, ConfigError, "arithmetic: expected real, native, float64, got 'F'"),
        ({"batch_size": 0}, ConfigError, "batch_size: expected a whole number from 1 on, got 0"),
        ({"seed": -1}, ConfigError, "seed: expected a whole number from 0 on, got -1"),
    ],
)
def test_what_is_no_setting_is_refused(keywords: dict[str, Any], error: type[Exception], says: str) -> None:
    model, x = network()
    with pytest.raises(error, match=says):
        lipaudit.audit(model, x, [0, 1, 0], **keywords)


def test_certify_takes_no_attacks() -> None:
    with pytest.raises(TypeError, match=r"certify\(\) got an unexpected keyword argument 'attacks'"):
        lipaudit.certify(*network(), attacks="quick")


def test_a_run_has_all_settings_of_an_audit() -> None:
    assert options_of(Settings).keys() < options_of(RunSettings).keys()
