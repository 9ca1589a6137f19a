"""The global Lipschitz bound, operation by operation. `RULES` is the table; each module adds a family to it."""

from lipaudit.domains.lipschitz import (
    attention,
    bounded,
    contraction,
    joining,
    linear,
    magnitudes,
    masking,
    normalisation,
    patterns,
    pointwise,
    pooling,
    products,
    quotients,
    recurrent,
    resampling,
    scaling,
    shape,
)
from lipaudit.domains.lipschitz.propagator import RULES, Ledger, Value
from lipaudit.domains.rounding import float64_bounded, float64_linear

__all__ = [
    "RULES",
    "Ledger",
    "Value",
    "attention",
    "bounded",
    "contraction",
    "float64_bounded",
    "float64_linear",
    "joining",
    "linear",
    "magnitudes",
    "masking",
    "normalisation",
    "patterns",
    "pointwise",
    "pooling",
    "products",
    "quotients",
    "recurrent",
    "resampling",
    "scaling",
    "shape",
]
