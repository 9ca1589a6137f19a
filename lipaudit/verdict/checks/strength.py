"""Checks of how much the certificates say: their size, accuracy, the gates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from lipaudit.results.audit import Audit, Finding, Gate
from lipaudit.results.formatting import percent
from lipaudit.results.intervals import CONFIDENCE
from lipaudit.results.metrics import reached
from lipaudit.verdict.checks.registry import CHECKS
from lipaudit.verdict.gates import _FORM, MEASURES, compared

WEAK, SUBSTANTIAL = 0.01, 0.5
"""Shares of the correct images whose radius reaches the smallest change that such an image can have, from which a
result counts as weak and as substantial."""


NEAR_CHANCE = 2
"""An accuracy is near chance if the odds of a right answer are at most so many times those of guessing: 2 / (k + 1) for
k classes, 18 % for ten of them, 67 % for two."""


@CHECKS.register("LA101")
def radii_reach_a_pixel(audit: Audit) -> Finding | None:
    """Do certified radii reach the smallest change that an image of this kind can have?"""
    step = audit.dataset.smallest_change_text
    why = f"Two different images differ by at least {step} in L2. A smaller radius certifies nothing but the image."
    if not audit.dataset.levels:
        why = f"Two different 8-bit images differ by at least {step} in L2: a scale to measure radii by."
    if not any(audit.samples.correct()):
        return Finding("LA101", "not run", "No image is classified correctly", "", why)
    below = 1 - reached(audit)
    value = f"{percent(below)} below {step}"
    if below > SUBSTANTIAL:
        fix = "Train for a small Lipschitz bound, as the bundled digits-aol is (lipaudit.nn)."
        return Finding("LA101", "warn", "Most certificates are smaller than any real image change", value, why, fix)
    return Finding("LA101", "pass", "Most certificates reach a real image change", value, why)


@CHECKS.register("LA104")
def accuracy_above_chance(audit: Audit) -> Finding | None:
    """Does the network classify better than guessing?"""
    why = "Accuracy near chance usually means a wrong normalisation, channel order or order of classes."
    classes, right, total = max(1, audit.model.classes), audit.clean.count, audit.clean.total
    value = f"{percent(audit.clean.value)}, {right} of {total}; by guessing {percent(1 / classes)}"
    gated = finding(audit.gates, "LA104", "clean_accuracy", "Train longer or with a larger network, or ask for less.")
    if gated is not None and gated.state in ("fail", "warn"):
        return gated
    if audit.model.weights == "random":
        fix = "Load trained weights (--checkpoint) before drawing any conclusion."
        return Finding("LA104", "warn", "The network is untrained: its weights are random", value, why, fix)
    fix = "Compare --mean, --std and the order of classes with those of training."
    # With a probability p of a right answer, so few are this rare: the upper confidence limit is at or below p.
    if at_most(right, total, NEAR_CHANCE / (NEAR_CHANCE + classes - 1)) <= 1 - CONFIDENCE:
        return Finding("LA104", "warn", "Clean accuracy is near chance", value, why, fix)
    if gated is not None:
        return gated
    if 1 - at_most(right - 1, total, 1 / classes) >= 1 - CONFIDENCE:
        title = "Cannot tell whether clean accuracy is above chance: too few images"
        return Finding("LA104", "not run", title, value, why, "Audit more images with --samples.")
    return Finding("LA104", "pass", "Clean accuracy is above chance", value, why)


@CHECKS.register("LA105")
def bound_against_slope(audit: Audit) -> Finding | None:
    """How far apart are the proved bound and the steepest slope seen?"""
    why = "The true Lipschitz constant lies between the two. The wider the gap, the more the bound may be slack."
    if audit.bound is None or not audit.slope or not audit.slope_share:
        return None
    decades = -math.log10(audit.slope_share)
    return Finding("LA105", "info", "Gap between the Lipschitz bound and slopes seen", f"{decades:.1f} decades", why)


def at_most(count: int, total: int, p: float) -> float:
    """The probability of at most so many successes in `total` trials, each with probability 0 < p < 1."""
    if count < 0 or count >= total:
        return 0.0 if count < 0 else 1.0
    odds, log = math.log(p) - math.log1p(-p), total * math.log1p(-p)
    logs = [log]
    for k in range(count):
        log += math.log(total - k) - math.log(k + 1) + odds
        logs.append(log)
    most = max(logs)
    return min(1.0, math.exp(most + math.log(math.fsum(math.exp(one - most) for one in logs))))


@CHECKS.register("LA102")
def proved_reaches_gate(audit: Audit) -> Finding | None:
    """Is as much proved as the gate asks for?"""
    fix = "Train for a smaller Lipschitz bound (lipaudit.nn), try --local on for larger radii, or ask for less."
    return finding(audit.gates, "LA102", "certified_accuracy", fix)


@CHECKS.register("LA103")
def unbroken_reaches_gate(audit: Audit) -> Finding | None:
    """Do attacks leave as much unbroken as the gate asks for?"""
    fix = "Train against adversarial examples or for certificates, or ask for less."
    return finding(audit.gates, "LA103", "unbroken_accuracy", fix)


def finding(gates: Iterable[Gate], identifier: str, measure: str, fix: str) -> Finding | None:
    """The gates on one measure as one finding, the missed ones first; None where there are none."""
    rows = [(_budget(gate, measure), gate) for gate in gates]
    rows = [row for row in rows if row[0] is not None]
    if not rows:
        return None
    failed = [row for row in rows if row[1].state == "failed"]
    missed = [row for row in failed if row[1].level == "error"] or failed
    unsure = [row for row in rows if row[1].state == "cannot be judged"]
    shown = missed or unsure or rows
    budgets = ", ".join(eps for eps, _ in shown if eps)
    name = MEASURES[measure].capitalize() + (f" at {budgets}" if budgets else "")
    value = compared(shown[0][1]) + (f" and {len(shown) - 1} more" if len(shown) > 1 else "")
    why = "The user asked for at least this much."
    if missed:
        state: Literal["fail", "warn"] = "fail" if missed[0][1].level == "error" else "warn"
        return Finding(identifier, state, f"{name} is below the gate", value, why, fix)
    if unsure:
        return Finding(identifier, "not run", f"{name} cannot be held against the gate", unsure[0][1].why, why)
    return Finding(identifier, "pass", f"{name} reaches the gate", value, why)


def _budget(gate: Gate, measure: str) -> str | None:
    """The budget of a gate on this measure, empty for clean accuracy; None if it is on another, or on none."""
    found = _FORM.fullmatch(gate.expression)
    return (found[2] or "") if found is not None and found[1] == measure else None
