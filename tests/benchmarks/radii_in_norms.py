"""Local radii in Linf and L1 on small networks, and whether any attack gets below one.

    python tests/benchmarks/radii_in_norms.py --shared DIR [--first 10] [--norm linf] [--only mnist_mlp]

DIR as in `linf_table.py`; the bundled digits-cnn is a fourth network. For each network and norm, of the first images:
the images that are right, the median radius of `lipaudit.certify(norm=..., local="on")`, the median distance of the
closest adversarial example found, and the images with an adversarial example closer than their radius: of AutoAttack's
standard version at that radius, of projected gradient ascent on the margin at it (1,000 steps, four starts), of any
attack of the preset `standard`; seconds an image for the radius. The exit code is 4 if there is one.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from l2_verification import BUDGETS, images_of, networks
from linf_table import empirical
from torch import nn

import lipaudit
from lipaudit.crosscheck import cross_check
from lipaudit.results.threat import eps_value
from lipaudit.zoo import digits_split, load

STEPS = 1000
INSIDE = 1 - 1e-9
"""Of a radius: what lies on the edge of a certified ball contradicts nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--norm", choices=tuple(BUDGETS))
    parser.add_argument("--first", type=int, default=10)
    parser.add_argument("--only")
    args = parser.parse_args()
    beyond = 0
    _say("network           norm  right  radius   closest  ratio   beyond: AutoAttack, PGD, any   s/image")
    for norm in (args.norm,) if args.norm else tuple(BUDGETS):
        for name, model, images, labels in _all(args.shared, args.first):
            if args.only in (None, name):
                beyond += _row(name, model, images, labels, norm)
    _say(f"certified beyond an attack: {beyond}")
    return 4 if beyond else 0


def _all(shared: Path, first: int):
    for name, model in networks(shared).items():
        yield name, model, *images_of(shared, name, first)
    *_, x, y = digits_split()
    yield "digits-cnn", load("digits-cnn").double(), torch.from_numpy(x[:first]).double(), y[:first].tolist()


def _row(name: str, model: nn.Module, images: torch.Tensor, labels: list[int], norm: str) -> int:
    began = time.monotonic()
    radii = np.minimum(lipaudit.certify(model, images, labels, norm=norm, domain=(0, 1), local="on").radius, 1e9)
    seconds = (time.monotonic() - began) / len(images)
    truth, most = torch.tensor(labels), [eps_value(BUDGETS[norm].get(name, ("0.1",))[-1])]
    found = cross_check(model, images, truth, attacks="standard", eps=most, radii=radii, norm=norm)
    closest = {witness.sample: witness.distance for witness in found.witnesses}
    right = [row for row, label in enumerate(labels) if found.predictions[row] == label]
    counts = [0, 0, sum(closest.get(row, math.inf) < radii[row] for row in right)]
    for row in right:
        if radii[row] == 0:
            continue
        some, radius = slice(row, row + 1), float(radii[row]) * INSIDE
        given = {"attacks": "autoattack", "eps": [radius], "radii": radii[some], "norm": norm}
        hits = cross_check(model, images[some], truth[some], **given).witnesses
        counts[0] += any(witness.distance < radii[row] for witness in hits)
        counts[1] += not empirical(model, images[row], labels[row], radius, norm, STEPS)
    shares = [radii[row] / closest[row] for row in right if row in closest]
    middle = statistics.median(radii[row] for row in right)
    nearest = statistics.median(closest.get(row, math.inf) for row in right)
    cells = f"{middle:8.4f} {nearest:9.4f} {statistics.median(shares):6.2f} {counts[0]:19} {counts[1]:4} {counts[2]:4}"
    _say(f"{name:16} {norm:>5} {len(right):6} {cells} {seconds:9.1f}")
    return sum(counts)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
