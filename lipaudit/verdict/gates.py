"""Gates: the least shares that a user asks of an audit, and whether it has them. Pure functions of an `Audit`.

A gate is a measure, its budget and a share: `certified_accuracy@36/255>=0.30`, `empirical_robust_accuracy@0.5>=45%`,
`clean_accuracy>=0.94`; of an audit in several norms also the norm, `certified_accuracy[linf]@8/255>=0.30`: without, it
is the first one. `,ci_low` behind it compares the one-sided 95 % lower limit of the share, and `,warn` lets a
miss only warn. Shares are compared as they are, never rounded.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, cast

from lipaudit.errors import BadThreat, ConfigError, ExitCode, RenamedWarning
from lipaudit.results.audit import Audit, Gate
from lipaudit.results.formatting import clean, percents
from lipaudit.results.intervals import lower_limit
from lipaudit.results.threat import eps_value, norm_of, spoken

MEASURES = {
    "certified_accuracy": "certified accuracy",
    "empirical_robust_accuracy": "empirical robust accuracy",
    "clean_accuracy": "clean accuracy",
}
"""What a gate can be about, and how a reader calls it."""
OLDER = {"unbroken_accuracy": "empirical_robust_accuracy", "robust_accuracy": "empirical_robust_accuracy"}
"""Measures by the names that they had."""
EXAMPLE = "certified_accuracy@36/255>=0.30"
ON, LEVELS = ("value", "ci_low"), ("error", "warn")

_FORM = re.compile(
    r"\s*([^@<>=,\s\[\]]+)\s*(?:\[\s*([^@<>=,\[\]]*?)\s*\]\s*)?(?:@\s*([^@<>=,]+?))?\s*>=\s*([^<>=,\s]+)((?:\s*,\s*[^,\s]+)*)\s*"
)
State = Literal["passed", "failed", "cannot be evaluated"]


@dataclass(frozen=True)
class Condition:
    """One gate before it is evaluated."""

    measure: str
    eps: str
    """As written; empty for clean accuracy."""
    least: float
    written: str
    """`least` as the user wrote it."""
    on: Literal["value", "ci_low"] = "value"
    level: Literal["error", "warn"] = "error"
    norm: str = ""
    """In which changes are measured; empty for the only or first norm of the audit, and for clean accuracy."""

    @property
    def expression(self) -> str:
        """As it can be typed after --gate."""
        at = (f"[{self.norm}]" if self.norm else "") + (f"@{self.eps}" if self.eps else "")
        more = (",ci_low" if self.on == "ci_low" else "") + (",warn" if self.level == "warn" else "")
        return f"{self.measure}{at}>={self.written}{more}"

    @property
    def what(self) -> str:
        """For a reader: `certified accuracy at 36/255`."""
        within = f" in {spoken(self.norm)}" if self.norm else ""
        return MEASURES[self.measure] + (f" at {self.eps}" if self.eps else "") + within


def parse(text: str) -> Condition:
    """The condition that an expression states; raises `ConfigError` that says what was expected."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(f"gate {clean(text)!r}: expected MEASURE@EPS>=SHARE such as {EXAMPLE}")
    measure, norm, eps, share, rest = found.groups()
    words = [word.strip() for word in rest.split(",")[1:]]
    unknown = [word for word in words if word not in (*ON, *LEVELS)]
    if unknown or len({word in ON for word in words}) != len(words):
        choices = f"{' or '.join(ON)}, and {' or '.join(LEVELS)}"
        raise ConfigError(f"gate {clean(text)!r}: expected nothing behind the share but {choices}")
    on = next((word for word in words if word in ON), "value")
    level = next((word for word in words if word in LEVELS), "error")
    try:
        return condition(measure, (eps or "").replace(" ", ""), share, on=on, level=level, norm=norm)
    except ConfigError as error:
        raise ConfigError(f"gate {clean(text)!r}: {error}") from None


def about(gate: Gate) -> tuple[str, str, str]:
    """Measure, norm and budget of a gate of a result, as written; empty where its expression is none."""
    found = _FORM.fullmatch(gate.expression)
    return (found[1], found[2] or "", found[3] or "") if found else ("", "", "")


def condition(
    measure: str, eps: str, share: str, *, on: str = "value", level: str = "error", norm: str | None = None
) -> Condition:
    """A condition of parts that each may be wrong; raises `ConfigError` that names the part."""
    if measure in OLDER:
        said = f"gate {measure} is called {OLDER[measure]} now"
        warnings.warn(said, RenamedWarning, stacklevel=2)
        measure = OLDER[measure]
    if measure not in MEASURES:
        close = difflib.get_close_matches(measure, MEASURES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"expected {', '.join(MEASURES)}, got {clean(measure)!r}{hint}")
    for word, choices in ((on, ON), (level, LEVELS)):
        if word not in choices:
            raise ConfigError(f"expected {' or '.join(choices)}, got {clean(word)!r}")
    if measure == "clean_accuracy" and (eps or norm is not None):
        raise ConfigError("clean_accuracy is about unchanged images: leave the budget and the norm out")
    try:
        measured = "" if norm is None else norm_of(norm)
    except BadThreat as error:
        raise ConfigError(str(error)) from None
    if measure != "clean_accuracy":
        if not eps:
            raise ConfigError(f"{measure} needs a budget, such as {measure}@36/255")
        try:
            eps_value(eps)
        except ValueError:
            raise ConfigError(f"expected a budget such as 36/255 or 0.5, got {clean(eps)!r}") from None
    compared, weight = cast(Literal["value", "ci_low"], on), cast(Literal["error", "warn"], level)
    return Condition(measure, eps, _share(share), share, compared, weight, measured)


def _share(text: str) -> float:
    """`0.30` or `30%`."""
    number = text.removesuffix("%")
    share = Fraction(-1)
    if re.fullmatch(r"\d{1,17}\.?\d{0,17}|\.\d{1,17}", number):
        # As a fraction: 70.1% is the float nearest to 0.701, and not that of 70.1 divided by 100.
        share = Fraction(number) / (100 if number != text else 1)
    if not 0 <= share <= 1:
        raise ConfigError(f"expected a share from 0 to 1, such as 0.30 or 30%, got {clean(text)!r}")
    return float(share)


def conditions(expressions: str | Iterable[str]) -> tuple[Condition, ...]:
    """The condition of one expression, or of each, each once; raises `ConfigError` for the first that is none."""
    several = [expressions] if isinstance(expressions, str) else expressions
    return tuple({made.expression: made for made in map(parse, several)}.values())


def judge(audit: Audit, wanted: Iterable[Condition], integrity: str) -> tuple[Gate, ...]:
    """Every condition, evaluated on the audit. On one that is not SOUND none can be.

    In an audit in several norms, the expression of each says which it is about.
    """
    several = bool(audit.other_norms)
    norms = (replace(one, norm=audit.norms[0]) if several and one.eps and not one.norm else one for one in wanted)
    return tuple(_judge(audit, one, integrity) for one in norms)


def refuse_unmeasured(wanted: Iterable[Condition], norms: Sequence[str]) -> None:
    """Raises `ConfigError` for a condition on a norm that an audit in these norms says nothing of."""
    for one in wanted:
        if one.norm and one.norm not in norms:
            raise ConfigError(f"gate {one.expression!r}: expected {' or '.join(norms)}; {_add(one.norm, norms)}")


def _add(norm: str, norms: Sequence[str]) -> str:
    return f"audit with --norm {','.join((*norms, norm))}"


def _judge(audit: Audit, wanted: Condition, integrity: str) -> Gate:
    if wanted.norm and wanted.norm not in audit.norms:
        why = f"changes measured in {spoken(wanted.norm)} were not audited; {_add(wanted.norm, audit.norms)}"
        return _gate(wanted, "cannot be evaluated", None, why)
    audit = audit.in_norm(wanted.norm) if wanted.norm else audit
    why = _not_sound(integrity) or _untested(audit, wanted)
    if why:
        return _gate(wanted, "cannot be evaluated", None, why)
    held, total = _count(audit, wanted), len(audit.samples.label)
    value = lower_limit(held, total) if wanted.on == "ci_low" else held / total
    if value < wanted.least:
        return _gate(wanted, "failed", value)
    why = _undecided(audit, wanted)
    return _gate(wanted, "cannot be evaluated", None, why) if why else _gate(wanted, "passed", value)


def _gate(wanted: Condition, state: State, value: float | None, why: str = "") -> Gate:
    return Gate(wanted.expression, wanted.least, wanted.on, wanted.level, state, value, why)


def _not_sound(integrity: str) -> str:
    return {
        "SOUND": "",
        "INVALID": "a certificate is contradicted, so nothing here is to be relied on",
        "UNPROVED": "the network has no proved bound",
    }[integrity]


def _count(audit: Audit, wanted: Condition) -> int:
    """How many images the measure counts. Radii and distances answer for any budget, audited or not."""
    if wanted.measure == "clean_accuracy":
        return sum(audit.samples.correct())
    held = audit.samples.certified if wanted.measure == "certified_accuracy" else audit.samples.not_broken
    return sum(held(eps_value(wanted.eps)))


def _untested(audit: Audit, wanted: Condition) -> str:
    """Why there is nothing to count."""
    if not audit.samples.label:
        return "no image was audited"
    attackable = any(audit.samples.correct())  # where nothing is right, there is nothing to attack
    if wanted.measure == "empirical_robust_accuracy" and attackable and not any(audit.samples.attacked):
        return "no attack was run; choose some by --attacks"
    return ""


def _undecided(audit: Audit, wanted: Condition) -> str:
    """Why a share that reaches the gate does not pass it: attacks that did not run might have lowered it."""
    if wanted.measure != "empirical_robust_accuracy":
        return ""
    missing = [record.name for record in audit.attacks if record.unfinished]
    if missing:
        return f"{', '.join(missing)} did not run to the end"
    if eps_value(wanted.eps) not in map(eps_value, audit.threat.eps):
        return f"no attack was aimed at {wanted.eps}; audit with --eps {','.join((*audit.threat.eps, wanted.eps))}"
    return ""


def state_of(gates: Sequence[Gate]) -> Literal["passed", "failed", "not set", "cannot be evaluated"]:
    """The gate lamp: what the gates of level `error` say together. A miss is one whatever the others are."""
    states = {gate.state for gate in gates if gate.level == "error"}
    if not states:
        return "not set"
    return "failed" if "failed" in states else "cannot be evaluated" if "cannot be evaluated" in states else "passed"


def compared(gate: Gate) -> str:
    """`29.9% < 30.0%`, with digits enough to tell the two apart."""
    if gate.value is None:
        return gate.state
    value, least = percents(gate.value, gate.least)
    limit = "lower limit " if gate.on == "ci_low" else ""
    return f"{limit}{value} {'<' if gate.value < gate.least else '≥'} {least}"


def headline_of(gates: Sequence[Gate], integrity: str) -> str:
    """What the gates put before the headline; nothing where there is nothing to act on, or integrity comes first."""
    state = state_of(gates)
    binding = [gate for gate in gates if gate.level == "error"]
    if integrity != "SOUND" or state in ("not set", "passed"):
        return ""
    if state == "cannot be evaluated":
        return "The gate cannot be evaluated. "
    missed = sum(gate.state == "failed" for gate in binding)
    unsure = sum(gate.state == "cannot be evaluated" for gate in binding)
    more = f", {unsure} cannot be evaluated" if unsure else ""
    return f"Gate failed: {missed} of {len(binding)} condition{'' if len(binding) == 1 else 's'}{more}. "


def exit_code(gates: Sequence[Gate], integrity: str, incomplete: bool) -> int:
    """4 before 5 before 3: a miss counts for little on an audit that is wrong or unfinished."""
    if integrity == "INVALID":
        return ExitCode.INTEGRITY
    states = {gate.state for gate in gates if gate.level == "error"}
    if integrity == "UNPROVED" or incomplete or "cannot be evaluated" in states:
        return ExitCode.INCOMPLETE
    return ExitCode.GATE_FAILED if "failed" in states else ExitCode.DONE
