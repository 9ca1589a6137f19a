"""What an audit found, as plain data; the result file; numbers as a reader sees them. Never imports torch."""

from lipaudit.results.audit import (
    AttackRecord,
    Audit,
    DataFacts,
    Estimate,
    Finding,
    Gate,
    ModelFacts,
    Part,
    PromiseResult,
    Rate,
    Samples,
    Shard,
    Skip,
    Thumbnail,
    Verdict,
)
from lipaudit.results.threat import Threat

__all__ = [
    "AttackRecord",
    "Audit",
    "DataFacts",
    "Estimate",
    "Finding",
    "Gate",
    "ModelFacts",
    "Part",
    "PromiseResult",
    "Rate",
    "Samples",
    "Shard",
    "Skip",
    "Threat",
    "Thumbnail",
    "Verdict",
]
