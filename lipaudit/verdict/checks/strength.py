"""Checks of how much the certificates say: their size, accuracy, the gates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from lipaudit.results.audit import Audit
from lipaudit.results.formatting import percent
from lipaudit.results.intervals import CONFIDENCE, at_most
from lipaudit.results.metrics import held_against, reached
from lipaudit.verdict.checks.registry import WITHHELD, Outcome, State, check
from lipaudit.verdict.gates import MEASURES, about, compared

WEAK, SUBSTANTIAL = 0.01, 0.5
"""Shares of the correct images whose radius reaches the smallest change that such an image can have, from which a
result counts as weak and as substantial."""


NEAR_CHANCE = 2
"""An accuracy is near chance if the odds of a right answer are at most so many times those of guessing: 2 / (k + 1) for
k classes, 18 % for ten of them, 67 % for two."""

GATED: Mapping[State, str] = {
    "pass": "every such gate is reached",
    "warn": "a gate of level warn is missed: shown, and nothing else",
    "fail": "a gate of level error is missed: exit code 3",
}


@check(
    "LA101",
    "Radii against the smallest change of an image",
    asks="Do certified radii reach the smallest change that an image of this kind can have?",
    why="Two different 8-bit images differ by at least 1/255 in every norm: one channel of one pixel, by one level. On "
    "another grid the value names the smallest change. A smaller radius certifies the image itself and no other.",
    fix="Train for a small Lipschitz bound, as the bundled digits-aol is (lipaudit.nn), or look for local radii with "
    "--local on.",
    states={
        "pass": "at least half of the correct images have a radius of the smallest change or more",
        "warn": "fewer than half have",
        "not run": f"no image is classified correctly, or {WITHHELD}",
    },
    rests_on_bounds=True,
)
def radii_reach_a_pixel(audit: Audit) -> Outcome:
    if not any(audit.samples.correct()):
        return Outcome("not run", "No image is classified correctly")
    below = 1 - reached(audit)
    value = f"{percent(below)} below {audit.dataset.smallest_change_text}"
    if below > SUBSTANTIAL:
        return Outcome("warn", "Most certificates are smaller than any real image change", value)
    return Outcome("pass", "Most certificates reach a real image change", value)


@check(
    "LA104",
    "Clean accuracy against guessing",
    asks="Does the network classify better than guessing?",
    why="Everything else rests on images that the network gets right. Accuracy near chance usually means a wrong "
    "normalisation, channel order or order of classes, and then the audit is about another network than you think. It "
    f"is near chance if the odds of a right answer are at most {NEAR_CHANCE} times those of guessing: an accuracy of "
    "2 / (k + 1) for k classes, 18 % for ten of them, 67 % for two. Both limits are one-sided and exact (95 %).",
    fix="Compare --mean, --std, the channels and the order of classes with those of training; load trained weights.",
    states={
        "pass": "the lower limit of clean accuracy is above that of guessing, or accuracy reaches its gate",
        "warn": "the weights are random, the upper limit is near chance, or a gate of level warn is missed",
        "fail": "a gate of level error on clean_accuracy is missed: exit code 3",
        "not run": f"too few images to tell, or a gate on clean_accuracy cannot be evaluated: {WITHHELD}",
    },
)
def accuracy_above_chance(audit: Audit) -> Outcome:
    classes, right, total = max(1, audit.model.classes), audit.clean.count, audit.clean.total
    value = f"{percent(audit.clean.value)}, {right} of {total}; by guessing {percent(1 / classes)}"
    fix = "Train longer or with a larger network, or ask for less."
    gated = outcome(audit, "clean_accuracy", fix)
    if gated is not None and gated.state in ("fail", "warn"):
        return gated
    if audit.model.weights == "random":
        fix = "Load trained weights (--checkpoint) before drawing any conclusion."
        return Outcome("warn", "The network is untrained: its weights are random", value, fix)
    # With a probability p of a right answer, so few are this rare: the upper confidence limit is at or below p.
    if at_most(right, total, NEAR_CHANCE / (NEAR_CHANCE + classes - 1)) <= 1 - CONFIDENCE:
        return Outcome("warn", "Clean accuracy is near chance", value)
    if gated is not None:
        return gated
    if 1 - at_most(right - 1, total, 1 / classes) >= 1 - CONFIDENCE:
        title = "Cannot tell whether clean accuracy is above chance: too few images"
        return Outcome("not run", title, value, "Audit more images with --samples.")
    return Outcome("pass", "Clean accuracy is above chance", value)


@check(
    "LA105",
    "Gap between bound and slopes",
    asks="How far apart are the proved bound and the steepest slope seen?",
    why="The true Lipschitz constant lies between the steepest slope that was seen and the proved bound. A wide gap "
    "says that the bound is slack, or that the search for slopes was weak: usually both.",
    fix="Try --norms tight; for ordinary networks the gap grows with depth, and only local radii or training close it.",
    states={"info": "the gap in decades", "not run": WITHHELD},
    rests_on_bounds=True,
)
def bound_against_slope(audit: Audit) -> Outcome | None:
    if audit.bound is None or not audit.slope or not audit.slope_share:
        return None
    decades = -math.log10(audit.slope_share)
    return Outcome("info", "Gap between the Lipschitz bound and slopes seen", f"{decades:.1f} decades")


@check(
    "LA106",
    "Claimed Lipschitz constant",
    asks="Does the network have the Lipschitz constant that is claimed of it?",
    why="Many architectures claim a constant, most often 1, and certificates of others rest on it. Here the claim is "
    "held against the proved bound from above and the steepest proved slope from below. It is about all logits "
    "together, L2 to L2, from raw inputs on, with the normalisation. A factor of up to 1.00001 counts as rounding, and "
    "is shown. No certificate of lipaudit rests on the claim.",
    fix="If it is open, try --norms tight, and look in the table of layers for one above its claimed constant: most "
    "often a power iteration that has not converged. If it is refuted, do not use certificates that rest on the claim: "
    "the result file holds the two inputs, so that anybody can evaluate them.",
    states={
        "pass": "the proved bound is at most the claimed constant, or above it by rounding only",
        "warn": "open: the bound is above the claim, and no slope is",
        "fail": "refuted: between two inputs the logits move farther than claimed; the exit code stays as it is",
        "not run": WITHHELD,
    },
    rests_on_bounds=True,
)
def claim_holds(audit: Audit) -> Outcome | None:
    if audit.claim is None:
        return None
    standing, value = audit.claim.standing(audit.bound), held_against(audit)
    if standing == "refuted":
        return Outcome("fail", "A slope refutes the claimed Lipschitz constant", value)
    if standing == "open":
        return Outcome("warn", "The claimed Lipschitz constant is neither proved nor refuted", value)
    exact = audit.bound is not None and audit.bound.value <= audit.claim.constant
    title = "The bound confirms the claimed Lipschitz constant"
    return Outcome("pass", title if exact else f"{title}, but for rounding", value)


@check(
    "LA102",
    "Certified accuracy against its gate",
    asks="Is as much proved as the gate asks for?",
    why="A gate on certified_accuracy asks that at least such a share of the images is proved to keep its right answer "
    "under every change up to the budget. Shares are compared unrounded; with ci_low it is the one-sided 95 % "
    "Clopper-Pearson limit that has to reach the gate, so that a lucky sample does not.",
    fix="Train for a smaller Lipschitz bound (lipaudit.nn), try --local on for larger radii, --norms tight for tighter "
    "layer bounds, more --samples if only the lower limit misses; or ask for less.",
    states={**GATED, "not run": f"the gate cannot be evaluated: {WITHHELD}"},
)
def proved_reaches_gate(audit: Audit) -> Outcome | None:
    return outcome(audit, "certified_accuracy")


@check(
    "LA103",
    "Empirical robust accuracy against its gate",
    asks="Is the empirical robust accuracy as high as the gate asks for?",
    why="A gate on empirical_robust_accuracy asks that attacks leave at least such a share unbroken. It is an upper "
    "bound of the true robust accuracy: a stronger attack can only lower it. So a miss is final, but a share that "
    "reaches the gate counts only if attacks aimed at that budget and ran to the end.",
    fix="Train against adversarial examples, or for certificates; or ask for less. If it cannot be evaluated: name the "
    "budget with --eps, give the attacks more time.",
    states={
        **GATED,
        "not run": "the gate cannot be evaluated: no attacks, unfinished ones, or none at that budget (exit code 5)",
    },
)
def empirical_reaches_gate(audit: Audit) -> Outcome | None:
    return outcome(audit, "empirical_robust_accuracy")


def outcome(audit: Audit, measure: str, fix: str | None = None) -> Outcome | None:
    """The gates on one measure in the first norm as one outcome, the missed ones first; None where there are none."""
    gates, norm = audit.gates, audit.norms[0]
    rows = [(eps, gate) for gate in gates for one, of, eps in [about(gate)] if one == measure and of in ("", norm)]
    if not rows:
        return None
    failed = [row for row in rows if row[1].state == "failed"]
    missed = [row for row in failed if row[1].level == "error"] or failed
    unsure = [row for row in rows if row[1].state == "cannot be evaluated"]
    shown = missed or unsure or rows
    budgets = ", ".join(eps for eps, _ in shown if eps)
    name = MEASURES[measure].capitalize() + (f" at {budgets}" if budgets else "")
    value = compared(shown[0][1]) + (f" and {len(shown) - 1} more" if len(shown) > 1 else "")
    if missed:
        state: Literal["fail", "warn"] = "fail" if missed[0][1].level == "error" else "warn"
        return Outcome(state, f"{name} is below the gate", value, fix)
    if unsure:
        return Outcome("not run", f"{name} cannot be held against the gate", unsure[0][1].why)
    return Outcome("pass", f"{name} reaches the gate", value)
