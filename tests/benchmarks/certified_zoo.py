"""The 1-Lipschitz layers and networks of the field, each written from its paper's formula: is the bound their constant?

    python tests/benchmarks/certified_zoo.py [--only SLL] [--seed 0]

Of each layer alone: the proved bound (its authors claim 1, unless it says so), and the steepest slope seen (ascent on
the norm of the Jacobian in float64, from below). Of a network of three such layers with activations and a last layer
with rows of length one: the bound before that layer, the smallest of 20 radii over what the authors' evaluation states,
and seconds of processor time. Weights are random. orthogonium and deel-torchlip join where they are installed.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import certified_layers as layers
import torch
from torch import nn

import lipaudit
from lipaudit.domains.graph import evaluate
from lipaudit.errors import LipauditError
from lipaudit.graph.capture import capture

Shape = tuple[int, ...]
IMAGE: Shape = (4, 8, 8)
VECTOR: Shape = (12,)


@dataclass(frozen=True)
class Entry:
    """A layer, by default between tensors of 4 channels, and the activation that follows it in a network."""

    name: str
    layer: Callable[[], nn.Module]
    activation: Callable[[], nn.Module] = layers.MaxMin
    shape: Shape = IMAGE
    claims: bool = True
    """Whether its authors claim the constant 1."""


ZOO = [
    Entry("AOL convolution", lambda: layers.AOLConv(4, 4)),
    Entry("BCOP", lambda: layers.BCOP(4, 4)),
    Entry("Cayley dense", lambda: layers.CayleyDense(12, 12), shape=VECTOR),
    Entry("Cayley convolution", lambda: layers.Frequencies(4, 4, "cayley")),
    Entry("LOT", lambda: layers.Frequencies(4, 4, "root")),
    Entry("BRO", lambda: layers.BlockReflection(4, 4)),
    Entry("ECO", lambda: layers.ECO(4)),
    Entry("SOC, 12 terms", lambda: layers.Skew(4, 4)),
    Entry("SOC, Householder", lambda: layers.Skew(4, 4), lambda: layers.HouseHolder(4)),
    Entry("Bjorck dense", lambda: layers.Bjorck(12, 12), shape=VECTOR),
    Entry("SLL dense", lambda: layers.Potential(12, 20, "sll"), nn.Identity, VECTOR),
    Entry("SLL convolution", lambda: layers.Potential(4, 8, "sll", 8), nn.Identity),
    Entry("CPL, 100 power iterations", lambda: layers.Potential(4, 8, "cpl", 8), nn.Identity),
    Entry("CPL, 10 power iterations", lambda: layers.Potential(4, 8, "cpl", 8, 10), nn.Identity),
    Entry("Sandwich dense (LBDN)", lambda: layers.SandwichDense(12, 12), nn.Identity, VECTOR),
    Entry("Sandwich convolution", lambda: layers.SandwichConv(4, 4), nn.Identity),
    Entry("LipNeXt", lambda: layers.LipNeXt(4), nn.Identity),
    Entry("LiResNet in training, x + conv(x)", lambda: layers.LiRes(4), claims=False),
    Entry("LiResNet, one kernel", lambda: layers.LiRes(4, one_kernel=True), claims=False),
]


def _then(*layers: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(*(layer() for layer in layers))


if find_spec("orthogonium"):

    def _orthogonium() -> Iterator[Entry]:
        from orthogonium.layers import AdaptiveOrthoConv2d, HouseHolder, MaxMin, OrthoLinear
        from orthogonium.layers.conv.adaptiveSOC import AdaptiveSOCConv2d
        from orthogonium.layers.conv.AOL.aol import AOLConv2D
        from orthogonium.layers.conv.SLL import SDPBasedLipschitzDense, SDPBasedLipschitzResBlock
        from orthogonium.layers.residual import AdditiveResidual, L2NormResidual

        around = {"padding": "same", "padding_mode": "circular"}
        yield Entry("orthogonium AdaptiveOrthoConv2d", lambda: AdaptiveOrthoConv2d(4, 4, 3, **around), MaxMin)
        yield Entry("orthogonium OrthoLinear", lambda: OrthoLinear(12, 12), MaxMin, VECTOR)
        yield Entry(
            "orthogonium AdaptiveSOCConv2d",
            lambda: AdaptiveSOCConv2d(4, 4, 3, padding=3, padding_mode="circular"),
            MaxMin,
        )
        yield Entry("orthogonium AOLConv2D", lambda: AOLConv2D(4, 4, 3, padding=1), MaxMin)
        yield Entry("orthogonium SLL convolution", lambda: SDPBasedLipschitzResBlock(4, 2), nn.Identity)
        yield Entry("orthogonium SLL dense", lambda: SDPBasedLipschitzDense(12, 12, 20), nn.Identity, VECTOR)
        conv = partial(AdaptiveOrthoConv2d, 4, 4, 3, **around)
        yield Entry("orthogonium HouseHolder", lambda: nn.Sequential(conv(), HouseHolder(4)), nn.Identity)
        yield Entry("orthogonium AdditiveResidual", lambda: AdditiveResidual(conv()), MaxMin)
        yield Entry("orthogonium L2NormResidual", lambda: L2NormResidual(conv()), MaxMin)

    ZOO += _orthogonium()

if find_spec("deel"):

    def _torchlip() -> Iterator[Entry]:
        from deel import torchlip as lip

        group = lip.GroupSort2
        yield Entry("torchlip SpectralConv2d", lambda: lip.SpectralConv2d(4, 4, 3, padding=1), group)
        yield Entry("torchlip FrobeniusConv2d", lambda: lip.FrobeniusConv2d(4, 4, 3, padding=1), group)
        yield Entry("torchlip SpectralLinear", lambda: lip.SpectralLinear(12, 12), group, VECTOR)
        pooled = nn.Sequential, partial(lip.SpectralConv2d, 4, 4, 3, padding=1)
        yield Entry(
            "torchlip ScaledL2NormPool2d", lambda: pooled[0](pooled[1](), lip.ScaledL2NormPool2d((2, 2))), group
        )
        yield Entry("torchlip ScaledAvgPool2d", lambda: pooled[0](pooled[1](), lip.ScaledAvgPool2d((2, 2))), group)

    ZOO += _torchlip()


def lip_conv_net(width: int = 8, side: int = 32) -> nn.Module:
    """LipConvNet-5 of Singla and Feizi: five skew convolutions that halve the image, MaxMin, a normalised head."""
    parts, channels = [], 3
    for number in range(5):
        parts += [layers.Skew(channels, width * 2 ** (number + 1), 3 if side >> number > 2 else 1, 2), layers.MaxMin()]
        channels = width * 2 ** (number + 1)
    return nn.Sequential(*parts, nn.Flatten(), layers.Normalised(channels))


def steepest(model: nn.Module, shape: Shape) -> float:
    """The largest norm of a Jacobian seen at some points, of the weights that run, in float64.

    Lengths are steepest along what they measure: the last points lie in the directions that moved farthest.
    """
    graph, largest = capture(model, shape), 0.0
    v = torch.randn(shape, dtype=torch.float64)
    for scale, steps in [(0.01, 150), (0.3, 150), (1.0, 150), (3.0, 150), (10.0, 150), *[(1000.0, 20)] * 40]:
        x = (torch.randn(shape, dtype=torch.float64) if scale < 1000 else v / v.norm()) * scale
        _, back = torch.func.vjp(partial(evaluate, graph), x)
        for _ in range(steps):
            _, moved = torch.func.jvp(partial(evaluate, graph), (x,), (v / v.norm(),))
            largest, (v,) = max(largest, float(moved.norm())), back(moved)
    return largest


def whole(entry: Entry) -> nn.Module:
    """Three layers, a head with rows of length one."""
    parts = nn.Sequential(*(part for _ in range(3) for part in (entry.layer(), entry.activation())), nn.Flatten(1))
    parts.eval()
    with torch.no_grad():
        size = parts(torch.rand(1, *entry.shape)).numel()
    return nn.Sequential(*parts, layers.Normalised(size))


def radii(model: nn.Sequential, shape: Shape) -> tuple[float, float, float]:
    """The bound before the head, the smallest radius over that of the authors' formula, seconds of the processor."""
    images = torch.rand(20, *shape)
    began = time.process_time()
    found = lipaudit.certify(model, images, local="off")
    spent = time.process_time() - began
    bound = lipaudit.bound(model[:-1].eval(), shape).value
    with torch.no_grad():
        stated = model[-1].radius(model(images))
    ratios = torch.as_tensor(found.radius).double() / stated
    return bound, float(ratios[stated > 0].min()), spent


def row(entry: Entry, seed: int) -> str:
    torch.manual_seed(seed)
    layer = nn.Sequential(entry.layer(), nn.Flatten(1)).eval()
    began = time.process_time()
    bound = lipaudit.bound(layer, entry.shape).value
    spent = time.process_time() - began
    torch.manual_seed(seed + 1)
    network = whole(entry).eval()
    before, ratio, seconds = radii(network, entry.shape)
    slope = steepest(layer, entry.shape)
    stated = f"{ratio:.5f}" if entry.claims else "-"
    return f"{bound:.8g} | {slope:.8g} | {bound / slope:.5f} | {before:.8g} | {stated} | {spent:.1f} + {seconds:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    say = partial(print, flush=True)
    say("| layer | bound | slope seen | bound / slope | three layers | radius / authors' | CPU seconds |")
    say("|---|---|---|---|---|---|---|")
    for entry in ZOO:
        if arguments.only.lower() in entry.name.lower():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the libraries
                try:
                    say(f"| {entry.name} | {row(entry, arguments.seed)} |")
                except LipauditError as error:
                    say(f"| {entry.name} | refused: {str(error)[:200]} | | | | | |")
    if arguments.only.lower() in "lipconvnet-5 of width 8":
        torch.manual_seed(arguments.seed)
        before, ratio, seconds = radii(lip_conv_net().eval(), (3, 32, 32))
        say(f"| LipConvNet-5 of width 8 | | | | {before:.8g} | {ratio:.5f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
