"""The abstract value of the Lipschitz domain: a bounded step, and the linear maps since.

Note [Pieces]
    Slices of one tensor that are processed apart and concatenated again move independently: with S_i disjoint
    selections and f_i of Lipschitz constant L_i, ||cat f_i(S_i dx)||^2 <= sum L_i^2 ||S_i dx||^2, so the whole has
    max L_i, not the root of the sum of their squares. So a value remembers of which pieces of which tensors it is a
    function: `Piece(fork, entries)` says that it depends on the network input only through those entries of the
    output of node `fork`, and that its bound contains the bound of that output as a factor. Rounding errors of the
    branches are not pieces of one error; the certificate adds those of a `max` step by root of squares.

Note [Pending maps]
    Between two nonlinear operations a network is linear, and the norm of the composite is at most the product of
    the norms, often far below it (batch norm after a convolution). So a linear operation does not bound anything:
    it appends its map to the value. Only an operation that needs a number settles the value: neighbouring maps
    are merged (`maps.merge`), each merged map is bounded, and each bound becomes a line of the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.rounding.float64 import EXACT
from lipaudit.norms.linear_maps import Conv, Dense, Gather, Identity, LinearMap, Transposed
from lipaudit.norms.merging import merge

Parts = tuple[tuple[Node, LinearMap | None], ...]
"""Operations that are bounded together, in order, and the maps of those that are linear."""


@dataclass(frozen=True)
class Link:
    """A linear operation that has not been bounded yet; `parts` are the nodes that were merged into it."""

    linear: LinearMap
    parts: tuple[tuple[Node, LinearMap], ...]

    @property
    def heavy(self) -> bool:
        return isinstance(self.linear, (Conv, Dense, Transposed))


@dataclass(frozen=True, eq=False)
class Piece:
    """Some entries of the output of a node; see Note [Pieces]."""

    fork: str
    entries: torch.Tensor
    """Boolean, one for each entry of the output."""


@dataclass(frozen=True)
class Value:
    """A tensor as a function of the network input: a bounded step of the ledger, then linear maps."""

    step: str
    chain: tuple[Link, ...] = ()
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Inner:
    """What a node that sums linear branches of one tensor has behind it; see Note [One map] in branches.py."""

    origin: str
    """The node whose output the branches read."""
    stretch: float
    """How far the sum follows its operands, added up."""
    parts: tuple[tuple[Node, LinearMap | None, float], ...]
    """The operations of the branches, and how far a rounding error of each grows until the sum."""


def only_moves(link: Link) -> bool:
    """Whether the map is an isometry that rounds nothing: it needs no line."""
    isometric = isinstance(link.linear, Identity) or (isinstance(link.linear, Gather) and link.linear.isometric)
    return isometric and all(node.op in EXACT for node, _ in link.parts)


def joined(pieces: Sequence[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """What is common to all: the forks of which each is a function, with the entries of any."""
    forks = [{piece.fork: piece.entries for piece in some} for some in pieces]
    common = [name for name in forks[0] if all(name in fork for fork in forks)] if forks else []
    return tuple(Piece(name, torch.stack([fork[name] for fork in forks]).any(0)) for name in common)


def merged(chain: Sequence[Link]) -> list[Link]:
    """Neighbouring maps put together where their composite is a map of a known kind."""
    links: list[Link] = []
    for link in chain:
        together = merge(links[-1].linear, link.linear) if links else None
        if together is None:
            links.append(link)
        else:
            links[-1] = Link(together, (*links[-1].parts, *link.parts))
    # A scaling that could not go backwards may still go forwards: scale, then (conv merged with its batch norm).
    return links if len(links) == len(chain) else merged(links)
