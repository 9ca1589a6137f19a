"""A convolutional network whose layers are held near norm 1 by the four bounds, against the same without.

    python examples/training/train_four_bounds.py --data FOLDER --checkpoint four.pt

The penalty is `lipaudit.nn.spectral_penalty` with the four bounds, times --weight: zero once no layer's bound is above
--target.
Source: S. Singla and S. Feizi, Fantastic Four: Differentiable Bounds on Singular Values of Convolution Layers, ICLR
2021, arXiv 1911.10258.
"""

from __future__ import annotations

from small_networks import convolutional
from torch import Tensor, nn
from training import arguments, compare

from lipaudit.nn import spectral_penalty

TARGET = 1.0


def main() -> None:
    options = arguments(__doc__, weight=0.03, epochs=20, learning_rate=5e-3)

    def penalty(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
        return spectral_penalty(model, shape, method="four", target=TARGET, refresh=options.refresh)

    compare("four bounds", lambda images: convolutional(images.shape, images.classes, options.width), penalty, options)


if __name__ == "__main__":
    main()
