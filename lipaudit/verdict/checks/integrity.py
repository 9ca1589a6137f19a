"""Checks of the audit itself: whether certificates, bounds and attacks contradict each other.

Integrity comes first: a contradiction makes the verdict INVALID, and then nothing that rests on a certificate is judged
or shown as holding.
"""

from __future__ import annotations

import math

from lipaudit.results.audit import Audit, contradictions
from lipaudit.results.formatting import number, plural
from lipaudit.results.metrics import put_to_the_test, refuted
from lipaudit.results.threat import eps_value
from lipaudit.verdict.checks.registry import BUG, WITHHELD, Outcome, check

INVALID = "the verdict is INVALID, the exit code 4"
MEASURED = "a proved bound is contradicted by a measurement"


@check(
    "LA001",
    "Certificates against attacks",
    asks="Did an attack change the answer within a certified radius?",
    why="A certified radius claims that no smaller change of the image alters the answer. Every adversarial example is "
    "compared with the radius of its image, in float64. One inside a radius proves that a bound is wrong, and every "
    "certificate rests on the same bounds.",
    fix=f"{BUG} Add the output of `lipaudit env` and, if you can share it, the network. Check first whether the model "
    "changes between calls.",
    states={
        "pass": "every adversarial example found lies outside the certified radius of its image",
        "fail": f"one lies on or inside it: {INVALID}",
        "not run": "no attack was run, or no attacked image has a certified radius above 0",
    },
    refutes=True,
)
def no_certificate_broken(audit: Audit) -> Outcome:
    tested, broken = put_to_the_test(audit), audit.samples.contradicted()
    if not any(audit.samples.attacked):
        return Outcome("not run", "No attack was run against the certificates", "0 images")
    if not tested and not broken:
        return Outcome("not run", "No certificate to break: no attacked image has a radius above 0", "0 images")
    if broken:
        said = f"{plural(len(broken), 'certificate is', 'certificates are')} contradicted by attacks"
        value = f"{len(broken)} of {sum(audit.samples.attacked)}"
        return Outcome("fail", "An attack broke a certificate", value, headline=said)
    return Outcome("pass", "No attack broke a certificate", f"0 of {tested}")


@check(
    "LA002",
    "Bounds against slopes",
    asks="Is every slope that was observed at most the bound for its pair of classes?",
    why="How much a logit difference changes between two inputs, over their distance, is a lower bound of its "
    "Lipschitz constant. Slopes are measured between images, around them and towards adversarial examples. One above "
    "the proved bound refutes it, even where no answer changes.",
    fix=BUG,
    states={
        "pass": "the steepest slope seen is at most the bound of its pair of classes",
        "fail": f"it is above: {INVALID}",
        "not run": "no slope was measured, none was above rounding, or there is no bound",
    },
    refutes=True,
    rests_on_bounds=True,
)
def slopes_below_bounds(audit: Audit) -> Outcome:
    if audit.claim is not None and audit.bound is not None and audit.claim.slope > audit.bound.value:
        value = f"{number(audit.claim.slope / audit.bound.value if audit.bound.value else math.inf)} of the bound"
        return Outcome("fail", "An observed slope exceeds the Lipschitz bound", value, headline=MEASURED)
    if audit.slope is None or audit.slope_share is None:
        return Outcome("not run", "No slope was observed")
    value = f"{number(audit.slope_share)} of the bound"
    if audit.slope_share > 1:
        return Outcome("fail", "An observed slope exceeds the Lipschitz bound", value, headline=MEASURED)
    if not audit.slope > 0:
        return Outcome("not run", "No slope above rounding was observed")
    return Outcome("pass", "Observed slopes are below the Lipschitz bound", value)


@check(
    "LA003",
    "Layer bounds",
    asks="Has every layer a proved upper bound, above what was measured from below?",
    why="A network bound is put together of layer bounds, and is proved only if each of them is. A norm measured by "
    "power iteration is below the truth: it can refute a bound, and is never used as one.",
    fix="Where a layer has no rule, lipaudit names it and its source line: replace the layer, or ask for a rule. Where "
    "a measured norm is above its bound, report a bug.",
    states={
        "pass": "every layer has a proved bound, none below what was measured",
        "fail": "the network has no bound (UNPROVED, exit code 5), or a measured norm exceeds one (INVALID, 4)",
        "not run": f"no layer needs a bound, or {WITHHELD}",
    },
    refutes=True,
    rests_on_bounds=True,
)
def layers_proved(audit: Audit) -> Outcome:
    if audit.bound is None:
        return Outcome("fail", "The network has no proved bound")
    layers, wrong = audit.bound.layers, refuted(audit.bound)
    value = f"{len(layers) - len(wrong)} of {len(layers)}"
    if wrong:
        return Outcome("fail", f"A layer bound is below a measured norm: {wrong[0]}", value, headline=MEASURED)
    if not layers:
        return Outcome("not run", "The network has no layer that needs a bound", value)
    return Outcome("pass", "Every layer has a proved upper bound", value)


@check(
    "LA004",
    "Adversarial examples re-evaluated",
    asks="Were claimed adversarial examples re-evaluated before they counted?",
    why="Attack libraries report success by their own arithmetic, in float32, in batches, sometimes outside of the "
    "range of pixels. lipaudit evaluates each claimed example again: in float64, alone and in a batch, inside the "
    "range, its distance measured anew. Only what survives counts.",
    fix="No action needed. Many rejected examples say that an attack library and this network do not go together.",
    states={
        "pass": "the examples that counted were re-checked; the value says how many were rejected",
        "not run": "no attack claimed an adversarial example",
    },
)
def witnesses_checked(audit: Audit) -> Outcome | None:
    if not audit.attacks:
        return None
    kept, rejected = sum(a.broken for a in audit.attacks), sum(a.rejected for a in audit.attacks)
    value = f"{kept} kept, {rejected} rejected"
    if not kept + rejected:
        return Outcome("not run", "No attack claimed an adversarial example", value)
    return Outcome("pass", "Adversarial examples were re-checked by lipaudit", value)


@check(
    "LA005",
    "Audited graph against the model",
    asks="Does the model, as it runs, give the logits of the audited graph on every image and adversarial example?",
    why="Bounds are computed on a graph that is captured from the model. So the model itself is run on every audited "
    "image, alone and in batches, with and without gradients, on a point beside each image and on what attacks claim, "
    "and each logit is compared with the graph's, within its own rounding.",
    fix="Do not use this report: take out of the forward pass what depends on how, how often or on which inputs the "
    "model is called, and audit again. A model that differs on random inputs is refused before the audit begins.",
    states={
        "pass": "the graph agreed with the model on all of them",
        "fail": f"a logit differs by more than rounding: {INVALID}",
        "not run": "a result of an older lipaudit, which did not look",
    },
    refutes=True,
)
def network_captured(audit: Audit) -> Outcome | None:
    if audit.bound is None:
        return None
    note = f"Fixed as it was at capture: {'; '.join(audit.bound.notes)}." if audit.bound.notes else ""
    if audit.agreement is None:
        return Outcome("not run", "The model was not held against the audited graph", note=note)
    found, seen = audit.agreement.differences, audit.agreement
    if found:
        value = found[0].said(audit.samples.index[found[0].sample])
        value += f", and {len(found) - 1} more" if len(found) > 1 else ""
        title, said = "The model does not compute what was audited", "the model does not compute what was audited"
        return Outcome("fail", title, value, note=note, headline=said)
    value = f"{seen.images} images, {seen.examples} claims of attacks"
    return Outcome("pass", "The audited graph computes what the model computes, in eval mode", value, note=note)


@check(
    "LA006",
    "Rounding of the certificates",
    asks="Is rounding accounted for?",
    why="Floating-point arithmetic can make a false proof of a true theorem. Margins are evaluated in float64 with a "
    "proved bound of the rounding error, which is taken off; every bound is rounded upwards.",
    fix="No action needed. The value is how far the computed logits may be from the exact ones.",
    states={
        "pass": "radii include the rounding of their own computation",
        "not run": f"no image has a certified radius, or {WITHHELD}",
    },
    rests_on_bounds=True,
)
def rounding_included(audit: Audit) -> Outcome | None:
    if audit.rounding is None:
        return None
    value = f"logits within {number(audit.rounding)}"
    if not any(radius > 0 for radius in audit.samples.radius):
        return Outcome("not run", "No image has a certified radius", value)
    return Outcome("pass", "Certified radii include rounding", value)


@check(
    "LA007",
    "Preprocessing",
    asks="Is the input normalisation inside the bound?",
    why="Networks are trained on normalised images. Dividing pixels by a standard deviation of 0.2 stretches distances "
    "five times; a radius that leaves this out is five times too large. Radii of lipaudit are in raw pixels.",
    fix="State the normalisation with --mean and --std, or put it inside the model.",
    states={
        "pass": "the normalisation that lipaudit put in front of the network is part of the bound",
        "not run": f"there is none but what the model does itself, or {WITHHELD}",
    },
    rests_on_bounds=True,
)
def preprocessing_included(audit: Audit) -> Outcome | None:
    if audit.bound is None:
        return None
    std = audit.model.std
    if not std:
        return Outcome("not run", "lipaudit put no normalisation in front of the network")
    return Outcome("pass", "Preprocessing is inside the bound", f"1/std up to {1 / min(std):.2f}")


@check(
    "LA008",
    "Certificates of every arithmetic against attacks",
    asks="Does an adversarial example lie within a certified radius of any arithmetic?",
    why="Radii are certified for the exact function of the weights (R), for the network as executed in its own dtype "
    "(F) and in float64 (D). An adversarial example of the exact function refutes each of them; one of the network "
    "in its own dtype, looked for from there by bisection, refutes F.",
    fix=BUG,
    states={
        "pass": "no adversarial example lies within a certified radius of any arithmetic",
        "fail": f"one does: {INVALID}; the value names the arithmetic",
        "not run": "no attacked image has a radius above 0 in any arithmetic",
    },
    refutes=True,
)
def no_arithmetic_broken(audit: Audit) -> Outcome | None:
    samples = audit.samples
    if not audit.arithmetics or not any(samples.attacked):
        return None
    broken = [p.arithmetic for p in audit.arithmetics if contradictions(p.radius, samples.distance)]
    as_executed = next((p.radius for p in audit.arithmetics if p.arithmetic == "native"), ())
    broken += ["native"] if contradictions(as_executed, samples.native_distance) else []
    if broken:
        which = ", ".join(dict.fromkeys(broken))
        said = f"an adversarial example lies within a radius certified for {which} arithmetic"
        return Outcome("fail", said[0].upper() + said[1:], which, headline=said)
    pairs = (zip(p.radius, samples.attacked, strict=False) for p in audit.arithmetics)
    if not any(radius > 0 and attacked for rows in pairs for radius, attacked in rows):
        return Outcome("not run", "No attacked image has a radius above 0 in any arithmetic", "0 images")
    executed = sum(distance is not None for distance in samples.native_distance)
    title = "No adversarial example lies within a certified radius of any arithmetic"
    return Outcome("pass", title, f"{executed} executed, 0 within")


@check(
    "LA009",
    "Certificates as executed",
    asks="Do certificates also hold for the network as it is executed?",
    why="A network runs in float32 or half precision, and rounding may change its answer where the exact function "
    "keeps it. Certificates of native arithmetic subtract what rounding can do anywhere in the ball, in any order of "
    "the sums.",
    fix="If nothing is certified for native arithmetic, deploy the network in float64, or rely on real arithmetic if "
    "rounding does not matter.",
    states={"info": "how many images are certified as executed, or why none can be", "not run": WITHHELD},
    rests_on_bounds=True,
)
def holds_as_executed(audit: Audit) -> Outcome | None:
    found = next((p for p in audit.arithmetics if p.arithmetic == "native"), None)
    if found is None:
        return None
    if not found.is_certified:
        fix = f"Deploy it in float64, or rely on real arithmetic if rounding does not matter. {found.why_not}."
        return Outcome("info", "F: not certified as executed", "", fix)
    eps = audit.threat.eps[0]
    kept = sum(radius > eps_value(eps) for radius in found.radius)
    exact = next((sum(r > eps_value(eps) for r in p.radius) for p in audit.arithmetics if p.arithmetic == "real"), 0)
    return Outcome(
        "info", "Certificates for the network as executed were computed, too", f"{kept} images at {eps}, exact {exact}"
    )
