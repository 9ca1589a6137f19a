"""Random small networks out of random blocks, with weights that are scaled to do harm: for tests/domains/test_fuzz.py.

A block is built for a shape (no batch axis), an image (C, H, W) or tokens (T, D), and may change it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from random import Random

import fuzzed_anything
import fuzzed_images
import fuzzed_tokens
import torch
from fuzzed_blocks import ANY, IMAGES, TOKENS, Function, Parts, Shape, harm, harmed, shape_after
from torch import nn

from lipaudit.domains.graph import Graph, Node
from lipaudit.errors import CaptureError
from lipaudit.graph.capture import capture

BLOCKS = sorted({**IMAGES, **TOKENS, **ANY})
FAMILIES = (fuzzed_anything, fuzzed_images, fuzzed_tokens)


class Fuzzed(nn.Module):
    """Blocks in a row, then a dense layer to three logits."""

    def __init__(self, shape: Shape, functions: list[Function], parts: Parts, names: list[str]):
        super().__init__()
        self.shape, self.functions, self.names = shape, functions, names
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for function in self.functions:
            x = function(x)
        return self.parts[-1](x.flatten(1))


def fuzzed(seed: int, only: str | None = None) -> Fuzzed:
    """The network of that seed; `only` names a block that it begins with, random otherwise."""
    random = Random(seed)
    torch.manual_seed(seed)
    image = only in IMAGES if only in {**IMAGES, **TOKENS} else random.random() < 0.5
    shape: Shape = (
        random.choice([(2, 4, 4), (4, 3, 3), (3, 5, 4), (4, 4, 4)])
        if image
        else (random.choice([(4, 6), (3, 8), (4, 4)]))
    )
    start, functions, parts, names = shape, [], [], []
    wanted = random.choice([1, 1, 2, 2, 3, 4])
    while len(names) < wanted:
        table = {**(IMAGES if len(shape) == 3 else TOKENS), **ANY}
        name = only if only is not None and not names else random.choice(sorted(table))
        built = table[name](random, shape)
        if built is None:
            if name == only:
                break
            continue
        function, layers = built
        harm(random, layers)
        after = shape_after(function, shape)
        if after is None:
            if name == only:
                break
            continue
        shape = after
        functions.append(function)
        parts.extend(layers)
        names.append(name)
        if len(shape) not in (2, 3) or math.prod(shape) > 200:
            break
    head = nn.Linear(math.prod(shape), 3)
    harm(random, [head])
    return Fuzzed(start, functions, [*parts, head], names).eval()


def captured(network: Fuzzed, refused: Counter[str]) -> Graph | None:
    """The graph; None, and counted, where the harm that was done overflows."""
    try:
        return capture(network, network.shape)
    except CaptureError as error:
        if "expected finite logits" not in str(error):
            raise
        refused["no finite value"] += 1
        return None


def reweighted(graph: Graph, random: Random) -> Graph:
    """The same operations with other weights and biases."""

    def other(node: Node) -> Node:
        held = {k: v for k, v in node.args.items() if k in ("weight", "bias") and isinstance(v, torch.Tensor)}
        return replace(node, args={**node.args, **{k: harmed(random, v.clone()) for k, v in held.items()}})

    return replace(graph, nodes=tuple(other(node) for node in graph.nodes))
