"""The local domain: what the network does to a small ball around one input, as affine forms.

`margins` is what it is for: bounds of the logit differences over the ball, from which local radii follow.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import torch

from lipaudit.domains.graph import Graph
from lipaudit.domains.interpreter import walk
from lipaudit.domains.lipschitz import RULES
from lipaudit.domains.lipschitz.propagator import Ledger
from lipaudit.domains.zonotope.affine_form import Form, ball
from lipaudit.domains.zonotope.ball_constraints import Group, ends
from lipaudit.domains.zonotope.propagator import LocalLedger
from lipaudit.domains.zonotope.quadratic_constraints import Sectors
from lipaudit.results.threat import Norm
from lipaudit.rounding import gamma, up

LARGEST_ROWS_BYTES = 6 * 2**30
"""Memory of the rows of one tensor, at most."""
_ENOUGH = 0.99
"""Share of what there is room for, where no better multipliers are looked for."""
_TIMED_ROWS = 128
_FEW_OPEN = 500
_TIMED_RADIUS = 1e-9
"""So small that only the bound of the rounding errors leaves signs open."""


@dataclass(frozen=True, eq=False)
class Logits(Form):
    """The form of the logits, and what is known of its symbols together."""

    groups: tuple[Group, ...] = ()
    """See ball_constraints.py."""
    sectors: Sectors | None = None
    """See quadratic_constraints.py; None unless it was asked for."""
    roundings: int = 0
    """How many rows stand for roundings."""

    @classmethod
    def of(cls, form: Form, ledger: LocalLedger) -> Logits:
        """A form of the ledger with what the ledger knows."""
        known = (tuple(ledger.groups), ledger.sectors, ledger.roundings)
        return cls(form.centre, form.rows, form.shared, form.remainder, form.loose, form.step, form.within, *known)


def logits_over(
    whole: Ledger,
    x: torch.Tensor,
    radius: float,
    *,
    norm: Norm = "l2",
    room_for: int,
    patience: int = sys.maxsize,
    backwards: bool = True,
    together: bool = False,
) -> Logits:
    """The logits, (1, classes), over all inputs within `radius` of `x` in the norm; `x` has no batch axis.

    In Linf, over those of them in the domain of the audit. `whole` is the ledger of the network bound. Raises
    `NotLipschitz` or `UnsupportedOp` for an operation without a local rule, `TooWide` if more than `room_for` rows were
    needed, or more than `patience` not counting those that stand for roundings.
    """
    ledger = LocalLedger(
        whole.graph,
        whole.device,
        whole=whole,
        room_for=room_for,
        patience=patience,
        backwards=backwards,
        together=together,
    )
    with torch.no_grad():
        start = ledger.start(ball(x.to(whole.device)[None], radius, norm=norm, domain=_as_read(whole)))
        form = ledger.settle(walk(whole.graph, RULES, start, ledger, ledger.check)).form
        return Logits.of(form, ledger)


def _as_read(whole: Ledger) -> tuple[float, float] | None:
    """The domain, with what its ends become in the network's own dtype: rounding keeps the order of numbers."""
    if whole.domain is None:
        return None
    low, high = (float(torch.tensor(end, dtype=torch.float64).to(whole.graph.dtype)) for end in whole.domain)
    return min(whole.domain[0], low), max(whole.domain[1], high)


def seconds_of_a_pass(whole: Ledger, x: torch.Tensor, norm: Norm = "l2") -> float:
    """About how long `logits_over` takes at least, from the time of a few of its rows. Raises what it raises.

    `TooWide` means that forms of no radius will do: the bound of the rounding errors alone leaves many signs open.
    """
    most = _TIMED_ROWS + _FEW_OPEN
    ledger = LocalLedger(
        whole.graph, whole.device, whole=whole, room_for=room_in_memory(whole.graph), patience=most, backwards=False
    )
    few = ball(x.to(whole.device)[None], _TIMED_RADIUS, _TIMED_ROWS, norm=norm)
    began = time.monotonic()
    with torch.no_grad():
        walk(whole.graph, RULES, ledger.start(few), ledger, ledger.check)
    seconds = time.monotonic() - began
    return seconds * (x.numel() + ledger.roundings) / (len(few.rows) - 1 + ledger.roundings)


def products_of_a_pass(whole: Ledger) -> float:
    """About how many numbers `logits_over` multiplies at least: what the work is where clocks may differ.

    Of a ball's rows each goes through all linear maps.
    """
    seen = {
        (node.name, number): linear.terms * math.prod(node.shape)
        for parts in whole.parts.values()
        for number, (node, linear) in enumerate(parts)
        if linear is not None
    }
    return float(sum(seen.values())) * math.prod(whole.graph.input_shape)


def room_in_memory(graph: Graph) -> int:
    """How many rows there is memory for: the input has as many as it has coordinates, each as large as itself."""
    largest = max(math.prod(shape) for shape in [graph.input_shape, *(node.shape for node in graph.nodes)])
    return LARGEST_ROWS_BYTES // (8 * largest)


def margins(logits: Logits, label: int) -> list[float]:
    """Lower bounds of logit `label` minus each other logit over the ball, rounded down: one linear form for each."""
    gaps = _differences(logits, label)
    below, _ = ends(gaps.rows[:, 0], logits.shared, logits.groups)
    return (gaps.centre[0] - below - gaps.remainder).tolist()


@torch.no_grad()
def margins_together(logits: Logits, label: int, steps: int, slack: float = 0.0) -> torch.Tensor:
    """Lower bounds of logit `label` minus each other logit over the ball, all symbols taken together.

    See quadratic_constraints.py. The multipliers are chosen in at most so many `steps`, fewer if all bounds exceed
    `slack` before; where they cannot, as one of the differences does not at the centre, the bounds are -inf.
    """
    assert logits.sectors is not None
    gaps = _differences(logits, label)
    at = logits.sectors.anchored(gaps, torch.arange(gaps.centre.numel(), device=gaps.centre.device))
    room = at.c - at.off - slack
    if not bool((room > 0).all()):
        return torch.full_like(room, -math.inf)
    logits.sectors.improve(at.rows / room[:, None], steps, enough=_ENOUGH)
    reach = logits.sectors.reach(at.rows)
    return at.c - at.off - reach - gamma(8) * (at.c.abs() + reach)


def _differences(logits: Form, label: int) -> Form:
    """Logit `label` minus each other logit, (1, classes - 1); its remainder counts the roundings of a bound, too."""
    others = [other for other in range(logits.centre.shape[1]) if other != label]
    centre = logits.centre[:, label, None] - logits.centre[:, others]
    rows = logits.rows[:, :, label, None] - logits.rows[:, :, others]
    size = float(logits.centre.abs().max() + logits.reach.max())
    remainder = (up(2.0**0.5) * logits.remainder + gamma(8) * size) * (1 + 1e-12)
    return Form(centre, rows, logits.shared, remainder)
