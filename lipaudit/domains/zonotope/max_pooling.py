"""Max pooling and sorting of forms. `POOLS` is the table of what sorts: a function of the node and the form, to the
form, its errors and which entries it is made of. `largest` is max pooling.

Note [Maxima of forms]
    max(m, z) = m + relu(z - m), and a difference of forms is a form, in which all that the two have in common cancels.
    So of the entries of a window take the one of the largest centre, and go on to the next: each that may be larger
    than what was found before is a ReLU, with all that is known of ReLU (bands, groups, lower lines); the others cost
    nothing. The error of an m only moves the maximum by as much, so that the errors of the steps add up.

Note [Sorted forms]
    Order the entries by their centres, the largest first: z_1 .. z_g. The k-th largest entry s_k is at most the largest
    of z_k .. z_g, as only k - 1 entries are left that could be above; likewise it is at least the smallest of
    z_1 .. z_k. So
        - max_{j<k} sup (z_k - z_j)^+  <=  s_k - z_k  <=  max_{j>k} sup (z_j - z_k)^+,
    and entries whose order is certain cost nothing. Source: elementary; for pairs (MaxMin) both are exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.nn import functional

from lipaudit.domains.graph import Node
from lipaudit.domains.zonotope.affine_form import Form
from lipaudit.domains.zonotope.backward import Chosen, Summed
from lipaudit.domains.zonotope.relaxations import Band, rectified
from lipaudit.errors import NotLipschitz
from lipaudit.registry import Registry
from lipaudit.rounding import TINY, gamma, length_up

LARGEST_SORT = 32
"""Entries of one sort: all pairs are compared."""

POOLS: Registry[Callable[[Node, Form], tuple[Form, torch.Tensor, torch.Tensor]]] = Registry("local pooling rule")


@POOLS.register("sort.default")
def sort(node: Node, form: Form) -> tuple[Form, torch.Tensor, torch.Tensor]:
    """Sorting along one axis; see Note [Sorted forms]."""
    axis, descending = node.args["dim"], bool(node.args["descending"])
    length = form.centre.shape[axis]
    if length > LARGEST_SORT:
        raise NotLipschitz(f"expected {node.op} of at most {LARGEST_SORT} entries for a local rule, got {length}")
    numbers = torch.arange(form.centre.numel(), device=form.centre.device).reshape(form.centre.shape)
    order = form.centre.argsort(dim=axis, descending=True, stable=True)
    places = numbers.gather(axis, order).movedim(axis, 0).reshape(length, -1)
    flat = Form(form.centre.flatten(), form.rows.flatten(1), form.shared, form.remainder)
    low, high = (end[places] for end in flat.range())
    up, down = torch.zeros_like(low), torch.zeros_like(low)
    for k, j in itertools.combinations(range(length), 2):
        at = (high[j] > low[k]).nonzero().flatten()
        if len(at):
            above = _above(flat, places[j, at], places[k, at]).clamp_min(0.0)
            up[k, at] = torch.maximum(up[k, at], above)
            down[j, at] = torch.maximum(down[j, at], above)

    def in_place(x: torch.Tensor) -> torch.Tensor:
        whole = [length, *(n for i, n in enumerate(form.centre.shape) if i != axis % form.centre.ndim)]
        x = x if descending else x.flip(0)
        return x.reshape(whole).movedim(0, axis)

    chosen = in_place(places).flatten()
    half = in_place((up + down) / 2 * (1 + gamma(2)))
    centre = form.centre.flatten()[chosen].reshape(node.shape) + in_place((up - down) / 2)
    return Form(centre, form.rows.flatten(1)[:, chosen].reshape(-1, *node.shape), form.shared), half, chosen


Bent = Callable[[Form, Band, tuple[torch.Tensor, torch.Tensor]], tuple[Form, float]]
"""ReLU of a form in that band over that range: the form, and what rounding lost (L2)."""
Range = Callable[[Form], tuple[torch.Tensor, torch.Tensor]]


def largest(node: Node, form: Form, steepest: float, range_of: Range, bent: Bent) -> tuple[Form, float]:
    """Max pooling over windows of an image, and what rounding lost.

    What `form` may be off by takes part in every range, `steepest` (the root of the number of windows that an entry
    lies in) times for all windows: the rest of a maximum is a mean of rests in its window. It is not in what was lost.
    """
    taps, shape = _windows(node, form), tuple(node.shape)
    if bool((taps < 0).all(0).any()):
        raise NotLipschitz(f"expected windows of {node.op} that see the image, got one that lies in the padding")
    rest = steepest * form.remainder * (1 + 1e-12)
    flat = Form(form.centre.flatten(), form.rows.flatten(1), form.shared, rest)
    outside, size, highest = taps < 0, flat.centre.abs() + flat.reach + rest, flat.range()[1]
    order = flat.centre[taps.clamp_min(0)].masked_fill(outside, -torch.inf).argsort(dim=0, descending=True, stable=True)
    taps, outside = taps.gather(0, order), outside.gather(0, order)

    def picked(places: torch.Tensor) -> Form:
        rows, reach = flat.rows[:, places].reshape(-1, *shape), flat.reach[places].reshape(shape)
        whole = size[places].reshape(shape)
        step = Chosen((form.step,), places, tuple(form.centre.shape), torch.zeros_like(reach), whole, whole)
        return Form(flat.centre[places].reshape(shape), rows, form.shared, within=reach, step=step)

    found, lost = picked(taps[0]), 0.0
    for places, missing in zip(taps[1:], outside[1:], strict=True):
        behind = highest[places.clamp_min(0)].reshape(shape) < replace(found, remainder=rest + lost).range()[0]
        settled = behind | missing.reshape(shape)
        if bool(settled.all()):
            continue
        other = picked(places.clamp_min(0))
        ahead, off = _summed(other, found, -1.0, 2 * rest + lost)
        ahead = replace(ahead, remainder=(2 * rest + lost + off) * (1 + 1e-12))
        low, high = (end.masked_fill(settled, -1.0) for end in range_of(ahead))
        more, gone = bent(ahead, rectified(low, high), (low, high))
        lost += off + gone
        found, added = _summed(found, more, 1.0, rest + lost)
        lost += added
    return found, lost


def _summed(first: Form, second: Form, factor: float, rest: float) -> tuple[Form, float]:
    """first + factor second, which may be off by `rest` (L2), and the L2 norm of what rounding lost."""
    count, shape = max(len(first.rows), len(second.rows)), tuple(first.centre.shape)
    rows = first.padded(count) + factor * second.padded(count)
    form = Form(first.centre + factor * second.centre, rows, first.shared)
    far = first.reach + second.reach
    rounding = gamma(6) * (first.centre.abs() + second.centre.abs() + far) + TINY
    lost = length_up(rounding) * (1 + 1e-6)
    step = Summed((first.step, second.step), (1.0, factor), (shape, shape), rounding, form.reach + rest + lost)
    return replace(form, within=form.reach, step=step), lost


def _above(flat: Form, others: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """How far the entries `others` may be above the entries `mine`, rounded up."""
    rows = flat.rows[:, others] - flat.rows[:, mine]
    difference = Form(flat.centre[others] - flat.centre[mine], rows, flat.shared, 2 * flat.remainder)
    # The subtractions round, too: relative to what they subtract.
    sizes = flat.centre[others].abs() + flat.centre[mine].abs() + flat.reach[others] + flat.reach[mine]
    return difference.range()[1] + gamma(4) * sizes


def _windows(node: Node, form: Form) -> torch.Tensor:
    """(taps, outputs): for each tap of each window the entry it reads, -1 outside of the image."""

    def spread(values: int | Sequence[int]) -> tuple[int, ...]:
        values = [values] if isinstance(values, int) else list(values)
        return tuple(values * 2 if len(values) == 1 else values)

    if form.centre.ndim != 4:
        raise NotLipschitz(f"expected {node.op} of images with channels, got shape {tuple(form.centre.shape)}")
    if node.args["ceil_mode"]:
        raise NotLipschitz(f"expected {node.op} without ceil_mode for a local certificate, got ceil_mode=True")
    kernel, pads, dilation = (spread(node.args[name]) for name in ("kernel_size", "padding", "dilation"))
    stride = spread(node.args["stride"]) if node.args["stride"] else kernel
    channels = form.centre.shape[0] * form.centre.shape[1]
    numbers = torch.arange(form.centre.numel(), dtype=torch.float64, device=form.centre.device)
    image = functional.pad(
        numbers.reshape(channels, 1, *form.centre.shape[2:]), (pads[1], pads[1], pads[0], pads[0]), value=-1.0
    )
    taps = functional.unfold(image, kernel, dilation, 0, stride)  # (channels, taps, places)
    return taps.permute(1, 0, 2).flatten(1).round().long()
