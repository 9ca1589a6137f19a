"""Random blocks for tokens: see fuzzed.py."""

from __future__ import annotations

import math
from random import Random

import torch
from fuzzed_blocks import TOKENS, Function, Parts, Shape, block
from torch import nn
from torch.nn import functional

F = functional


@block(TOKENS)
def dense(random: Random, shape: Shape) -> tuple[Function, Parts]:
    layer = nn.Linear(shape[-1], random.choice([shape[-1], 4, 6]), bias=random.random() < 0.8)
    return layer, [layer]


@block(TOKENS)
def mixer(_: Random, shape: Shape) -> tuple[Function, Parts]:
    layer = nn.Linear(shape[0], shape[0])
    return lambda x: layer(x.transpose(1, 2)).transpose(1, 2), [layer]


@block(TOKENS)
def gated_dense(random: Random, shape: Shape) -> tuple[Function, Parts]:
    value, gate = nn.Linear(shape[-1], 6), nn.Linear(shape[-1], 6)
    act = random.choice([F.silu, torch.sigmoid, F.gelu, lambda x: x, F.relu])
    return lambda x: act(gate(x)) * value(x), [value, gate]


@block(TOKENS)
def normalised_tokens(random: Random, shape: Shape) -> tuple[Function, Parts]:
    eps = 10.0 ** random.uniform(-5, 0)
    layer = random.choice([nn.LayerNorm(shape[-1], eps), nn.RMSNorm(shape[-1], eps), nn.LayerNorm(shape, eps)])
    ramp = torch.linspace(0, random.choice([0.0, 0.0, 5.0]), shape[-1])
    return lambda x: layer(x + ramp.to(x)), [layer]


def heads(x: torch.Tensor, count: int) -> torch.Tensor:
    return x.reshape(len(x), x.shape[1], count, -1).transpose(1, 2)


@block(TOKENS)
def attention(random: Random, shape: Shape) -> tuple[Function, Parts] | None:
    tokens, width = shape
    if width % 2 or width > 8:
        return None
    layers = [nn.Linear(width, width) for _ in range(3)]
    scale = random.choice([None, 0.3, 2.0])
    mask = torch.linspace(-2, 2, tokens * tokens).reshape(tokens, tokens)
    hidden = mask.masked_fill((mask > 1) & (torch.eye(tokens) < 1), -math.inf)
    kind = random.choice(["plain", "causal", "mask", "hidden", "own mask", "shared", "one key", "constant"])
    norm = random.choice(
        [lambda x: x, lambda x: F.layer_norm(x, (width,), eps=0.1), lambda x: F.normalize(x, dim=-1, eps=0.1)]
    )

    def function(x: torch.Tensor) -> torch.Tensor:
        query, key, value = (heads(layer(norm(x)), 2) for layer in layers)
        options: dict[str, object] = {"scale": scale}
        if kind == "causal":
            options["is_causal"] = True
        elif kind in ("mask", "hidden"):
            options["attn_mask"] = (mask if kind == "mask" else hidden).to(x)
        elif kind == "own mask":
            options["attn_mask"] = x[:, None, :, :1] - 0.3 * x[:, None, :1, :1]
        elif kind == "shared":
            key, value, options["enable_gqa"] = key[:, :1], value[:, :1], True
        elif kind == "one key":
            key, value = key[:, :, :1], value[:, :, :1]
        elif kind == "constant":
            query = torch.ones_like(query[:1]).expand(len(query), -1, -1, -1)
        out = F.scaled_dot_product_attention(query, key, value, **options)
        return out.transpose(1, 2).flatten(2)

    return function, layers


@block(TOKENS)
def attention_by_hand(random: Random, shape: Shape) -> tuple[Function, Parts] | None:
    tokens, width = shape
    if width % 2 or width > 8:
        return None
    layers = [nn.Linear(width, width) for _ in range(3)]
    kind = random.choice(["plain", "cosine", "masked", "linear", "channels", "talking", "no scale", "reused"])
    bias = torch.linspace(-1, 1, tokens * tokens).reshape(tokens, tokens)

    def function(x: torch.Tensor) -> torch.Tensor:
        query, key, value = (heads(layer(x), 2) for layer in layers)
        if kind == "cosine":
            query, key = 4 * F.normalize(query, dim=-1, eps=0.1), F.normalize(key, dim=-1, eps=0.1)
        if kind == "linear":
            query, key = F.relu(query), F.relu(key)
            return heads(query @ (key.transpose(-1, -2) @ value), 1).flatten(1, 2).flatten(2)
        if kind == "channels":
            return (value @ (query.transpose(-1, -2) @ key).softmax(-1)).transpose(1, 2).flatten(2)
        scores = query @ key.transpose(-1, -2) * (1.0 if kind == "no scale" else 0.5)
        if kind == "masked":
            scores = (scores + bias.to(x)).masked_fill(bias.to(x) > 0.9, -math.inf)
        weights = scores.softmax(-1)
        if kind == "talking":
            weights = weights + weights.flip(1)
        out = weights @ value
        if kind == "reused":
            out = out + weights.sum(-2, keepdim=True).transpose(-1, -2) * value
        return out.transpose(1, 2).flatten(2)

    return function, layers


@block(TOKENS)
def matrices(random: Random, _: Shape) -> tuple[Function, Parts]:
    kind: Function = random.choice(
        [
            lambda x: x @ (x - 0.5).transpose(1, 2),
            lambda x: torch.einsum("bti,bsi->bts", x, x.flip(1)),
            lambda x: torch.einsum("bti,bsj->btj", x, x),
            lambda x: torch.einsum("bti,bti->bt", x[:, :, :1], x)[:, None],
            lambda x: torch.bmm(x.transpose(1, 2), x),
            lambda x: torch.einsum("bti,bui->btu", x[:, :1, :1], x - 0.2),
            lambda x: torch.einsum("bti,bi->bt", x, x.mean(1))[:, None],
            lambda x: x @ x[:, :1].transpose(1, 2),
            lambda x: torch.baddbmm(
                torch.ones(1, x.shape[1], x.shape[1]).to(x).expand(len(x), -1, -1), x, x.transpose(1, 2)
            ),
            lambda x: torch.matmul(x[:, None] - 0.5, x[:, :, :, None]).flatten(2),
            lambda x: torch.addcmul(torch.ones_like(x[:, :1]), x, x.flip(1)),
        ]
    )
    return kind, []


@block(TOKENS)
def signal(random: Random, shape: Shape) -> tuple[Function, Parts]:
    layer = nn.Conv1d(shape[0], shape[0], 3, padding=1, groups=random.choice([1, shape[0]]))
    return lambda x: layer(x) * random_gate(x), [layer]


def random_gate(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x.mean(-1, keepdim=True))


@block(TOKENS)
def recurrent(random: Random, shape: Shape) -> tuple[Function, Parts]:
    layer = nn.LSTM(shape[-1], 3, batch_first=True, bidirectional=random.random() < 0.5)
    return lambda x: layer(x)[0], [layer]
