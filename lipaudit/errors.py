"""Everything that lipaudit refuses to do, one class per reason.

    LipauditError
    ├─ LoadError        a model, checkpoint or data set could not be loaded
    ├─ CaptureError     the model cannot be captured as a graph (train mode, data-dependent control flow)
    ├─ UnsupportedOp    no rule for some operations: lists all of them, each with its layer and source line
    ├─ NotLipschitz     an operation has no finite bound here
    ├─ BadThreat        budget, norm or box make no sense for this input
    ├─ ReportError      an unreadable result, or one of a newer schema
    ├─ ConfigError      a gate, or a setting in a file, is none that lipaudit knows
    ├─ CompareError     two results do not answer the same question
    ├─ ResumeError      an interrupted run cannot be continued: it was begun with something else
    └─ RuleError        a rule or registration is wrong: our bug, or the extender's

A message says what was expected, what came, where, and what to do next, in one line.
A vacuous bound, a sample outside the box or an attack that could not run are results, not errors.
"""

from __future__ import annotations


class ExitCode:
    """Exit codes of the command line; a higher priority outranks a lower one (4 over 5 over 3)."""

    DONE = 0
    CRASH = 1
    USAGE = 2
    GATE_FAILED = 3
    INTEGRITY = 4
    INCOMPLETE = 5
    INTERRUPTED = 130
    TERMINATED = 143


class LipauditError(Exception):
    """Base of all errors that lipaudit raises on purpose; shown as one line, never as a traceback."""

    exit_code = ExitCode.CRASH


class RenamedWarning(DeprecationWarning):
    """Somebody used an older name; the message says what it is called now."""


class LoadError(LipauditError):
    """A model, checkpoint or data set could not be loaded."""

    exit_code = ExitCode.USAGE


class CaptureError(LipauditError):
    """The model cannot be captured as a graph that computes what the model computes."""

    exit_code = ExitCode.INCOMPLETE


class UnsupportedOp(LipauditError):
    """The model uses operations for which no rule exists."""

    exit_code = ExitCode.INCOMPLETE


class NotLipschitz(LipauditError):
    """An operation of the model has no finite Lipschitz bound."""

    exit_code = ExitCode.INCOMPLETE


class BadThreat(LipauditError):
    """The threat model (norm, budget, box) does not fit the input."""

    exit_code = ExitCode.USAGE


class ReportError(LipauditError):
    """A result file is unreadable, or was written by a newer lipaudit."""

    exit_code = ExitCode.USAGE


class ConfigError(LipauditError):
    """A gate, or a setting in a configuration file, is none that lipaudit knows."""

    exit_code = ExitCode.USAGE


class CompareError(LipauditError):
    """Two results do not answer the same question."""

    exit_code = ExitCode.USAGE


class ResumeError(LipauditError):
    """An interrupted run cannot be continued as asked."""

    exit_code = ExitCode.USAGE


class RuleError(LipauditError):
    """A rule or a registration is wrong."""
