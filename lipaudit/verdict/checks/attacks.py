"""Checks of the attacks: whether they ran, and whether their failure means anything."""

from __future__ import annotations

from lipaudit.results.attack_flags import FLAGS, Flag
from lipaudit.results.audit import Audit, Finding
from lipaudit.results.metrics import unfinished
from lipaudit.verdict.checks.registry import CHECKS


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
