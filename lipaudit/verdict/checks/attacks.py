"""Checks of the attacks: whether they ran, and whether their failure means anything."""

from __future__ import annotations

from lipaudit.results.attack_flags import FLAGS, Flag
from lipaudit.results.audit import Audit
from lipaudit.results.metrics import unfinished
from lipaudit.results.threat import Norm
from lipaudit.verdict.checks.registry import Outcome, check

IDLE = "No attack had an image to work on"
ENOUGH = 100
"""Images from which the 95 % interval of a rate is a few points wide."""


@check(
    "LA201",
    "Size of the sample",
    asks="Is the sample large enough for its rates to mean something?",
    why="Rates are those of a sample. Their 95 % interval covers the choice of images only: not other data, not other "
    "attacks.",
    fix="Audit more images with --samples.",
    states={"pass": f"{ENOUGH} images or more", "warn": f"fewer than {ENOUGH}: rates are rough"},
)
def sample_size(audit: Audit) -> Outcome:
    half = 100 * (audit.clean.high - audit.clean.low) / 2
    value = f"{audit.dataset.samples} images, ±{half:.1f} points"
    if audit.dataset.samples < ENOUGH:
        return Outcome("warn", "The sample is small: rates are rough", value)
    return Outcome("pass", "The sample is large enough for rates within a few points", value)


@check(
    "LA202",
    "Attacks finished",
    asks="Did every attack that was asked for finish?",
    why="An attack that did not run found nothing, which says nothing. Empirical robust accuracy is then higher than "
    "it would have been.",
    fix="Give more time with --time-limit, or audit fewer images. The report says why each attack stopped.",
    states={
        "pass": "every attack that could run ran to the end; the title names those that could not",
        "warn": "some did not: the audit is incomplete, exit code 5",
        "not run": "no attack was asked for, or none had an image to work on",
    },
)
def attacks_finished(audit: Audit) -> Outcome:
    if not audit.attacks:
        return Outcome("not run", "No attacks were asked for")
    missing, idle = unfinished(audit), [record.name for record in audit.attacks if not record.attacked]
    value = f"{len(audit.attacks) - len(missing or idle)} of {len(audit.attacks)}"
    if missing:
        return Outcome("warn", f"Some attacks did not finish: {', '.join(missing)}", value)
    if len(idle) == len(audit.attacks):
        return Outcome("not run", IDLE, value)
    title = f"All attacks finished but those that were not run: {', '.join(idle)}" if idle else "All attacks finished"
    return Outcome("pass", title, value)


@check(
    "LA203",
    "Other warnings of attacks",
    asks=f"Did the attack libraries warn of anything else than {FLAGS[0].id} to {FLAGS[-1].id} name?",
    why="Attack libraries warn when their result is not to be relied on as an upper bound.",
    fix="Read the warning, and what the documentation of the library says of it.",
    states={
        "pass": "the libraries raised no other warnings",
        "warn": "they did; the first is in the title",
        "not run": "no attack had an image to work on",
    },
)
def attacks_raised_no_flags(audit: Audit) -> Outcome | None:
    if not audit.attacks:
        return None
    named = {flag.sentence for flag in FLAGS}
    flags = [flag for record in audit.attacks for flag in record.flags if flag not in named]
    if not flags and not any(record.attacked for record in audit.attacks):
        return Outcome("not run", IDLE)
    if flags:
        return Outcome("warn", f"An attack library warns: {flags[0]}", f"{len(flags)} flags")
    return Outcome("pass", "The attack libraries raised no other warnings", "0 flags")


@check(
    "LA204",
    "Attacks work",
    asks="Did the attacks break anything at all?",
    why="At some distance every image can be changed into another. Attacks that break none are more likely broken "
    "themselves (no gradients, wrong range, wrong labels) than the network is unbreakable.",
    fix=f"Look at {FLAGS[0].id} to {FLAGS[-1].id}; add attacks without gradients (square, hopskipjump) and larger "
    "--eps.",
    states={"pass": "at least one image was broken", "warn": "none was"},
)
def attacks_work(audit: Audit) -> Outcome | None:
    attacked = sum(audit.samples.attacked)
    if not attacked:
        return None
    found = sum(distance is not None for distance in audit.samples.distance)
    value = f"{found} of {attacked} images"
    if not found:
        return Outcome("warn", "No attack found any", value)
    return Outcome("pass", "Attacks work: they found adversarial examples", value)


def _reliable(flag: Flag) -> None:
    @check(
        flag.id,
        flag.good,
        asks=flag.asks,
        why=flag.why,
        fix=flag.fix,
        states={
            "pass": f"{flag.good}, as far as the attacks that were run can tell",
            "warn": flag.bad,
            "not run": "no attack that was run can tell",
        },
    )
    def judge(audit: Audit) -> Outcome | None:
        checking = [record.name for record in audit.attacks if flag.name in record.checked]
        raised = [record.name for record in audit.attacks if flag.sentence in record.flags]
        if raised:
            return Outcome("warn", flag.bad, ", ".join(raised))
        if not audit.attacks:
            return None
        if not checking:
            return Outcome("not run", f"{flag.asks} No attack that was run can tell")
        return Outcome("pass", flag.good, ", ".join(checking))


for _flag in FLAGS:
    _reliable(_flag)


def _not_audited(identifier: str, what: str, norm: Norm | None = None) -> None:
    @check(
        identifier,
        f"Not audited: {what}",
        asks=f"Not audited: {what}.",
        why="Certificates and attacks here are about small changes of single images, as measured in the norms of this "
        "audit, and about nothing else. The report says what it did not look at, so that nobody takes its silence for "
        "a pass.",
        fix="Test for this by other means." if norm is None else f"Add {norm} to --norm.",
        states={"not run": "lipaudit does not audit this" if norm is None else "this norm was not asked for"},
    )
    def judge(audit: Audit) -> Outcome | None:
        return None if norm in audit.norms else Outcome("not run", f"Not audited: {what}")


_not_audited("LA301", "changes measured in L∞", "linf")
_not_audited("LA302", "corruptions such as blur, noise, rotation")
_not_audited("LA303", "data from other sources")
