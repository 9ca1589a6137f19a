"""Operations with several operands, on forms: sums and concatenations. `JOINS` is the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from lipaudit.domains.graph import Node, Ref
from lipaudit.domains.zonotope.affine_form import Form
from lipaudit.domains.zonotope.backward import Joined, Step, Summed
from lipaudit.errors import NotLipschitz

Joint = tuple[torch.Tensor, Callable[[torch.Tensor, torch.Tensor], Step]]
"""The rows, and the step, which is still to be told its rounding and its reach."""


def _added(node: Node, forms: Sequence[Form], rows: Sequence[torch.Tensor]) -> Joint:
    """The sum or difference of two operands that depend on the input: the one that `alpha` belongs to comes last."""
    if len(rows) != 2:
        raise NotLipschitz(f"expected a sum of two activations, got another use of {node.op}")
    first, second = (r.reshape(len(r), *(1,) * (len(node.shape) + 1 - r.ndim), *r.shape[1:]) for r in rows)
    factor = _second_factor(node)
    parents, shapes = tuple(form.step for form in forms), tuple(tuple(form.centre.shape) for form in forms)
    return first + second * factor, partial(Summed, parents, (1.0, factor), shapes)


def _second_factor(node: Node) -> float:
    alpha = float(node.args["alpha"])
    return alpha if node.op.startswith("add") else -alpha


def reaches(node: Node, forms: Sequence[Form]) -> torch.Tensor:
    """How far the terms of a sum reach from their centres, added up, entry by entry."""
    first, second = (form.reach for form in forms)
    return first + abs(_second_factor(node)) * second


def _concatenated(node: Node, forms: Sequence[Form], rows: Sequence[torch.Tensor]) -> Joint:
    """Concatenation; constants have rows of zeros."""
    stacked, moving = node.op.startswith("stack"), iter(rows)
    axis = node.args["dim"] % len(node.shape)
    parts, places, start = [], [], 0
    for part in node.args["tensors"]:
        moves = isinstance(part, Ref)
        parts.append(next(moving) if moves else rows[0].new_zeros(len(rows[0]), *part.shape))
        length = 1 if stacked else parts[-1].shape[axis + 1]
        places += [(start, length)] if moves else []
        start += length
    joined = torch.stack(parts, axis + 1) if stacked else torch.cat(parts, axis + 1)
    parents = tuple(form.step for form in forms)

    def step(rounding: torch.Tensor, reach: torch.Tensor) -> Step:
        del rounding  # nothing is computed
        return Joined(parents, axis, tuple(places), stacked, reach)

    return joined, step


JOINS: dict[str, Callable[[Node, Sequence[Form], Sequence[torch.Tensor]], Joint]] = {
    "add.Tensor": _added,
    "sub.Tensor": _added,
    "rsub.Tensor": _added,
    "cat.default": _concatenated,
    "stack.default": _concatenated,
}
"""Operation -> the rows of its output from the forms of its operands: all of them linear."""
