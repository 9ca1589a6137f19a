"""Operations that copy, move or drop entries, and add none: rows of 0 and 1.

Their norm is the root of the largest number of copies of one entry; moving without copying is an isometry.
"""

from __future__ import annotations

import math
from typing import Any

from lipaudit.domains.lipschitz.value import RULES, Ledger, Value
from lipaudit.errors import UnsupportedOp
from lipaudit.graph import Node, call
from lipaudit.norms.maps import Gather, Pad


def linear_call(node: Node, ledger: Ledger, operand: str, terms: int, coisometry: float | None = None) -> Gather:
    """The node itself as a linear map of its argument `operand`; all its other arguments are constants."""
    fixed = {name: value for name, value in node.args.items() if name != operand}
    return Gather(lambda x: call(node, {**fixed, operand: x}), ledger.shape_of(node, operand), terms, coisometry)


def broadcast(node: Node, ledger: Ledger, value: Value, operand: str) -> Value:
    """The operand stretched to the shape of the output: the root of the number of copies, if any."""
    shape, target = ledger.shape_of(node, operand), tuple(node.shape)
    if math.prod(shape) == math.prod(target):
        return value
    return ledger.pend(node, value, Gather(lambda x: x.expand(target), shape, 1))


def _rearranging(op: str, operand: str = "self") -> None:
    def rule(node: Node, ledger: Ledger, **arguments: Any) -> Value:
        """Every entry is moved exactly once: an isometry."""
        if math.prod(ledger.shape_of(node, operand)) != math.prod(node.shape):
            raise ValueError(f"expected as many entries after {node.op} as before, got {node.shape}")
        return ledger.pend(node, arguments[operand], linear_call(node, ledger, operand, 1, coisometry=1.0))

    RULES.rule(op)(rule)


for _op in (
    "view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "permute.default",
    "transpose.int", "t.default", "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims",
    "roll.default", "flip.default", "pixel_shuffle.default", "pixel_unshuffle.default",
):  # fmt: skip
    _rearranging(_op)


def _copying(op: str, operand: str = "self") -> None:
    def rule(node: Node, ledger: Ledger, **arguments: Any) -> Value:
        """Every output is a copy of one entry: the root of the largest number of copies."""
        return ledger.pend(node, arguments[operand], linear_call(node, ledger, operand, 1))

    RULES.rule(op)(rule)


for _op in ("expand.default", "repeat.default"):
    _copying(_op)


def _selecting(op: str, operand: str = "self") -> None:
    def rule(node: Node, ledger: Ledger, **arguments: Any) -> Value:
        """Some entries, each once: norm 1, and disjoint selections of one tensor share it (Note [Pieces])."""
        return ledger.select(node, arguments[operand], operand, linear_call(node, ledger, operand, 1))

    RULES.rule(op)(rule)


for _op in (
    "slice.Tensor", "select.int", "split.Tensor", "split_with_sizes.default", "unbind.int", "chunk.default",
):  # fmt: skip
    _selecting(_op)


@RULES.rule("pad.default")
def pad(node: Node, ledger: Ledger, self: Any, pad: Any, mode: str, value: float | None) -> Value:
    """Padding with a constant is an isometry onto its image; copied borders count the copies of a pixel."""
    modes = {"constant": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
    if mode not in modes:
        raise UnsupportedOp(f"expected padding mode {', '.join(modes)}, got {mode!r}")
    if value is not None and not math.isfinite(value):
        raise UnsupportedOp(f"expected padding with a finite constant, got {value}")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    # A constant other than zero only shifts the output.
    linear = Pad(tuple(pairs), modes[mode], ledger.shape_of(node, "self"))
    return ledger.pend(node, self, linear)
