"""What AutoAttack standard costs on large test sets: arithmetic from passes measured here, and stated assumptions.

    python tests/benchmarks/cost_table.py [--tflops 10] [--threads 1]

Measured: seconds of a forward and of a backward pass per image on one CPU thread, in batches of 16, for the ResNet-18
of CIFAR-10 (3 x 32 x 32) and torchvision's ResNet-50 (3 x 224 x 224), with random weights, which cost the same; and the
floating-point operations of a forward pass. From there on it is arithmetic. Every image takes all passes of
all four attacks at one eps, as if none were ever broken or misclassified: an upper count. A GPU is assumed to sustain
`--tflops` on these networks and a backward pass, which ends at the images, to take as many operations as a forward
pass; shards are independent, so that 8 and 64 GPUs take an eighth and a sixty-fourth of the time. What lipaudit adds
(`overhead.py`) is left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lipaudit.crosscheck import ATTACKS, PRESETS
from lipaudit.loading.models import load_model
from lipaudit.progress import spell

BATCH = 16
SETS = (
    ("CIFAR-10, 10,000 images, ResNet-18", "resnet18", "cifar10", (3, 32, 32), 10, 10_000),
    ("ImageNet, 50,000 images, ResNet-50", "torchvision:resnet50", None, (3, 224, 224), 1000, 50_000),
)


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds: the least of three runs, after one to warm up."""
    work()
    taken = []
    for _ in range(3):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return min(taken)


def measured(network: nn.Module, images: torch.Tensor) -> tuple[float, float, float]:
    """Seconds of a forward and of a backward pass of one image, and operations of a forward pass."""

    def forward() -> None:
        with torch.no_grad():
            network(images)

    def both() -> None:
        points = images.clone().requires_grad_()
        torch.autograd.grad(network(points).sum(), points)

    with FlopCounterMode(display=False) as counter:
        forward()
    once = seconds(forward)
    return once / len(images), max(seconds(both) - once, 0.0) / len(images), counter.get_total_flops() / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tflops", type=float, default=10.0, help="What a GPU is assumed to sustain.")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [
        "| test set | a pass, forward and backward | passes per image | one CPU thread | 1 GPU | 8 GPUs | 64 GPUs |"
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for title, name, dataset, shape, classes, count in SETS:
        loaded = load_model(
            name, dataset=dataset, random_weights=True, input_shape=shape, num_classes=classes, mean="none"
        )
        network = loaded.module.eval().requires_grad_(False)
        forward, backward, operations = measured(network, torch.rand(BATCH, *shape))
        passes = [ATTACKS[attack].passes(classes) for attack in PRESETS["l2"]["autoattack"]]
        ahead, back = sum(p.forward for p in passes), sum(p.backward for p in passes)
        here = count * (ahead * forward + back * backward) / 3600
        gpu = count * operations * (ahead + back) / (args.tflops * 1e12) / 3600
        hours = " | ".join(spell(3600 * gpu / many) for many in (1, 8, 64))
        each = f"{1e3 * forward:.1f} ms, {1e3 * backward:.1f} ms"
        lines.append(f"| {title} | {each} | {ahead:,} + {back:,} | {here:,.0f} h | {hours} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
