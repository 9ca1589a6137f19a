"""The last step of every audit, also of one that is made of shards: findings, the three verdicts, the exit code."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import replace

from lipaudit.results.audit import Audit, Finding, Integrity, Status, Strength, Verdict
from lipaudit.results.bounds import sentence_of
from lipaudit.results.formatting import number, number_from_log10, percent, plural
from lipaudit.results.intervals import rate
from lipaudit.results.metrics import measured_in, put_to_the_test, reached, unfinished
from lipaudit.results.threat import eps_value
from lipaudit.verdict import gates
from lipaudit.verdict.checks import CHECKS
from lipaudit.verdict.checks.strength import SUBSTANTIAL, WEAK
from lipaudit.verdict.gates import Condition, judge


def conclude(draft: Audit, wanted: Sequence[Condition] = ()) -> Audit:
    """The audit with its rates, sentences, gates, findings, verdict and exit code."""
    draft = draft.each_norm(with_sentences).each_norm(_rated)
    integrity = integrity_of(draft)
    draft = replace(draft, gates=judge(draft, wanted, integrity))
    draft = draft.each_norm(_examined)
    sound = draft if integrity == "SOUND" else draft.each_norm(_withheld)
    status: Status = "invalid" if integrity == "INVALID" else "partial" if incomplete(draft) else "complete"
    code = gates.exit_code(draft.gates, integrity, incomplete(draft))
    return replace(sound, run=draft.run or run_name(draft), status=status, exit_code=code)


def _rated(draft: Audit) -> Audit:
    """With its rates in the first norm."""
    samples, budgets = draft.samples, draft.threat.eps
    attacked = budgets if any(samples.attacked) else ()
    return replace(
        draft,
        certified=tuple(rate(eps, samples.certified(eps_value(eps))) for eps in budgets),
        empirical=tuple(rate(eps, samples.not_broken(eps_value(eps))) for eps in attacked),
        arithmetics=tuple(
            replace(p, certified=tuple(rate(eps, [r > eps_value(eps) for r in p.radius]) for eps in budgets))
            if p.is_certified
            else p
            for p in draft.arithmetics
        ),
    )


def _examined(draft: Audit) -> Audit:
    """With findings and verdict in the first norm."""
    findings, verdict, _ = examine(draft)
    return replace(draft, findings=findings, verdict=verdict)


def _withheld(draft: Audit) -> Audit:
    """Without rates of certificates."""
    return replace(draft, certified=(), arithmetics=tuple(replace(p, certified=()) for p in draft.arithmetics))


def with_sentences(draft: Audit) -> Audit:
    """The audit with what it says about each arithmetic, in the first norm."""
    each = tuple(replace(p, sentence=sentence_of(p.arithmetic, draft.model.dtype)) for p in draft.arithmetics)
    headline = next((p.sentence for p in each if p.headline), draft.arithmetic)
    return replace(draft, arithmetics=each, arithmetic=headline)


def run_name(draft: Audit) -> str:
    """`la-2026-11-20-7f3c9a`: the day, and a hash of what was audited and found."""
    norms = [(part.threat, part.radius, part.distance) for part in draft.other_norms]
    seen = repr((draft.started, draft.model, draft.dataset, draft.threat, vars(draft.samples), draft.config, *norms))
    return f"la-{draft.started[:10]}-{hashlib.sha256(seen.encode()).hexdigest()[:6]}"


def examine(audit: Audit) -> tuple[tuple[Finding, ...], Verdict, int]:
    """All findings, the verdict and the exit code of an audit whose other fields are filled in."""
    findings = [finding for check in CHECKS.values() if (finding := check(audit)) is not None]
    integrity = integrity_of(audit)
    if integrity != "SOUND":
        rest = {check.id: check for check in CHECKS.values() if check.rests_on_bounds}
        findings = [rest[f.id].withheld() if f.id in rest and f.state != "fail" else f for f in findings]
    return tuple(findings), _verdict(audit, integrity), gates.exit_code(audit.gates, integrity, incomplete(audit))


def _verdict(audit: Audit, integrity: Integrity) -> Verdict:
    eps, measured = audit.threat.eps[0], measured_in(audit)
    strength: Strength | None = None
    sentences: list[str] = []
    if integrity == "INVALID":
        headline, sentences = _invalid(audit)
    elif integrity == "UNPROVED":
        headline = "No certificate: the network has no proved bound."
    else:
        strength, headline, sentences = _strength(audit, eps)
    if not any(audit.samples.correct()):
        pass  # no robust accuracy to speak of
    elif audit.empirical and integrity == "SOUND":
        proved, most = audit.certified[0], audit.empirical[0]
        sentences.append(
            f"At ε = {eps}{measured}, robust accuracy is between {percent(proved.value)} (proved) and "
            f"{percent(most.value)} (not broken by the attacks run)."
        )
    elif audit.empirical:
        sentences.append(f"At ε = {eps}{measured}, robust accuracy is at most {percent(audit.empirical[0].value)}.")
    if audit.model.weights == "random":
        headline = f"Random weights: this network is untrained. {headline}"
    missing = unfinished(audit)
    if missing:
        headline = f"Incomplete: {', '.join(missing)} did not run to the end. {headline}"
    headline = gates.headline_of(audit.gates, integrity) + headline
    return Verdict(integrity, strength, gates.state_of(audit.gates), headline, tuple(sentences))


def _invalid(audit: Audit) -> tuple[str, list[str]]:
    caution = "Do not use any certificate in this report until the cause is found."
    return f"Integrity failure: {_refutation(audit)}.", [caution]


def _refutation(audit: Audit) -> str | None:
    """What the first check says that refutes, in whatever norm; None where none fails.

    All certificates rest on the same graph and the same bounds of layers: what is wrong in one norm is believed in
    none.
    """
    for view in audit.views:
        found = ((check, check.judge(view)) for check in CHECKS.values() if check.refutes)
        said = next((one.headline or check.title for check, one in found if one and one.state == "fail"), None)
        if said is not None:
            return said + measured_in(view)
    return None


def nothing_right(audit: Audit) -> str:
    """The headline where there is nothing to speak of."""
    count = len(audit.samples.label)
    return (
        f"This network answers none of {plural(count, 'image')} correctly: nothing to certify or attack; check class "
        "order and normalisation."
    )


def _strength(audit: Audit, eps: str) -> tuple[Strength, str, list[str]]:
    share, right = reached(audit), audit.samples.correct()
    if not any(right):
        return "vacuous", nothing_right(audit), []
    tested = put_to_the_test(audit)
    held = "No attack was run."
    if any(audit.samples.attacked):
        held = "No attacked image has a certificate that an attack could contradict."
    if tested:
        held = f"No attack contradicted a certificate ({plural(tested, 'image')} tested)."
    radii = [radius for radius, good in zip(audit.samples.radius, right, strict=True) if good]
    missing = next((p for p in audit.arithmetics if p.headline and not p.is_certified), None)
    if missing is not None:
        return (
            "vacuous",
            f"Nothing is certified for {missing.arithmetic} arithmetic{measured_in(audit)}.",
            [f"{held} {missing.why_not}."],
        )
    if share < WEAK:
        assert audit.bound is not None
        median = statistics.median(radii) if radii else 0.0
        image = "an 8-bit image" if audit.dataset.levels in (0, 255) else "such an image"
        vacuous = (
            f"{held} But the Lipschitz bound of the network{measured_in(audit)} is "
            f"{number_from_log10(audit.bound.log10)}, so the median certified radius is {number(median)}: smaller than "
            f"the smallest possible change of {image} ({audit.dataset.smallest_change_text} = "
            f"{audit.dataset.smallest_change:.2g}) for {percent(1 - share)} of the correctly classified images."
        )
        return "vacuous", f"The certificates hold{measured_in(audit)}, and say almost nothing.", [vacuous]
    proved = f"{percent(audit.certified[0].value)} accuracy is" if audit.certified[0].count else "nothing is"
    at = f"proved at ε = {eps}{measured_in(audit)}"
    if share < SUBSTANTIAL:
        return "weak", f"Certificates hold for small changes; {proved} {at}.", [held]
    return "substantial", f"Certificates hold; {proved} {at}.", [held]


def integrity_of(audit: Audit) -> Integrity:
    """What the integrity checks say of the audit's own numbers."""
    if audit.bound is None:
        return "UNPROVED"
    return "SOUND" if _refutation(audit) is None else "INVALID"


def incomplete(audit: Audit) -> bool:
    """Something that was asked for was not done."""
    left = any(map(unfinished, audit.views))
    return audit.bound is None or left or any(skip.asked for skip in audit.skipped)
