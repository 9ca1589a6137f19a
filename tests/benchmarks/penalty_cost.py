"""What a penalty costs, as a share of a training step of a CIFAR ResNet-18.

    python tests/benchmarks/penalty_cost.py --batch 256 --repeat 3
    python tests/benchmarks/penalty_cost.py --device cuda --batch 256 --repeat 20

A training step is forward, cross entropy, backward and SGD on random images of 3x32x32; a penalty is `log_lipschitz`,
forward and backward. "refresh 64" is the mean over 64 calls of which one looks at all frequencies (or matrices). The
network is torchvision's ResNet-18 with a 3x3 convolution in front and no pooling after it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import resnet18

from lipaudit.nn import log_lipschitz

SHAPE = (3, 32, 32)


def network() -> nn.Module:
    """ResNet-18 for images of 32 x 32."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def seconds(work: Callable[[], None], repeat: int, device: torch.device) -> float:
    """The median of so many runs; on a CPU the seconds of all its threads, which other work does not lengthen."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    found = []
    for _ in range(repeat):
        _wait(device)
        began = clock()
        work()
        _wait(device)
        found.append(clock() - began)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", default="gram,lipgrid,four,aol")
    parser.add_argument("--refresh", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = network().to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.rand(options.batch, *SHAPE, device=device), torch.randint(10, (options.batch,), device=device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()

    def penalise(method: str, refresh: int) -> Callable[[], None]:
        return lambda: log_lipschitz(model, SHAPE, method=method, refresh=refresh).backward()

    began = time.perf_counter()
    penalise("aol", 1)()
    _tell(f"torch {torch.__version__}, {device}, threads {options.threads}, batch {options.batch}")
    _tell(f"plan and first call: {time.perf_counter() - began:.2f} s, once")
    step()
    whole = seconds(step, options.repeat, device)
    _tell(f"training step: {whole:.3f} s")
    for method in options.methods.split(","):
        optimiser.zero_grad(set_to_none=True)
        penalise(method, 1)()
        each = seconds(penalise(method, 1), options.repeat, device)
        _tell(f"{method:8} {each:.3f} s, {100 * each / whole:.1f} % of a step")
        if method in ("gram", "four"):
            penalise(method, 10**9)()
            kept = seconds(penalise(method, 10**9), options.repeat, device)
            mean = (each + (options.refresh - 1) * kept) / options.refresh
            _tell(f"{method:8} {mean:.3f} s, {100 * mean / whole:.1f} % of a step, with refresh {options.refresh}")


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
