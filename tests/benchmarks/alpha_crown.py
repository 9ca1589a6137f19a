"""CROWN and alpha-CROWN of auto_LiRPA on the networks of `linf_table.py`: images certified at its budgets.

    python tests/benchmarks/alpha_crown.py --shared DIR --first 20 [--norm linf] [--only mnist_mlp]

Runs where auto_LiRPA does (0.3 needs Python 3.10 and torch 1.12), without lipaudit; DIR as in `linf_table.py`. In Linf
the ball is clipped to the pixels. Bounds are in float32 and no rounding is counted. "failed" are images at which it
raises an error. Seconds an image, one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch
from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from l2_verification import BUDGETS, images_of, networks

METHODS = ("CROWN", "CROWN-Optimized")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--norm", choices=tuple(BUDGETS), default="linf")
    parser.add_argument("--first", type=int, default=20)
    parser.add_argument("--only")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    _say("network           budget  right  CROWN  alpha-CROWN  failed   s/image")
    reads = {} if "weights_only" in torch.load.__code__.co_varnames else {"encoding": "utf-8"}
    for name, model in networks(args.shared, **reads).items():
        if args.only in (None, name):
            images, labels = images_of(args.shared, name, args.first)
            _rows(name, model.float(), images.float(), labels, args.norm)
    return 0


def _rows(name, model, images, labels, norm) -> None:
    right = [row for row, label in enumerate(labels) if int(model(images[row : row + 1]).argmax()) == label]
    for budget in BUDGETS[norm][name]:
        top, _, bottom = budget.partition("/")
        eps, counts, seconds, failed = float(top) / float(bottom or 1), [0, 0], [0.0, 0.0], 0
        for row in right:
            x = images[row : row + 1]
            ball = PerturbationLpNorm(norm=1, eps=eps)
            if norm == "linf":
                box = {"x_L": (x - eps).clamp_min(0.0), "x_U": (x + eps).clamp_max(1.0)}
                ball = PerturbationLpNorm(norm=float("inf"), eps=eps, **box)
            margins = -torch.eye(10)
            margins[:, labels[row]] += 1.0
            margins = margins[[other for other in range(10) if other != labels[row]]].unsqueeze(0)
            for place, method in enumerate(METHODS):
                began = time.monotonic()
                bounded = BoundedModule(model, x)  # it keeps slopes of an image, which do not fit another
                given = {"x": (BoundedTensor(x, ball),), "C": margins, "method": method, "bound_upper": False}
                try:
                    counts[place] += bool((bounded.compute_bounds(**given)[0] > 0).all())
                except RuntimeError:  # 0.3 mixes up its slopes where a layer has all its neurons open
                    failed += 1
                seconds[place] += time.monotonic() - began
        each = ", ".join(f"{total / max(1, len(right)):.2f}" for total in seconds)
        _say(f"{name:16} {budget:>7} {len(right):6} {counts[0]:6} {counts[1]:12} {failed:7}   {each}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
