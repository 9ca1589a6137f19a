"""What local radii say of a real network, image by image, between the global radius and the closest attack.

    python tests/benchmarks/local_table.py --model nets:resnet20 --dataset cifar10 --data-dir DIR \
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --first 20 --start 0.0015

The images are the first `--first` of the data set that the network gets right. For each: the global radius, the larger
of it and the local one, the distance of the closest misclassified input that the attacks found, and seconds. The last
lines are medians. With `--at R`, one attempt at the radius R instead of a search. The exit code is 4 if a certificate
reaches beyond what an attack found.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lipaudit.certification.certificates import certify_with
from lipaudit.certification.exact_network import ExactNetwork
from lipaudit.certification.local_proof import Search, proof
from lipaudit.certification.local_search import beginning, local_radius
from lipaudit.certification.network_bound import Composition, compose
from lipaudit.crosscheck import cross_check
from lipaudit.errors import LipauditError
from lipaudit.loading.datasets import open_dataset
from lipaudit.loading.models import load_model
from lipaudit.progress import Silent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--mean", type=_numbers)
    parser.add_argument("--std", type=_numbers)
    parser.add_argument("--first", type=int, default=20)
    parser.add_argument("--start", type=float, help="Where the search begins. [default: as an audit begins]")
    parser.add_argument("--at", type=float, help="Only whether this radius can be proved.")
    parser.add_argument("--precision", type=float, default=Search.precision)
    parser.add_argument("--forwards", action="store_true", help="Without the second, backward pass.")
    parser.add_argument("--together", action="store_true", help="All neurons together at last, as `--local thorough`.")
    parser.add_argument("--attacks", default="fab-t,deepfool")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    opened = open_dataset(args.dataset, data_dir=args.data_dir, offline=True, input_shape=None, progress=Silent())
    model = load_model(
        args.model, dataset=args.dataset, mean=args.mean, std=args.std, num_classes=10, input_shape=opened.shape
    ).module
    batch = opened.read(np.arange(min(opened.available, 4 * args.first)), opened.shape)
    x = torch.from_numpy(batch.inputs)
    x, y = x.float() / 255 if x.dtype == torch.uint8 else x.float(), torch.from_numpy(batch.labels).long()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero().flatten()[: args.first]
    x, y = x[right], y[right]
    composition = compose(model, tuple(x.shape[1:]), domain=(0.0, 1.0))
    known = certify_with(composition, x, y.tolist()).radius.tolist()
    distance = _distances(model, composition, x, y, args.attacks)
    search = Search(precision=args.precision, backwards=not args.forwards, together=args.together)
    found = []
    for row, (image, label) in enumerate(zip(x, y.tolist(), strict=True)):
        began = time.monotonic()
        start = args.start or beginning(composition, image, label, known[row])
        try:
            if args.at:
                radius = args.at if proof(composition, image, label, args.at, search) else 0.0
            else:
                radius = local_radius(composition, image, label, start=start, known=known[row], search=search)
        except LipauditError as error:
            _say(f"image {int(right[row])}: {error}")
            return 1
        found.append(max(radius, known[row]))
        seconds = time.monotonic() - began
        _say(
            f"image {int(right[row]):4}  global {known[row]:.3g}  local {radius:.4g}  attack {distance[row]:.4g}"
            f"  share {found[-1] / distance[row]:.3f}  {seconds:.0f} s"
        )
    if args.at:
        _say(f"certified at {args.at:g}: {sum(radius >= args.at for radius in found)} of {len(found)}")
    medians = [statistics.median(values) for values in (known, found, distance)]
    _say("median: global {:.3g}, best {:.4g}, closest attack {:.4g}".format(*medians))
    _say(f"times larger than the global radius: {medians[1] / medians[0]:.3g}" if medians[0] else "no global radius")
    false = sum(radius > d for radius, d in zip(found, distance, strict=True))
    _say(f"certified beyond the closest attack: {false} of {len(found)}")
    return 4 if false else 0


def _distances(
    model: nn.Module, composition: Composition, x: torch.Tensor, y: torch.Tensor, attacks: str
) -> list[float]:
    """How far the closest misclassified input is that was found; inf where none was."""
    evidence = cross_check(
        model, x, y, attacks=attacks.split(","), eps=[0.5], radii=None, judge=ExactNetwork(composition)
    )
    found = {witness.sample: witness.distance for witness in evidence.witnesses}
    return [found.get(row, float("inf")) for row in range(len(x))]


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
