"""The columns, ledgers and pictures that `audits.py` builds its fixtures from: made up, but hanging together.

Radii are margins over a class-pair bound, rates are counted from the columns, a ledger multiplies up to its bound.
"""

from __future__ import annotations

import base64
import functools
import math
import random
import struct
import zlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from lipaudit.results.audit import ArithmeticResult, AttackRecord, Rate, Samples, Thumbnail
from lipaudit.results.bounds import LayerBound, NetworkBound, Upper

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
EPS = ("36/255", "0.25", "0.5", "1")
ATTACKS = ("APGD-CE", "APGD-T", "FAB-T", "Square", "C&W-L2", "DeepFool")


def eps_value(eps: str) -> float:
    top, _, bottom = eps.partition("/")
    return float(top) / float(bottom or 1)


def rate(eps: str, count: int, total: int) -> Rate:
    """With the 95 % Wilson interval."""
    z, p = 1.959964, count / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total**2))
    return Rate(eps, p, count, total, max(0.0, middle - half), min(1.0, middle + half))


def samples(n: int, seed: int, median_radius: float, tightness: float, clean: float, never: float) -> Samples:
    """`tightness` is the median of distance over radius; `never` the share that no attack breaks."""
    draw = random.Random(seed)
    columns: list[list] = [[] for _ in range(9)]
    for row in range(n):
        label, correct = row % 10, draw.random() < clean
        guess = label if correct else (label + 1 + draw.randrange(9)) % 10
        margin = draw.lognormvariate(2.0, 0.7) if correct else -draw.lognormvariate(0.3, 0.9)
        radius = median_radius * margin / math.exp(2.0) if correct else 0.0
        broken = correct and draw.random() >= never
        stretch = 1.02 + (tightness - 1.02) * draw.lognormvariate(0, 0.25)
        by = draw.choices(ATTACKS, (2, 3, 5, 1, 3, 2))[0]
        cells = (
            3 * row + 1, label, guess, margin, radius,
            radius * stretch if broken else None,
            (label + 3) % 10 if broken else None,
            by if broken else None,
            correct,
        )  # fmt: skip
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
    columns = tuple(tuple(column) for column in columns)
    images = tuple(f"{row:016x}" for row in columns[0])
    return Samples(*columns, method=("global",) * n, native_distance=columns[5], image=images)


def arithmetics(columns: Samples, eps: Iterable[str]) -> tuple[ArithmeticResult, ...]:
    """R, F a little below it, and D that is not certified."""
    shorter = tuple(0.99 * radius for radius in columns.radius)
    as_executed = rates(replace(columns, radius=shorter), eps, certified=True)
    return (
        ArithmeticResult("real", "real: about the weights.", True, rates(columns, eps, certified=True), columns.radius),
        ArithmeticResult("native", "native: about the network as executed in float32.", False, as_executed, shorter),
        ArithmeticResult("float64", "float64: about float64.", False, (), (), "gelu in float64 has no proved error"),
    )


def rates(columns: Samples, eps: Iterable[str], certified: bool) -> tuple[Rate, ...]:
    n = len(columns.label)

    def holds(row: int, size: float) -> bool:
        if columns.label[row] != columns.prediction[row]:
            return False
        reach = columns.radius[row] if certified else columns.distance[row]
        return reach is None or reach > size

    return tuple(rate(e, sum(holds(row, eps_value(e)) for row in range(n)), n) for e in eps)


def line(
    name: str,
    op: str,
    value: float,
    inputs: tuple[str, ...],
    before: float,
    law: str = "scale",
    lower: float = 0.97,
) -> LayerBound:
    methods = {"conv2d": ("torus-parity", "gram", "reshape"), "linear": ("svd-verified", "gram")}.get(
        op, ("pointwise",)
    )
    upper = Upper(value, methods[0], f"{op} has spectral norm at most {value:.6g}")
    others = tuple(Upper(value * (1 + 0.35 * k * k), method) for k, method in enumerate(methods[1:], 1))
    learned = op in ("conv2d", "linear")
    return LayerBound(
        name, op, upper, law, inputs, f"{name}/{op}", before + math.log10(value), (8, 16, 16),
        (upper, *others), lower * value if learned else None, "upper" if learned else "exact", 0.31, "resnet.py:42",
    )  # fmt: skip


def resnet_ledger(draw: random.Random, scale: float = 1.0) -> tuple[LayerBound, ...]:
    """Eight residual blocks: branch of two convolutions, skip or 1x1 convolution, sum."""
    ledger = [line("normalise", "affine", 5.02, ("input",), 0.0)]

    def step(name: str, op: str, value: float, source: LayerBound) -> LayerBound:
        ledger.append(line(name, op, value, (source.step,), source.log10_so_far))
        return ledger[-1]

    def add(name: str, one: LayerBound, two: LayerBound) -> LayerBound:
        total = math.log10(10**one.log10_so_far + 10**two.log10_so_far)
        upper = Upper(1.0, "sum", "the bounds of the summands add up")
        ledger.append(
            LayerBound(name, "add", upper, "sum", (one.step, two.step), f"{name}/add", total, (8, 16, 16), (upper,))
        )
        return ledger[-1]

    head = step("relu", "relu", 1.0, step("conv1 + bn1", "conv2d", 2.9 * scale, ledger[0]))
    for stage in range(1, 5):
        for block in range(2):
            path = f"layer{stage}.{block}"
            first = step(f"{path}.conv1 + {path}.bn1", "conv2d", draw.uniform(3, 6) * scale, head)
            middle = step(f"{path}.relu", "relu", 1.0, first)
            branch = step(f"{path}.conv2 + {path}.bn2", "conv2d", draw.uniform(3, 5.5) * scale, middle)
            down = f"{path}.downsample.0 + {path}.downsample.1"
            skip = step(down, "conv2d", draw.uniform(1, 3), head) if stage > 1 and block == 0 else head
            head = step(f"{path}.relu_1", "relu", 1.0, add(path, branch, skip))
    pool = step("avgpool", "avg_pool2d", 0.25, head)
    step("fc", "linear", 2.1 * scale, step("flatten", "flatten", 1.0, pool))
    return tuple(ledger)


def chain_ledger(values: Iterable[tuple[str, str, float]]) -> tuple[LayerBound, ...]:
    """Layers in a row."""
    ledger: list[LayerBound] = []
    source, before = "input", 0.0
    for name, op, value in values:
        ledger.append(line(name, op, value, (source,), before, lower=0.999))
        source, before = ledger[-1].step, ledger[-1].log10_so_far
    return tuple(ledger)


def network(ledger: tuple[LayerBound, ...], classes: int = 10) -> NetworkBound:
    log10 = ledger[-1].log10_so_far
    size = 10**log10 if log10 < 300 else math.inf
    pairs = (tuple(0.0 if i == j else size * (1 + 0.03 * abs(i - j)) for j in range(classes)) for i in range(classes))
    return NetworkBound(ledger, log10, tuple(pairs), (3, 32, 32), 14.2)


@functools.cache
def picture(seed: int, side: int = 32, noise: int = 30, slope: int = 2) -> str:
    """A PNG of a soft gradient (none: mid-grey) with noise, as a data URI."""
    draw = random.Random(seed)
    hue = [draw.randrange(60, 200) if slope else 128 for _ in range(3)]
    y, x = np.mgrid[:side, :side][..., None]
    grain = np.frombuffer(draw.randbytes(3 * side * side), np.uint8).reshape(side, side, 3) % (2 * noise + 1)
    pixels = np.clip(hue + slope * (x - y) + grain - noise, 0, 255).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    head = chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def thumbnails(columns: Samples, count: int = 8) -> tuple[Thumbnail, ...]:
    broken = [row for row, distance in enumerate(columns.distance) if distance is not None]
    fragile = sorted(broken, key=lambda row: columns.distance[row] or 0.0)[:count]
    return tuple(
        Thumbnail(row, picture(row), picture(row, noise=34), picture(row, noise=9, slope=0), 20.0) for row in fragile
    )


def records(columns: Samples) -> tuple[AttackRecord, ...]:
    attacked = sum(columns.attacked)
    made = []
    for k, name in enumerate(ATTACKS):
        found = sorted(
            d for d, by in zip(columns.distance, columns.attack, strict=True) if d is not None and by == name
        )
        library = "AutoAttack (pyautoattack 0.2.0)" if k < 4 else "ART 1.20.1"
        median = found[len(found) // 2] if found else None
        made.append(
            AttackRecord(
                name, library, "100 iterations, eps 36/255", attacked,
                max(len(found), attacked - 9 * k) if found else 0, len(found),
                median, k % 2, 41.0 * (k + 1),
            )
        )  # fmt: skip
    return tuple(made)
