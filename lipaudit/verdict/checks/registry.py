"""The table of checks.

A check is one function in `CHECKS`, under a stable id; its first docstring line is what it asks. It is a pure function
of the audit, and returns a `Finding` whose title states the outcome, or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lipaudit.registry import Registry
from lipaudit.results.audit import Audit, Finding

Check = Callable[[Audit], Finding | None]
CHECKS: Registry[Check] = Registry("check")


@dataclass(frozen=True)
class Explanation:
    """The page of one check."""

    why: str
    fix: str
    states: Mapping[str, str] = field(default_factory=dict)
    """Each state that the check can have, and what it means."""
