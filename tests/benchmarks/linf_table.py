"""Linf (or L1) certificates on real networks, beside plain CROWN and a PGD attack: images certified at a budget.

    python tests/benchmarks/linf_table.py --shared DIR --first 20 [--norm linf] [--attack-steps 1000] [--only mnist_mlp]

DIR holds `models/l2-verification` and `data/l2-verification`: three small ReLU networks. For each network and budget,
of the first images: how many the network gets right, PGD leaves empirical, CROWN certifies (backward bounds of every
layer in float64, its box clipped to the pixels, unproved), lipaudit certifies at once ("proof": one attempt at the
budget), and by global bounds; seconds an image. The exit code is 4 if lipaudit certifies an image that PGD breaks.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from l2_verification import BUDGETS, images_of, networks
from torch import nn

from lipaudit.certification.certificates import certify_with
from lipaudit.certification.local_proof import Search, proof
from lipaudit.certification.network_bound import compose
from lipaudit.results.threat import eps_value


def crown(model: nn.Sequential, x: torch.Tensor, label: int, eps: float, norm: str) -> bool:
    """CROWN: backward bounds of every layer with the lower line of least area; no rounding is counted."""
    low, high = (x - eps).clamp_min(0.0)[None], (x + eps).clamp_max(1.0)[None]
    done: list[nn.Module] = []
    ranges: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def backwards(c: torch.Tensor) -> torch.Tensor:
        """Lower bounds of <c, output of what is done so far>."""
        constant = c.new_zeros(len(c))
        for place in reversed(range(len(done))):
            layer = done[place]
            if isinstance(layer, nn.ReLU):
                below, above = ranges[place]
                slope = torch.where(
                    below >= 0, 1.0, torch.where(above <= 0, 0.0, above / (above - below).clamp_min(1e-300))
                )
                shift = torch.where((below < 0) & (above > 0), -slope * below, 0.0)
                least = torch.where((below < 0) & (above > 0), (above > -below).double(), slope)
                constant = constant + (c.clamp_max(0.0) * shift).flatten(1).sum(1)
                c = c.clamp_min(0.0) * least + c.clamp_max(0.0) * slope
                continue
            zero = torch.zeros(shapes[place], dtype=torch.float64)
            offset = layer(zero)
            constant = constant + (c * offset).flatten(1).sum(1)
            c = torch.func.vjp(layer, zero.expand(len(c), *zero.shape[1:]))[1](c)[0]
        if norm == "l1":
            return constant + (c * x).flatten(1).sum(1) - eps * c.abs().flatten(1).amax(1)
        return constant + (c.clamp_min(0.0) * low + c.clamp_max(0.0) * high).flatten(1).sum(1)

    shapes, shape = [], (1, *x.shape)
    with torch.no_grad():
        for layer in model:
            shapes.append(shape)
            if isinstance(layer, nn.ReLU):
                eye = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape[1:])
                parts = eye.split(1024)
                below = torch.cat([backwards(part) for part in parts]).reshape(shape)
                above = -torch.cat([backwards(-part) for part in parts]).reshape(shape)
                ranges[len(done)] = below, above
            done.append(layer)
            shape = tuple(layer(torch.zeros(shape, dtype=torch.float64)).shape)
        c = -torch.eye(10, dtype=torch.float64)
        c[:, label] += 1.0
        return bool((backwards(c[[j for j in range(10) if j != label]]) > 0).all())


def empirical(model: nn.Module, x: torch.Tensor, label: int, eps: float, norm: str, steps: int) -> bool:
    """Whether projected gradient ascent on the least margin, from four starts side by side, leaves the answer alone."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(4, *x.shape, generator=generator, dtype=torch.float64) * 2 - 1
    starts[0] = 0.0
    z = within(x + eps * starts, x, eps, norm)
    for step in range(steps):
        z.requires_grad_(True)
        logits = model(z)
        others = logits.clone()
        others[:, label] = -torch.inf
        gap = logits[:, label] - others.amax(1)
        if bool((gap <= 0).any()):
            return False
        (slope,) = torch.autograd.grad(gap.sum(), z)
        rate = eps * (0.25 if norm == "linf" else 0.5) * (1 - step / steps)
        with torch.no_grad():
            z = within(z - rate * steepest(slope, z, norm), x, eps, norm)
    return True


def steepest(slope: torch.Tensor, z: torch.Tensor, norm: str) -> torch.Tensor:
    """The direction of length 1 in the norm along which the margin falls most; in L1 shared by a few entries."""
    if norm == "linf":
        return slope.sign()
    flat = slope.flatten(1).masked_fill((slope * (z * 2 - 1)).flatten(1) < -slope.flatten(1).abs() + 1e-12, 0.0)
    few = max(1, flat.shape[1] // 100)
    places = flat.abs().topk(few, dim=1).indices
    return torch.zeros_like(flat).scatter(1, places, flat.gather(1, places).sign() / few).reshape(slope.shape)


def within(z: torch.Tensor, x: torch.Tensor, eps: float, norm: str) -> torch.Tensor:
    """The nearest point of ball and pixels, or in L1 one close to it."""
    d = z.clamp(0.0, 1.0) - x
    if norm == "linf":
        return x + d.clamp(-eps, eps)
    flat = d.flatten(1)
    sizes = flat.abs().sort(dim=1, descending=True).values
    count = torch.arange(1, flat.shape[1] + 1, dtype=torch.float64)
    excess = (sizes.cumsum(1) - eps) / count
    last = (sizes > excess).sum(1) - 1
    cut = excess.gather(1, last[:, None]).clamp_min(0.0)
    return x + (flat.sign() * (flat.abs() - cut).clamp_min(0.0)).reshape(d.shape)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--norm", choices=tuple(BUDGETS), default="linf")
    parser.add_argument("--first", type=int, default=20)
    parser.add_argument("--attack-steps", type=int, default=1000)
    parser.add_argument("--only")
    args = parser.parse_args()
    false = 0
    _say("network           budget  right  empirical  CROWN  proof  global   s/image CROWN, proof")
    for name, model in networks(args.shared).items():
        if args.only and name != args.only:
            continue
        images, labels = images_of(args.shared, name, args.first)
        composition = compose(model, tuple(images.shape[1:]), domain=(0.0, 1.0))
        known = certify_with(composition, images, labels, norm=args.norm).radius
        right = (model(images).argmax(1) == torch.tensor(labels)).tolist()
        for budget in BUDGETS[args.norm][name]:
            eps, seconds = eps_value(budget), [0.0, 0.0]
            counts = [sum(right), 0, 0, 0, int((known > eps).sum())]
            for row, (x, label) in enumerate(zip(images, labels, strict=True)):
                if not right[row]:
                    continue
                survives = empirical(model, x, label, eps, args.norm, args.attack_steps)
                began = time.monotonic()
                peer = crown(model, x, label, eps, args.norm)
                seconds[0] += time.monotonic() - began
                began = time.monotonic()
                proved = proof(composition, x, label, eps, Search(), norm=args.norm) > 0
                seconds[1] += time.monotonic() - began
                for place, count in enumerate((survives, peer, proved), start=1):
                    counts[place] += count
                false += (proved or known[row] > eps) and not survives
            each = ", ".join(f"{total / max(1, sum(right)):.2f}" for total in seconds)
            cells = "".join(f"{count:{width}}" for count, width in zip(counts, (7, 10, 7, 7, 8), strict=True))
            _say(f"{name:16} {budget:>7}{cells}   {each}")
    _say(f"certified beyond the attack: {false}")
    return 4 if false else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
