"""Functions of straight pieces of a few numbers: affine on each cell of a partition, everything in fractions.

See Note [Pieces of a plane] in piecewise.py. `OPERATIONS` is the table: what each operation does to affine forms, given
the signs of forms.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_MOST_INEQUALITIES = 200


class NotPiecewise(Exception):
    """The node is no function of straight pieces of these operands, or one that is too large to look into."""


Form = tuple[Fraction, ...]
"""c_1 z_1 + ... + c_k z_k + c: its coefficients, the constant last."""
Inequality = tuple[Form, bool]
"""form > 0 if True, form >= 0 if not."""


@dataclass(frozen=True)
class Cell:
    inside: tuple[Inequality, ...]
    form: Form

    def open(self) -> list[Inequality]:
        return [(form, True) for form, _ in self.inside]

    def closed(self) -> list[Inequality]:
        return [(form, False) for form, _ in self.inside]


class Undecided(Exception):
    def __init__(self, form: Form) -> None:
        self.form = form


def constant(number: Fraction, count: int) -> Form:
    return (Fraction(0),) * count + (number,)


def continuous(cells: Sequence[Cell], count: int) -> bool:
    for one, other in itertools.combinations(cells, 2):
        gap = tuple(a - b for a, b in zip(one.form, other.form, strict=True))
        if any(gap):
            both = [*one.closed(), *other.closed()]
            minus = tuple(-c for c in gap)
            if possible([*both, (gap, True)], count) or possible([*both, (minus, True)], count):
                return False
    return True


def possible(inequalities: Iterable[Inequality], count: int) -> bool:
    """Whether some point fulfils all of them (Fourier-Motzkin elimination); True where there are too many to tell."""
    left = set(inequalities)
    for k in range(count):
        above = [(form, strict) for form, strict in left if form[k] > 0]
        below = [(form, strict) for form, strict in left if form[k] < 0]
        left = {(form, strict) for form, strict in left if form[k] == 0}
        for (up, strict), (down, too) in itertools.product(above, below):
            left.add((tuple(a * -down[k] + b * up[k] for a, b in zip(up, down, strict=True)), strict or too))
        if len(left) > _MOST_INEQUALITIES:
            return True
    return all(form[-1] > 0 or (form[-1] == 0 and not strict) for form, strict in left)


Arguments = Mapping[str, Any]
Sign = Callable[[Form], int]


def _plus(x: Form, y: Form, factor: Fraction = Fraction(1)) -> Form:
    return tuple(a + factor * b for a, b in zip(x, y, strict=True))


def _fixed(x: Form) -> Fraction:
    """A number that does not depend on the operands."""
    if any(x[:-1]):
        raise NotPiecewise
    return x[-1]


def _times(x: Form, factor: Fraction) -> Form:
    return tuple(factor * c for c in x)


def _sum(sign: int, *, reverse: bool = False) -> Callable[[Arguments, Sign], Form]:
    def add(a: Arguments, _: Sign) -> Form:
        alpha = sign * (_fixed(a["alpha"]) if a.get("alpha") is not None else 1)
        x, y = (a["other"], a["self"]) if reverse else (a["self"], a["other"])
        return _plus(x, y, Fraction(alpha))

    return add


def _product(a: Arguments, _: Sign) -> Form:
    x, y = a["self"], a["other"]
    return _times(y, x[-1]) if not any(x[:-1]) else _times(x, _fixed(y))


def _quotient(a: Arguments, _: Sign) -> Form:
    divisor = _fixed(a["other"])
    if divisor == 0:
        raise NotPiecewise
    return _times(a["self"], 1 / divisor)


def _larger(x: Form, y: Form, sign: Sign) -> Form:
    return x if sign(_plus(x, y, Fraction(-1))) >= 0 else y


def _smaller(x: Form, y: Form, sign: Sign) -> Form:
    return x if sign(_plus(x, y, Fraction(-1))) <= 0 else y


def _clamped(low: str, high: str) -> Callable[[Arguments, Sign], Form]:
    def clamp(a: Arguments, sign: Sign) -> Form:
        value: Form = a["self"]
        if a.get(low) is not None:
            value = _larger(value, a[low], sign)
        return _smaller(value, a[high], sign) if a.get(high) is not None else value  # as torch: the upper limit wins

    return clamp


def _relu6(a: Arguments, sign: Sign) -> Form:
    count = len(a["self"]) - 1
    return _smaller(_larger(a["self"], constant(Fraction(0), count), sign), constant(Fraction(6), count), sign)


def _leaky(key: str) -> Callable[[Arguments, Sign], Form]:
    return lambda a, sign: a["self"] if sign(a["self"]) >= 0 else _times(a["self"], _fixed(a[key]))


def _threshold(a: Arguments, sign: Sign) -> Form:
    return a["self"] if sign(_plus(a["self"], a["threshold"], Fraction(-1))) > 0 else a["value"]


def _absolute(a: Arguments, sign: Sign) -> Form:
    return a["self"] if sign(a["self"]) >= 0 else _times(a["self"], Fraction(-1))


def _truth(x: Form, value: bool) -> Form:
    return constant(Fraction(int(value)), len(x) - 1)


def _compare(holds: Callable[[int], bool]) -> Callable[[Arguments, Sign], Form]:
    return lambda a, sign: _truth(a["self"], holds(sign(_plus(a["self"], a["other"], Fraction(-1)))))


def _logical(holds: Callable[[bool, bool], bool]) -> Callable[[Arguments, Sign], Form]:
    return lambda a, _: _truth(a["self"], holds(_fixed(a["self"]) != 0, _fixed(a["other"]) != 0))


def _steps(a: Arguments, sign: Sign) -> Form:
    where = sign(a["self"])
    return a["values"] if where == 0 else _truth(a["self"], where > 0)


def _signum(a: Arguments, sign: Sign) -> Form:
    return constant(Fraction(sign(a["self"])), len(a["self"]) - 1)


def _where(a: Arguments, _: Sign) -> Form:
    return a["self"] if _fixed(a["condition"]) != 0 else a["other"]


def _filled(a: Arguments, _: Sign) -> Form:
    return a["value"] if _fixed(a["mask"]) != 0 else a["self"]


PER_CHANNEL = {"prelu.default", "_prelu_kernel.default"}

SUMS = ("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Tensor", "rsub.Scalar")
MASKED = {
    "where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar", "masked_fill.Scalar", "masked_fill.Tensor",
}  # fmt: skip
SELECTING = MASKED | {
    "neg.default", "abs.default", "relu.default", "relu6.default", "hardtanh.default", "clamp.default", "clamp.Tensor",
    "clamp_min.default", "clamp_min.Tensor", "clamp_max.default", "clamp_max.Tensor", "threshold.default",
    "maximum.default", "max.other", "fmax.default", "minimum.default", "min.other", "fmin.default",
}  # fmt: skip
"""Operations that select or change signs: nothing is rounded."""

OPERATIONS: dict[str, Callable[[Arguments, Sign], Form]] = {
    **dict.fromkeys(("add.Tensor", "add.Scalar"), _sum(1)),
    **dict.fromkeys(("sub.Tensor", "sub.Scalar"), _sum(-1)),
    **dict.fromkeys(("rsub.Tensor", "rsub.Scalar"), _sum(-1, reverse=True)),
    **dict.fromkeys(("mul.Tensor", "mul.Scalar"), _product),
    **dict.fromkeys(("div.Tensor", "div.Scalar"), _quotient),
    "neg.default": lambda a, _: _times(a["self"], Fraction(-1)),
    "abs.default": _absolute,
    "relu.default": lambda a, sign: a["self"] if sign(a["self"]) >= 0 else _times(a["self"], Fraction(0)),
    "relu6.default": _relu6,
    "hardtanh.default": _clamped("min_val", "max_val"),
    **dict.fromkeys(("clamp.default", "clamp.Tensor"), _clamped("min", "max")),
    **dict.fromkeys(("clamp_min.default", "clamp_min.Tensor"), _clamped("min", "max")),
    **dict.fromkeys(("clamp_max.default", "clamp_max.Tensor"), _clamped("min", "max")),
    "leaky_relu.default": _leaky("negative_slope"),
    **dict.fromkeys(PER_CHANNEL, _leaky("weight")),
    "threshold.default": _threshold,
    **dict.fromkeys(
        ("maximum.default", "max.other", "fmax.default"), lambda a, sign: _larger(a["self"], a["other"], sign)
    ),
    **dict.fromkeys(
        ("minimum.default", "min.other", "fmin.default"), lambda a, sign: _smaller(a["self"], a["other"], sign)
    ),
    **dict.fromkeys(("sign.default", "sgn.default"), _signum),
    "heaviside.default": _steps,
    **{
        f"{name}.{kind}": _compare(holds)
        for kind in ("Scalar", "Tensor")
        for name, holds in {
            "gt": lambda s: s > 0, "ge": lambda s: s >= 0, "lt": lambda s: s < 0, "le": lambda s: s <= 0,
            "eq": lambda s: s == 0, "ne": lambda s: s != 0,
        }.items()
    },
    **dict.fromkeys(("logical_and.default", "bitwise_and.Tensor", "__and__.Tensor"), _logical(lambda p, q: p and q)),
    **dict.fromkeys(("logical_or.default", "bitwise_or.Tensor", "__or__.Tensor"), _logical(lambda p, q: p or q)),
    **dict.fromkeys(("logical_xor.default", "bitwise_xor.Tensor", "__xor__.Tensor"), _logical(lambda p, q: p != q)),
    **dict.fromkeys(
        ("logical_not.default", "bitwise_not.default"), lambda a, _: _truth(a["self"], _fixed(a["self"]) == 0)
    ),
    **dict.fromkeys(("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar"), _where),
    **dict.fromkeys(("masked_fill.Scalar", "masked_fill.Tensor"), _filled),
}  # fmt: skip
"""What each operation does to affine forms, given the signs of forms."""
