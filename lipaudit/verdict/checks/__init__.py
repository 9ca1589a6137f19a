"""The checks of an audit: `CHECKS` has them all, in the order of their ids. Each module of this folder adds some."""

import importlib
import pkgutil

from lipaudit.verdict.checks.registry import Check, Outcome, table

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

CHECKS: dict[str, Check] = table()

__all__ = ["CHECKS", "Check", "Outcome"]
