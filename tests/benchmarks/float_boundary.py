"""Certificates against the decision boundary of the network that runs: float32, found by bisection.

    python tests/benchmarks/float_boundary.py --model digits-aol --dataset digits
    python tests/benchmarks/float_boundary.py --aol aol.pt --dataset npz:mnist_test.npz  # of train_aol.py

Between two images of different answers the network, executed in float32, changes its answer somewhere: bisection in
float64 finds the last point before (rounded to float32, as the network reads it) and the first behind. From starts at
several places on the way, the last of them one step before the boundary, it is asked whether the first point behind the
boundary is closer than the certified radius of the start. Arithmetic R may be beaten by that, as it is about another
function, the exact one; native arithmetic must not be. "excess" is the most by which a radius reaches beyond, over the
resolution of the start: 2^-23 times its norm, the distance of neighbouring float32 inputs.

The same is done with `--biases` added to what the last layer reads, and taken off by its biases, as rounded to float32:
nearly the same function, in which rounding is as large as that number makes it. The exit code is 4 if F is beaten.
Source of the attack: T. Murray, arXiv 2603.13334; K. Jin et al., arXiv 2205.10159.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lipaudit.certification.certificates import certify_with
from lipaudit.certification.network_bound import compose
from lipaudit.crosscheck.native_boundary import changed
from lipaudit.loading.dataset_registry import ImageSet
from lipaudit.loading.datasets import open_dataset
from lipaudit.loading.models import load_model
from lipaudit.nn import export
from lipaudit.progress import Silent

SHARES = (0.0, 0.9, 0.999, 1.0)
"""Where the starts lie between an image and the boundary; 1: the last point before it."""
STEPS = 60


class Shift(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x + self.size


def with_cancelling_biases(network: nn.Module, size: float) -> nn.Module:
    """`size` added to all that the last dense layer reads, and taken off by its biases."""
    network = copy.deepcopy(network)
    name, last = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear)][-1]
    weight, before = last.weight.double(), 0.0 if last.bias is None else last.bias.double()
    last.bias = nn.Parameter((before - size * weight.sum(1)).to(last.weight.dtype), requires_grad=False)
    parent = network.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.Sequential(Shift(size), last))
    return network.eval()


def boundary(network: nn.Module, start: Tensor, end: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The last point before, and the first behind, the change of the executed answer on each segment (float64)."""
    shape = (-1, *[1] * (start.ndim - 1))
    low, high = torch.zeros(len(start), dtype=torch.float64), torch.ones(len(start), dtype=torch.float64)
    for _ in range(STEPS):
        middle = (low + high) / 2
        there = changed(network, start + middle.reshape(shape) * (end - start), labels)
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
    before, behind = (start + share.reshape(shape) * (end - start) for share in (low, high))
    return before, behind


@dataclass
class Count:
    pairs: int = 0
    beaten: int = 0
    certified: int = 0
    largest: float = 0.0
    """Radius that was beaten."""
    excess: float = 0.0

    def row(self) -> str:
        return f"{self.beaten:7d}/{self.certified:<7d} {self.largest:12.3g} {self.excess:12.3g}"


def attack(network: nn.Module, images: Tensor, pairs: int, seed: int) -> dict[tuple[float, str], Count]:
    """Counts for each place of the starts and each arithmetic."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        answers = torch.cat([network(some) for some in images.split(64)]).argmax(1)
    one, other = torch.randint(len(images), (2, 8 * pairs), generator=generator)
    apart = (answers[one] != answers[other]).nonzero().flatten()[:pairs]
    one, other = one[apart], other[apart]
    labels, start, end = answers[one], images[one].double(), images[other].double()
    parts = [boundary(network, *some) for some in zip(*(t.split(64) for t in (start, end, labels)), strict=True)]
    before, behind = (torch.cat([part[k] for part in parts]) for k in range(2))
    composition = compose(network, tuple(images.shape[1:]))
    counts: dict[tuple[float, str], Count] = {}
    for share in SHARES:
        # As the network reads it: float32.
        points = (start + share * (before - start)).float()
        kept = [k for k in range(len(points)) if not changed(network, points[k : k + 1].double(), labels[k : k + 1])]
        found = certify_with(composition, points[kept], labels[kept].tolist(), arithmetics=("native",))
        for place, row in enumerate(kept):
            point = points[row].double()
            # The point behind before it is rounded, and what is really executed.
            distance = min(math.dist(point.flatten(), p.flatten()) for p in (behind[row], behind[row].float().double()))
            resolution = 2.0**-23 * float(point.norm())
            as_executed = found.others["native"].radius
            for arithmetic, radius in (
                ("real", found.radius[place]),
                ("native", as_executed[place] if len(as_executed) else 0),
            ):
                count = counts.setdefault((share, arithmetic), Count())
                count.pairs += 1
                count.certified += radius > 0
                if distance < radius:
                    count.beaten += 1
                    count.largest = max(count.largest, float(radius))
                    count.excess = max(count.excess, (float(radius) - distance) / resolution)
        if share == 0:
            both = [np.median(r) if len(r) else 0.0 for r in (found.radius, found.others["native"].radius)]
            say(f"  median radius of the images: real {both[0]:.6g}, native {both[1]:.6g}")
        if found.others["native"].why_not:
            say(f"  starts at {share:g}: native: not certified: {found.others['native'].why_not}")
    return counts


def trained(checkpoint: Path, images: Tensor) -> nn.Module:
    """The network of a checkpoint of train_aol.py, in plain layers."""
    sys.path.append(str(Path(__file__).parents[2] / "examples" / "training"))
    from train_aol import network

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    width = next(iter(state.values())).shape[0]
    model = network(tuple(images.shape[1:]), 10, width)
    model.load_state_dict(state)
    return export(model.eval())


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def read(opened: ImageSet, first: int) -> Tensor:
    x = torch.from_numpy(opened.read(np.arange(min(opened.available, first)), opened.shape).inputs)
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--aol", type=Path, help="a checkpoint of train_aol.py")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--mean", type=_numbers)
    parser.add_argument("--std", type=_numbers)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--biases", type=float, default=1e6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    opened = open_dataset(args.dataset, data_dir=args.data_dir, offline=True, input_shape=None, progress=Silent())
    images = read(opened, args.images)
    network = trained(args.aol, images) if args.aol else _loaded(args, opened.shape)
    network = network.eval().requires_grad_(False)
    worst = 0
    for size in (0.0, args.biases):
        began = time.monotonic()
        counts = attack(with_cancelling_biases(network, size) if size else network, images, args.pairs, args.seed)
        say(f"biases {size:g}: {time.monotonic() - began:.0f} s")
        say(f"{'start':>8} arithmetic   beaten/certified   radius up to    excess")
        for (share, arithmetic), count in counts.items():
            say(f"{share:8g} {arithmetic:>7} {count.row()}")
            worst += count.beaten * (arithmetic == "native")
    say(f"native beaten: {worst}")
    return 4 if worst else 0


def _loaded(args: argparse.Namespace, shape: tuple[int, ...]) -> nn.Module:
    return load_model(
        args.model, dataset=args.dataset, mean=args.mean, std=args.std, num_classes=10, input_shape=shape
    ).module


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
