"""Two ordinary networks that train on a CPU in minutes: nothing in them holds a Lipschitz constant."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Residual(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))), strided where the width grows."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.relu(self.bn1(self.conv1(x)))
        return nn.functional.relu(self.shortcut(x) + self.bn2(self.conv2(inner)))


def residual(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """A residual network of eight convolutions on the way, at a half, a quarter and an eighth of the sides."""
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width, width, 1),
        Residual(width, 2 * width, 2),
        Residual(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def convolutional(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Four convolutions with batch norm and two dense layers, at a half and a quarter of the sides."""
    side = math.prod((n + 3) // 4 for n in shape[1:])
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((shape[0], width, 2), (width, width, 1), (width, 2 * width, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU()]
    layers += [nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(2 * width * side, 8 * width), nn.ReLU(), nn.Linear(8 * width, classes)]
    return nn.Sequential(*layers)
