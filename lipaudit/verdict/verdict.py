"""The last step of every audit, also of one that is made of shards: from what was found to what it means."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from lipaudit.results.audit import Audit
from lipaudit.results.formatting import eps_value
from lipaudit.verdict.checks.integrity import examine, incomplete, integrity_of, rate
from lipaudit.verdict.gates import Condition, judge


def conclude(draft: Audit, wanted: Sequence[Condition] = ()) -> Audit:
    """The audit with its rates, gates, findings, verdict and exit code."""
    samples, budgets = draft.samples, draft.threat.eps
    proved, unbroken = tuple(rate(eps, samples.certified(eps_value(eps))) for eps in budgets), ()
    if any(samples.attacked):
        unbroken = tuple(rate(eps, samples.unbroken(eps_value(eps))) for eps in budgets)
    promises = tuple(
        replace(p, proved=tuple(rate(eps, [r > eps_value(eps) for r in p.radius]) for eps in budgets))
        if p.certified
        else p
        for p in draft.promises
    )
    draft = replace(draft, proved=proved, unbroken=unbroken, promises=promises)
    draft = replace(draft, gates=judge(draft, wanted, integrity_of(draft)))
    findings, verdict, code = examine(draft)
    invalid = verdict.integrity == "INVALID"
    status = "invalid" if invalid else "partial" if incomplete(draft) else "complete"
    return replace(
        draft,
        run=draft.run or run_name(draft),
        status=status,
        exit_code=code,
        verdict=verdict,
        findings=findings,
        proved=() if verdict.integrity != "SOUND" else proved,
        promises=promises if verdict.integrity == "SOUND" else tuple(replace(p, proved=()) for p in promises),
    )


def run_name(draft: Audit) -> str:
    """`la-2026-11-20-7f3c9a`: the day, and a hash of what was audited and found."""
    seen = repr((draft.started, draft.model, draft.dataset, draft.threat, draft.samples, draft.config))
    return f"la-{draft.started[:10]}-{hashlib.sha256(seen.encode()).hexdigest()[:6]}"
