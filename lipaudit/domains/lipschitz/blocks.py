"""Whole blocks of a graph that are bounded at once: more is known of them than of their operations one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.fourier import fourier_layers
from lipaudit.domains.lipschitz.lengths import lengths
from lipaudit.domains.lipschitz.polynomials import polynomials
from lipaudit.domains.lipschitz.propagator import Ledger, Value


def whole_blocks(ledger: Ledger) -> Callable[[Node, Mapping[str, Any]], Value | None]:
    """What stands for the value of a node inside or at the end of such a block; None for all other nodes."""
    kinds = [fourier_layers(ledger), polynomials(ledger)]
    if ledger.looks_back:
        kinds.append(lengths(ledger))

    def instead(node: Node, arguments: Mapping[str, Any]) -> Value | None:
        return next((found for kind in kinds if (found := kind(node, arguments)) is not None), None)

    return instead
