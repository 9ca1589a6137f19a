"""What an audit found, as plain data; the result file; numbers as a reader sees them. Never imports torch."""

from lipaudit.results.audit import (
    ArithmeticResult,
    AttackRecord,
    Audit,
    DataFacts,
    Estimate,
    Finding,
    Gate,
    ModelFacts,
    Part,
    Rate,
    Samples,
    Shard,
    Skip,
    Thumbnail,
    Verdict,
)
from lipaudit.results.threat import Threat

__all__ = [
    "ArithmeticResult",
    "AttackRecord",
    "Audit",
    "DataFacts",
    "Estimate",
    "Finding",
    "Gate",
    "ModelFacts",
    "Part",
    "Rate",
    "Samples",
    "Shard",
    "Skip",
    "Threat",
    "Thumbnail",
    "Verdict",
]
