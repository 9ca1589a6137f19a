"""The three verdicts as lamps, each with what its state means, and the conditions behind the gate."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lipaudit.results import metrics
from lipaudit.results.audit import Audit, Gate
from lipaudit.results.formatting import NONE, clean, plural, told_apart

LAMPS = {
    "SOUND": ("good", "No contradiction was found between proofs and attacks."),
    "INVALID": ("bad", "A proof is contradicted. Every certificate is withdrawn."),
    "UNPROVED": ("open", "Part of the network has no proof, so there is no certificate."),
    "vacuous": ("warn", "True, but for fewer than 1% of the correct images the proof reaches {step}."),
    "weak": ("warn", "For fewer than half of the correct images the proof reaches {step}."),
    "substantial": ("good", "For at least half of the correct images the proof reaches {step}."),
    "passed": ("good", "Every required condition is met."),
    "failed": ("bad", "A required condition is not met."),
    "not set": ("open", "No condition was required."),
    "cannot be judged": ("open", "The conditions need something that this audit does not have."),
}
"""What each state of a lamp means, and the look it has."""
UNTESTED = "Nothing contradicts a proof, but no attack was run that might."


@dataclass(frozen=True)
class Lamp:
    name: str
    state: str
    look: str
    means: str


@dataclass(frozen=True)
class Condition:
    """A gate, and what came of it."""

    expression: str
    compared: str
    least: str
    level: str
    look: str
    state: str
    why: str


def look(audit: Audit, eps: str) -> str:
    """The colour of the verdict: the good one only where something is proved at the budget that the page speaks of."""
    if audit.verdict.integrity != "SOUND":
        return LAMPS[audit.verdict.integrity][0]
    proved = metrics.rate_at(audit.proved, eps)
    if audit.verdict.gate == "failed" or (proved and not proved.count):
        return "warn"
    return LAMPS[audit.verdict.strength or "weak"][0]


def lamps(audit: Audit) -> tuple[Lamp, ...]:
    v = audit.verdict
    withheld = ("withheld", "open", "Nothing is said about the size of certificates that do not hold.")
    strength = (v.strength, *LAMPS[v.strength]) if v.strength else withheld
    if audit.verdict.strength and not metrics.correct_rows(audit):
        strength = (*strength[:2], "No image is answered correctly, so there is nothing to prove.")
    step = audit.dataset.smallest_change_text
    if audit.dataset.levels:
        step += ", the smallest change that such an image can have"
    look, means = LAMPS[v.integrity]
    if v.integrity == "SOUND" and not metrics.was_attacked(audit):
        means = UNTESTED
    return (
        Lamp("Integrity", v.integrity.lower(), look, means),
        Lamp("Strength", *strength[:2], strength[2].format(step=step)),
        Lamp("Gate", v.gate, LAMPS[v.gate][0], _met(audit) or LAMPS[v.gate][1]),
    )


def _met(audit: Audit) -> str:
    """How many conditions are met, where the result lists them."""
    states = [gate.state for gate in audit.gates]
    if not states:
        return ""
    if audit.verdict.integrity == "INVALID":
        return "Withheld: certificates are contradicted."
    unjudged = states.count("cannot be judged")
    said = f"{states.count('passed')} of {plural(len(states), 'condition')} met"
    return f"{said}, {unjudged} cannot be judged." if unjudged else f"{said}."


def conditions(audit: Audit) -> tuple[Condition, ...]:
    """The gates of the result; under a contradiction none is shown as judged."""
    if audit.verdict.integrity == "INVALID":
        return tuple(_condition(replace(gate, state="cannot be judged", value=None, why="")) for gate in audit.gates)
    return tuple(_condition(gate) for gate in audit.gates)


def _condition(gate: Gate) -> Condition:
    """The numbers with the digits that it takes to see which one is larger."""
    compared, least = (NONE, f"{gate.least:g}") if gate.value is None else told_apart(gate.value, gate.least)
    on = "the value itself" if gate.on == "value" else "the 95% lower limit"
    look = LAMPS[gate.state][0]
    if gate.level == "warn" and gate.state == "failed":
        look = "warn"
    level = "fails the audit" if gate.level == "error" else "is a warning"
    said = compared if gate.value is None else f"{compared} ({on})"
    return Condition(clean(gate.expression, 80), said, least, level, look, gate.state, clean(gate.why, 200))
