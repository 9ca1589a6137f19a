"""The checks of which function is certified, the model's own, and of R, F and D (certification/executed.py).

Pure functions of an `Audit`.
"""

from __future__ import annotations

from collections.abc import Iterable

from lipaudit.results.audit import Audit, Finding
from lipaudit.results.formatting import eps_value


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
