"""Random blocks for images and tokens alike: see fuzzed.py."""

from __future__ import annotations

from random import Random

import torch
from fuzzed_blocks import ANY, IMAGES, TOKENS, Function, Parts, Shape, block, harm, shape_after
from torch.nn import functional

F = functional


@block(ANY)
def pointwise(random: Random, _: Shape) -> tuple[Function, Parts]:
    slope, factor = random.uniform(-2, 2), 10.0 ** random.uniform(-1, 1.5)
    function: Function = random.choice(
        [
            F.relu,
            F.gelu,
            F.silu,
            F.mish,
            F.hardswish,
            torch.tanh,
            torch.sigmoid,
            F.softplus,
            F.selu,
            torch.abs,
            torch.sin,
            torch.erf,
            F.logsigmoid,
            F.softsign,
            torch.atan,
            lambda x: F.gelu(x, approximate="tanh"),
            lambda x: F.leaky_relu(x, slope),
            lambda x: F.elu(x, abs(slope) + 0.1),
            lambda x: x * torch.sigmoid(1.702 * x),
            lambda x: x - torch.tanh(x),
            lambda x: x.clamp(-0.3, 0.4),
            lambda x: x * F.relu6(x + 3) / 6,
            lambda x: x * torch.tanh(F.softplus(x)),
            lambda x: 0.5 * x * (1 + torch.erf(x)),
            lambda x: (-2 * x) * torch.sigmoid(x),
            lambda x: (3 * x) / (0.5 + x.abs()),
            lambda x: F.threshold(x, 0.2, 0.2),
        ]
    )
    return lambda x: function(factor * (x - 0.4)), []


@block(ANY)
def product_of_both(random: Random, _: Shape) -> tuple[Function, Parts]:
    first, second = random.sample(
        [
            lambda x: x,
            torch.tanh,
            lambda x: x.flip(1),
            lambda x: torch.sigmoid(x + 0.3),
            lambda x: x[:, :1],
            lambda x: x.mean(-1, keepdim=True),
            lambda x: x.roll(1, -1) - 0.5,
            lambda x: x.amax(1, keepdim=True),
            lambda x: torch.sigmoid(2 * x.flip(1)),
            lambda x: F.softmax(x, 1),
            lambda x: F.relu(x).sum(1, keepdim=True),
        ],
        2,
    )
    return lambda x: first(x) * second(x), []


@block(ANY)
def quotient_of_both(random: Random, _: Shape) -> tuple[Function, Parts]:
    c, axis = 10.0 ** random.uniform(-2, 1), random.choice([1, -1])
    above: Function = random.choice([lambda x: x, lambda x: x.flip(1) - 0.3, lambda x: x[:, :1], torch.relu, torch.abs])
    below: Function = random.choice(
        [
            lambda x: x.abs() + c,
            lambda x: x.square() + c,
            lambda x: F.relu(x) + c,
            lambda x: torch.sigmoid(x) + c,
            lambda x: x.abs().mean(axis, keepdim=True) + c,
            lambda x: F.relu(x).sum(axis, keepdim=True) + c,
            lambda x: torch.sqrt(x.square().mean(axis, keepdim=True) + c),
            lambda x: torch.linalg.vector_norm(x, dim=axis, keepdim=True).clamp_min(c),
            lambda x: torch.linalg.vector_norm(x, dim=axis, keepdim=True) + c,
            lambda x: x.std(axis, keepdim=True) + c,
            lambda x: -torch.exp(torch.tanh(x)) - c,
        ]
    )

    def function(x: torch.Tensor) -> torch.Tensor:
        top = above(x)
        return top / below(top if top.shape == x.shape and own else x)

    own = random.random() < 0.5
    return function, []


@block(ANY)
def own_size(random: Random, _: Shape) -> tuple[Function, Parts]:
    c, axis = 10.0 ** random.uniform(-2, 0), random.choice([1, -1])
    shift = random.choice([0.0, 0.5, -1.0])
    kinds: list[Function] = [
        lambda x: F.normalize(x, dim=axis, eps=c),
        lambda x: x * torch.rsqrt(x.square().mean(axis, keepdim=True) + c),
        lambda x: (
            (x - x.mean(axis, keepdim=True))
            / torch.sqrt((x - x.mean(axis, keepdim=True)).pow(2).mean(axis, keepdim=True) + c)
        ),
        lambda x: F.relu(x) / (F.relu(x).sum(axis, keepdim=True) + c),
        lambda x: F.relu(x) / (F.relu(x).mean(axis, keepdim=True) + c),
        lambda x: x / (x.var(axis, keepdim=True, unbiased=False) + c).sqrt(),
        lambda x: x * (x.norm(dim=axis, keepdim=True) / (x.norm(dim=axis, keepdim=True).mean(1, keepdim=True) + c)),
    ]
    kind = random.choice(kinds)
    return lambda x: kind(x + shift), []


@block(ANY)
def softmaxes(random: Random, _: Shape) -> tuple[Function, Parts]:
    axis, factor = random.choice([1, -1]), 10.0 ** random.uniform(-1, 2)
    kind: Function = random.choice(
        [
            lambda x: F.softmax(x, axis),
            lambda x: F.log_softmax(x, axis),
            lambda x: x * F.softmax(x, axis),
            lambda x: x - torch.logsumexp(x, axis, keepdim=True),
            lambda x: F.softmax(-x, axis) @ x.transpose(-1, -2),
            lambda x: F.softmax(x, -1) @ (x - 0.5).transpose(-1, -2),
            lambda x: (x * F.softmax(x, axis)).sum(axis, keepdim=True),
        ]
    )
    return lambda x: kind(factor * x), []


@block(ANY)
def powers(random: Random, _: Shape) -> tuple[Function, Parts]:
    c = 10.0 ** random.uniform(-2, 0)
    kind: Function = random.choice(
        [
            torch.square,
            lambda x: x**3,
            lambda x: (x.abs() + c) ** -1.5,
            lambda x: torch.sqrt(F.relu(x) + c),
            lambda x: torch.log(torch.sigmoid(x) + c),
            lambda x: torch.exp(torch.tanh(x)),
            lambda x: (x.square() + c) ** 0.5,
            lambda x: torch.rsqrt(x.square() + c),
            lambda x: torch.reciprocal(-c - x.abs()),
            lambda x: (x - 0.3) ** 4,
        ]
    )
    return kind, []


@block(ANY)
def statistics(random: Random, _: Shape) -> tuple[Function, Parts]:
    axis = random.choice([1, -1])
    kind: Function = random.choice(
        [
            lambda x: x.var(axis, keepdim=True),
            lambda x: x + x.var(axis, unbiased=False, keepdim=True),
            lambda x: x - x.std(axis, keepdim=True),
            lambda x: x.mean(axis, keepdim=True) - x,
            lambda x: torch.cat([x.amax(axis, keepdim=True), x.mean(axis, keepdim=True)], 1 if axis == -1 else -1),
            lambda x: x.cumsum(axis),
            lambda x: x.sort(axis).values,
            lambda x: x.topk(2, axis).values,
            lambda x: x.amin(axis, keepdim=True).expand_as(x) + x,
            lambda x: x.norm(dim=axis, keepdim=True, p=1) - x,
            lambda x: torch.maximum(x, x.mean(axis, keepdim=True)),
            lambda x: torch.minimum(x.flip(1), 2 * x - 0.2),
        ]
    )
    return kind, []


@block(ANY)
def moved(random: Random, _: Shape) -> tuple[Function, Parts]:
    kind: Function = random.choice(
        [
            lambda x: x.roll((1, -1), (1, -1)),
            lambda x: x.flip(-1),
            lambda x: x[:, 1:],
            lambda x: x[..., ::2],
            lambda x: x.repeat(1, 2, *(1,) * (x.ndim - 2)),
            lambda x: x.transpose(-1, -2),
            lambda x: x.unfold(-1, 2, 1)[..., 0],
            lambda x: x[:, :1].expand_as(x) + x,
            lambda x: torch.cat([x, 1 - x], 1),
            lambda x: F.pad(x, (1, 1, 0, 1), value=0.3),
            lambda x: x.repeat_interleave(2, 1),
            lambda x: torch.stack([x, x * x], -1).flatten(-2),
            lambda x: x.tril(),
            lambda x: torch.where(torch.eye(x.shape[-2], x.shape[-1], device=x.device) > 0, x, x.roll(1, -1).relu()),
            lambda x: x.masked_fill(torch.eye(x.shape[-2], x.shape[-1], device=x.device) > 0, 0.7),
        ]
    )
    return kind, []


@block(ANY)
def pieces(random: Random, shape: Shape) -> tuple[Function, Parts] | None:
    """Slices that go different ways and meet again, overlapping or not, perhaps twice."""
    axis = random.choice([1, -1])
    size = shape[axis - 1] if axis > 0 else shape[axis]
    if size < 3:
        return None
    cut, overlap = random.randrange(1, size - 1), random.choice([0, 0, 1])
    factor = 10.0 ** random.uniform(-2, 2)
    ways: list[Function] = [
        lambda x: x,
        lambda x: factor * x,
        torch.tanh,
        lambda x: x * torch.sigmoid(x),
        lambda x: F.relu(x) - x,
        lambda x: F.softmax(x, axis),
        lambda x: torch.square(x),
        lambda x: x.flip(axis),
    ]
    first, second, third = (random.choice(ways) for _ in range(3))
    twice = random.random() < 0.4

    def function(x: torch.Tensor) -> torch.Tensor:
        left, right = x.narrow(axis, 0, cut + overlap), x.narrow(axis, cut, size - cut)
        if twice and left.shape[axis] > 1:
            one, rest = left.narrow(axis, 0, 1), left.narrow(axis, 1, left.shape[axis] - 1)
            left = torch.cat([third(rest), one * 2], axis)
        return torch.cat([second(right), first(left)], axis)

    return function, []


@block(ANY)
def residual(random: Random, shape: Shape) -> tuple[Function, Parts] | None:
    """x + c f(x) with f another block that keeps the shape."""
    table = {**(IMAGES if len(shape) == 3 else TOKENS), **{k: v for k, v in ANY.items() if k != "residual"}}
    for _ in range(5):
        built = table[random.choice(sorted(table))](random, shape)
        if built is None:
            continue
        function, parts = built
        harm(random, parts)
        if shape_after(function, shape) == shape:
            return added(function, random.choice([1.0, 0.1, -2.0])), parts
    return None


def added(function: Function, factor: float) -> Function:
    return lambda x: x + factor * function(x)
