"""Checks of the audit itself: whether certificates, bounds and attacks contradict each other.

Integrity comes first: a contradiction makes the verdict INVALID, and then nothing that rests on a certificate is judged
or shown as holding.
"""

from __future__ import annotations

from collections.abc import Iterable

from lipaudit.results.audit import Audit, Finding
from lipaudit.results.formatting import number
from lipaudit.results.metrics import contradicted, put_to_the_test, refuted
from lipaudit.results.threat import eps_value
from lipaudit.verdict.checks.registry import CHECKS


@CHECKS.register("LA001")
def no_certificate_broken(audit: Audit) -> Finding | None:
    """Did an attack change the answer within a certified radius?"""
    tested, broken = put_to_the_test(audit), contradicted(audit)
    why = (
        "Every adversarial example found is compared with the certified radius of its image, in float64. A single one "
        "inside a radius proves that a bound is wrong."
    )
    if not any(audit.samples.attacked):
        return Finding("LA001", "not run", "No attack was run against the certificates", "0 images", why)
    if not tested and not broken:
        title = "No certificate to break: no attacked image has a radius above 0"
        return Finding("LA001", "not run", title, "0 images", why)
    if broken:
        fix = "Do not use any certificate of this report; report the result file as a bug of lipaudit."
        count = f"{len(broken)} of {sum(audit.samples.attacked)}"
        return Finding("LA001", "fail", "An attack broke a certificate", count, why, fix)
    return Finding("LA001", "pass", "No attack broke a certificate", f"0 of {tested}", why)


@CHECKS.register("LA002")
def slopes_below_bounds(audit: Audit) -> Finding | None:
    """Is every slope that was observed at most the bound for its pair of classes?"""
    why = "A slope seen between two inputs is a lower bound of the Lipschitz constant. Above the bound, it refutes it."
    if audit.slope is None or audit.slope_share is None:
        return Finding("LA002", "not run", "No slope was observed", "", why)
    value = f"{number(audit.slope_share)} of the bound"
    if audit.slope_share > 1:
        return Finding("LA002", "fail", "An observed slope exceeds the Lipschitz bound", value, why)
    if not audit.slope > 0:
        return Finding("LA002", "not run", "No slope above rounding was observed", "", why)
    return Finding("LA002", "pass", "Observed slopes are below the Lipschitz bound", value, why)


@CHECKS.register("LA003")
def layers_proved(audit: Audit) -> Finding | None:
    """Has every layer a proved upper bound, above what was measured from below?"""
    why = "Layer bounds come from proofs. Power iteration sees a norm from below: it checks a bound, and never is one."
    if audit.bound is None:
        return Finding("LA003", "fail", "The network has no proved bound", "", why)
    layers = audit.bound.layers
    wrong = refuted(audit.bound)
    value = f"{len(layers) - len(wrong)} of {len(layers)}"
    if wrong:
        return Finding("LA003", "fail", f"A layer bound is below a measured norm: {wrong[0]}", value, why)
    if not layers:
        return Finding("LA003", "not run", "The network has no layer that needs a bound", value, why)
    return Finding("LA003", "pass", "Every layer has a proved upper bound", value, why)


@CHECKS.register("LA004")
def witnesses_checked(audit: Audit) -> Finding | None:
    """Were claimed adversarial examples re-evaluated before they counted?"""
    why = "lipaudit evaluates every adversarial example again in float64, alone and in a batch, inside the box."
    if not audit.attacks:
        return None
    kept, rejected = sum(a.broken for a in audit.attacks), sum(a.rejected for a in audit.attacks)
    value = f"{kept} kept, {rejected} rejected"
    if not kept + rejected:
        return Finding("LA004", "not run", "No attack claimed an adversarial example", value, why)
    return Finding("LA004", "pass", "Adversarial examples were re-checked by lipaudit", value, why)


@CHECKS.register("LA006")
def rounding_included(audit: Audit) -> Finding | None:
    """Is rounding accounted for?"""
    why = "Margins are computed in float64 with a proved error bound, which is taken off; every bound is rounded up."
    if audit.rounding is None:
        return None
    value = f"logits within {number(audit.rounding)}"
    if not any(radius > 0 for radius in audit.samples.radius):
        return Finding("LA006", "not run", "No image has a certified radius", value, why)
    return Finding("LA006", "pass", "Certified radii include rounding", value, why)


@CHECKS.register("LA007")
def preprocessing_included(audit: Audit) -> Finding | None:
    """Is the input normalisation inside the bound?"""
    why = "Dividing pixels by a standard deviation stretches distances; radii are in units of the raw pixels."
    if audit.bound is None:
        return None
    std = audit.model.std
    if not std:
        return Finding("LA007", "not run", "lipaudit put no normalisation in front of the network", "", why)
    value = f"1/std up to {1 / min(std):.2f}"
    return Finding("LA007", "pass", "Preprocessing is inside the bound", value, why)


@CHECKS.register("LA005")
def network_captured(audit: Audit) -> Finding | None:
    """Does the model, as it runs, give the logits of the audited graph on every image and adversarial example?"""
    why = (
        "Certificates are about a graph that was captured from the model. The model itself was run on every image, "
        "alone and in batches, and each logit held against the graph's, within its rounding."
    )
    if audit.bound is None:
        return None
    if audit.bound.notes:
        why += f" Fixed as it was at capture: {'; '.join(audit.bound.notes)}."
    if audit.agreement is None:
        return Finding("LA005", "not run", "The model was not held against the audited graph", "", why)
    found, seen = audit.agreement.differences, audit.agreement
    if found:
        value = found[0].said(audit.samples.index[found[0].sample])
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        fix = "Do not use this report: take out of the model what depends on how, or on which inputs, it is called."
        return Finding("LA005", "fail", "The model does not compute what was audited", value + more, why, fix)
    value = f"{seen.images} images, {seen.examples} claims of attacks"
    return Finding("LA005", "pass", "The audited graph computes what the model computes, in eval mode", value, why)


@CHECKS.register("LA008")
def no_promise_broken(audit: Audit) -> Finding | None:
    """Does an adversarial example lie within a radius of any promise?"""
    why = (
        "Radii are certified for the exact function of the weights (R), for the network as executed in its own dtype "
        "(F) and in float64 (D). An adversarial example of the exact function refutes each of them; one of the network "
        "in its own dtype, looked for from there by bisection, refutes F."
    )
    if not audit.promises or not any(audit.samples.attacked):
        return None
    broken = [p.promise for p in audit.promises if _broken(p.radius, audit.samples.distance)]
    as_executed = next((p.radius for p in audit.promises if p.promise == "F"), ())
    broken += ["F"] * _broken(as_executed, audit.samples.executed_distance)
    if broken:
        fix = "Do not use any certificate of this report; report the result file as a bug of lipaudit."
        which = ", ".join(dict.fromkeys(broken))
        return Finding(
            "LA008", "fail", f"An adversarial example lies within a radius of promise {which}", which, why, fix
        )
    certified = any(
        radius > 0 and attacked
        for p in audit.promises
        for radius, attacked in zip(p.radius, audit.samples.attacked, strict=False)
    )
    if not certified:
        title = "No attacked image has a radius above 0 under any promise"
        return Finding("LA008", "not run", title, "0 images", why)
    executed = sum(distance is not None for distance in audit.samples.executed_distance)
    value = f"{executed} executed, 0 within"
    return Finding("LA008", "pass", "No adversarial example lies within a radius of R, F or D", value, why)


def _broken(radius: Iterable[float], distance: Iterable[float | None]) -> int:
    pairs = zip(radius, distance, strict=False)  # either is empty where there is nothing to compare
    return sum(found is not None and 0 < certified >= found for certified, found in pairs)


@CHECKS.register("LA009")
def holds_as_executed(audit: Audit) -> Finding | None:
    """Do certificates also hold for the network as it is executed?"""
    why = (
        "The network that runs rounds: near its decision boundary it gives other answers than the exact function of "
        "its weights. Promise F takes that into account, whatever the order of the sums."
    )
    found = next((p for p in audit.promises if p.promise == "F"), None)
    if found is None:
        return None
    if not found.certified:
        fix = f"Deploy it in float64 (promise D), or rely on R where rounding does not matter. {found.why_not}."
        return Finding("LA009", "info", "F: not certified as executed", "", why, fix)
    eps = audit.threat.eps[0]
    kept = sum(radius > eps_value(eps) for radius in found.radius)
    exact = next((sum(r > eps_value(eps) for r in p.radius) for p in audit.promises if p.promise == "R"), 0)
    value = f"{kept} images at {eps}, exact {exact}"
    return Finding("LA009", "info", "Certificates for the network as executed were computed, too", value, why)
