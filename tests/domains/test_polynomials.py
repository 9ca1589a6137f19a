"""Polynomials of one operator: never below the norm of the matrix that runs, and tight for skew convolutions."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional

import lipaudit
from lipaudit.certification.network_bound import compose
from lipaudit.domains.bernstein import largest_value
from lipaudit.domains.graph import call, evaluate


class Exponential(nn.Module):
    """x + N x + N(N x) / 2 + ..., with an N that is skew, or not quite, or not at all."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = self.draw = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        self.circular = draw.random() < 0.4
        self.kernel = draw.choice([(3, 3), (3, 3), (1, 3), (3, 5), (2, 2), (1, 1)])
        self.dilation, self.groups = draw.choice([1, 1, 2]), draw.choice([1, 1, 2])
        self.terms, self.form = draw.choice([2, 3, 5, 7]), draw.choice(["series", "series", "horner", "powers"])
        self.channels = 4 if self.groups == 2 else draw.choice([2, 3])
        inner = self.channels // self.groups
        w = torch.randn(self.channels, inner, *self.kernel, generator=generator)
        self.flaw = draw.choice(["", "", "", "", "no flip", "half a flip", "rolled", "even", "other weights", "noise"])
        self.sign = draw.choice([-1, -1, -1, 1])
        axes = {"no flip": (), "half a flip": (2,), "rolled": (2, 3)}.get(self.flaw, (2, 3))
        mirror = w.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1).flip(axes)
        w = w + self.sign * (mirror.roll(1, -1) if self.flaw == "rolled" else mirror)
        if self.flaw == "noise":
            w = w + torch.randn(w.shape, generator=generator) * draw.choice([1e-7, 1e-5, 3e-4, 0.1])
        self.w = nn.Parameter(w * draw.choice([0.05, 0.2, 0.5]) / w.norm())
        self.other = nn.Parameter(self.w.detach() * 1.3)
        self.bias = nn.Parameter(torch.randn(self.channels, generator=generator)) if draw.random() < 0.3 else None
        size = [draw.choice([5, 6]), draw.choice([4, 7])]
        self.shape = (self.channels, *size)
        self.read_inside = draw.random() < 0.1
        self.uneven = self.flaw == "even"

    def operator(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        reach = [self.dilation * (k - 1) for k in self.kernel]
        pads = [n for r in reversed(reach) for n in (r // 2, r - r // 2)]
        if self.uneven and pads[0]:
            pads[0], pads[1] = pads[0] - 1, pads[1] + 1
        if not self.circular and pads[::2] == pads[1::2]:
            return functional.conv2d(x, w, self.bias, 1, pads[::-2], self.dilation, self.groups)
        mode = "circular" if self.circular else "constant"
        return functional.conv2d(functional.pad(x, pads, mode=mode), w, self.bias, 1, 0, self.dilation, self.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.form == "horner":
            z = x
            for k in range(self.terms, 0, -1):
                z = torch.add(x, self.operator(z, self.w), alpha=1 / k)
            return z.flatten(1)
        z = moved = x
        for k in range(1, self.terms + 1):
            moved = self.operator(moved, self.other if self.flaw == "other weights" and k == 2 else self.w)
            if self.form == "series":
                moved = moved / float(k) if k % 2 else moved * (1 / k)
            z = z + moved if self.form == "series" or k % 2 else z - 0.4 * moved
        return (torch.cat([z, moved], 1) if self.read_inside else z).flatten(1)


def matrix(network: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    network = network.double()
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    with torch.no_grad():
        basis = torch.eye(zero.numel(), dtype=torch.float64).reshape(-1, *shape)
        return (network(basis) - network(zero)).flatten(1).T


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_the_bound_is_never_below_the_norm(part: int) -> None:
    together = 0
    for seed in range(part * 6, part * 6 + 6):
        network = Exponential(seed).eval()
        found = compose(network, network.shape).network
        norm = float(torch.linalg.matrix_norm(matrix(network, network.shape), 2))
        assert norm <= found.value * (1 + 1e-13), seed
        if found.layers[-1].upper.method == "polynomial":
            together += 1
            flawless = not network.flaw and network.sign == -1
            assert not flawless or network.terms < 5 or found.value <= 1.01 * norm, seed
    assert together >= 1


class Skew(nn.Module):
    """The skew convolution of a network of Singla and Feizi, in evaluation."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, *, terms: int = 12, seed: int = 0):
        super().__init__()
        self.before, self.after, self.stride, self.terms = before * stride**2, after, stride, terms
        side = max(self.before, after)
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(side, side, kernel, kernel, generator=generator))
        self.bias = nn.Parameter(torch.randn(after, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight - self.weight.transpose(0, 1).flip(2, 3)
        w = 0.7 * w / torch.linalg.matrix_norm(w.flatten(1), 2)
        x = functional.pixel_unshuffle(x, self.stride)
        z = moved = functional.pad(x, (0, 0, 0, 0, 0, max(0, self.after - self.before)))
        for k in range(1, self.terms + 1):
            moved = functional.conv2d(moved, w, padding=w.shape[2] // 2) / float(k)
            z = z + moved
        return z[:, : self.after] + self.bias[:, None, None]


@pytest.mark.slow
def test_a_network_of_skew_convolutions_is_bounded_in_seconds() -> None:
    layers, channels = [], 3
    for number in range(5):
        after = 16 * 2**number
        layers += [Skew(channels, after, 3 if number < 4 else 1, 2, seed=number), nn.ReLU()]
        channels = after
    network = nn.Sequential(*layers, nn.Flatten()).eval()
    began = time.process_time()
    found = lipaudit.bound(network, (3, 32, 32))
    assert time.process_time() - began < 10
    assert 1.0 <= found.value <= 1 + 1e-6


@pytest.mark.parametrize("local", ["off", pytest.param("auto", marks=pytest.mark.slow)])
def test_radii_hold_with_rounding_and_are_found_locally(local: str) -> None:
    network = nn.Sequential(Skew(2, 3, 3, terms=3), nn.ReLU(), Skew(3, 1, 1, terms=2), nn.Flatten()).eval()
    image = torch.rand(1, 2, 4, 3, generator=torch.Generator().manual_seed(1))
    each = ("real", "native", "float64")
    radii = [float(lipaudit.certify(network, image, local=local, arithmetic=one).radius[0]) for one in each]
    assert 0 < radii[1] < radii[2] <= radii[0]
    if local == "auto":
        assert float(lipaudit.certify(network, image, local="on").radius[0]) >= radii[0]


def test_few_terms_show_as_a_bound_above_one() -> None:
    network = nn.Sequential(Skew(3, 3, 3, terms=2), nn.Flatten()).eval()
    found = lipaudit.bound(network, (3, 6, 6)).value
    truth = float(torch.linalg.matrix_norm(matrix(network, (3, 6, 6)), 2))
    assert 1.01 < truth <= found <= 1.1 * truth


@pytest.mark.parametrize("seed", [0, 1])
def test_an_error_made_inside_grows_no_farther_than_the_ledger_says(seed: int) -> None:
    network = Exponential(next(s for s in range(seed * 50, 1000) if _closed(s))).eval()
    composition = compose(network, network.shape)
    (step,) = (line.step for line in composition.network.layers if line.upper.method == "polynomial")
    grown = dict(composition.ledger.growth()[step])
    zero = torch.zeros(network.shape, dtype=torch.float64)
    for name, factor in grown.items():
        if name == composition.graph.output:
            continue
        generator = torch.Generator().manual_seed(seed)

        moved: list[torch.Tensor] = []

        def run(node, arguments, name=name, generator=generator, moved=moved):
            output = call(node, arguments)
            if node.name != name:
                return output
            moved.append(torch.randn(output.shape, generator=generator, dtype=torch.float64))
            return output + moved[0]

        off = evaluate(composition.graph, zero, run=run) - evaluate(composition.graph, zero)
        if "pad" not in name:  # moves entries only: no error is made there
            assert float(off.norm()) <= factor * float(moved[0].norm()) * (1 + 1e-12), name


def _closed(seed: int) -> bool:
    network = Exponential(seed)
    return not network.flaw and not network.read_inside and network.terms == 5 and network.kernel != (2, 2)


@pytest.mark.parametrize("seed", range(6))
def test_the_largest_value_of_a_polynomial(seed: int) -> None:
    draw = random.Random(seed)
    p = [Fraction(draw.gauss(0, 1) * 2.0 ** draw.randint(-3, 3)) for _ in range(draw.randint(1, 13))]
    low = Fraction(draw.gauss(0, 1))
    high = low + Fraction(draw.random() * 3)
    points = [low + (high - low) * k / 300 for k in range(301)]
    most = max(sum(c * x**k for k, c in enumerate(p)) for x in points)
    found = largest_value(p, low, high)
    slope = sum(k * abs(c) * max(abs(low), abs(high)) ** max(0, k - 1) for k, c in enumerate(p))
    assert most <= found <= most + slope * (high - low) / 300 + abs(most) / 10**6
