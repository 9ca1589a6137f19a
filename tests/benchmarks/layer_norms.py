"""How tight, how fast: methods for the norm of a convolution on the same layers, in one process.

    python tests/benchmarks/layer_norms.py --network both --repeat 3
    python tests/benchmarks/layer_norms.py --network cifar --threads 1 --markdown > table.md

Printed are, for each layer and method, the value over the truth and the seconds (the median, where --repeat asks for
more than one run; a method that has spent a minute on a layer is not run again), and then, for each network, the
product of the values over the product of the truths, the smallest value over the truth, the total of the seconds, and
how many times faster than plain Gram iteration that is. Before it is timed, each method runs once on a small layer.

The truth is Lanczos in float64 on the convolution with its own zero padding and stride. It has converged to about
1e-8, but like every such iteration it comes from below: a value below it is below the true norm, too.

Two rows need packages that lipaudit does not: pip install --no-deps orthogonium deel-torchlip
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TextIO

import torch
from methods import METHODS, NETWORKS, PLAIN, Layer, installed, small_layer, truth

ENOUGH = 60.0
"""Seconds on one layer after which a method is not repeated."""
HEADER = ("method", "its value is", "values / truths", "smallest", "below", "seconds", "speed")


@dataclass(frozen=True)
class Run:
    """One method on one layer."""

    ratio: float
    seconds: float


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    say = partial(tell, sys.stderr if options.markdown else sys.stdout)
    chosen = [name for name in METHODS if not options.only or name in options.only]
    methods = [name for name in chosen if installed(name)]
    place = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    say(f"torch {torch.__version__} on {place}, threads: {options.threads}, runs: {options.repeat}")
    methods = [name for name in methods if attempt(name, small_layer().to(device), 1, say)]
    for network in NETWORKS if options.network == "both" else [options.network]:
        layers = NETWORKS[network]()[: options.layers]
        say(f"\n{network}, {len(layers)} convolutions: {NETWORKS[network].__doc__}")
        runs = measured([layer.to(device) for layer in layers], methods, options.repeat, say)
        plainly = sum(run.seconds for run in runs.get(PLAIN, []))
        rows = [summary(name, runs.get(name), plainly) for name in chosen]
        tell(sys.stdout, f"\n{network}:\n\n{(markdown if options.markdown else plain)([HEADER, *rows])}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[*NETWORKS, "both"], default="both")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--repeat", type=int, default=1, metavar="R", help="runs, of which the median counts")
    parser.add_argument("--layers", type=int, metavar="N", help="only the first N layers")
    parser.add_argument("--only", action="append", choices=list(METHODS), metavar="METHOD", help="may be repeated")
    parser.add_argument("--markdown", action="store_true", help="the summary in Markdown, all else to standard error")
    return parser.parse_args()


def measured(
    layers: Sequence[Layer], methods: Sequence[str], repeat: int, say: Callable[[str], None]
) -> dict[str, list[Run]]:
    """Every method on every layer; a method that fails on a layer has no runs."""
    runs: dict[str, list[Run]] = {name: [] for name in methods}
    for layer in layers:
        start = time.perf_counter()
        true = truth(layer)
        shape, size = ("x".join(map(str, sizes)) for sizes in (layer.weight.shape, layer.size))
        say(f"{layer.name} ({shape}, stride {layer.stride[0]}, at {size}): {true:.8f}, {since(start):.1f} s")
        for name in [name for name in methods if name in runs]:
            done = attempt(name, layer, repeat, say)
            if done is None:
                del runs[name]
                continue
            ratio, seconds = done[0] / true, done[1]
            runs[name].append(Run(ratio, seconds))
            say(f"  {name:28}  {ratio:12.7f}  {seconds:9.3f} s{'' if ratio >= 1 else '  BELOW the truth'}")
    return runs


def attempt(name: str, layer: Layer, repeat: int, say: Callable[[str], None]) -> tuple[float, float] | None:
    """Value and seconds of the method, or None if it fails."""
    try:
        return timed(METHODS[name], layer, repeat)
    except (AssertionError, RuntimeError, ValueError) as error:
        say(f"  {name:28}  failed: {' '.join(str(error).split())}")
        return None


def timed(method: Callable[[Layer], float], layer: Layer, repeat: int) -> tuple[float, float]:
    """The value, and the median of the seconds."""
    value, seconds = math.nan, []
    while not seconds or (len(seconds) < repeat and sum(seconds) < ENOUGH):
        synchronise(layer)
        start = time.perf_counter()
        with torch.no_grad():
            value = method(layer)
        synchronise(layer)
        seconds.append(since(start))
    return value, statistics.median(seconds)


def synchronise(layer: Layer) -> None:
    if layer.weight.is_cuda:
        torch.cuda.synchronize()


def since(start: float) -> float:
    return time.perf_counter() - start


def summary(name: str, runs: Sequence[Run] | None, plainly: float) -> tuple[str, ...]:
    """The line of a method; None instead of runs if it is not installed or failed. `plainly`: seconds of plain Gram."""
    claim = (METHODS[name].__doc__ or "").split("\n", 1)[0]
    if not runs:
        return (name, claim, "failed" if installed(name) else "not installed", "", "", "", "")
    ratios, seconds = [run.ratio for run in runs], sum(run.seconds for run in runs)
    below = sum(not ratio >= 1 for ratio in ratios)
    counts = f"{below} of {len(runs)}" if below else "none"
    speed = f"{plainly / seconds:.2f}" if plainly else ""
    return name, claim, f"{math.prod(ratios):.5g}", f"{min(ratios):.7f}", counts, f"{seconds:.2f}", speed


def plain(rows: Sequence[Sequence[str]]) -> str:
    """The rows as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---|---|---:|---:|---:|---:|---:|", *lines[1:]])


def tell(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    stream.flush()


if __name__ == "__main__":
    main()
