"""The sample reports beside this file, made anew: `python reports/make.py --cifar FOLDER [NAME ...]`.

`planted-lie` is an audit whose certified radii were multiplied by 100 before the attacks, to show what lipaudit does
with a false certificate. The others are what `lipaudit run` writes, under a name of their own; only what identifies the
machine is left out. FOLDER holds the binary batches of CIFAR-10, in `cifar-10-batches-bin`. With `--render` only the
pages are written again, from the result files.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import click

import lipaudit
from lipaudit import load_audit
from lipaudit.results.audit import Audit, Skip

HERE = Path(__file__).parent
RUNS = {
    "digits-aol": "--model digits-aol --samples 200 --attacks standard",
    "digits-cnn": "--model digits-cnn --samples 200 --attacks standard",
    "resnet18-cifar10": (
        "--model resnet18 --dataset cifar10 --data-dir data --samples 64 --attacks quick --local off --offline"
    ),
}
LIE = 100.0
NOT_DONE = {
    "resnet18-cifar10": (
        Skip("local radii", "switched off: around one image of this network they take minutes on a processor", False),
        Skip("the standard and the full set of attacks", "only the quick set was asked for", False),
    ),
}
"""What a reader of a sample might expect, and was not asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join([*RUNS, 'planted-lie'])}; all by default")
    parser.add_argument("--render", action="store_true", help="only write the pages again, from the result files")
    parser.add_argument("--cifar", type=Path, help="folder with cifar-10-batches-bin")
    asked = parser.parse_args()
    for name in asked.names or [*RUNS, "planted-lie"]:
        if asked.render:
            render(name)
            continue
        audit = planted() if name == "planted-lie" else made(name, asked.cifar)
        write(name, audit)


def made(name: str, cifar: Path | None) -> Audit:
    """What the command line writes, run in a folder of its own so that no path of this machine is in the command."""
    with tempfile.TemporaryDirectory() as folder:
        if cifar is not None:
            (Path(folder) / "data").symlink_to(cifar.resolve())
        command = [sys.executable, "-m", "lipaudit", "run", *RUNS[name].split()]
        paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        subprocess.run(command, cwd=folder, check=False, env={**os.environ, "PYTHONPATH": paths})
        (file,) = Path(folder).glob("reports/*.json")
        audit = load_audit(file)
    return replace(audit, skipped=(*audit.skipped, *NOT_DONE.get(name, ())))


def planted() -> Audit:
    """An audit of digits-cnn with a lie in it: every radius 100 times as large as proved."""
    from lipaudit.certification.certificates import Certificates
    from lipaudit.loading.datasets import load_dataset
    from lipaudit.loading.models import load_model
    from lipaudit.runs import audit as pipeline

    loaded, data = load_model("digits-cnn", dataset="digits"), load_dataset("digits", samples=60)
    honest = pipeline.certify_in

    def lying(*given: Any, **more: Any) -> dict[str, Certificates]:
        return {
            norm: replace(found, rows=tuple(replace(row, radius=LIE * row.radius) for row in found.rows))
            for norm, found in honest(*given, **more).items()
        }

    name = f"digits-cnn with planted lie (radii x {LIE:g})"
    with mock.patch.object(pipeline, "certify_in", lying):
        return lipaudit.audit(
            loaded.module, data.inputs, data.labels, attacks="quick", local="off", index=data.index,
            model_facts=replace(loaded.facts, name=name), data_facts=data.facts,
            warnings=(f"Planted on purpose: every radius was multiplied by {LIE:g}, to show how a lie is found.",),
        )  # fmt: skip


def write(name: str, audit: Audit) -> None:
    audit = replace(audit, environment={**audit.environment, "platform": platform.system()})
    (HERE / f"{name}.json").write_text(audit.to_json(), encoding="utf-8")
    render(name)


def render(name: str) -> None:
    """From the file, as `lipaudit report` does."""
    audit = load_audit(HERE / f"{name}.json")
    html = audit.to_html()
    (HERE / f"{name}.html").write_text(html, encoding="utf-8")
    click.echo(f"{name}: {audit.verdict.integrity}, {len(html.encode()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
