"""The command line: options that make no sense, each alone and in good company."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hostile.case import Call
from hostile.networks import NAME, stored

from lipaudit.errors import ExitCode

USAGE, CRASH = ExitCode.USAGE, ExitCode.CRASH


def run(*options: str) -> Callable[[Path], list[str]]:
    """`lipaudit run` of the bundled model with these options."""
    return lambda folder: ["run", "--samples", "2", "--attacks", "none", *options]


def own(*options: str) -> Callable[[Path], list[str]]:
    """`lipaudit run` of a good network, checkpoint and data set, with these options more."""

    def make(folder: Path) -> list[str]:
        torch.save(stored(), folder / "weights.pt")
        x = np.random.default_rng(0).random((4, 1, 6, 6), dtype=np.float32)
        np.savez(folder / "images.npz", x=x, y=np.arange(4) % 3)
        good = ["--model", NAME, "--checkpoint", str(folder / "weights.pt"), "--mean", "none"]
        return ["run", *good, "--dataset", f"npz:{folder / 'images.npz'}", "--attacks", "none", *options]

    return make


def words(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(arguments)


def result(content: str | bytes, *options: str) -> Callable[[Path], list[str]]:
    """`lipaudit report` of a file with that content."""

    def make(folder: Path) -> list[str]:
        path = folder / "result.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["report", str(path), "-o", *(options or ("page.html",))]

    return make


def below_a_file(folder: Path) -> list[str]:
    (folder / "file").write_text("x")
    return run("-o", str(folder / "file" / "reports"))(folder)


BUDGETS = (
    "0",
    "-0.5",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1/0",
    "0/255",
    "half",
    "",
    ",",
    "1,,x",
    "0x1p-3",
    "1e-400",
    "½",
    "1;2",
)
TIMES = ("0", "-5", "nan", "1d", "soon", "", "1e3", "10 m m")
SHAPES = ("3", "3,32", "0,8,8", "-1,8,8", "1,8,8,8", "1.5,8,8", "a,b,c", "")
STATISTICS = ("x", "0.5,y", "nan?", "1/0")

CASES = [
    *(Call(f"--eps {e!r}", run("--eps", e), USAGE, "expected eps above 0, a budget such as") for e in BUDGETS),
    *(Call(f"--time-limit {t!r}", run("--time-limit", t), USAGE, "expected a time such as") for t in TIMES),
    *(Call(f"--input-shape {s!r}", run("--input-shape", s), USAGE, "channels,height,width") for s in SHAPES),
    *(Call(f"--mean {m!r}", run("--mean", m), USAGE, "expected numbers such as") for m in STATISTICS),
    *(Call(f"--samples {n}", run("--samples", n), USAGE, "'--samples'") for n in ("0", "-1", "1.5", "nan", "many", "1e3")),
    *(Call(f"--seed {n}", run("--seed", n), USAGE, "'--seed'") for n in ("-1", "x", "0.5")),
    *(Call(f"--batch-size {n}", run("--batch-size", n), USAGE, "'--batch-size'") for n in ("0", "-8", "x")),
    *(Call(f"--num-classes {n}", run("--num-classes", n), USAGE, "'--num-classes'") for n in ("0", "1", "-3", "ten")),
    *(Call(f"--local-samples {n}", run("--local-samples", n), USAGE, "'--local-samples'") for n in ("0", "-1", "x")),
    *(Call(f"--format {f!r}", run("--format", f), USAGE, "expected some of json,html,md") for f in ("pdf", "", "json,pdf", ",")),
    Call("--local maybe", run("--local", "maybe"), USAGE, "'maybe' is not one of"),
    Call("--device tpu", run("--device", "tpu"), USAGE, "'tpu' is not one of"),
    Call("--progress loud", run("--progress", "loud"), USAGE, "'loud' is not one of"),
    Call("an option that is a little off", run("--epss", "1"), USAGE, "Did you mean"),
    Call("an option without its value", run("--eps"), USAGE, "requires an argument"),
    Call("an argument too many", run("more"), USAGE, "unexpected extra argument"),
    *(
        Call(f"words for options: {' '.join(given)}", words(*given), USAGE, f"did you mean: lipaudit {meant}")
        for given, meant in {
            ("run", "resnet18", "cifar10"): "run --model resnet18 --dataset cifar10?",
            ("run", "CIFAR-10", "ResNet18"): "run --dataset cifar10 --model ResNet18?",
            ("run", "net.pt", "imagefolder:val", "8/255"): "run --checkpoint net.pt --dataset imagefolder:val --eps 8/255?",
            ("run", "a b.npz"): "run --dataset 'npz:a b.npz'?",
            ("run", "--model", "resnet18", "cifar10"): "run … --dataset cifar10?",
            ("run", "reports/a.json"): "gate reports/a.json?",
            ("run", "."): "run --dataset imagefolder:.?",
            ("bounds", "resnet18", "cifar10"): "bounds … --dataset cifar10?",
            ("resnet18", "cifar10"): "run --model resnet18 --dataset cifar10?",
            ("cifar-10",): "run --dataset cifar10?",
            ("result.json",): "gate result.json?",
            ("audit", "x"): "run?",
            ("--model", "resnet18"): "run --model …?",
        }.items()
    ),
    *(
        Call(f"too many words: {' '.join(given)}", words(*given), USAGE, says)
        for given, says in {
            ("run", "resnet18", "resnet50"): "unexpected extra arguments (resnet18 resnet50) (lipaudit run --help)",
            ("run", ""): "unexpected extra argument",
            ("run", "\x1b[2J"): "unexpected extra argument (\ufffd[2J)",
            ("datasets", "cifar10"): "unexpected extra argument (cifar10) (lipaudit datasets --help)",
            ("models", "a", "b"): "unexpected extra argument (b)",
            ("frobnicate",): "No such command 'frobnicate'.",
        }.items()
    ),
    Call("a command that is a little off", words("rum"), USAGE, "No such command 'rum'"),
    Call("an attack that is a little off", run("--attacks", "apgd-cee"), USAGE, "apgd-ce"),
    Call("an attack of nothing", run("--attacks", "quick,,no-such"), USAGE, "no-such"),
    Call("an attack that steers the terminal", run("--attacks", "\x1b[2J\nquick"), USAGE, "\\x1b[2J\\nquick"),
    Call("a data set that is a little off", run("--dataset", "cifar11"), USAGE, "did you mean cifar10?"),
    Call("a data set of nothing", run("--dataset", ""), USAGE, "unknown data set"),
    Call("a data set of no file", run("--model", NAME, "--dataset", "npz:"), USAGE, "no file"),
    Call("a data set of no folder", run("--model", NAME, "--dataset", "imagefolder:"), USAGE, "no folder"),
    Call("a named data set with an argument", run("--dataset", "digits:1"), USAGE, "unknown data set"),
    Call("a data set that steers the terminal", run("--dataset", "\x1b[2J\n"), USAGE, "unknown data set"),
    Call("a model that is a little off", run("--model", "digits-aoll", "--dataset", "digits"), USAGE, "digits-aol"),
    Call("a model of nothing", run("--model", "", "--dataset", "digits"), USAGE, ""),
    Call("a model of a million letters", run("--model", "x" * 100_000, "--dataset", "digits"), USAGE, "xxx"),
    Call("a folder of a million letters", run("--model", "digits-cnn", "--dataset", "imagefolder:" + "x" * 100_000), USAGE, "xxx"),
    Call("a file of a million letters", run("--model", "digits-cnn", "--dataset", "npz:" + "x" * 100_000), USAGE, "xxx"),
    Call("a run of a million letters", run("--resume", "x" * 100_000), USAGE, "xxx"),
    Call("a model that climbs", run("--model", "../../etc/passwd", "--dataset", "digits"), USAGE, "passwd"),
    Call("a model in no module", run("--model", "no_such:net", "--dataset", "digits"), USAGE, "no Python module"),
    Call("a model that is no function", run("--model", "os:sep", "--dataset", "digits"), USAGE, "has no function"),
    Call("a model that is a number", run("--model", "os:getpid", "--dataset", "digits"), USAGE, "returned int"),
    Call("a model that leaves", run("--model", "sys:exit", "--dataset", "digits"), USAGE, "SystemExit"),
    Call("a model of timm that is none", run("--model", "timm:no_such", "--dataset", "cifar10", "--offline"), USAGE, "no_such"),
    Call("a model for other data", run("--model", "digits-aol", "--dataset", "cifar10", "--offline"), USAGE, ""),
    Call("no model for the data", run("--dataset", "mnist"), USAGE, "which model for mnist?"),
    Call("no data for the model", run("--model", "timm:resnet18"), USAGE, "which data for timm:resnet18?"),
    Call("other data offline", run("--model", "resnet18", "--dataset", "cifar10", "--offline"), USAGE, "--offline"),
    Call("a checkpoint and random weights", own("--random-weights"), USAGE, "contradict each other"),
    Call("two means for one channel", own("--mean", "0.5,0.5", "--std", "0.5,0.5"), USAGE, "expected 1 numbers"),
    Call("a mean without a std", own("--mean", "0.5"), USAGE, "belong together"),
    Call("no mean, but a std", own("--std", "0.5"), USAGE, "--mean none with numbers in --std"),
    Call("a std of zero", own("--mean", "0.5", "--std", "0"), USAGE, "positive --std"),
    Call("a negative std", own("--mean", "0.5", "--std", "-1"), USAGE, "positive --std"),
    Call("a mean of NaN", own("--mean", "nan", "--std", "1"), USAGE, "expected"),
    Call("a mean of 0 to 255", own("--mean", "127", "--std", "64"), USAGE, "divide them by 255"),
    Call("a shape that the network has not", own("--input-shape", "3,6,6"), USAGE, ""),
    Call("classes that the network has not", own("--num-classes", "4"), USAGE, "has 3 classes, expected 4"),
    Call("a shape beyond memory", own("--input-shape", "1,9999999,9999999"), USAGE, ""),
    Call("an output folder that is a file", below_a_file, USAGE, "cannot write reports into"),
    Call("an output folder of a zero byte", run("-o", "a\0b"), USAGE, ""),
    Call("an output folder that is too long", run("-o", "x" * 5000), USAGE, "name too long"),
    Call("an output folder of the kernel", run("-o", "/proc/reports"), USAGE, "cannot write reports into"),
    Call("a run that is none", words("run", "--resume", "no-such"), USAGE, "expected the folder or name of an interrupted"),
    Call("a run of nothing", words("run", "--resume", ""), USAGE, "expected the folder or name"),
    Call("a run that climbs", words("run", "--resume", "../../x"), USAGE, "expected the folder or name"),
    Call("bounds of nothing", words("bounds"), USAGE, "Missing argument"),
    Call("bounds of an unknown model", words("bounds", "digits-aoll"), USAGE, "digits-aol"),
    Call("coverage of an unknown family", words("survey", "--family", "resnett"), USAGE, "resnet"),
    Call("a result that is missing", words("report", "none.json", "-o", "x.html"), USAGE, "none.json"),
    Call("a result that is empty", result(""), USAGE, "result.json"),
    Call("a result that is text", result("hello"), USAGE, "result.json"),
    Call("a result that is no UTF-8", result(b"\xff\xfe{}"), USAGE, "result.json"),
    Call("a result that is a list", result("[]"), USAGE, "result.json"),
    Call("a result of another program", result('{"a": 1}'), USAGE, "result.json"),
    Call("a result of the future", result('{"schema": "lipaudit-result/9.0"}'), USAGE, "9.0"),
    Call("a result without its content", result('{"schema": "lipaudit-result/1.0"}'), USAGE, "result.json"),
    Call("a result of NaN", result('{"schema": NaN}'), USAGE, "result.json"),
    Call("a result without end", result("[" * 100_000), USAGE, "result.json"),
    Call("a result with a number without end", result(json.dumps({"schema": 1})[:-2] + "9" * 10_000 + "}"), USAGE, "result.json"),
    Call("a page of an unknown kind", result("{}", "page.pdf"), USAGE, "ends in one of .json, .html, .md"),
    Call("a page without an ending", result("{}", "page"), USAGE, "ends in one of .json, .html, .md"),
    Call("a page nowhere", words("report", "none.json"), USAGE, "Missing option"),
]  # fmt: skip
