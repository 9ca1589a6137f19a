"""Runs `lipaudit run` in child processes, kills them and resumes them; test_resume.py starts it, as a process.

The children are forked after everything is imported that a run imports, and before autograd has run, which does not
survive a fork: so each begins at once. Prints one line per child: whether it was killed, and how many parts were
finished before and after.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lipaudit import cli

RUN = [
    "run",
    "--model",
    "killed:network",
    "--mean",
    "none",
    "--samples",
    "12",
    "--attacks",
    "deepfool,fab-t-quick,pgd-at-radius,apgd-ce",
    "--eps",
    "0.2,0.5",
    "--batch-size",
    "3",
    "--local",
    "on",
    "--local-samples",
    "3",
    "--progress",
    "off",
]
KILLS = 10


def network() -> nn.Module:
    """A small network with weights of its own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


def write_images(file: Path) -> None:
    """Images that the network classifies as their labels say."""
    images = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.savez(file, x=images.numpy(), y=network()(images).argmax(1).numpy())


def child(arguments: list[str], imported: Path | None = None) -> int:
    """The process id of a run, which writes at its end what it has imported."""
    pid = os.fork()
    if pid == 0:
        try:
            cli.main(arguments)
        except SystemExit as ended:
            if imported is not None:
                imported.write_text("\n".join(sys.modules), encoding="utf-8")
            os._exit(int(ended.code or 0))
        os._exit(99)
    return pid


def ended(pid: int) -> int | None:
    """Its exit code, None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def parts(folder: Path) -> dict[str, int]:
    """Finished parts, and when each was written."""
    return {f"{path.parent.name}/{path.name}": path.stat().st_mtime_ns for path in folder.glob("*.partial/*.npz")}


def whole(arguments: list[str], imported: Path | None = None) -> None:
    _, status = os.waitpid(child(arguments, imported), 0)
    assert os.waitstatus_to_exitcode(status) == 0, arguments


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    imported = folder / "imported.txt"
    write_images(folder / "images.npz")
    RUN.extend(["--dataset", f"npz:{folder / 'images.npz'}"])
    whole([*RUN, "-o", str(folder / "whole")], imported)
    for name in imported.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(Exception):  # some are no files, and some do not like to be imported alone
            importlib.import_module(name)
    begun = time.monotonic()
    whole([*RUN, "-o", str(folder / "again")])
    length = time.monotonic() - begun
    out, kills, moments = folder / "killed", 0, random.Random(0)
    arguments = [*RUN, "-o", str(out)]
    print("a run takes", length, "s", file=sys.stderr)  # noqa: T201
    while kills < KILLS:
        before = parts(out)
        pid, until = child(arguments), time.monotonic() + moments.random() * length
        while (code := ended(pid)) is None and time.monotonic() < until:
            time.sleep(0.001)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
        else:
            assert code == 0, code
        after = parts(out)
        partial = sorted(out.glob("*.partial/options.json"))
        assert len(partial) <= 1
        if partial:
            assert before.items() <= after.items(), "a finished part was lost or made again"
        print("killed" if code is None else "finished", len(before), len(after), flush=True)  # noqa: T201
        arguments = ["run", "--resume", str(partial[0].parent)] if partial else [*RUN, "-o", str(out)]
        arguments += ["--progress", "off"]
    whole(arguments)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
