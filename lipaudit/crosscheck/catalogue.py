"""The attacks and presets as a page, docs/attacks.md (`python -m lipaudit.crosscheck.catalogue`)."""

from __future__ import annotations

import inspect
import sys

from lipaudit.crosscheck import ATTACKS, PRESETS
from lipaudit.crosscheck.registry import AT_LARGEST, Aim, Attack
from lipaudit.results.threat import NORMS, spoken

GIVEN: dict[Aim, str] = {
    "closest": "the input alone",
    "radius": "the certified radius",
    "largest": "the largest budget",
    "eps": "each budget",
}
CLASSES = 10
"""For which settings are shown."""


def to_markdown() -> str:
    """The text of docs/attacks.md."""
    lines = [
        "# Attacks",
        "",
        "Made by `python -m lipaudit.crosscheck.catalogue > docs/attacks.md` from the table of attacks. `--attacks` "
        "takes their names and those of presets.",
        "",
        "Every adversarial example is evaluated again in float64, drawn towards its image, and measured: the distance "
        "in the report is its own, in the norm of the audit, rounded up. In Linf and L1 an example that its library "
        "put outside the ball by a rounding is looked at once more inside it.",
        "",
        "An attack that has no form for a norm is not run in another one: the report says `deepfool has no linf form`.",
        "",
        "## Presets",
        "",
        "`standard` is the default.",
        "",
        f"| preset | {' | '.join(map(spoken, NORMS))} |",
        f"| --- | {' | '.join('---' for _ in NORMS)} |",
    ]
    for preset in PRESETS["l2"]:
        cells = [", ".join(f"`{name}`" for name in PRESETS[norm][preset]) or "no attack" for norm in NORMS]
        lines.append(f"| `{preset}` | {' | '.join(cells)} |")
    largest = " and ".join(f"`{preset}` in {spoken(norm)}" for norm, preset in AT_LARGEST)
    lines += [
        "",
        f"{largest}: attacks that take a budget get the largest one only, which is AutoAttack's standard version "
        "there; FAB-T looks for the closest example of each image, which tells of smaller budgets.",
        "",
        "## Attacks by name",
        "",
        "| attack | norms | is given | what it does | settings |",
        "| --- | --- | --- | --- | --- |",
        *(_row(ATTACKS[name]) for name in ATTACKS),
    ]
    return "\n".join(lines) + "\n"


def _row(entry: Attack) -> str:
    norms = ", ".join(map(spoken, entry.norms))
    claim = (inspect.getdoc(entry.run) or "").split("\n", 1)[0]
    settings = dict.fromkeys(entry.settings(CLASSES, norm) for norm in entry.norms)
    return f"| `{entry.name}` | {norms} | {GIVEN[entry.aim]} | {claim} | {'; or '.join(settings)} |"


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
