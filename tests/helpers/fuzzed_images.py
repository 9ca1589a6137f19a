"""Random blocks for images: see fuzzed.py."""

from __future__ import annotations

import math
from random import Random

import torch
from fuzzed_blocks import IMAGES, Function, Parts, Shape, block
from torch import nn
from torch.nn import functional

F = functional


@block(IMAGES)
def convolution(random: Random, shape: Shape) -> tuple[Function, Parts]:
    channels = shape[0]
    groups = random.choice([1, channels]) if channels > 1 else 1
    layer = nn.Conv2d(
        channels,
        channels * random.choice([1, 2]),
        random.choice([1, 2, 3]),
        random.choice([1, 1, 2]),
        random.choice([0, 1]) + 1,
        random.choice([1, 2]),
        groups,
        padding_mode=random.choice(["zeros", "zeros", "circular", "reflect", "replicate"]),
    )
    parts: Parts = [layer]
    if random.random() < 0.4:
        parts.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*parts).eval(), parts


@block(IMAGES)
def transposed(random: Random, shape: Shape) -> tuple[Function, Parts]:
    layer = nn.ConvTranspose2d(shape[0], 2, random.choice([2, 3]), 2, random.choice([0, 1]), random.choice([0, 1]))
    return layer, [layer]


@block(IMAGES)
def normalised_image(random: Random, shape: Shape) -> tuple[Function, Parts]:
    eps, channels = 10.0 ** random.uniform(-5, 0), shape[0]
    offset = random.choice([0.0, 0.0, 3.0])
    layer: nn.Module = random.choice(
        [
            nn.GroupNorm(1, channels, eps),
            nn.GroupNorm(2 if channels % 2 == 0 else 1, channels, eps),
            nn.BatchNorm2d(channels),
            nn.InstanceNorm2d(channels, eps, affine=True),
            nn.LayerNorm(shape[1:], eps),
            nn.LayerNorm(shape, eps),
            nn.RMSNorm(shape[-1], eps),
        ]
    )
    ramp = torch.linspace(0, offset, math.prod(shape)).reshape(shape)
    return lambda x: layer(x + ramp.to(x)), [layer.eval()]


@block(IMAGES)
def channel_gate(random: Random, shape: Shape) -> tuple[Function, Parts]:
    channels = shape[0]
    down, up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)
    gate = random.choice([torch.sigmoid, torch.tanh, lambda x: F.softmax(x, 1)])
    pool: Function = random.choice(
        [
            lambda x: x.mean((2, 3), keepdim=True),
            lambda x: F.adaptive_avg_pool2d(x, 1),
            lambda x: x.amax((2, 3), keepdim=True),
            lambda x: x.var((2, 3), keepdim=True),
        ]
    )
    return lambda x: x * gate(up(F.relu(down(pool(x))))), [down, up]


@block(IMAGES)
def spatial_gate(_: Random, __: Shape) -> tuple[Function, Parts]:
    mix = nn.Conv2d(2, 1, 3, padding=1)

    def function(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(mix(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))

    return function, [mix]


@block(IMAGES)
def gated_halves(random: Random, shape: Shape) -> tuple[Function, Parts] | None:
    if shape[0] % 2:
        return None
    kind: Function = random.choice(
        [
            lambda x: F.glu(3 * x, 1),
            lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
            lambda x: F.gelu(x[:, ::2]) * x[:, 1::2],
            lambda x: torch.tanh(x.chunk(2, 1)[0]) * torch.sigmoid(x.chunk(2, 1)[1]),
        ]
    )
    return kind, []


@block(IMAGES)
def pooled(random: Random, shape: Shape) -> tuple[Function, Parts]:
    size, stride, pad = random.choice([2, 3]), random.choice([1, 2]), random.choice([0, 1])
    out = (random.randrange(1, shape[1] + 3), random.randrange(1, shape[2] + 3))
    ceil, inner, override = random.random() < 0.5, random.random() < 0.5, random.choice([None, 3])
    kind: Function = random.choice(
        [
            lambda x: F.max_pool2d(x, size, stride, pad, ceil_mode=ceil),
            lambda x: F.max_pool2d(x, 2, 1, 0, 2),
            lambda x: F.avg_pool2d(x, size, stride, pad, ceil, inner, override),
            lambda x: F.avg_pool2d(x, 2),
            lambda x: F.adaptive_avg_pool2d(x, out),
            lambda x: F.adaptive_max_pool2d(x, out),
            lambda x: F.adaptive_max_pool2d(x.flatten(1, 2), out),
            lambda x: F.adaptive_avg_pool2d(x.flatten(1, 2), out),
            lambda x: F.adaptive_max_pool1d(x.flatten(2), out[0]),
            lambda x: F.avg_pool2d(F.pad(x, (1, 0, 2, 1), value=2.0), 2),
            lambda x: F.adaptive_avg_pool1d(x.flatten(1), out[0])[:, None],
            lambda x: F.adaptive_max_pool1d(x.flatten(1), out[0] + 3)[:, None],
        ]
    )
    return kind, []


@block(IMAGES)
def resized(random: Random, _: Shape) -> tuple[Function, Parts]:
    size = (random.randrange(1, 7), random.randrange(1, 7))
    mode = random.choice(["nearest", "nearest-exact", "bilinear", "bicubic"])
    options: dict[str, object] = {"mode": mode}
    if mode in ("bilinear", "bicubic"):
        options |= random.choice([{"align_corners": True}, {"align_corners": False}, {"antialias": True}])
    if random.random() < 0.5:
        return lambda x: F.interpolate(x, size, **options), []
    factor = random.choice([0.6, 1.3, 2.0])
    return lambda x: F.interpolate(x, scale_factor=factor, **options), []


@block(IMAGES)
def reordered(random: Random, shape: Shape) -> tuple[Function, Parts] | None:
    if shape[0] % 4 or shape[1] % 2 or shape[2] % 2:
        return lambda x: x.flatten(2).transpose(1, 2), []
    kind: Function = random.choice(
        [
            lambda x: F.pixel_shuffle(x, 2),
            lambda x: F.pixel_unshuffle(x, 2),
            lambda x: F.channel_shuffle(x, 2),
            lambda x: x.flatten(2).transpose(1, 2),
            lambda x: F.unfold(x, 2, stride=1),
            lambda x: torch.rot90(x, 1, (2, 3)),
        ]
    )
    return kind, []


@block(IMAGES)
def windows(random: Random, shape: Shape) -> tuple[Function, Parts] | None:
    """Windows along the first axis, and something that treats each of them as a sample."""
    channels, height, width = shape
    if height % 2:
        return None
    eps = 10.0 ** random.uniform(-4, 0)
    norms: list[nn.Module] = [
        nn.GroupNorm(1, channels, eps),
        nn.InstanceNorm2d(channels, eps, affine=True),
        nn.Conv2d(channels, channels, 2, padding=1),
        nn.LayerNorm(width, eps),
        nn.BatchNorm2d(channels),
        nn.GroupNorm(channels, channels, eps),
    ]
    layer = random.choice(norms).eval()
    ramp = torch.linspace(0, random.choice([0.0, 20.0]), math.prod(shape)).reshape(shape)

    def function(x: torch.Tensor) -> torch.Tensor:
        y = (x + ramp.to(x)).reshape(-1, channels, 2, height // 2, width).transpose(1, 2)
        y = torch.relu(layer(y.reshape(-1, channels, height // 2, width)))
        return y.reshape(len(x), -1, *y.shape[2:])

    return function, [layer]
