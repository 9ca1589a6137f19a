"""What a check is: one record, which `explain`, the verdict, the report and docs/checks.md are derived from.

To add one, write a function below `@check(...)` in a module of this folder. Nothing else names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lipaudit.registry import Registry
from lipaudit.results.audit import Audit, Finding

State = Literal["pass", "warn", "fail", "info", "not run"]
WITHHELD = "there are no valid certificates to speak of"
BUG = "Do not use any certificate of this report. Keep the result file and report it as a bug of lipaudit."


@dataclass(frozen=True)
class Outcome:
    """What a check finds in one audit."""

    state: State
    title: str
    """States the outcome."""
    value: str = ""
    fix: str | None = None
    """What to do in this case; None: what the record says, where the state is `warn` or `fail`."""
    note: str = ""
    """What this audit adds to why it matters."""
    headline: str = ""
    """What the verdict says where a check that refutes fails."""


Judge = Callable[[Audit], Outcome | None]


@dataclass(frozen=True)
class Check:
    """One record."""

    id: str
    """Stable: a published id never changes its meaning."""
    title: str
    """A few words."""
    asks: str
    """The question."""
    why: str
    """Why a reader should care."""
    fix: str
    """What to do about it."""
    states: Mapping[State, str]
    """Each state that it can have, and what that means."""
    judge: Judge = field(repr=False)
    """A pure function of the audit; None where the check does not apply."""
    refutes: bool = False
    """Whether the audit is INVALID if it fails."""
    rests_on_bounds: bool = False
    """Whether it says something good of a bound or a certificate: nothing, once one is contradicted or missing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.asks)

    def __call__(self, audit: Audit) -> Finding | None:
        """The finding of this check."""
        found = self.judge(audit)
        if found is None:
            return None
        fix = found.fix
        if fix is None:
            fix = self.fix if found.state in ("warn", "fail") else ""
        why = f"{self.why} {found.note}" if found.note else self.why
        return Finding(self.id, found.state, found.title, found.value, why, fix)

    def withheld(self) -> Finding:
        """The finding where no certificate is valid."""
        return Finding(self.id, "not run", f"{self.title}: withheld", "no valid certificates", self.why)


_TABLE: Registry[Check] = Registry("check")


def check(
    identifier: str,
    title: str,
    *,
    asks: str,
    why: str,
    fix: str,
    states: Mapping[State, str],
    refutes: bool = False,
    rests_on_bounds: bool = False,
) -> Callable[[Judge], Check]:
    """Decorator: makes the function below it the judge of a new check. See `Check` for the arguments."""

    def add(judge: Judge) -> Check:
        record = Check(identifier, title, asks, why, fix, states, judge, refutes, rests_on_bounds)
        return _TABLE.register(identifier)(record)

    return add


def table() -> dict[str, Check]:
    """All records, in the order of their ids."""
    return {identifier: _TABLE[identifier] for identifier in sorted(_TABLE)}
