"""Max pooling and sorting of forms. `POOLS` is the table: a function of the node and the form, to the form, its errors
and which entries it is made of.

Note [Maxima of forms]
    Of the entries of a window take one, k, of the largest centre. The maximum is z_k + delta with
        0 <= delta <= max(0, max_t sup (z_t - z_k)),
    and a difference of forms is a form, in which all that the two have in common cancels. So the maximum is the form of
    z_k plus half of that, give or take half of that; entries that are never the largest cost nothing.

Note [Sorted forms]
    Order the entries by their centres, the largest first: z_1 .. z_g. The k-th largest entry s_k is at most the largest
    of z_k .. z_g, as only k - 1 entries are left that could be above; likewise it is at least the smallest of
    z_1 .. z_k. So
        - max_{j<k} sup (z_k - z_j)^+  <=  s_k - z_k  <=  max_{j>k} sup (z_j - z_k)^+,
    and entries whose order is certain cost nothing. Source: elementary; for pairs (MaxMin) both are exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch.nn import functional

from lipaudit.domains.zonotope.form import Form
from lipaudit.errors import NotLipschitz
from lipaudit.graph import Node
from lipaudit.registry import Registry
from lipaudit.rounding import gamma

LARGEST_SORT = 32
"""Entries of one sort: all pairs are compared."""

POOLS: Registry[Callable[[Node, Form], tuple[Form, torch.Tensor, torch.Tensor]]] = Registry("local pooling rule")


@POOLS.register("max_pool2d.default")
def max_pool(node: Node, form: Form) -> tuple[Form, torch.Tensor, torch.Tensor]:
    """Max pooling over windows of an image; see Note [Maxima of forms]."""
    places = _windows(node, form)
    flat = Form(form.centre.flatten(), form.rows.flatten(1), form.inputs, form.remainder)
    outside = places < 0
    low, high = (end[places.clamp_min(0)] for end in flat.range())
    centres = flat.centre[places.clamp_min(0)].masked_fill(outside, -torch.inf)
    tap = centres.argmax(0, keepdim=True)
    chosen = places.gather(0, tap)[0]
    floor = low.gather(0, tap)[0]
    rivals = (high > floor) & ~outside & (places != chosen)
    delta = torch.zeros_like(floor)
    for number in range(len(places)):
        at = rivals[number].nonzero().flatten()
        if len(at):
            delta[at] = torch.maximum(delta[at], _above(flat, places[number][at], chosen[at]))
    shape = node.shape
    half = (delta / 2).reshape(shape)
    rows = flat.rows[:, chosen].reshape(-1, *shape)
    return Form(flat.centre[chosen].reshape(shape) + half, rows, form.inputs), half, chosen


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
    flat = Form(form.centre.flatten(), form.rows.flatten(1), form.inputs, form.remainder)
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
    return Form(centre, form.rows.flatten(1)[:, chosen].reshape(-1, *node.shape), form.inputs), half, chosen


def _above(flat: Form, others: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """How far the entries `others` may be above the entries `mine`, rounded up."""
    rows = flat.rows[:, others] - flat.rows[:, mine]
    difference = Form(flat.centre[others] - flat.centre[mine], rows, flat.inputs, 2 * flat.remainder)
    # The subtractions round, too: relative to what they subtract.
    sizes = flat.centre[others].abs() + flat.centre[mine].abs() + flat.reach[others] + flat.reach[mine]
    return difference.range()[1] + gamma(4) * sizes


def _windows(node: Node, form: Form) -> torch.Tensor:
    """(taps, outputs): for each tap of each window the entry it reads, -1 outside of the image."""

    def spread(values: object) -> tuple[int, ...]:
        values = [values] if isinstance(values, int) else list(values)  # type: ignore[arg-type]
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
