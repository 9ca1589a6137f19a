"""Whether two results say the same, field by field; or whether a result comes out again.

    python tests/benchmarks/same_results.py OLD.json NEW.json
    python tests/benchmarks/same_results.py OLD.json              # runs the command that OLD was made by, again
    python tests/benchmarks/same_results.py OLD.json -why -thumbnails    # fields of these names left out as well

Times, names of runs and versions are left out, and settings are compared as `lipaudit.settings.recorded` reads them:
those of older results by the names that they have now. Prints what differs; exit code 1 if anything does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lipaudit.settings import named, recorded

PASSING = {"run", "started", "command", "timing", "seconds", "environment", "schema"}
"""Fields that are others each time."""
RUNNING = ["json", "-o", "-", "-q"]


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Where the two differ, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted((old.keys() | new.keys()) - PASSING):
            place = f"{where}.{key}" if where else key
            if key == "config" and not where:
                yield from settings(old[key], new[key])
            elif key not in old or key not in new:
                yield f"{place}: only in the {'old' if key in old else 'new'}"
            else:
                yield from differences(old[key], new[key], place)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (one, two) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, two, f"{where}[{place}]")
    elif old != new:
        yield f"{where}: {str(old)[:60]}, then {str(new)[:60]}"


def settings(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Settings that differ and were known to both; those of the output and gates, which results list, are left out."""
    for name in sorted(named("question", "proof", "attack") - {"gates"}):
        one, two = recorded(old, name), recorded(new, name)
        if one != two and name in new and (name in old or one is not None):
            yield f"config.{name}: {one}, then {two}"


def again(command: list[str]) -> dict[str, Any]:
    """The result of the command, `lipaudit run ...`, run once more."""
    made = subprocess.run(
        [sys.executable, "-m", *command, "--format", *RUNNING], capture_output=True, text=True, check=False
    )
    if made.returncode not in (0, 3):
        sys.exit(made.stderr)
    result: dict[str, Any] = json.loads(made.stdout)
    return result


def main(files: list[str]) -> int:
    left_out = [name for name in files if name.startswith("-")]
    PASSING.update(name[1:] for name in left_out)
    files = [name for name in files if name not in left_out]
    old = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    new = json.loads(Path(files[1]).read_text(encoding="utf-8")) if len(files) > 1 else again(old["command"])
    found = list(differences(old, new))
    print("\n".join(found) or "the same")  # noqa: T201
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
