"""The public names, which `__init__.py` loads on first use, for tools that read types and run nothing."""

from lipaudit import errors, nn, results
from lipaudit.api import audit, bound, certify
from lipaudit.norms.methods import conv_norm, dense_norm
from lipaudit.results import bounds as claims
from lipaudit.runs.shards import merge
from lipaudit.settings import Settings
from lipaudit.verdict.consistency import load_audit

__version__: str

__all__ = [
    "Settings",
    "audit",
    "bound",
    "certify",
    "claims",
    "conv_norm",
    "dense_norm",
    "errors",
    "load_audit",
    "merge",
    "nn",
    "results",
]
