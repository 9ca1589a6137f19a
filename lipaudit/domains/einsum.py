"""What an einsum says, letter by letter."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Labels = Sequence[Hashable]


def einsum_labels(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[Labels, Labels, Labels]:
    """The labels of two operands and of the output; dots stand for leading axes, aligned from the right."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = sorted(c for c in set(left) - {",", "."} if left.count(c) == 1)
        output = ("..." if "..." in left else "") + "".join(letters)
    hidden = [len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, shapes, strict=True)]
    most = max((h for h, term in zip(hidden, terms, strict=True) if "..." in term), default=0)

    def spelled(term: str, dots: int) -> Labels:
        before, found, behind = term.partition("...")
        if not found:
            return list(before)
        return [*before, *(("dots", k) for k in range(dots, 0, -1)), *behind]

    first, second = (spelled(term, dots) for term, dots in zip(terms, hidden, strict=True))
    return first, second, spelled(output, most)
