"""What an audit costs over its attacks: wall time over the time that the same attacks take when called bare.

    python tests/benchmarks/overhead.py                                    # digits-cnn
    python tests/benchmarks/overhead.py --model resnet18 --samples 16 --attacks quick --data-dir DIR   # CIFAR-10 in DIR

One process runs `lipaudit run` as the command line does, and writes down what each attack was given, batch by batch.
Then the attack functions of the libraries get the same batches again, with nothing of lipaudit around them but the
network: that is the bare time. Printed are the seconds of the stages, and both times and their ratio. `--repeat` runs
the pair several times; the smallest of each counts. On a machine that others use as well, `--cpu` takes processor time,
and the third line is the steadiest: the same attacks as they ran inside `lipaudit run`, in the same minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lipaudit import cli
from lipaudit.certification import held, network_bound
from lipaudit.crosscheck.isolation import sealed
from lipaudit.crosscheck.registry import Attack, Batch
from lipaudit.crosscheck.unit_box import UnitBox
from lipaudit.verdict.consistency import load_audit

CALLS: list[tuple[Attack, UnitBox, Batch]] = []
INSIDE = [0.0]
"""Seconds of the attacks inside the last run."""
CLOCK = [time.perf_counter]
PARTS: dict[str, float] = {}
"""Seconds inside the last run: of holding the model against its graph (`look`), of capture, of torch's own export."""


def recording(entry: Attack, network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Stands in for `Attack.__call__`: the attack, and a note of what it was given."""
    given = Batch(batch.inputs.clone(), batch.labels.clone(), batch.budget, batch.seed, batch.norm)
    CALLS.append((entry, network, given))
    claims = entry.run(network, batch)
    while True:
        begun = CLOCK[0]()
        claim = next(claims, None)
        INSIDE[0] += CLOCK[0]() - begun
        if claim is None:
            return
        yield claim


def clocked(owner: object, name: str) -> None:
    """Adds up the seconds of a function of `owner`, those of calls inside itself once."""
    function, deep = getattr(owner, name), [0]
    PARTS[name] = 0.0

    @functools.wraps(function)
    def called(*args: object, **kwargs: object) -> object:
        begun, deep[0] = CLOCK[0](), deep[0] + 1
        try:
            return function(*args, **kwargs)
        finally:
            deep[0] -= 1
            PARTS[name] += 0.0 if deep[0] else CLOCK[0]() - begun

    setattr(owner, name, called)


def audited(arguments: list[str]) -> tuple[float, dict[str, float]]:
    """Seconds of a whole run of the command line but for its imports, and of its stages."""
    CALLS.clear()
    INSIDE[0] = 0.0
    PARTS.update(dict.fromkeys(PARTS, 0.0))
    with tempfile.TemporaryDirectory() as folder:
        begun = CLOCK[0]()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                cli.main([*arguments, "-o", folder, "-q"])
            except SystemExit as ended:
                if ended.code not in (0, 5):
                    raise RuntimeError(said.getvalue()) from None
        seconds = CLOCK[0]() - begun
        (file,) = Path(folder).glob("*.json")
        return seconds, load_audit(file).timing


def bare() -> float:
    """Seconds of the attacks alone."""
    seconds = 0.0
    for entry, network, batch in CALLS:
        with sealed(batch.seed, [], network.device):
            begun = CLOCK[0]()
            for _claim in entry.run(network, batch):
                pass
            seconds += CLOCK[0]() - begun
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits-cnn")
    parser.add_argument("--data-dir", help="Folder of the data set of the model.")
    parser.add_argument("--samples", default="500")
    parser.add_argument("--attacks", default="standard")
    parser.add_argument("--local", default="off", help="Local radii, which have a budget of their own.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="Processor time instead of wall time, for the totals.")
    args = parser.parse_args()
    CLOCK[0] = time.process_time if args.cpu else time.perf_counter
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    Attack.__call__ = recording  # type: ignore[method-assign]
    clocked(held.Held, "look")
    clocked(network_bound, "capture")
    clocked(torch.export, "export")
    arguments = ["run", "--model", args.model, "--samples", args.samples, "--attacks", args.attacks]
    arguments += ["--local", args.local] + (["--data-dir", args.data_dir] if args.data_dir else [])
    audited([*arguments[:3], "--samples", "2", "--attacks", "none", "--local", "off", *arguments[9:]])  # to warm up
    import art.attacks.evasion  # noqa: F401  likewise

    runs = []
    for _ in range(args.repeat):
        whole, stages = audited(arguments)
        runs.append((whole, stages, INSIDE[0], bare(), dict(PARTS)))
    alone = min(run[3] for run in runs)
    whole, stages, inside, _, parts = min(runs, key=lambda run: run[0])
    sys.stdout.write("stages in wall time: " + ", ".join(f"{name} {stages[name]:.2f} s" for name in stages) + "\n")
    for name, seconds in (("attacks alone", alone), ("lipaudit run", whole)):
        sys.stdout.write(f"{name:<16} {seconds:9.2f} s  {seconds / alone:7.3f}\n")
    sys.stdout.write(f"lipaudit run over the attacks inside it {whole / inside:7.3f}\n")
    for name, what in (
        ("look", "the model held against its graph"),
        ("capture", "capture"),
        ("export", "of it, export"),
    ):
        sys.stdout.write(f"{what:<34} {parts[name]:7.2f} s  {100 * parts[name] / whole:6.2f} % of lipaudit run\n")


if __name__ == "__main__":
    main()
