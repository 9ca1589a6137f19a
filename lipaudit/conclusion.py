"""The last step of every audit, also of one that is made of shards: from what was found to what it means."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from lipaudit.findings import examine, incomplete, integrity_of, rate
from lipaudit.formatting import eps_value
from lipaudit.gates import Condition, judge
from lipaudit.results import Audit


def conclude(draft: Audit, wanted: Sequence[Condition] = ()) -> Audit:
    """The audit with its rates, gates, findings, verdict and exit code."""
    right = [y == guess for y, guess in zip(draft.samples.label, draft.samples.prediction, strict=True)]
    proved = tuple(rate(e, [r > eps_value(e) for r in draft.samples.radius]) for e in draft.threat.eps)
    unbroken = ()
    if any(draft.samples.attacked):
        holds = list(zip(right, draft.samples.distance, strict=True))
        unbroken = tuple(rate(e, [ok and (d is None or d > eps_value(e)) for ok, d in holds]) for e in draft.threat.eps)
    promises = tuple(
        replace(p, proved=tuple(rate(e, [r > eps_value(e) for r in p.radius]) for e in draft.threat.eps))
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
