"""A long random sweep: is any method's bound ever below the largest singular value of the dense matrix?

    python tests/benchmarks/sweep.py --layers 20000
    python tests/benchmarks/sweep.py --minutes 60 --seed 7

Each layer is a small random convolution with 1 to 3 axes; every method of `CONV_METHODS` bounds it, and the bound is
held against the largest singular value of its dense matrix in float64, with zero slack. A violation is printed with the
settings of the layer and the command that meets it again. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import torch

from lipaudit.errors import LipauditError
from lipaudit.norms.linear_maps import Conv, dense
from lipaudit.norms.methods import CONV_METHODS

MODES = ("zeros", "zeros", "circular", "reflect", "replicate")
SIDES = (60, 60, 200, 200, 500, 1500)
"""The most rows and columns of the dense matrix: one of these for each layer."""
TAPS = 64
"""The most entries of a kernel, channels apart."""
COLUMN_BY_COLUMN = 100
"""The matrix of every so many layers is made by the slow `dense`, too, and compared."""
EVERY = 60.0
"""Seconds between two lines."""
FAILURES = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError, LipauditError)


def main() -> int:
    options = arguments()
    torch.set_num_threads(1)
    sweep = Sweep(options.seed)
    start = said = time.monotonic()
    numbers = range(options.first, options.first + options.layers)
    try:
        for number in numbers:
            sweep.layer(number)
            now = time.monotonic()
            if now - said > EVERY:
                said = now
                tell(f"{sweep.layers} layers, {now - start:.0f} s, violations: {sum(sweep.violations.values())}")
            if options.minutes and now - start > 60 * options.minutes:
                break
    except KeyboardInterrupt:
        tell("interrupted")
    tell(f"\nseed {options.seed}, layers from {options.first} on; {time.monotonic() - start:.0f} s\n{sweep.summary()}")
    return 1 if sweep.violations else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20_000, metavar="N")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so long, if that is earlier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first layer")
    return parser.parse_args()


class Sweep:
    """What has been found so far."""

    def __init__(self, seed: int) -> None:
        self.seed, self.layers = seed, 0
        self.violations: Counter[str] = Counter()
        self.ratios: dict[str, list[float]] = defaultdict(list)
        self.seconds: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def layer(self, number: int) -> None:
        """Hold every method against the truth on the layer of this number."""
        start = time.perf_counter()
        conv, kind = random_layer(random.Random(f"{self.seed}/{number}"))
        a = matrix(conv)
        true = float(torch.linalg.svdvals(a)[0])
        if number % COLUMN_BY_COLUMN == 0 and not torch.allclose(a, dense(conv).T, rtol=0, atol=1e-13 * true):
            raise RuntimeError(f"the matrix made at once is not the one made column by column: {describe(conv)}")
        self.seconds["(the truth)"] += time.perf_counter() - start
        self.layers += 1
        self.seen.update([conv.padding_mode, f"{len(conv.input_size)}-D", kind])
        for method in CONV_METHODS:
            start = time.perf_counter()
            try:
                bound = CONV_METHODS[method](conv).value
            except FAILURES as error:
                self.violation(method, number, f"{type(error).__name__}: {error}", conv, kind)
                continue
            finally:
                self.seconds[method] += time.perf_counter() - start
            if not bound >= true:
                self.violation(method, number, f"{bound!r} below {true!r}", conv, kind)
            if true > 0:
                self.ratios[method].append(bound / true)

    def violation(self, method: str, number: int, what: str, conv: Conv, kind: str) -> None:
        self.violations[method] += 1
        again = f"--seed {self.seed} --first {number} --layers 1"
        tell(f"VIOLATION {method}: {what}\n  {kind} weights, {describe(conv)}\n  again: {again}")

    def summary(self) -> str:
        """The table of the methods."""
        lines = [
            f"{self.layers} layers: {', '.join(f'{count} {name}' for name, count in sorted(self.seen.items()))}",
            f"the truth took {self.seconds['(the truth)']:.0f} s",
            f"{'method':14}{'violations':>12}{'smallest':>20}{'median':>10}{'largest':>10}{'seconds':>10}",
        ]
        for method in CONV_METHODS:
            ratios = self.ratios[method] or [math.nan]
            middle, largest = statistics.median(ratios), max(ratios)
            numbers = f"{min(ratios):20.15f}{middle:10.4f}{largest:10.2f}{self.seconds[method]:10.0f}"
            lines.append(f"{method:14}{self.violations[method]:12}{numbers}")
        return "\n".join(lines)


def random_layer(draw: random.Random) -> tuple[Conv, str]:
    """A convolution with a small dense matrix, and the kind of its weights."""
    axes, mode, side = draw.choice((1, 1, 2, 2, 2, 3)), draw.choice(MODES), draw.choice(SIDES)
    while True:
        each = range(axes)
        size = tuple(draw.choice((draw.randint(1, 16), draw.randint(1, 6))) for _ in each)
        kernel = tuple(draw.choice((draw.randint(1, 7), 3)) for _ in each)
        most = [{"circular": min(4, n), "reflect": min(4, n - 1)}.get(mode, 4) for n in size]  # as torch allows
        padding = tuple((draw.randint(0, m), draw.randint(0, m)) for m in most)
        stride, dilation = (tuple(draw.choice((1, 1, 2, 3)) for _ in each) for _ in "sd")
        groups, out, inputs = draw.choice((1, 1, 2, 3)), draw.randint(1, 6), draw.randint(1, 6)
        if draw.random() < 0.15:  # depthwise
            groups, out, inputs = draw.randint(2, 8), draw.randint(1, 2), 1
        shape = (groups * out, inputs, *kernel)
        conv = Conv(torch.empty(shape), size, stride, padding, dilation, groups, mode)
        rows, columns = shape[0] * math.prod(conv.output_size), groups * inputs * math.prod(size)
        if min(conv.output_size) >= 1 and max(rows, columns) <= side and math.prod(kernel) <= TAPS:
            break
    kind = draw.choice(list(WEIGHTS))
    weight = WEIGHTS[kind](shape, torch.Generator().manual_seed(draw.randrange(2**31)))
    if draw.random() < 0.3:
        weight = weight * 10.0 ** draw.uniform(-30, 30)
    return Conv(weight, size, stride, padding, dilation, groups, mode), kind


def gaussian(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def one_signed(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Kernels whose symbol peaks at frequency zero."""
    return -gaussian(shape, generator).abs()


def smooth(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """The same bump between all channels, which are mixed by a matrix of rank one, and a little noise."""
    out, inputs = gaussian(shape[:1], generator), gaussian(shape[1:2], generator)
    weight = out[:, None] * inputs
    for taps in shape[2:]:
        middle, width = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
        places = torch.arange(taps, dtype=torch.float64) - middle * (taps - 1)
        weight = weight[..., None] * torch.exp(-places.square() / (0.5 + 4 * width))
    return weight + 1e-4 * gaussian(shape, generator)


def sparse(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Mostly zeros, and now and then nothing else."""
    return gaussian(shape, generator) * (torch.rand(shape, generator=generator) < 0.25)


def alternating(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Kernels whose symbol vanishes at frequency zero and peaks at the highest."""
    signs = torch.ones((), dtype=torch.float64)
    for taps in shape[2:]:
        signs = signs[..., None] * (-1.0) ** torch.arange(taps)
    return gaussian(shape, generator).abs() * signs


WEIGHTS: dict[str, Callable[[tuple[int, ...], torch.Generator], torch.Tensor]] = {
    "Gaussian": gaussian,
    "one-signed": one_signed,
    "smooth": smooth,
    "sparse": sparse,
    "alternating": alternating,
}


def matrix(conv: Conv) -> torch.Tensor:
    """The dense matrix, transposed: `dense` with many columns at once."""
    basis = torch.eye(math.prod(conv.input_shape), dtype=torch.float64)
    parts = (conv.apply(part.reshape(-1, *conv.input_shape[1:])).flatten(1) for part in basis.split(256))
    return torch.cat(list(parts))


def describe(conv: Conv) -> str:
    names = ("input_size", "stride", "padding", "dilation", "groups", "padding_mode")
    pairs = itertools.chain([("weight", tuple(conv.weight.shape))], ((name, getattr(conv, name)) for name in names))
    return " ".join(f"{name}={value}" for name, value in pairs)


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
