"""lipaudit: provable Lipschitz bounds, certified radii and attacks against them, in one report.

The public names are loaded on first use, so that `lipaudit --help` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Settings": "lipaudit.settings",
    "audit": "lipaudit.api",
    "bound": "lipaudit.api",
    "certify": "lipaudit.api",
    "conv_norm": "lipaudit.norms.methods",
    "dense_norm": "lipaudit.norms.methods",
    "load_audit": "lipaudit.verdict.consistency",
    "merge": "lipaudit.runs.shards",
}
_MODULES = {
    "claims": "lipaudit.results.bounds",
    "errors": "lipaudit.errors",
    "nn": "lipaudit.nn",
    "results": "lipaudit.results",
}

__all__ = [*sorted(_HOME), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'lipaudit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
