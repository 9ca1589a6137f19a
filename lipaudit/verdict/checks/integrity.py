"""The checks that hold certificates against attacks. Pure functions of an `Audit`.

A check is one function in `CHECKS`, under a stable id; its first docstring line is what it asks. It reads the audit
and returns a `Finding` whose title states the outcome, or None where it does not apply. Integrity comes first: a
contradiction makes the verdict INVALID, and then nothing that rests on a certificate is judged or shown as holding.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Literal

from lipaudit.promised import holds_as_executed, network_captured, no_promise_broken
from lipaudit.registry import Registry
from lipaudit.results.attack_flags import FLAGS, Flag
from lipaudit.results.audit import Audit, Finding, Rate
from lipaudit.results.bounds import NetworkBound
from lipaudit.results.formatting import number, percent
from lipaudit.verdict import gates

Check = Callable[[Audit], Finding | None]
CHECKS: Registry[Check] = Registry("check")

WEAK, SUBSTANTIAL = 0.01, 0.5
"""Shares of the correct images whose radius reaches the smallest change that such an image can have, from which a
result counts as weak and as substantial."""

NEAR_CHANCE = 2
"""An accuracy is near chance if the odds of a right answer are at most so many times those of guessing: 2 / (k + 1) for
k classes, 18 % for ten of them, 67 % for two."""

REST_ON_BOUNDS = ("LA002", "LA003", "LA006", "LA007", "LA009", "LA101", "LA105")
"""Checks that say something good of a bound or a certificate: nothing, once one is contradicted or missing."""

_WILSON = statistics.NormalDist().inv_cdf(0.975)


def wilson(count: int, total: int) -> tuple[float, float]:
    """95 % score interval of a rate (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    z2, share = _WILSON**2, count / total
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _WILSON * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return max(0.0, centre - half) if count else 0.0, min(1.0, centre + half) if count < total else 1.0


def rate(eps: str, hold: Iterable[bool]) -> Rate:
    """The share of samples that hold at one budget, with its interval."""
    kept = [bool(value) for value in hold]
    low, high = wilson(sum(kept), len(kept))
    return Rate(eps, sum(kept) / max(1, len(kept)), sum(kept), len(kept), low, high)


def contradicted(audit: Audit) -> list[int]:
    """Rows whose witness lies within the certified radius; a radius of 0 claims nothing."""
    return audit.samples.contradicted()


def refuted(bound: NetworkBound) -> list[str]:
    """Layers with a bound below what was measured."""
    return [line.name for line in bound.layers if line.lower is not None and line.lower > line.upper.value]


def put_to_the_test(audit: Audit) -> int:
    """How many images with a certified radius were attacked."""
    pairs = zip(audit.samples.radius, audit.samples.attacked, strict=True)
    return sum(radius > 0 and attacked for radius, attacked in pairs)


def reached(audit: Audit) -> float:
    """Share of the correctly classified images whose radius reaches the smallest change of such an image."""
    rows = [r for r, right in zip(audit.samples.radius, audit.samples.correct(), strict=True) if right]
    return sum(radius >= audit.dataset.smallest_change for radius in rows) / max(1, len(rows))


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


CHECKS.register("LA005")(network_captured)


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


CHECKS.register("LA008")(no_promise_broken)
CHECKS.register("LA009")(holds_as_executed)


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


CHECKS.register("LA102")(gates.proved_reaches_gate)
CHECKS.register("LA103")(gates.unbroken_reaches_gate)


@CHECKS.register("LA104")
def accuracy_above_chance(audit: Audit) -> Finding | None:
    """Does the network classify better than guessing?"""
    why = "Accuracy near chance usually means a wrong normalisation, channel order or order of classes."
    classes, right, total = max(1, audit.model.classes), audit.clean.count, audit.clean.total
    value = f"{percent(audit.clean.value)}, {right} of {total}; by guessing {percent(1 / classes)}"
    gated = gates.finding(
        audit.gates, "LA104", "clean_accuracy", "Train longer or with a larger network, or ask for less."
    )
    if gated is not None and gated.state in ("fail", "warn"):
        return gated
    if audit.model.weights == "random":
        fix = "Load trained weights (--checkpoint) before drawing any conclusion."
        return Finding("LA104", "warn", "The network is untrained: its weights are random", value, why, fix)
    fix = "Compare --mean, --std and the order of classes with those of training."
    # With a probability p of a right answer, so few are this rare: the upper confidence limit is at or below p.
    if at_most(right, total, NEAR_CHANCE / (NEAR_CHANCE + classes - 1)) <= 1 - gates.CONFIDENCE:
        return Finding("LA104", "warn", "Clean accuracy is near chance", value, why, fix)
    if gated is not None:
        return gated
    if 1 - at_most(right - 1, total, 1 / classes) >= 1 - gates.CONFIDENCE:
        title = "Cannot tell whether clean accuracy is above chance: too few images"
        return Finding("LA104", "not run", title, value, why, "Audit more images with --samples.")
    return Finding("LA104", "pass", "Clean accuracy is above chance", value, why)


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


@CHECKS.register("LA105")
def bound_against_slope(audit: Audit) -> Finding | None:
    """How far apart are the proved bound and the steepest slope seen?"""
    why = "The true Lipschitz constant lies between the two. The wider the gap, the more the bound may be slack."
    if audit.bound is None or not audit.slope or not audit.slope_share:
        return None
    decades = -math.log10(audit.slope_share)
    return Finding("LA105", "info", "Gap between the Lipschitz bound and slopes seen", f"{decades:.1f} decades", why)


@CHECKS.register("LA201")
def sample_size(audit: Audit) -> Finding | None:
    """Is the sample large enough for its rates to mean something?"""
    why = "The interval covers the choice of images only, not other data."
    half = 100 * (audit.clean.high - audit.clean.low) / 2
    value = f"{audit.dataset.samples} images, ±{half:.1f} points"
    if audit.dataset.samples < 100:
        title = "The sample is small: rates are rough"
        return Finding("LA201", "warn", title, value, why, "Audit more images with --samples.")
    return Finding("LA201", "pass", "The sample is large enough for rates within a few points", value, why)


@CHECKS.register("LA202")
def attacks_finished(audit: Audit) -> Finding | None:
    """Did every attack that was asked for finish?"""
    why = "An attack that did not run found nothing, which says nothing."
    if not audit.attacks:
        return Finding("LA202", "not run", "No attacks were asked for", "", why)
    missing, idle = unfinished(audit), [record.name for record in audit.attacks if not record.attacked]
    if missing:
        value = f"{len(audit.attacks) - len(missing)} of {len(audit.attacks)}"
        return Finding("LA202", "warn", f"Some attacks did not finish: {', '.join(missing)}", value, why)
    value = f"{len(audit.attacks) - len(idle)} of {len(audit.attacks)}"
    if len(idle) == len(audit.attacks):
        return Finding("LA202", "not run", "No attack had an image to work on", value, why)
    title = f"All attacks finished but those that were not run: {', '.join(idle)}" if idle else "All attacks finished"
    return Finding("LA202", "pass", title, value, why)


@CHECKS.register("LA203")
def attacks_raised_no_flags(audit: Audit) -> Finding | None:
    """Did the attack libraries warn of anything else than LA211 to LA215 name?"""
    why = "What a library warns of while it attacks may mean that its result is no upper bound to rely on."
    if not audit.attacks:
        return None
    named = {flag.sentence for flag in FLAGS}
    flags = [flag for record in audit.attacks for flag in record.flags if flag not in named]
    if not flags and not any(record.attacked for record in audit.attacks):
        return Finding("LA203", "not run", "No attack had an image to work on", "", why)
    if flags:
        return Finding("LA203", "warn", f"An attack library warns: {flags[0]}", f"{len(flags)} flags", why)
    return Finding("LA203", "pass", "The attack libraries raised no other warnings", "0 flags", why)


@CHECKS.register("LA204")
def attacks_work(audit: Audit) -> Finding | None:
    """Did the attacks break anything at all?"""
    why = "Attacks that break nothing at any distance are more likely broken themselves than the network unbreakable."
    attacked = sum(audit.samples.attacked)
    if not attacked:
        return None
    found = sum(distance is not None for distance in audit.samples.distance)
    state, title = (
        ("pass", "Attacks work: they found adversarial examples") if found else ("warn", "No attack found any")
    )
    return Finding("LA204", state, title, f"{found} of {attacked} images", why)


def _reliable(flag: Flag) -> None:
    def check(audit: Audit) -> Finding | None:
        checking = [record for record in audit.attacks if flag.name in record.checked]
        raised = [record.name for record in audit.attacks if flag.sentence in record.flags]
        if raised:
            return Finding(flag.id, "warn", flag.bad, ", ".join(raised), flag.why, flag.fix)
        if not audit.attacks:
            return None
        if not checking:
            return Finding(flag.id, "not run", f"{flag.asks} No attack that was run can tell", "", flag.why)
        return Finding(flag.id, "pass", flag.good, ", ".join(record.name for record in checking), flag.why)

    check.__doc__ = flag.asks
    CHECKS.register(flag.id)(check)


for _flag in FLAGS:
    _reliable(_flag)


def _not_audited(identifier: str, what: str) -> None:
    @CHECKS.register(identifier)
    def check(audit: Audit) -> Finding | None:
        """Something that this audit does not look at."""
        del audit
        why = "Certificates and attacks here are about small L2 changes of single images, and about nothing else."
        return Finding(identifier, "not run", f"Not audited: {what}", "", why)


_not_audited("LA301", "changes measured in L∞")
_not_audited("LA302", "corruptions such as blur, noise, rotation")
_not_audited("LA303", "data from other sources")


def unfinished(audit: Audit) -> list[str]:
    """Names of the attacks that did not run to the end."""
    return [record.name for record in audit.attacks if record.unfinished]


REFUTING = ("LA001", "LA002", "LA003", "LA005", "LA008")
"""Checks that make an audit INVALID if they fail."""


def integrity_of(audit: Audit) -> Literal["SOUND", "INVALID", "UNPROVED"]:
    """What the integrity checks say of the audit's own numbers."""
    if audit.bound is None:
        return "UNPROVED"
    found = [CHECKS[name](audit) for name in REFUTING]
    return "INVALID" if any(finding is not None and finding.state == "fail" for finding in found) else "SOUND"


def incomplete(audit: Audit) -> bool:
    """Something that was asked for was not done."""
    return audit.bound is None or bool(unfinished(audit)) or any(skip.asked for skip in audit.skipped)
