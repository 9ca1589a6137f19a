"""Operator norms in Linf and L1 are the largest row and column sums: never below them, and next to nothing above."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import pytest
import torch

import lipaudit
from lipaudit.errors import BadThreat, RuleError
from lipaudit.norms.linear_maps import Conv, Dense, Gather, LinearMap, Pad, Scale, Transposed, dense, sum_norm
from lipaudit.results.threat import NORMS


def some_map(random: Random, generator: torch.Generator) -> LinearMap:
    """A small map of any kind, with numbers of very different sizes."""
    axes, kind = random.randint(1, 3), random.randrange(6)

    def weights(*shape: int) -> torch.Tensor:
        exponents = torch.randint(-30, 30, shape, generator=generator) if random.random() < 0.3 else torch.zeros(shape)
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0**exponents

    if kind == 0:
        return Dense(weights(random.randint(1, 8), 5), (2, 5)[random.randint(0, 1) :])
    if kind == 1:
        return Scale(weights(2, 1), (1, 2, 3))
    if kind == 2:
        return Pad(((1, 2),), random.choice(["zeros", "circular", "reflect", "replicate"]), (1, 2, 4))
    if kind == 3:
        return Gather(lambda x: torch.nn.functional.avg_pool1d(x, 3, 1), (1, 2, 5), 3)
    groups = random.choice([1, 1, 2])
    size = tuple(random.randint(3, 5 if axes < 3 else 3) for _ in range(axes))
    mode = random.choice(["zeros", "zeros", "circular", "reflect", "replicate"])
    pads = tuple((random.randint(0, 2), random.randint(0, 2)) for _ in range(axes))
    conv = Conv(
        weights(2 * groups, random.randint(1, 2), *(random.randint(1, 3) for _ in range(axes))),
        size,
        tuple(random.randint(1, 2) for _ in range(axes)),
        pads if kind == 4 else tuple((max(p), min(p)) for p in pads),
        (1,) * axes,
        groups,
        mode if kind == 4 else "zeros",
    )
    return conv if kind == 4 else Transposed(conv)


def against_exact(count: int, seed: int) -> None:
    random, generator = Random(seed), torch.Generator().manual_seed(seed)
    for number in range(count):
        linear = some_map(random, generator)
        matrix = [[abs(Fraction(entry)) for entry in row] for row in dense(linear).tolist()]
        error = Fraction(linear.relative_error)
        exact = {"linf": max(map(sum, matrix)), "l1": max(map(sum, zip(*matrix, strict=True)))}
        for norm, truth in exact.items():
            found = Fraction(sum_norm(linear, norm))
            assert truth * (1 + error) <= found, (number, norm)
            conv = linear.conv if isinstance(linear, Transposed) else linear
            if not isinstance(conv, Conv) or conv.padding_mode == "zeros":
                assert found <= truth * (1 + Fraction(1, 10**11)) + Fraction(1, 10**290), (number, norm)


def test_sums_of_random_maps_in_rationals() -> None:
    against_exact(20, 0)


@pytest.mark.slow
def test_sums_of_a_thousand_random_maps_in_rationals() -> None:
    against_exact(1000, 1)


def test_the_public_functions_know_three_norms() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    for norm, truth in {"linf": 3.5, "L1": 4.0}.items():
        assert truth <= float(lipaudit.dense_norm(weight, norm=norm)) <= truth * (1 + 1e-12)
    assert float(lipaudit.dense_norm(weight, norm="L2")) == float(lipaudit.dense_norm(weight))
    kernel = torch.ones(1, 1, 3, 3)
    found = [float(lipaudit.conv_norm(kernel, input_size=(2, 2), padding=1, norm=norm)) for norm in NORMS[1:]]
    assert found == pytest.approx([4.0, 4.0])  # the borders cut the kernel: 9 in the interior of a larger image
    with pytest.raises(BadThreat, match="expected a norm, l2, linf, l1, got 'l3'"):
        lipaudit.dense_norm(weight, norm="l3")
    with pytest.raises(RuleError, match="method 'best' for a norm in linf"):
        lipaudit.dense_norm(weight, norm="linf", method="svd")
