"""A residual network whose Lipschitz bound is held down by Gram iteration, against the same without.

    python examples/training/train_gram.py --data FOLDER --checkpoint gram.pt

The penalty is `lipaudit.nn.log_lipschitz` times --weight: the logarithm of the bound of the whole network, residual
sums and batch norms included, so that it is what an audit of the trained network finds, up to the method.
Source: B. Delattre et al., Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration, ICML
2023, arXiv 2305.16173.
"""

from __future__ import annotations

from small_networks import residual
from torch import Tensor, nn
from training import arguments, compare

from lipaudit.nn import log_lipschitz


def main() -> None:
    options = arguments(__doc__, weight=0.03, epochs=20, learning_rate=5e-3)

    def penalty(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
        return log_lipschitz(model, shape, method="gram", refresh=options.refresh)

    compare("Gram iteration", lambda images: residual(images.shape, images.classes, options.width), penalty, options)


if __name__ == "__main__":
    main()
