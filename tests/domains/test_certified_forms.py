"""Random variations of the forms in which certified layers are written: no slope is ever above the bound.

Each takes a form that has a rule and, more often than not, spoils it: other operands, axes or weights, weights that are
almost equal, a kernel that is flipped off by one, another size. The slope is the norm of the Jacobian in float64 of the
graph that is bounded, at the worst of some points: it climbs where it is smooth, and between straight pieces it jumps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import Graph, evaluate
from lipaudit.errors import LipauditError

Function = Callable[[torch.Tensor], torch.Tensor]


class Form(nn.Module):
    """A function of images or vectors that a seed draws."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.kind = self.draw.choice(list(KINDS))
        size = self.draw.choice([3, 4, 5])
        self.shape = (self.draw.choice([2, 4]), size, size)
        self.function = KINDS[self.kind](self)

    def weights(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        weights = torch.randn(shape, generator=self.generator) * scale
        self.register_buffer(f"weights{len(list(self.buffers()))}", weights)
        return weights

    def spoiled(self, weights: torch.Tensor) -> torch.Tensor:
        """The same weights, or almost."""
        how = self.draw.choice(["same", "same", "noise", "little noise", "scaled", "one", "moved", "signs"])
        noise = torch.randn(weights.shape, generator=self.generator)
        found = {
            "same": weights,
            "noise": weights + 0.3 * noise,
            "little noise": weights + 1e-6 * noise,
            "scaled": weights * self.draw.choice([0.5, 1.001, 3.0, -1.0]),
            "one": weights + 0.5 * (noise == noise.max()),
            "moved": weights.roll(1, self.draw.randrange(weights.ndim)),
            "signs": weights * noise.sign(),
        }[how]
        self.register_buffer(f"weights{len(list(self.buffers()))}", found)
        return found

    def bend(self) -> Function:
        return self.draw.choice(
            [torch.relu, torch.relu, torch.tanh, torch.sigmoid, lambda x: x.clamp(-0.3, 0.7), torch.abs, torch.sin,
             lambda x: functional.leaky_relu(x, 0.1), lambda x: -torch.relu(-x), lambda x: torch.relu(x).flip(1)]
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x).flatten(1)


def potential(form: Form) -> Function:
    """x - V s(W x + b), V almost W^T T."""
    channels, hidden, d = form.shape[0], form.draw.choice([2, 3, 5]), form.draw
    w, bias = form.weights(hidden, channels, 3, 3, scale=0.3), form.weights(hidden, 1, 1)
    v, scale = form.spoiled(w), form.weights(hidden, 1, 1).abs() * d.choice([0.2, 1.0])
    if d.random() < 0.2:
        scale = scale * form.weights(1, form.shape[1], 1).abs()
    bend, minus, mode = form.bend(), d.choice([1, 1, 1, -1]), d.choice(["same", "same", "other"])

    def step(x: torch.Tensor) -> torch.Tensor:
        moved = x.flip(2) if mode == "other" else x
        z = scale * bend(functional.conv2d(moved, w, padding=1) + bias)
        y = functional.conv_transpose2d(z, v, padding=1)
        return x - y if minus == 1 else y - x

    return step


def sandwich(form: Form) -> Function:
    """A Fourier layer, an activation, a Fourier layer: a sandwich layer, or nearly."""
    d, (channels, n, _) = form.draw, form.shape
    hidden, outputs = d.choice([2, 3]), d.choice([2, 3])
    m = d.choice([n, n, n, n + 1, n - 1])  # the hidden size
    first = torch.complex(form.weights(n, n // 2 + 1, hidden, channels), form.weights(n, n // 2 + 1, hidden, channels))
    waves = (m, m // 2 + 1, outputs, hidden)
    then = torch.complex(form.weights(*waves), form.weights(*waves))
    if d.random() < 0.5 and m == n and channels == outputs:
        then = form.spoiled(first.real).to(torch.complex64).mH + 1j * first.imag.mH
    psi, bias = form.weights(hidden, 1, 1), form.weights(hidden, 1, 1)
    if d.random() < 0.2:
        psi = psi + form.weights(1, m, 1)
    bend, between = form.bend(), d.choice(["", "", "", "flip", "roll", "turn", "half", "conj", "read twice", "norm"])

    def layer(x: torch.Tensor) -> torch.Tensor:
        z = torch.einsum("hwoi,nihw->nohw", first, torch.fft.rfft2(x))
        if between == "conj":
            z = z.conj()
        y = torch.fft.irfft2(z, s=(m, m), norm="ortho" if between == "norm" else None) * torch.exp(-psi) + bias
        y = {"flip": y.flip(2), "roll": y.roll(1, 3), "turn": y.transpose(2, 3)}.get(between, y)
        y = bend(y) * torch.exp(psi)
        z = torch.einsum("hwoi,nihw->nohw", then, torch.fft.rfft2(y, norm="ortho" if between == "norm" else None))
        z = z[:, :, : max(1, m - 1)] if between == "half" else z
        out = torch.fft.irfft2(z, s=(z.shape[2], m))
        return torch.cat([out.flatten(1), y.flatten(1)], 1) if between == "read twice" else out

    return layer


def exponential(form: Form) -> Function:
    """A polynomial of a convolution that is skew, or nearly."""
    d, channels = form.draw, form.shape[0]
    w = form.weights(channels, channels, 3, 3, scale=0.15)
    skew = w - form.spoiled(w).transpose(0, 1).flip(*d.choice([(2, 3), (2, 3), (2, 3), (2,), (3,)]))
    terms, circular = d.choice([2, 4, 7]), d.random() < 0.4

    def layer(x: torch.Tensor) -> torch.Tensor:
        z = moved = x
        for k in range(1, terms + 1):
            padded = functional.pad(moved, (1, 1, 1, 1), mode="circular" if circular else "constant")
            moved = functional.conv2d(padded, skew) / k
            z = z + moved
        return z

    return layer


def sorting(form: Form) -> Function:
    """The larger and the smaller of two, or of others."""
    d, channels = form.draw, form.shape[0]
    other = d.choice(["halves", "halves", "strided", "overlap", "scaled", "moved", "same"])
    c = d.choice([0.5, 1.0, 2.0])

    def operands(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = x.chunk(2, 1)
        if other == "strided":
            return x[:, ::2], x[:, 1::2]
        pairs = {"overlap": (a, x[:, : channels // 2]), "scaled": (a, c * b), "moved": (a, b.roll(1, 2))}
        return pairs.get(other, (a, a + c * b) if other == "same" else (a, b))

    larger, smaller = (
        d.choice(
            [lambda a, b: torch.maximum(a, b), lambda a, b: torch.stack([a, b], -1).amax(-1),
             lambda a, b: torch.where(a > b, a, b), lambda a, b: (a + b + (a - b).abs()) / 2,
             lambda a, b: torch.stack([a, b]).max(0)[0], lambda a, b: a + torch.relu(b - a)]
        ),
        d.choice(
            [lambda a, b: torch.minimum(a, b), lambda a, b: torch.stack([a, b], -1).amin(-1),
             lambda a, b: torch.where(a <= b, a, b), lambda a, b: (a + b - (a - b).abs()) / 2,
             lambda a, b: torch.stack([a, b]).min(0)[0], lambda a, b: torch.maximum(a, b)]
        ),
    )  # fmt: skip
    swapped = d.random() < 0.3

    def layer(x: torch.Tensor) -> torch.Tensor:
        a, b = operands(x)
        return torch.cat([larger(a, b), smaller(b, a) if swapped else smaller(a, b) * c], 1)

    return layer


def branches(form: Form) -> Function:
    """Linear branches of one tensor, or of two."""
    d, channels = form.draw, form.shape[0]
    w = form.weights(channels, channels, 3, 3, scale=0.3)
    v, point = form.spoiled(w), form.weights(channels, channels, 1, 1)
    mode, second = d.choice(["constant", "circular"]), d.choice(["x", "x", "relu", "flip"])
    factor = d.choice([1.0, -1.0, 0.9, -0.9])

    def layer(x: torch.Tensor) -> torch.Tensor:
        y = {"relu": torch.relu(x), "flip": x.flip(3)}.get(second, x)
        wide = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode=mode), w)
        return x + wide + factor * functional.conv2d(y, v, padding=1) - functional.conv2d(x, point)

    return layer


def lengths(form: Form) -> Function:
    """Roots of sums of squares of several tensors."""
    d, channels = form.draw, form.shape[0]
    w, c = form.weights(channels, channels, 1, 1), form.weights(channels, 1, 1).abs()
    eps, spoil = d.choice([1e-6, 0.1, 1.0]), d.choice(["", "", "two", "mean", "pool", "negative", "norm"])

    def layer(x: torch.Tensor) -> torch.Tensor:
        y = functional.conv2d(x, w)
        e = c * x**2 + (y * y if spoil == "two" else x.square().sum(1, keepdim=True))
        if spoil == "mean":
            e = e.mean((2, 3), keepdim=True) + 0.5 * y.square()
        if spoil == "pool":
            e = functional.avg_pool2d(e, 2, 1)
        if spoil == "negative":
            return torch.sqrt(e - 0.001 * y.square() + eps)
        return y / (y.square().sum(1, keepdim=True) + eps).sqrt() if spoil == "norm" else torch.sqrt(e + eps)

    return layer


def dense(form: Form) -> Function:
    """Two dense layers and what lies between them."""
    count, d = math.prod(form.shape), form.draw
    b, c = form.weights(5, count), form.weights(3, 5)
    bias, factor, bend = form.weights(5), form.weights(5), form.bend()
    moved = d.choice(["", "", "flip", "sort", "sum"])

    def layer(x: torch.Tensor) -> torch.Tensor:
        z = functional.linear(x.flatten(1), b, bias) * factor
        z = {"flip": z.flip(1), "sort": z.sort(1)[0]}.get(moved, z)
        z = bend(z)
        return functional.linear(z + z.roll(1, 1) if moved == "sum" else z, c)

    return layer


KINDS: dict[str, Callable[[Form], Function]] = {
    kind.__name__: kind for kind in (potential, sandwich, exponential, sorting, branches, lengths, dense)
}


def slope(graph: Graph, shape: tuple[int, ...], seed: int) -> float:
    """The largest norm of a Jacobian at some points, and on the way up from the steepest of them."""
    generator = torch.Generator().manual_seed(seed)
    points = [torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** (k - 2) for k in range(5)]

    def norm(x: torch.Tensor) -> torch.Tensor:
        rows = torch.func.jacrev(lambda z: evaluate(graph, z))(x)
        return torch.linalg.matrix_norm(rows.flatten(1), 2)

    norms = [float(norm(x)) for x in points]
    best = max(norms)
    x = points[norms.index(best)]
    for step in (0.1, 0.1, 0.01):
        moved = x + step * x.abs().max() * torch.randn(shape, generator=generator, dtype=torch.float64)
        found = float(norm(moved))
        best, x = max(best, found), moved if found > best else x
    return best


def check(seed: int) -> str:
    """The kind of the form; empty where it is refused."""
    form = Form(seed).eval()
    try:
        found = compose(form, form.shape)
    except LipauditError:
        return ""
    steepest = slope(found.graph, form.shape, seed)
    assert steepest <= found.network.value * (1 + 1e-13), (seed, form.kind, steepest, found.network.value)
    return form.kind


@pytest.mark.parametrize("part", range(4))
def test_no_slope_exceeds_the_bound(part: int) -> None:
    kinds = [check(seed) for seed in range(part * 12, part * 12 + 12)]
    assert sum(map(bool, kinds)) >= 8


@pytest.mark.slow
def test_no_slope_of_many_exceeds_the_bound() -> None:
    kinds = {check(seed) for seed in range(48, 348)}
    assert kinds >= set(KINDS)
