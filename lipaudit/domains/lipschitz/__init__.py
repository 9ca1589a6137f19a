"""The global Lipschitz bound, operation by operation. `RULES` is the table; each module adds a family to it."""

from lipaudit.domains.lipschitz import joining, linear, pointwise, pooling, shape
from lipaudit.domains.lipschitz.value import RULES, Ledger, Value

__all__ = ["RULES", "Ledger", "Value", "joining", "linear", "pointwise", "pooling", "shape"]
