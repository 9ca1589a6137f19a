"""The tables of docs/benchmarks.md: kept as files when a benchmark is run, and written into the page from these.

    python tests/benchmarks/tables.py keep zoo tests/benchmarks/certified_zoo.py [OPTION ...]
    python tests/benchmarks/tables.py

The first runs the script, passes on what it prints, and keeps the one Markdown table in it, with the command, machine
and versions, in `results/NAME.json`. The second writes each table between `<!-- table: NAME -->` and
`<!-- end of table -->`. A test holds the page against the files.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", Path(__file__).with_name("results")
PACKAGES = ("torch", "numpy", "scipy", "timm", "torchvision", "orthogonium", "deel-torchlip")
END = "<!-- end of table -->"
PLACE = re.compile(rf"<!-- table: (\w+) -->\n(.*?){END}", re.DOTALL)
UNKNOWN = "not kept"
"""What a table that is older than these files says of its machine, versions and day."""


@dataclass(frozen=True)
class Table:
    """What one run of a script printed: lines of a Markdown table."""

    command: str
    day: str
    machine: str
    versions: str
    lines: tuple[str, ...]

    def markdown(self) -> str:
        made = [f"`{self.command}`"]
        if self.machine == UNKNOWN:
            made.append("day, machine and versions were not kept")
        else:
            made += [self.day, self.machine, self.versions]
        return "\n".join([*self.lines, "", f"<small>{'; '.join(made)}</small>", ""])


def kept(name: str) -> Table:
    """The table in a file."""
    found = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return Table(**{**found, "lines": tuple(found["lines"])})


def table_of(printed: str) -> tuple[str, ...]:
    """The lines of the one table in a text; `ValueError` if there is none, or another."""
    tables = re.findall(r"(?:^\|.*\|\n)+", printed + "\n", re.MULTILINE)
    if len(tables) != 1:
        raise ValueError(f"expected one Markdown table in what the script prints, got {len(tables)}")
    lines = tuple(tables[0].splitlines())
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    if len(lines) < 3 or len(cells) > 1 or not re.fullmatch(r"[|:\- ]+", lines[1]):
        raise ValueError("expected a heading, a rule and rows of as many cells in the table that the script prints")
    return lines


def run(words: list[str]) -> Table:
    """What a script prints now, on this machine."""
    printed = []
    command = [sys.executable, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            printed.append(line)
    if process.returncode != 0:
        raise ValueError(f"expected the script to end with 0, got {process.returncode}")
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)"
    return Table(shlex.join(["python", *words]), day, machine, ", ".join(versions), table_of("".join(printed)))


def written(page: str) -> str:
    """The page with the tables of the files in their places."""
    return PLACE.sub(lambda found: f"<!-- table: {found[1]} -->\n{kept(found[1]).markdown()}{END}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("keep", nargs="?", choices=["keep"])
    parser.add_argument("name", nargs="?")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    if asked.keep:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(asdict(run(asked.command)), indent=1, ensure_ascii=False) + "\n"
        (RESULTS / f"{asked.name}.json").write_text(text, "utf-8")
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
