"""A convolutional network whose Lipschitz bound is held down by LipGrid, against the same without.

    python examples/training/train_lipgrid.py --data FOLDER --checkpoint lipgrid.pt

The penalty is `lipaudit.nn.log_lipschitz` with the LipGrid norms, times --weight: for a chain of layers the sum of the
logarithms of their norms, as in the paper.
Source: A. Araujo et al., On Lipschitz Regularization of Convolutional Layers using Toeplitz Matrix Theory, AAAI 2021,
arXiv 2006.08391.
"""

from __future__ import annotations

from small_networks import convolutional
from torch import Tensor, nn
from training import arguments, compare

from lipaudit.nn import log_lipschitz


def main() -> None:
    options = arguments(__doc__, weight=0.03, epochs=20, learning_rate=5e-3)

    def penalty(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
        return log_lipschitz(model, shape, method="lipgrid")

    compare("LipGrid", lambda images: convolutional(images.shape, images.classes, options.width), penalty, options)


if __name__ == "__main__":
    main()
