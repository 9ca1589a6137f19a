"""A network of almost-orthogonal layers, 1-Lipschitz by construction.

    python examples/training/train_aol.py --data FOLDER --checkpoint aol.pt

FOLDER holds the arrays of MNIST, `*train*.npz` and `*test*.npz` with `images` and `labels`; without it, the digits of
scikit-learn. The loss is a cross entropy of certified radii (`lipaudit.nn.radius_hinge` with a temperature): the last
layer has rows of length 1, and a margin counts for as much as ||w_y - w_j|| lets it.
Source: B. Prach and C. Lampert, Almost-Orthogonal Layers, ECCV 2022, arXiv 2208.03160, for the layers.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from training import arguments, prepare, run

from lipaudit.nn import AOLConv2d, AOLLinear, MaxMin, NormalisedLinear, pairwise_lipschitz, radius_hinge

RADIUS, TEMPERATURE = 1.0, 0.1


def network(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Two strided and two plain convolutions, three dense layers; sides must be multiples of 4."""
    channels, height, length = shape
    features = 4 * width * math.prod(((height // 4), (length // 4)))
    return nn.Sequential(
        AOLConv2d(channels, width, 4, stride=2, padding=1),
        MaxMin(),
        AOLConv2d(width, width, 3, padding=1),
        MaxMin(),
        AOLConv2d(width, 4 * width, 4, stride=2, padding=1),
        MaxMin(),
        AOLConv2d(4 * width, 4 * width, 3, padding=1),
        MaxMin(),
        nn.Flatten(),
        AOLLinear(features, 16 * width),
        MaxMin(),
        AOLLinear(16 * width, 16 * width),
        MaxMin(),
        NormalisedLinear(16 * width, classes),
    )


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x).float()
    return radius_hinge(logits, y, pairwise_lipschitz(model[-1].weight.float()), RADIUS, TEMPERATURE)


def main() -> None:
    options = arguments(__doc__)
    images = prepare(options)
    run("AOL", network(images.shape, images.classes, options.width), loss, images, options)


if __name__ == "__main__":
    main()
