"""The view model of the verdict: passed or not, in one plain sentence, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lipaudit.results import metrics
from lipaudit.results.audit import Audit, Gate
from lipaudit.results.formatting import NONE, clean, percent, plural, points, told_apart
from lipaudit.results.threat import eps_value

BADGES = {
    "SOUND": ("good", "No attack, slope or measured norm contradicts a certificate."),
    "INVALID": ("bad", "A certificate is contradicted, so every certificate is withdrawn."),
    "UNPROVED": ("open", "Part of the network has no bound, so there is no certificate."),
    "vacuous": ("warn", "Valid, but for fewer than 1% of the correct images the certified radius reaches {step}."),
    "weak": ("warn", "For fewer than half of the correct images the certified radius reaches {step}."),
    "substantial": ("good", "For at least half of the correct images the certified radius reaches {step}."),
}
"""What each state of integrity and strength means, and the look it has."""
UNCHALLENGED = "Nothing contradicts a certificate, but no attack was run that might."

GATES = {"passed": "good", "failed": "bad", "not set": "open", "cannot be evaluated": "open"}
GRADES = {"passed": "PASS", "failed": "FAIL", "not set": "NO PASS MARK SET", "cannot be evaluated": "CANNOT TELL"}

UNSEEN, HARDLY_SEEN = 1.0, 8.0
"""Levels of 255 by which each value of an image changes, spread evenly, up to which a change is too small to see, or
hardly visible."""
MOST_STEPS = 3
WIDE = 0.05
"""Half the width of a confidence interval from which a reader is told that the sample is small."""


@dataclass(frozen=True)
class Badge:
    """Integrity or strength: its state in a word, and what it means."""

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


@dataclass(frozen=True)
class VerdictView:
    """What a reader has to know before anything else."""

    grade: str
    look: str
    met: str
    """How many conditions are met, or how to set one."""
    plain: str
    next_steps: tuple[str, ...]
    badges: tuple[Badge, ...]
    headline: str
    sentences: tuple[str, ...]
    conditions: tuple[Condition, ...]


def verdict(audit: Audit, eps: str) -> VerdictView:
    """The verdict in the words of the page, at the budget `eps` (empty if there is none)."""
    grade = grade_of(audit)
    return VerdictView(
        grade,
        look(audit, eps),
        _met(audit, eps),
        plain(audit, eps),
        next_steps(audit, eps),
        badges(audit),
        clean(audit.verdict.headline, 300),
        tuple(clean(sentence, 600) for sentence in audit.verdict.sentences),
        conditions(audit),
    )


def grade_of(audit: Audit) -> str:
    """PASS, FAIL, NO PASS MARK SET or CANNOT TELL. Nothing passes with a contradicted certificate."""
    return "FAIL" if audit.verdict.integrity == "INVALID" else GRADES[audit.verdict.gate]


def look(audit: Audit, eps: str) -> str:
    """The colour of the verdict: red where it fails, green where it passes and something is certified."""
    if audit.verdict.integrity != "SOUND":
        return BADGES[audit.verdict.integrity][0]
    certified = metrics.rate_at(audit.certified, eps)
    if audit.verdict.gate == "failed":
        return "bad"
    if certified and not certified.count:
        return "warn"
    return BADGES[audit.verdict.strength or "weak"][0]


def _met(audit: Audit, eps: str) -> str:
    """How many conditions are met, where the result lists them; else how to set one."""
    if audit.verdict.integrity == "INVALID":
        return "A certificate is contradicted."
    states = [gate.state for gate in audit.gates]
    if not states and audit.verdict.gate != "not set":
        return ""  # a result of a version that did not list them
    norm = f"[{audit.norms[0]}]" if audit.other_norms else ""
    if not states:
        return f"To set one: --gate 'certified_accuracy{norm}@{clean(eps, 20) or '0.5'}>=0.3'"
    missing = states.count("cannot be evaluated")
    said = f"{states.count('passed')} of {plural(len(states), 'condition')} met"
    return f"{said}, {missing} cannot be evaluated." if missing else f"{said}."


def changes(audit: Audit, eps: str) -> str:
    """How large the changes of a budget look: spread evenly over all values of an image."""
    levels = levels_of(audit, eps)
    if levels is None or levels > HARDLY_SEEN:
        return f"changes of at most {clean(eps, 20)}{metrics.measured_in(audit)}"
    return "changes too small to see" if levels <= UNSEEN else "hardly visible changes"


def levels_of(audit: Audit, eps: str) -> float | None:
    """By how many of 255 levels each value of an image changes if a budget is spread evenly; None if unknown."""
    values, span = math.prod(audit.model.input_shape), audit.threat.high - audit.threat.low
    if not eps or values < 1 or not 0 < span < math.inf:
        return None
    each = {"L2": math.sqrt(values), "L1": values, "Linf": 1.0}[audit.threat.norm]
    return 255 * eps_value(eps) / span / each


def plain(audit: Audit, eps: str) -> str:
    """One sentence for a reader who knows nothing of certificates."""
    if audit.verdict.integrity == "INVALID":
        return "A guarantee of this audit turned out to be false. Do not rely on any of them."
    if not any(audit.samples.correct()):
        return f"The network answers none of the {plural(audit.clean.total, 'image')} correctly."
    small = changes(audit, eps)
    certified, robust = metrics.rate_at(audit.certified, eps), metrics.rate_at(audit.empirical, eps)
    kept = f"{percent(certified.value)} of the answers are guaranteed" if certified and certified.count else ""
    kept = kept or "no answer is guaranteed"
    if robust is None:
        return f"With {small}, {kept}; no attack was run."
    broken = audit.clean.count - robust.count
    if not broken:
        return f"No attack changed an answer with {small}; {kept}."
    return f"With {small}, an attacker flips {percent(broken / audit.clean.total)} of the answers; {kept}."


def next_steps(audit: Audit, eps: str) -> tuple[str, ...]:
    """What to do next, the most urgent first."""
    return tuple(step for step, _ in zip(_steps(audit, eps), range(MOST_STEPS), strict=False))


def _steps(audit: Audit, eps: str) -> Iterator[str]:
    if audit.verdict.integrity == "INVALID":
        yield "Do not use any certificate of this report. Read the failed check below: it names the images."
        yield "Run the audit again. A network that answers differently each time breaks every certificate."
        yield "If it fails again, report it as a fault of lipaudit, with the output of `lipaudit env`."
        return
    if not any(audit.samples.correct()):
        yield "Compare the order of classes, the channels, --mean and --std with those of the training."
        yield "Check that the right weights were loaded (see Provenance)."
        return
    if audit.verdict.integrity == "UNPROVED":
        yield "Read under “Not done” which operation has no bound. Often it can be written in another way."
        yield "Use the results of the attacks: they are valid without certificates."
    for gate in audit.gates:
        if gate.state == "failed" and gate.level == "error" and gate.value is not None:
            value, least = told_apart(gate.value, gate.least)
            yield f"Condition {clean(gate.expression, 80)} is missed: measured {value}, needed {least}."
    yield from _usual_steps(audit, eps)


def _usual_steps(audit: Audit, eps: str) -> Iterator[str]:
    right = audit.clean.count
    certified, robust = metrics.rate_at(audit.certified, eps), metrics.rate_at(audit.empirical, eps)
    if not metrics.was_attacked(audit):
        yield "Run attacks (--attacks standard): without them nothing tests the certificates."
    if audit.verdict.strength == "vacuous" and metrics.local_rows(audit) < right:
        yield "Ask for radii around each image (--local on). They are often many times larger."
    if robust and right and robust.count < right / 2:
        yield "Do not deploy this network where somebody may change its inputs. Train it adversarially first."
    if certified and not certified.count and audit.verdict.strength != "substantial":
        yield "If you need guarantees, train for a small Lipschitz bound (lipaudit.nn has the layers and losses)."
    if (audit.clean.high - audit.clean.low) / 2 > WIDE:
        half = points((audit.clean.high - audit.clean.low) / 2)
        yield f"Audit more images before you compare models: {audit.clean.total} leave rates open by about ± {half}."
    if audit.verdict.gate == "not set":
        yield "Decide what is enough, and set it as a pass mark: `lipaudit gate` evaluates it on this result."
    yield "Read the limits below, then keep the result file beside the weights."


def badges(audit: Audit) -> tuple[Badge, ...]:
    """Integrity and strength, as words."""
    v = audit.verdict
    colour, means = BADGES[v.integrity]
    if v.integrity == "SOUND" and not metrics.was_attacked(audit):
        means = UNCHALLENGED
    step = audit.dataset.smallest_change_text
    if audit.dataset.levels:
        step += ", the smallest change that such an image can have"
    strength = Badge("Strength", "withheld", "open", "Nothing is said about certificates that are not valid.")
    if v.strength:
        shade, text = BADGES[v.strength]
        if not metrics.correct_rows(audit):
            text = "No image is answered correctly, so there is nothing to certify."
        strength = Badge("Strength", v.strength, shade, text.format(step=step))
    return (Badge("Integrity", v.integrity.lower(), colour, means), strength)


def conditions(audit: Audit) -> tuple[Condition, ...]:
    """The gates of the result; under a contradiction none is shown as evaluated."""
    if audit.verdict.integrity == "INVALID":
        return tuple(_condition(replace(gate, state="cannot be evaluated", value=None, why="")) for gate in audit.gates)
    return tuple(_condition(gate) for gate in audit.gates)


def _condition(gate: Gate) -> Condition:
    """The numbers with the digits that it takes to see which one is larger."""
    compared, least = (NONE, f"{gate.least:g}") if gate.value is None else told_apart(gate.value, gate.least)
    on = "the value itself" if gate.on == "value" else "the 95% lower limit"
    look = GATES[gate.state]
    if gate.level == "warn" and gate.state == "failed":
        look = "warn"
    level = "fails the audit" if gate.level == "error" else "is a warning"
    said = compared if gate.value is None else f"{compared} ({on})"
    state = gate.state.replace("judged", "evaluated")
    return Condition(clean(gate.expression, 80), said, least, level, look, state, clean(gate.why, 200))
