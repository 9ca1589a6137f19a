"""Sharper ranges of a form where it is worth while: for entries whose sign is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lipaudit.domains.zonotope.affine_form import Form
from lipaudit.domains.zonotope.backward import lower_bounds
from lipaudit.domains.zonotope.ball_constraints import Group, ends
from lipaudit.domains.zonotope.quadratic_constraints import Sectors
from lipaudit.rounding import gamma

_CHUNK_ENTRIES = 2**18
_STEPS = 12
"""Of the choice of multipliers, layer by layer."""
_ABREAST = 64
"""Entries whose two ends are bounded together: so few that what a layer needs stays in the cache."""


def sharpened(
    form: Form, groups: Sequence[Group], sectors: Sectors | None, *, backwards: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The range of a form; of entries whose sign is open, by its groups, backwards and by sectors as well, and the best
    of all."""
    low, high = (end.contiguous() for end in form.range())
    if any(group.start < len(form.rows) for group in groups):
        _improve(form, low, high, lambda places: _by_groups(form, groups, places))
    if backwards:
        _improve(form, low, high, lambda places: _backwards(form, places))
    if sectors is not None and len(form.rows) > form.inputs + 1:
        _together(form, sectors, low, high)
    return low, high


def _improve(form: Form, low: torch.Tensor, high: torch.Tensor, bounds: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Move the ends towards each other by other `bounds` (2, places) of how far entries are from their centres."""
    places = _open(low, high)
    if not len(places):
        return
    parts = places.split(max(_ABREAST, _CHUNK_ENTRIES // form.centre.numel()))
    below, above = torch.cat([bounds(part) for part in parts], dim=1) + form.centre.flatten()[places]
    slack = gamma(4) * (form.centre.abs() + form.reach).flatten()[places]
    _narrow(low, high, places, below - slack, above + slack)


def _together(form: Form, sectors: Sectors, low: torch.Tensor, high: torch.Tensor) -> None:
    places = _open(low, high)
    if not len(places):
        return
    at = sectors.anchored(form, places)
    sectors.improve(at.rows, _STEPS)
    reach = (sectors.reach(at.rows) + at.off) * (1 + gamma(4))
    slack = gamma(4) * (at.c.abs() + reach)
    _narrow(low, high, places, at.c - reach - slack, at.c + reach + slack)


def _open(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The places of entries whose sign is open."""
    return ((low < 0) & (high > 0)).flatten().nonzero().flatten()


def _narrow(
    low: torch.Tensor, high: torch.Tensor, places: torch.Tensor, below: torch.Tensor, above: torch.Tensor
) -> None:
    low.view(-1)[places] = torch.maximum(low.view(-1)[places], below)
    high.view(-1)[places] = torch.minimum(high.view(-1)[places], above)


def _by_groups(form: Form, groups: Sequence[Group], places: torch.Tensor) -> torch.Tensor:
    below, above = ends(form.rows.flatten(1)[:, places], form.shared, groups)
    rest = form.remainder * (1 + gamma(4))
    return torch.stack([-below - rest, above + rest])


def _backwards(form: Form, places: torch.Tensor) -> torch.Tensor:
    c = form.centre.new_zeros(2 * len(places), form.centre.numel())
    number = torch.arange(len(places), device=places.device)
    c[number, places], c[number + len(places), places] = 1.0, -1.0
    below = lower_bounds(form.step, c.reshape(-1, *form.centre.shape))
    return torch.stack([below[: len(places)], -below[len(places) :]])
