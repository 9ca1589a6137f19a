"""Max pooling of forms. `POOLS` is the table: a function of the node and the form, to the form, its errors and
which entries it is made of.

Note [Maxima of forms]
    Of the entries of a window take one, k, of the largest centre. The maximum is z_k + delta with
        0 <= delta <= max(0, max_t sup (z_t - z_k)),
    and a difference of forms is a form, in which all that the two have in common cancels. So the maximum is the form of
    z_k plus half of that, give or take half of that; entries that are never the largest cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from lipaudit.domains.zonotope.form import Form
from lipaudit.errors import NotLipschitz
from lipaudit.graph import Node
from lipaudit.registry import Registry
from lipaudit.rounding import gamma

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
            other, mine = places[number][at], chosen[at]
            difference = Form(
                flat.centre[other] - flat.centre[mine],
                flat.rows[:, other] - flat.rows[:, mine],
                form.inputs,
                2 * form.remainder,
            )
            # The subtractions round, too: relative to what they subtract.
            rounding = gamma(4) * (flat.centre[other].abs() + flat.centre[mine].abs())
            rounding = rounding + gamma(4) * (flat.reach[other] + flat.reach[mine])
            delta[at] = torch.maximum(delta[at], difference.range()[1] + rounding)
    shape = node.shape
    half = (delta / 2).reshape(shape)
    rows = flat.rows[:, chosen].reshape(-1, *shape)
    return Form(flat.centre[chosen].reshape(shape) + half, rows, form.inputs), half, chosen


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
