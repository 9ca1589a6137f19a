"""The mutation score: each mutant of the engine, one at a time, against the tests that ought to kill it.

    python tests/mutation/score.py [--quick] [NAME ...]

A mutant is applied to a copy of the package in a temporary folder; its tests run in a forked process, `-x`, with a time
limit. Prints a line for each, and ends with 1 if one survives. A mutant that does not apply any more is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from mutants import MUTANTS, Mutant  # noqa: E402

SECONDS = 900
"""For the tests of one mutant. One that takes longer is late: nobody has noticed it."""
LOADED = (
    "torch",
    "torchvision",
    "scipy.stats",
    "sklearn.datasets",
    "hypothesis",
    "mpmath",
    "pytest",
    "safetensors.torch",
)
"""What every test needs, loaded once: the processes are forked afterwards."""
IGNORED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
"""Of what is loaded already."""
WHOLE = ("tests/mutation/test_exact.py", "tests/norms/test_known.py")
"""Pass on a copy without a mutant: where they do not, no failure means anything."""

Outcome = Literal["killed", "SURVIVED", "late", "broken"]


def applied(mutant: Mutant, root: Path) -> str:
    """The file's text with the mutation. Raises `ValueError` if the old text does not occur exactly once."""
    text = (root / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {text.count(mutant.old)} places in {mutant.file}, expected one")
    return text.replace(mutant.old, mutant.new)


def copied(folder: Path) -> Path:
    """A copy of the package and its templates."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("lipaudit", "templates"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


@contextlib.contextmanager
def mutated(mutant: Mutant, copy: Path) -> Iterator[None]:
    """The copy with the mutation in it."""
    place = copy / mutant.file
    before = place.read_text(encoding="utf-8")
    place.write_text(applied(mutant, copy), encoding="utf-8")
    try:
        yield
    finally:
        place.write_text(before, encoding="utf-8")


def tests_fail(tests: Sequence[str], copy: Path, log: Path) -> int | None:
    """The exit code of pytest on the copy, in a process of its own; None if it took too long."""
    pid = os.fork()
    if pid == 0:
        _run_tests(tests, copy, log)
    began = time.monotonic()
    while time.monotonic() - began < SECONDS:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _run_tests(tests: Sequence[str], copy: Path, log: Path) -> None:
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(ROOT)
        sys.dont_write_bytecode = True
        os.environ.setdefault("LIPAUDIT_FUZZ_SECONDS", "4")
        sys.path.insert(0, str(copy))
        import pytest

        import lipaudit

        assert Path(lipaudit.__file__).is_relative_to(copy), lipaudit.__file__
        code = int(pytest.main(["-x", "-q", "-m", "", "-p", "no:randomly", "-p", "no:cacheprovider", *IGNORED, *tests]))
    except BaseException:  # noqa: BLE001  (a child: whatever it is, it goes into the log)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def judge(mutant: Mutant, copy: Path, log: Path) -> Outcome:
    """Killed if a test failed, or an import."""
    with mutated(mutant, copy):
        code = tests_fail(sorted(mutant.tests, key=lambda test: test not in WHOLE), copy, log)
    if code is None:
        return "late"
    return "SURVIVED" if code == 0 else "killed" if code in (1, 2) else "broken"


def first_failure(log: Path) -> str:
    """The test that killed it, as pytest's summary has it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))), "an import")


def score(chosen: Sequence[Mutant]) -> int:
    """Prints what became of each mutant; how many were not killed."""
    for name in LOADED:
        importlib.import_module(name)
    left: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        copy = copied(Path(name))
        if tests_fail(WHOLE, copy, Path(name) / "log.txt") != 0:
            raise RuntimeError((Path(name) / "log.txt").read_text(encoding="utf-8")[-2000:])
        for number, mutant in enumerate(chosen, 1):
            start, log = time.monotonic(), Path(name) / "log.txt"
            outcome = judge(mutant, copy, log)
            print(f"{number:3} {outcome:8} {time.monotonic() - start:5.1f} s  {mutant.name}", flush=True)  # noqa: T201
            if outcome != "killed":
                left.append(mutant.name)
            if outcome == "killed":
                print("      ", first_failure(log), flush=True)  # noqa: T201
            if outcome == "broken":
                print(log.read_text(encoding="utf-8")[-2000:])  # noqa: T201
    killed = len(chosen) - len(left)
    print(f"{killed} of {len(chosen)} killed in {time.monotonic() - began:.0f} s")  # noqa: T201
    return len(left)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only mutants whose name contains one of these")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N parts, to share the work")
    parser.add_argument("--quick", action="store_true", help="a few that take little time")
    given = parser.parse_args()
    chosen = [
        mutant
        for mutant in MUTANTS
        if (mutant.quick or not given.quick) and (not given.names or any(part in mutant.name for part in given.names))
    ]
    number, parts = map(int, given.part.split("/"))
    return 1 if score(chosen[number - 1 :: parts]) else 0


if __name__ == "__main__":
    sys.exit(main())
