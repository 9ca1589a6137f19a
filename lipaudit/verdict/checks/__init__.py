"""The checks of an audit: `CHECKS` is the table; each module adds a family to it."""

from lipaudit.verdict.checks import attacks, integrity, strength
from lipaudit.verdict.checks.registry import CHECKS, Check

__all__ = ["CHECKS", "Check", "attacks", "integrity", "strength"]
