"""The abstract value of the Lipschitz domain, and the ledger that the rules write.

Note [Pending maps]
    Between two nonlinear operations a network is linear, and the norm of the composite is at most the product of
    the norms, often far below it (batch norm after a convolution). So a linear operation does not bound anything:
    it appends its map to the value. Only an operation that needs a number settles the value: neighbouring maps
    are merged (`maps.merge`), each merged map is bounded, and each bound becomes a line of the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import torch

from lipaudit.domains.roundoff import EXACT
from lipaudit.domains.walk import Rules
from lipaudit.graph import Graph, Node
from lipaudit.norms import norm_bound
from lipaudit.norms.maps import Conv, Dense, Gather, Identity, LinearMap, merge
from lipaudit.norms.power import lower_bound
from lipaudit.progress import Progress, Silent
from lipaudit.results import Law, LayerBound, Upper
from lipaudit.rounding import WIDE, log10_up, wide, wide_sqrt

RULES = Rules("Lipschitz rule")

INPUT = "input"
"""The step that stands for the network input."""


@dataclass(frozen=True)
class Link:
    """A linear operation that has not been bounded yet; `parts` are the nodes that were merged into it."""

    linear: LinearMap
    parts: tuple[tuple[Node, LinearMap], ...]

    @property
    def heavy(self) -> bool:
        return isinstance(self.linear, (Conv, Dense))


@dataclass(frozen=True)
class Value:
    """A tensor as a function of the network input: a bounded step of the ledger, then linear maps."""

    step: str
    chain: tuple[Link, ...] = ()


@dataclass
class Ledger:
    """The flat proof: one `LayerBound` per bounded step, in order."""

    graph: Graph
    device: torch.device
    method: str = "best"
    measure: bool = True
    """Also measure each convolution and dense map from below."""
    progress: Progress = field(default_factory=Silent)
    lines: list[LayerBound] = field(default_factory=list)
    so_far: dict[str, Decimal] = field(default_factory=lambda: {INPUT: Decimal(1)})
    """Lipschitz bound from the network input to each step."""
    parts: dict[str, tuple[tuple[Node, LinearMap | None], ...]] = field(default_factory=dict)
    """The operations that each step consists of: where rounding errors arise."""
    _settled: dict[tuple[str, ...], Value] = field(default_factory=dict)
    _users: dict[str, int] = field(init=False)
    _shapes: dict[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self._users = self.graph.users()
        self._shapes = {node.name: node.shape for node in self.graph.nodes}
        self._shapes[INPUT] = (1, *self.graph.input_shape)

    def shape_of(self, node: Node, argument: str) -> tuple[int, ...]:
        """Shape of what the node reads as that argument, with the leading axis of one."""
        return self._shapes[node.args[argument].name]

    def pend(self, node: Node, value: Value, linear: LinearMap) -> Value:
        """The value after one more linear operation; settled at once where several readers would repeat work."""
        pending = Value(value.step, (*value.chain, Link(linear, ((node, linear),))))
        repeated = self._users.get(node.name, 0) > 1 and any(link.heavy for link in pending.chain)
        return self.settle(pending) if repeated else pending

    def settle(self, value: Value) -> Value:
        """The same tensor with every pending map bounded and on the ledger."""
        key = (value.step, *(node.name for link in value.chain for node, _ in link.parts))
        if key not in self._settled:
            step = value.step
            for link in merged(value.chain):
                step = self._bound_map(step, link)
            self._settled[key] = Value(step)
        return self._settled[key]

    def record(self, node: Node, law: Law, inputs: Sequence[Value], upper: Upper, *, exact: bool = True) -> Value:
        """The value after a nonlinear or joining operation; exactly one times one input, unrounded, needs no line."""
        steps = [self.settle(value).step for value in inputs]
        if law == "scale" and upper.value == 1.0 and node.op in EXACT:
            return Value(steps[0])
        bounds = [self.so_far[step] for step in steps]
        if law == "sum":
            total = bounds[0]
            for bound in bounds[1:]:
                total = WIDE.add(total, bound)
        elif law == "root_sum_squares":
            total = Decimal(0)
            for bound in bounds:
                total = WIDE.add(total, WIDE.multiply(bound, bound))
            total = wide_sqrt(total)
        else:
            total = max(bounds)
        kind = "exact" if exact and law == "scale" else "upper"
        return Value(self._write(node, law, steps, upper, total, kind=kind))

    def _bound_map(self, step: str, link: Link) -> str:
        isometric = isinstance(link.linear, Identity) or (isinstance(link.linear, Gather) and link.linear.isometric)
        if isometric and all(node.op in EXACT for node, _ in link.parts):
            return step
        began = time.perf_counter()
        upper, candidates = norm_bound(link.linear, self.method)
        lower = lower_bound(link.linear, device=self.device) if link.heavy and self.measure else None
        node = link.parts[-1][0]
        exact = upper.method in ("svd-verified", "diagonal", "isometry") or "(exact)" in upper.because
        return self._write(
            node,
            "scale",
            [step],
            upper,
            self.so_far[step],
            kind="exact" if exact else "upper",
            parts=link.parts,
            candidates=candidates,
            lower=lower,
            seconds=time.perf_counter() - began,
        )

    def _write(
        self,
        node: Node,
        law: Law,
        steps: Sequence[str],
        upper: Upper,
        total: Decimal,
        *,
        kind: str,
        parts: tuple[tuple[Node, LinearMap | None], ...] = (),
        **measured: object,
    ) -> str:
        parts = parts or ((node, None),)
        bound = WIDE.multiply(wide(upper.value), total)
        names = list(dict.fromkeys(part.title for part, _ in parts))
        line = LayerBound(
            name=" + ".join(names),
            op=" + ".join(_spoken(part.op) for part, _ in parts),
            upper=upper,
            law=law,
            inputs=tuple(steps),
            step=node.name,
            log10_so_far=log10_up(bound),
            shape=node.shape[1:],
            kind=kind,
            source=parts[0][0].source,
            **measured,
        )
        self.lines.append(line)
        self.so_far[node.name], self.parts[node.name] = bound, parts
        self.progress.advance(len(parts), line.name)
        return node.name


def _spoken(op: str) -> str:
    """`_native_batch_norm_legit_no_training.default` is batch_norm to everybody."""
    return op.split(".")[0].removeprefix("_native_").removesuffix("_legit_no_training")


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
