"""What a local radius costs: seconds and memory for one image, against the size of the input and the depth.

    python tests/benchmarks/local_radii.py --sizes 8,16,32 --depths 2,4,8 --markdown

Each cell is a process of its own: a network of 3x3 convolutions of 16 channels with ReLU (He initialisation, seed 0),
global average pooling and ten classes, at a random image. Printed are the Lipschitz radius, the local one, how many
times larger it is, the rows that its proof took, the seconds of the whole search and the peak memory of the process
above what it had before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from dataclasses import astuple, dataclass

import torch
from torch import nn

from lipaudit.certification.certificates import certify_with
from lipaudit.certification.local_proof import Search, proof
from lipaudit.certification.local_search import local_radii
from lipaudit.certification.network_bound import compose

HEADER = ("input", "convolutions", "global radius", "local radius", "larger by", "rows", "seconds", "memory")
CHANNELS = 16


@dataclass(frozen=True)
class Cell:
    """One network and one image."""

    size: int
    depth: int
    known: float
    found: float
    rows: int
    seconds: float
    mebibytes: float

    def texts(self) -> tuple[str, ...]:
        size, depth, known, found, rows, seconds, mebibytes = astuple(self)
        larger = f"{found / known:.3g}x" if found else "-"
        shape = f"3x{size}x{size}"
        return (
            shape,
            str(depth),
            f"{known:.2g}",
            f"{found:.2g}",
            larger,
            str(rows),
            f"{seconds:.1f}",
            f"{mebibytes:.0f} MiB",
        )


def network(depth: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number in range(depth):
        conv = nn.Conv2d(CHANNELS if number else 3, CHANNELS, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)).eval()


def measure(size: int, depth: int, threads: int, backwards: bool) -> Cell:
    torch.set_num_threads(threads)
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    composition = compose(network(depth), (3, size, size))
    certificates = certify_with(composition, x)
    before, began = _peak(), time.perf_counter()
    labels, known = [row.label for row in certificates.rows], certificates.radius.tolist()
    search = Search(backwards=backwards)
    found = local_radii(composition, x, labels, known, budget=None, search=search).radius[0]
    seconds, memory = time.perf_counter() - began, _peak() - before
    rows = proof(composition, x[0], labels[0], found, search) if found else 0
    return Cell(size, depth, known[0], found, rows, seconds, memory)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="8,16,32")
    parser.add_argument("--depths", default="2,4,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forwards", action="store_true", help="Without the second, backward pass.")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    _show(HEADER, args.markdown)
    if args.markdown:
        _show(("---",) * len(HEADER), args.markdown)
    for size in map(int, args.sizes.split(",")):
        for depth in map(int, args.depths.split(",")):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                cell = pool.apply(measure, (size, depth, args.threads, not args.forwards))
            _show(cell.texts(), args.markdown)


def _show(texts: tuple[str, ...], markdown: bool) -> None:
    line = "| " + " | ".join(texts) + " |" if markdown else "  ".join(text.rjust(13) for text in texts)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
