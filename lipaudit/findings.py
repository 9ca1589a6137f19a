"""The checks that hold certificates against attacks, and the three verdicts. Pure functions of an `Audit`.

A check is one function in `CHECKS`, under a stable id; its first docstring line is what it asks. It reads the audit
and returns a `Finding` whose title states the outcome, or None where it does not apply. Integrity comes first: a
contradiction makes the verdict INVALID, and then nothing that rests on a certificate is judged or shown as holding.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Literal

from lipaudit import gates
from lipaudit.claims import NetworkBound
from lipaudit.formatting import number, number_from_log10, percent
from lipaudit.promised import holds_as_executed, no_promise_broken
from lipaudit.registry import Registry
from lipaudit.reliability import FLAGS, Flag
from lipaudit.results import Audit, Finding, Rate, Verdict

Check = Callable[[Audit], Finding | None]
CHECKS: Registry[Check] = Registry("check")

WEAK, SUBSTANTIAL = 0.01, 0.5
"""Shares of the correct images whose radius reaches the smallest change that such an image can have, from which a
result counts as weak and as substantial."""

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
    """Rows whose witness lies within the certified radius."""
    pairs = zip(audit.samples.radius, audit.samples.distance, strict=True)
    return [row for row, (radius, found) in enumerate(pairs) if found is not None and found <= radius]


def refuted(bound: NetworkBound) -> list[str]:
    """Layers with a bound below what was measured."""
    return [line.name for line in bound.layers if line.lower is not None and line.lower > line.upper.value]


def reached(audit: Audit) -> float:
    """Share of the correctly classified images whose radius reaches the smallest change of such an image."""
    rows = [r for r, right in zip(audit.samples.radius, audit.samples.correct(), strict=True) if right]
    return sum(radius >= audit.dataset.smallest_change for radius in rows) / max(1, len(rows))


@CHECKS.register("LA001")
def no_certificate_broken(audit: Audit) -> Finding | None:
    """Did an attack change the answer within a certified radius?"""
    tested = sum(audit.samples.attacked)
    why = (
        "Every adversarial example found is compared with the certified radius of its image, in float64. A single one "
        "inside a radius proves that a bound is wrong."
    )
    if not tested:
        return Finding("LA001", "not run", "No attack was run against the certificates", "0 images", why)
    broken = contradicted(audit)
    if broken:
        fix = "Do not use any certificate of this report; report the result file as a bug of lipaudit."
        return Finding("LA001", "fail", "An attack broke a certificate", f"{len(broken)} of {tested}", why, fix)
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
    return Finding("LA003", "pass", "Every layer has a proved upper bound", value, why)


@CHECKS.register("LA004")
def witnesses_checked(audit: Audit) -> Finding | None:
    """Were claimed adversarial examples re-evaluated before they counted?"""
    why = "lipaudit evaluates every adversarial example again in float64, alone and in a batch, inside the box."
    if not audit.attacks:
        return None
    kept, rejected = sum(a.broken for a in audit.attacks), sum(a.rejected for a in audit.attacks)
    value = f"{kept} kept, {rejected} rejected"
    return Finding("LA004", "pass", "Adversarial examples were re-checked by lipaudit", value, why)


@CHECKS.register("LA005")
def network_captured(audit: Audit) -> Finding | None:
    """Is the audited graph the network, deterministic and in eval mode?"""
    why = (
        "The captured graph gave the model's own logits on fresh inputs; samples do not influence each other; nothing "
        "is random. Otherwise there would be no report."
    )
    if audit.bound is None:
        return None
    if audit.bound.notes:
        why += f" Fixed as it was then: {'; '.join(audit.bound.notes)}."
    return Finding("LA005", "pass", "The audited graph computes what the model computes, in eval mode", "", why)


@CHECKS.register("LA006")
def rounding_included(audit: Audit) -> Finding | None:
    """Is rounding accounted for?"""
    why = "Margins are computed in float64 with a proved error bound, which is taken off; every bound is rounded up."
    if audit.rounding is None:
        return None
    return Finding("LA006", "pass", "Certified radii include rounding", f"logits within {number(audit.rounding)}", why)


@CHECKS.register("LA007")
def preprocessing_included(audit: Audit) -> Finding | None:
    """Is the input normalisation inside the bound?"""
    why = "Dividing pixels by a standard deviation stretches distances; radii are in units of the raw pixels."
    if audit.bound is None:
        return None
    std = audit.model.std
    value = f"1/std up to {1 / min(std):.2f}" if std else "none outside the model"
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
    value = f"{below:.0%} below {step}"
    if below > SUBSTANTIAL:
        fix = "Train for a small Lipschitz bound, as the bundled digits-aol is (lipaudit.nn)."
        return Finding("LA101", "warn", "Most certificates are smaller than any real image change", value, why, fix)
    return Finding("LA101", "pass", "Most certificates reach a real image change", value, why)


CHECKS.register("LA102")(gates.proved_reaches_gate)
CHECKS.register("LA103")(gates.unbroken_reaches_gate)


@CHECKS.register("LA104")
def accuracy_above_chance(audit: Audit) -> Finding | None:
    """Does the network classify far better than guessing?"""
    why = "Accuracy near chance usually means a wrong normalisation, channel order or order of classes."
    chance = 1 / max(1, audit.model.classes)
    value = percent(audit.clean.value)
    gated = gates.finding(
        audit.gates, "LA104", "clean_accuracy", "Train longer or with a larger network, or ask for less."
    )
    if gated is not None and gated.state in ("fail", "warn"):
        return gated
    if audit.model.weights == "random":
        fix = "Load trained weights (--checkpoint) before drawing any conclusion."
        return Finding("LA104", "warn", "The network is untrained: its weights are random", value, why, fix)
    if audit.clean.high < 2 * chance:
        fix = "Compare --mean, --std and the order of classes with those of training."
        return Finding("LA104", "warn", "Clean accuracy is near chance", value, why, fix)
    return gated or Finding("LA104", "pass", "Clean accuracy is well above chance", value, why)


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
    missing = unfinished(audit)
    value = f"{len(audit.attacks) - len(missing)} of {len(audit.attacks)}"
    if missing:
        return Finding("LA202", "warn", f"Some attacks did not finish: {', '.join(missing)}", value, why)
    return Finding("LA202", "pass", "All attacks finished", value, why)


@CHECKS.register("LA203")
def attacks_raised_no_flags(audit: Audit) -> Finding | None:
    """Did the attack libraries warn of anything else than LA211 to LA215 name?"""
    why = "What a library warns of while it attacks may mean that its result is no upper bound to rely on."
    if not audit.attacks:
        return None
    named = {flag.sentence for flag in FLAGS}
    flags = [flag for record in audit.attacks for flag in record.flags if flag not in named]
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


REFUTING = ("LA001", "LA002", "LA003", "LA008")
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


def examine(audit: Audit) -> tuple[tuple[Finding, ...], Verdict, int]:
    """All findings, the verdict and the exit code of an audit whose other fields are filled in."""
    findings = [finding for name in CHECKS if (finding := CHECKS[name](audit)) is not None]
    integrity = integrity_of(audit)
    if integrity != "SOUND":
        findings = [_withheld(f) if f.id in REST_ON_BOUNDS and f.state != "fail" else f for f in findings]
    return tuple(findings), _verdict(audit, integrity), gates.exit_code(audit.gates, integrity, incomplete(audit))


def _withheld(finding: Finding) -> Finding:
    return Finding(finding.id, "not run", f"{CHECKS.claim(finding.id)} Withheld", "no valid certificates", finding.why)


def _verdict(audit: Audit, integrity: Literal["SOUND", "INVALID", "UNPROVED"]) -> Verdict:
    eps = audit.threat.eps[0]
    strength, headline, sentences = None, "", []
    if integrity == "INVALID":
        headline, sentences = _invalid(audit)
    elif integrity == "UNPROVED":
        headline = "No certificate: the network has no proved bound."
    else:
        strength, headline, sentences = _strength(audit, eps)
    if audit.unbroken and integrity == "SOUND":
        proved, most = audit.proved[0], audit.unbroken[0]
        sentences.append(
            f"At ε = {eps}, robust accuracy is between {percent(proved.value)} (proved) and {percent(most.value)} "
            "(not broken by the attacks run)."
        )
    elif audit.unbroken:
        sentences.append(f"At ε = {eps}, robust accuracy is at most {percent(audit.unbroken[0].value)}.")
    if audit.model.weights == "random":
        headline = f"Random weights: this network is untrained. {headline}"
    missing = unfinished(audit)
    if missing:
        headline = f"Incomplete: {', '.join(missing)} did not run to the end. {headline}"
    headline = gates.headline_of(audit.gates, integrity) + headline
    return Verdict(integrity, strength, gates.state_of(audit.gates), headline, tuple(sentences))


def _invalid(audit: Audit) -> tuple[str, list[str]]:
    broken = len(contradicted(audit))
    caution = "Do not use any certificate in this report until the cause is found."
    if broken:
        noun = "certificate is" if broken == 1 else "certificates are"
        return f"Integrity failure: {broken} {noun} contradicted by attacks.", [caution]
    promises = no_promise_broken(audit)
    if promises is not None and promises.state == "fail":
        return f"Integrity failure: an adversarial example lies within a radius of promise {promises.value}.", [caution]
    return "Integrity failure: a proved bound is contradicted by a measurement.", [caution]


def _strength(audit: Audit, eps: str) -> tuple[str, str, list[str]]:
    share, right = reached(audit), audit.samples.correct()
    tested = sum(audit.samples.attacked)
    held = f"No attack contradicted a certificate ({tested} images tested)." if tested else "No attack was run."
    radii = [radius for radius, good in zip(audit.samples.radius, right, strict=True) if good]
    missing = next((p for p in audit.promises if p.headline and not p.certified), None)
    if missing is not None:
        return "vacuous", f"{missing.promise}: not certified.", [f"{held} {missing.promise}: {missing.why_not}."]
    if share < WEAK:
        assert audit.bound is not None
        median = statistics.median(radii) if radii else 0.0
        image = "an 8-bit image" if audit.dataset.levels in (0, 255) else "such an image"
        vacuous = (
            f"{held} But the Lipschitz bound of the network is {number_from_log10(audit.bound.log10)}, so the median "
            f"certified radius is {number(median)}: smaller than the smallest possible change of {image} "
            f"({audit.dataset.smallest_change_text} = {audit.dataset.smallest_change:.2g}) for {1 - share:.0%} of the "
            "correctly classified images."
        )
        return "vacuous", "The certificates hold, and say almost nothing.", [vacuous]
    proved = f"{percent(audit.proved[0].value)} accuracy is" if audit.proved[0].count else "nothing is"
    if share < SUBSTANTIAL:
        return "weak", f"Certificates hold for small changes; {proved} proved at ε = {eps}.", [held]
    return "substantial", f"Certificates hold; {proved} proved at ε = {eps}.", [held]
