"""Functions of straight pieces that a network writes out in several operations, put back together.

`where(x > 0, x, 0.1 * x)` is a leaky ReLU, `a + relu(b - a)` and `(a + b + |a - b|) / 2` are a maximum. Bounded
operation by operation they lose a factor or, where a mask is taken from the input, have no bound at all. `rewritten`
finds them in a graph and puts one operation in their place, by a proof in rational numbers.

Note [Pieces of a plane]
    A node that is computed entry by entry from one or two tensors of its own shape, by sums, multiples, comparisons and
    functions of straight pieces, is a function g of one or two numbers (the same for all entries with equal constants).
    Each comparison cuts the line or the plane in two; on a cell of the partition g is affine. The cells are enumerated
    with all numbers as fractions, and empty ones are left out by Fourier-Motzkin elimination, so nothing is rounded.
    g is continuous if and only if both affine forms of every two cells agree where the closures of these meet: then it
    may be replaced by any expression of the same function. Where it is not, it jumps, and is left as it is: a rule
    or a capture error refuses the mask by name.
    The constants are those of the graph: Python numbers as float64, tensors as they are stored.

Note [Folded planes]
    A Householder activation keeps z = (x, y) on one side of a line and reflects it on the other, R z where w.z > 0. It
    is continuous if and only if R - I = u w^T: then it is z + u relu(w.z). With the rounded sines and cosines that a
    network has, R - I = u w^T + E, and it jumps by ||E z|| on the line, a few roundings of z. The continuous function
    is put in its place, `folded`, where ||E|| is at most 8 roundings of the model's own dtype, and the graph says so;
    how the network rounds is then not known (`rounded`). Whatever jumps farther, or selects nothing at the line, is
    left as it is. Source: Singla, Singla and Feizi, ICLR 2022 (the activation); E made explicit here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch

from lipaudit.domains.cells import (
    MASKED,
    OPERATIONS,
    PER_CHANNEL,
    SELECTING,
    SUMS,
    Cell,
    Form,
    Inequality,
    NotPiecewise,
    Undecided,
    constant,
    continuous,
    possible,
)
from lipaudit.domains.graph import Node, Ref

_DEEPEST = 40
"""Operations in one function: activations are written in a few."""
_MOST_CELLS = 64
_MOST_CLASSES = 4096
"""Sets of constants in one function, such as the thresholds of its channels."""

_LIBRARY = torch.library.Library("lipaudit", "FRAGMENT")
_LIBRARY.define("piecewise(Tensor self, Tensor points, Tensor steps, Tensor slope, Tensor offset) -> Tensor")


def _piecewise(
    self: torch.Tensor, points: torch.Tensor, steps: torch.Tensor, slope: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    value = slope * self + offset
    for point, step in zip(points, steps, strict=True):
        value = value + step * (self - point).clamp_min(0.0)
    return value


def _folded(
    self: torch.Tensor, other: torch.Tensor, here: torch.Tensor, there: torch.Tensor, step: torch.Tensor
) -> torch.Tensor:
    return self + step * (here * self + there * other).clamp_min(0.0)


_LIBRARY.define("folded(Tensor self, Tensor other, Tensor here, Tensor there, Tensor step) -> Tensor")
_LIBRARY.impl("piecewise", _piecewise, "CompositeImplicitAutograd")
_LIBRARY.impl("folded", _folded, "CompositeImplicitAutograd")

PIECEWISE = "piecewise.default"
"""offset + slope x + sum of steps[k] relu(x - points[k]): entry by entry, constants broadcast, points in order."""

FOLDED = "folded.default"
"""self + step relu(here self + there other): one coordinate of a plane that is folded along a line."""

_ROUNDINGS = 8
"""How many roundings a function may jump by that is taken for a continuous one; see Note [Folded planes]."""


def sum_of_pieces(arguments: Mapping[str, Any]) -> torch.Tensor:
    """The absolute values of all terms of a function in pieces: what its rounding errors are a share of."""
    x, points, steps = (arguments[name] for name in ("self", "points", "steps"))
    size = (arguments["slope"] * x).abs() + arguments["offset"].abs()
    for point, step in zip(points, steps, strict=True):
        size = size + step.abs() * (x.abs() + point.abs())
    return size


@dataclass(frozen=True)
class Rewritten:
    """The nodes of a graph with functions of straight pieces in one operation each; unread nodes are left in."""

    nodes: list[Node]
    rounded: tuple[str, ...]
    """Operations whose written form rounds otherwise than the one in its place: layer, source and what it is now."""
    continuous: tuple[str, ...] = ()
    """Functions that jump by a few roundings, in whose place a continuous one is: layer, source and by how much."""


def rewritten(
    nodes: Sequence[Node], masks: Iterable[str], complexes: Collection[str] = (), dtype: torch.dtype = torch.float64
) -> Rewritten:
    """See Note [Pieces of a plane]; `masks` are the names of nodes of truth values, `complexes` are left alone.

    `dtype` is the model's own, in which its constants are rounded.
    """
    masks, written = set(masks), {node.name: node for node in nodes if node.name not in complexes}
    better = {node.name: node for node in nodes}
    rounded, jumps = [], []
    for node in written.values():
        for operands, cone in _cuts(node, written, masks) if node.name not in masks and _meets(node, written) else ():
            try:
                functions = _Functions(operands, cone)
                found = _of_one(node, functions) if len(operands) == 1 else _of_two(node, functions)
            except NotPiecewise:
                fold = _fold(node, operands, cone, torch.finfo(dtype).eps / 2)
                found, jump = (None, 0.0) if fold is None else fold
                if found is not None:
                    jumps.append(f"{node.title} ({node.source}) jumps by up to {jump:.1g} of what it folds")
            if found is not None:
                better[node.name] = found
                products = [part for part in cone if part.op not in SELECTING and not _masks(part, masks)]
                if found.op == "leaky_relu.default" and [part.op[:4] for part in products] == ["mul."]:
                    products = []  # its slope is charged with a rounding of its own
                if products:
                    rounded.append(f"{found.op.split('.')[0]} in {node.title} ({node.source})")
                break
    return Rewritten(list(better.values()), tuple(rounded), tuple(dict.fromkeys(jumps)))


def _masks(node: Node, masks: set[str]) -> bool:
    """Whether it computes a mask, or multiplies by one: nothing is rounded."""
    return node.name in masks or (node.op == "mul.Tensor" and any(ref in masks for ref in node.refs()))


def _meets(node: Node, nodes: Mapping[str, Node]) -> bool:
    """Whether paths of the graph meet here or just before: else the node is no more than the sum of its parts."""
    while node.op in OPERATIONS and len(refs := node.refs()) == 1 and refs[0] in nodes:
        node = nodes[refs[0]]
    return node.op in OPERATIONS and len(refs) > 1


def _cuts(node: Node, nodes: Mapping[str, Node], masks: set[str]) -> Iterator[tuple[list[str], list[Node]]]:
    """One or two tensors of which `node` is a function entry by entry, with the nodes in between, in order."""
    place = {name: number for number, name in enumerate(nodes)}
    cone, frontier = [node], set(node.refs())
    while len(cone) <= _DEEPEST:
        shared = len({ref for part in cone for ref in part.refs() if ref in frontier}) < sum(
            ref in frontier for part in cone for ref in part.refs()
        )
        if len(frontier) <= 2 and not frontier & masks and shared:
            yield sorted(frontier, key=lambda name: place.get(name, -1)), cone[::-1]
            if len(frontier) == 1:
                return
        inner = [nodes[name] for name in frontier if name in nodes and _entrywise(nodes[name], node.shape)]
        if not inner:
            return
        last = max(inner, key=lambda part: place[part.name])
        cone.append(last)
        cone.sort(key=lambda part: -place[part.name])
        frontier = (frontier - {last.name}) | set(last.refs())


def _entrywise(node: Node, shape: tuple[int, ...]) -> bool:
    return node.op in OPERATIONS and tuple(node.shape) == tuple(shape) and bool(node.refs())


# Functions of one entry -----------------------------------------------------------------------------------------------


def _of_one(node: Node, functions: _Functions) -> Node | None:
    """The node as a function of one tensor: a leaky ReLU where it is one, else in pieces; None if nothing is gained."""
    partitions = list(functions.cells())
    lines = [_line(cells) for cells in partitions]
    steepest = max(abs(slope) for line in lines for _, slope, _ in line)
    apart = functions.steepest_apart()
    linear = apart < math.inf and max(map(len, partitions)) == 1  # which branches.py sees to
    if float(steepest) >= apart * (1 - 1e-12) or linear:
        return None
    operand = Ref(functions.operands[0])
    rectifiers = {_rectifies(line) for line in lines}
    if len(rectifiers) == 1 and (slope := rectifiers.pop()) is not None:
        return _rectifier(node, operand, slope)
    most = max(map(len, lines)) - 1
    columns = [
        functions.spread(torch.tensor(c, dtype=torch.float64))
        for c in zip(*(_columns(line, most) for line in lines), strict=True)
    ]
    nothing = columns[0].new_zeros(0, *columns[0].shape)
    points, steps = (torch.stack(some) if most else nothing for some in (columns[2 : 2 + most], columns[2 + most :]))
    args = {"self": operand, "points": points, "steps": steps, "slope": columns[0], "offset": columns[1]}
    return replace(node, op=PIECEWISE, target=torch.ops.lipaudit.piecewise.default, args=args, output=None)


def _rectifies(line: Line) -> Fraction | None:
    """The slope on the left of a leaky ReLU; None for other functions."""
    if len(line) != 2 or line[1] != (Fraction(0), Fraction(1), Fraction(0)) or line[0][2] != 0:
        return None
    return line[0][1]


def _rectifier(node: Node, operand: Ref, slope: Fraction) -> Node:
    if slope == 0:
        return replace(node, op="relu.default", target=torch.ops.aten.relu.default, args={"self": operand}, output=None)
    args = {"self": operand, "negative_slope": _exactly(slope)}
    return replace(node, op="leaky_relu.default", target=torch.ops.aten.leaky_relu.default, args=args, output=None)


Line = list[tuple[Fraction | None, Fraction, Fraction]]
"""Pieces from left to right: where it begins (None: nowhere), slope and constant."""


def _line(cells: Sequence[Cell]) -> Line:
    """The pieces of a continuous function of one number."""
    pieces: list[tuple[Fraction | None, Fraction, Fraction]] = []
    for cell in cells:
        if possible(cell.open(), 1):
            lows = [-form[1] / form[0] for form, _ in cell.inside if form[0] > 0]
            slope, constant = cell.form
            pieces.append((max(lows, default=None), slope, constant))
    pieces.sort(key=lambda piece: (piece[0] is not None, piece[0] or Fraction(0)))
    merged: Line = []
    for piece in pieces:
        if not merged or merged[-1][1:] != piece[1:]:
            merged.append(piece)
    return merged


def _columns(line: Line, most: int) -> list[float]:
    """Slope and constant at the far left, then places and changes of slope, as floats that are exact."""
    (_, slope, offset), *others = line
    places = [piece[0] for piece in others if piece[0] is not None]
    steps = [after[1] - before[1] for before, after in itertools.pairwise(line)]
    padding = [places[-1] if places else Fraction(0)] * (most - len(places)), [Fraction(0)] * (most - len(steps))
    return [_exactly(number) for number in (slope, offset, *places, *padding[0], *steps, *padding[1])]


def largest_slope(slope: torch.Tensor, steps: torch.Tensor) -> float:
    """The largest |slope| of a function in pieces, at least: exact sums, rounded up."""
    shape = torch.broadcast_shapes(slope.shape, steps.shape[1:])
    rows = torch.stack([part.expand(shape).double().cpu().flatten() for part in (slope, *steps)], 1).unique(dim=0)
    most = max(abs(total) for row in rows.tolist() for total in itertools.accumulate(map(Fraction, row)))
    value = float(most)
    return value if Fraction(value) >= most else math.nextafter(value, math.inf)


def _exactly(number: Fraction) -> float:
    value = float(number)
    if Fraction(value) != number:
        raise NotPiecewise
    return value


# Functions of two entries ---------------------------------------------------------------------------------------------

_ONE, _NONE = Fraction(1), Fraction(0)
_FIRST, _SECOND = (_ONE, _NONE, _NONE), (_NONE, _ONE, _NONE)


def _of_two(node: Node, functions: _Functions) -> Node | None:
    """The node as the maximum or the minimum of two tensors; None if it is another function of them."""
    names = {_extreme(cells) for cells in functions.cells()}
    if len(names) != 1 or None in names:
        return None
    (name,) = names
    target = getattr(torch.ops.aten, str(name)).default
    args = {"self": Ref(functions.operands[0]), "other": Ref(functions.operands[1])}
    return replace(node, op=f"{name}.default", target=target, args=args, output=None)


def _extreme(cells: Sequence[Cell]) -> str | None:
    full = [cell for cell in cells if possible(cell.open(), 2)]
    if {cell.form for cell in full} != {_FIRST, _SECOND}:
        return None
    for name, sign in (("maximum", 1), ("minimum", -1)):
        # No cell has a point where the other operand is the more extreme one.
        others = [(sign if cell.form == _SECOND else -sign, cell) for cell in full]
        if not any(possible([*cell.open(), ((Fraction(s), Fraction(-s), _NONE), True)], 2) for s, cell in others):
            return name
    return None


# Planes folded along a line -------------------------------------------------------------------------------------------


def _fold(node: Node, operands: Sequence[str], cone: Sequence[Node], unit: float) -> tuple[Node, float] | None:
    """The node as one coordinate of a folded plane, and how far it jumps; None if it is none."""
    try:
        functions = _Functions(operands, cone)
        cells = list(functions.cells(jumping=True)) if len(operands) == 2 else []
    except NotPiecewise:
        return None
    for kept in (_FIRST, _SECOND):
        folds = [_folded_along(part, kept, unit) for part in cells]
        if folds and all(fold is not None for fold in folds):
            columns = torch.tensor([fold for fold in folds if fold is not None], dtype=torch.float64).mT
            first, second, step = (functions.spread(column) for column in columns[:3])
            names, weights = list(operands), [first, second]
            if kept == _SECOND:
                names, weights = names[::-1], weights[::-1]
            args = {
                "self": Ref(names[0]),
                "other": Ref(names[1]),
                "here": weights[0],
                "there": weights[1],
                "step": step,
            }
            target = torch.ops.lipaudit.folded.default
            return replace(node, op=FOLDED, target=target, args=args, output=None), float(columns[3].max())
    return None


def _folded_along(cells: Sequence[Cell], kept: Form, unit: float) -> tuple[float, float, float, float] | None:
    """w, u and the jump of z -> kept + u (w.z) where w.z > 0, that coordinate elsewhere; None for others."""
    others = [cell for cell in cells if cell.form != kept]
    sides = {form for cell in cells for form, _ in cell.inside}
    lines = {max(form, tuple(-c for c in form)) for form in sides}
    if len(others) != 1 or len(lines) != 1 or len(others[0].inside) != 1:
        return None
    (beyond, _), form = others[0].inside[0], others[0].form
    if beyond[2] != 0 or form[2] != 0 or not any(beyond[:2]):
        return None
    length = math.hypot(beyond[0], beyond[1])
    w = (float(beyond[0]) / length, float(beyond[1]) / length)
    moved = tuple(a - b for a, b in zip(form[:2], kept[:2], strict=True))
    u = float(sum(Fraction(a) * b for a, b in zip(w, moved, strict=True)))
    off = [float(m - Fraction(u) * Fraction(a)) for m, a in zip(moved, w, strict=True)]
    jump = math.hypot(*off)
    size = 1.0 + math.hypot(float(form[0]), float(form[1]))
    return (*w, u, jump) if jump <= _ROUNDINGS * unit * size else None


# Cells ----------------------------------------------------------------------------------------------------------------


class _Functions:
    """What a cone of nodes computes from one entry of each operand, for each set of constants in it."""

    def __init__(self, operands: Sequence[str], cone: Sequence[Node]) -> None:
        self.operands, self.cone = operands, cone
        tensors = {
            (node.name, key): value
            for node in cone
            for key, value in node.args.items()
            if isinstance(value, torch.Tensor)
        }
        for (name, key), tensor in tensors.items():
            shape = cone[-1].shape
            node = next(part for part in cone if part.name == name)
            if node.op in PER_CHANNEL and key == "weight" and tensor.ndim == 1 and len(shape) > 1:
                tensors[name, key] = tensor.reshape(-1, *(1,) * (len(shape) - 2))
        shapes = [tuple(tensor.shape) for tensor in tensors.values()]
        try:
            self.constants_shape = tuple(torch.broadcast_shapes(*shapes)) if shapes else ()
            fits = torch.broadcast_shapes(self.constants_shape, cone[-1].shape) == cone[-1].shape
        except RuntimeError:
            fits = False
        if not fits:
            raise NotPiecewise
        if any(tensor.is_meta for tensor in tensors.values()):
            raise NotPiecewise  # an outline of the network: its constants have no values
        self._keys = list(tensors)
        flat = [tensor.detach().cpu().double().expand(self.constants_shape).reshape(-1) for tensor in tensors.values()]
        self._classes: torch.Tensor = torch.zeros(1, 0)
        self._which: torch.Tensor | None = None
        if flat:
            self._classes, self._which = torch.stack(flat, 1).unique(dim=0, return_inverse=True)
        if len(self._classes) > _MOST_CLASSES or not bool(torch.isfinite(self._classes).all()):
            raise NotPiecewise
        self._device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))

    def cells(self, *, jumping: bool = False) -> Iterator[list[Cell]]:
        """The cells of each class of constants, of which the function is continuous unless it may be `jumping`."""
        for row in self._classes.tolist():
            constants = dict(zip(self._keys, map(Fraction, row), strict=True))
            cells = list(self._partition(constants))
            if not (jumping or continuous(cells, len(self.operands))):
                raise NotPiecewise
            yield cells

    def steepest_apart(self) -> float:
        """The largest slope of a function of one tensor, bounded operation by operation; inf where it has a mask."""
        found = dict.fromkeys(self.operands, 1.0)
        for node in self.cone:
            if node.op not in _SLOPES:
                return math.inf
            found[node.name] = _SLOPES[node.op](node, [found[ref] for ref in node.refs()])
        return found[self.cone[-1].name]

    def spread(self, by_class: torch.Tensor) -> torch.Tensor:
        """One number for each class, in the shape of the constants."""
        chosen = by_class[0] if self._which is None else by_class[self._which].reshape(self.constants_shape)
        return chosen.to(self._device)

    def _partition(self, constants: Mapping[tuple[str, str], Fraction]) -> Iterator[Cell]:
        waiting: list[tuple[Inequality, ...]] = [()]
        answers: dict[tuple[Inequality, ...], tuple[tuple[Form, int], ...]] = {(): ()}
        done = 0
        while waiting:
            inside = waiting.pop()
            signs = answers.pop(inside)
            try:
                yield Cell(inside, self._run(constants, dict(signs)))
                done += 1
            except Undecided as undecided:
                form = undecided.form
                minus = tuple(-c for c in form)
                parts = {1: ((form, True),), -1: ((minus, True),), 0: ((form, False), (minus, False))}
                for sign, more in parts.items():
                    cell = (*inside, *more)
                    if possible(cell, len(self.operands)):
                        waiting.append(cell)
                        answers[cell] = (*signs, (form, sign))
            if done + len(waiting) > _MOST_CELLS:
                raise NotPiecewise

    def _run(self, constants: Mapping[tuple[str, str], Fraction], signs: Mapping[Form, int]) -> Form:
        count = len(self.operands)
        unit = [tuple(Fraction(int(j == k)) for j in range(count + 1)) for k in range(count)]
        values: dict[str, Form] = dict(zip(self.operands, unit, strict=True))

        def sign(form: Form) -> int:
            if not any(form[:-1]):
                return (form[-1] > 0) - (form[-1] < 0)
            leading = abs(next(c for c in form if c))
            key = tuple(c / leading for c in form)
            minus = tuple(-c for c in key)
            if key in signs:
                return signs[key]
            if minus in signs:
                return -signs[minus]
            raise Undecided(key)

        for node in self.cone:
            arguments: dict[str, Any] = {}
            for key, value in node.args.items():
                if isinstance(value, Ref):
                    arguments[key] = values[value.name]
                elif isinstance(value, torch.Tensor):
                    arguments[key] = constant(constants[node.name, key], count)
                elif isinstance(value, (bool, int, float)):
                    try:
                        arguments[key] = constant(Fraction(value), count)
                    except (OverflowError, ValueError) as error:  # NaN and inf
                        raise NotPiecewise from error
                elif value is None:
                    arguments[key] = None
                else:  # lists, complex numbers
                    raise NotPiecewise
            values[node.name] = OPERATIONS[node.op](arguments, sign)
        return values[self.cone[-1].name]


def _largest(node: Node) -> float:
    """The largest constant factor of a product, a quotient, a sum or a leaky ReLU."""
    key = next(key for key in ("negative_slope", "weight", "alpha", "other") if key in node.args)
    held = node.args[key] if not isinstance(node.args[key], Ref) else node.args["self"]
    size = float(torch.as_tensor(held, dtype=torch.float64).abs().max())
    return 1 / size if node.op.startswith("div") and size else size


_SLOPES: dict[str, Callable[[Node, Sequence[float]], float]] = {
    **dict.fromkeys(SUMS, lambda _, found: sum(found)),
    **dict.fromkeys(
        ("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar"), lambda node, found: found[0] * _largest(node)
    ),
    **dict.fromkeys(("leaky_relu.default", *PER_CHANNEL), lambda node, found: found[0] * max(1.0, _largest(node))),
    **dict.fromkeys(SELECTING - MASKED, lambda _, found: math.hypot(*found)),
}
"""How steep a node is at most, from how steep what it reads is: as the rules have it, or less."""
