"""Two small networks for scikit-learn's 8x8 digits, and the split that they are trained and audited on."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np
from torch import Tensor, nn

from lipaudit.errors import LoadError
from lipaudit.nn import AOLConv2d, AOLLinear, MaxMin

TRAIN = 1297
"""Images of the training part; the other 500 of the 1797 are the test part."""
TEST_SHA256 = "b6ebe025d719992c50d03dd660b8fc366629cfd841fd9ca653c0bb9d48cd29cd"

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def digits_split() -> Split:
    """The digits of scikit-learn as `x_train, y_train, x_test, y_test`, always the same 1297 and 500 images.

    Images are float32 (n, 1, 8, 8) in [0, 1], levels k/16; labels are int64 (n,), 0 to 9. The order is NumPy's
    `default_rng(0).permutation(1797)`, and the first 1297 are for training. NumPy does not promise that stream
    for ever, and a shifted split would test on training images, so the test part is compared with its SHA-256:
    `LoadError` if it differs. Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits",
    UCI Machine Learning Repository (its test set, which scikit-learn bundles).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = (digits.images[order] / 16).astype(np.float32)[:, None]
    y = digits.target[order].astype(np.int64)
    found = hashlib.sha256(x[TRAIN:].tobytes() + y[TRAIN:].tobytes()).hexdigest()
    if found != TEST_SHA256:
        raise LoadError(
            f"expected the digits test part with SHA-256 {TEST_SHA256[:12]}…, got {found[:12]}…: this scikit-learn or "
            "NumPy orders the digits differently, and the bundled models may have seen these images; install "
            "the versions named in pyproject.toml"
        )
    return x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:]


def digits_aol() -> nn.Sequential:
    """A 1-Lipschitz network (L2) from (n, 1, 8, 8) to 10 logits: almost-orthogonal layers with MaxMin. Untrained."""
    return nn.Sequential(
        OrderedDict(
            conv1=AOLConv2d(1, 4, 3, padding=1, side="input"),
            sort1=MaxMin(),
            conv2=AOLConv2d(4, 16, 2, stride=2, side="input"),
            sort2=MaxMin(),
            flatten=nn.Flatten(),
            linear1=AOLLinear(256, 128, side="input"),
            sort3=MaxMin(),
            linear2=AOLLinear(128, 128, side="input"),
            sort4=MaxMin(),
            linear3=AOLLinear(128, 10, side="input"),
        )
    )


class Residual(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))), of the same shape as x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(inner)))


def digits_cnn() -> nn.Sequential:
    """An ordinary network from (n, 1, 8, 8) to 10 logits, with nothing to hold its Lipschitz constant. Untrained."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu1=nn.ReLU(),
            block=Residual(16),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 3, padding=1, bias=False),
            bn2=nn.BatchNorm2d(32),
            relu2=nn.ReLU(),
            pool2=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            linear=nn.Linear(128, 10),
        )
    )
