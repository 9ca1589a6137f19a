"""One sample per registered thing: every rule gets a small network that uses it. Tests fail where one is missing."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from lipaudit.composition import Composition, compose


class Net(nn.Module):
    """A function of the input, followed by a dense layer to four logits where its output is not flat logits yet."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], *parts: nn.Module):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)
        self.shape = shape
        torch.manual_seed(1)
        with torch.no_grad():
            size = function(torch.rand(1, *shape)).numel()
        self.head = nn.Linear(size, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(x).flatten(1))


IMAGE = (2, 6, 6)
VECTOR = (6,)
SIGNAL = (2, 9)
VOLUME = (2, 4, 4, 4)


def pointwise(function: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """The function behind a dense layer that spreads its inputs over its interesting range."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 12)
    return Net(lambda x: function(layer(x) * 6 - 1), VECTOR, layer)


def conv(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    return Net(lambda x: layer(x), shape, layer)


def batch_norm() -> nn.Module:
    torch.manual_seed(3)
    layer = nn.BatchNorm2d(2)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.05, 2)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return Net(lambda x: torch.relu(layer(x)), IMAGE, layer)


def image(function: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    return Net(function, IMAGE)


F = functional
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "conv1d.default": lambda: conv(nn.Conv1d(2, 3, 3, stride=2, padding=1), SIGNAL),
    "conv2d.default": lambda: conv(nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2), IMAGE),
    "conv3d.default": lambda: conv(nn.Conv3d(2, 3, 2, padding=1), VOLUME),
    "conv1d.padding": lambda: conv(nn.Conv1d(2, 3, 4, padding="same"), SIGNAL),
    "conv2d.padding": lambda: conv(nn.Conv2d(2, 3, (2, 3), padding="same", dilation=2), IMAGE),
    "conv3d.padding": lambda: conv(nn.Conv3d(2, 2, 3, padding="valid"), VOLUME),
    "linear.default": lambda: conv(nn.Linear(6, 5), VECTOR),
    "_native_batch_norm_legit_no_training.default": batch_norm,
    "mul.Tensor": lambda: image(lambda x: torch.relu(x * torch.tensor([[2.0], [-3.0]])[:, :, None])),
    "mul.Scalar": lambda: image(lambda x: torch.ops.aten.mul.Scalar(x, -2.5)),
    "div.Tensor": lambda: image(lambda x: torch.relu(x / torch.tensor([0.2, 0.3])[:, None, None])),
    "div.Scalar": lambda: image(lambda x: torch.ops.aten.div.Scalar(x, 0.3)),
    "neg.default": lambda: image(lambda x: torch.relu(-x + 0.5)),
    "add.Tensor": lambda: image(lambda x: torch.add(torch.relu(x - 0.5), x, alpha=3) + torch.tensor([0.5])),
    "sub.Tensor": lambda: image(lambda x: torch.sub(torch.tensor([1.0]), torch.relu(x - 0.3), alpha=2) - x.flip(3)),
    "add.Scalar": lambda: image(lambda x: torch.ops.aten.add.Scalar(x, 0.3)),
    "sub.Scalar": lambda: image(lambda x: torch.ops.aten.sub.Scalar(x, 0.3)),
    "rsub.Scalar": lambda: image(lambda x: torch.rsub(x, 1.0, alpha=2)),
    "cat.default": lambda: image(lambda x: torch.cat([x, torch.relu(x * 2 - 1), torch.ones_like(x[:, :1])], 1)),
    "stack.default": lambda: image(lambda x: torch.stack([x, torch.relu(x - 0.5)], 1)),
    "view.default": lambda: image(lambda x: x.view(len(x), -1)),
    "_unsafe_view.default": lambda: image(lambda x: torch.ops.aten._unsafe_view(x, [len(x), 72])),
    "reshape.default": lambda: image(lambda x: x.reshape(len(x), 8, 9)),
    "flatten.using_ints": lambda: image(lambda x: x.flatten(2)),
    "permute.default": lambda: image(lambda x: x.permute(0, 2, 3, 1)),
    "transpose.int": lambda: image(lambda x: x.transpose(1, 2)),
    "t.default": lambda: conv(nn.Identity(), VECTOR),
    "unsqueeze.default": lambda: image(lambda x: x.unsqueeze(1)),
    "squeeze.default": lambda: image(lambda x: torch.relu(x).unsqueeze(1).squeeze().reshape(len(x), -1)),
    "squeeze.dim": lambda: image(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(3)),
    "squeeze.dims": lambda: image(lambda x: torch.squeeze(F.adaptive_avg_pool2d(x, 1), (2, 3))),
    "roll.default": lambda: image(lambda x: torch.roll(x, (1, 2), (2, 3))),
    "flip.default": lambda: image(lambda x: x.flip(2)),
    "pixel_shuffle.default": lambda: Net(lambda x: F.pixel_shuffle(x, 2), (4, 3, 3)),
    "pixel_unshuffle.default": lambda: image(lambda x: F.pixel_unshuffle(x, 2)),
    "slice.Tensor": lambda: image(lambda x: x[:, :, ::2, 1:]),
    "select.int": lambda: image(lambda x: x[:, 1]),
    "expand.default": lambda: image(lambda x: torch.relu(x[:, :1].expand(-1, 3, 6, 6))),
    "repeat.default": lambda: image(lambda x: torch.relu(x.repeat(1, 2, 1, 2))),
    "split.Tensor": lambda: image(lambda x: x.split(3, dim=2)[1]),
    "split_with_sizes.default": lambda: image(lambda x: x.split([2, 4], dim=3)[1]),
    "unbind.int": lambda: image(lambda x: x.unbind(1)[0]),
    "chunk.default": lambda: image(lambda x: x.chunk(2, dim=2)[0]),
    "pad.default": lambda: image(
        lambda x: torch.relu(F.pad(F.pad(x, (2, 1, 3, 0), mode="reflect"), (1, -1), value=0.5))
    ),
    "avg_pool1d.default": lambda: Net(lambda x: F.avg_pool1d(x, 3, 2, 1), SIGNAL),
    "avg_pool2d.default": lambda: image(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "avg_pool3d.default": lambda: Net(lambda x: F.avg_pool3d(x, 2), VOLUME),
    "adaptive_avg_pool1d.default": lambda: Net(lambda x: F.adaptive_avg_pool1d(x, 4), SIGNAL),
    "adaptive_avg_pool2d.default": lambda: image(lambda x: F.adaptive_avg_pool2d(x, (4, 3))),
    "adaptive_avg_pool3d.default": lambda: Net(lambda x: F.adaptive_avg_pool3d(x, 2), VOLUME),
    "mean.dim": lambda: image(lambda x: x.mean((2, 3))),
    "sum.dim_IntList": lambda: image(lambda x: x.sum(1)),
    "max_pool1d.default": lambda: Net(lambda x: F.max_pool1d(x, 3, 2), SIGNAL),
    "max_pool2d.default": lambda: image(lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max_pool3d.default": lambda: Net(lambda x: F.max_pool3d(x, 2, ceil_mode=True), VOLUME),
    "adaptive_max_pool1d.default": lambda: Net(lambda x: F.adaptive_max_pool1d(x, 4), SIGNAL),
    "adaptive_max_pool2d.default": lambda: image(lambda x: F.adaptive_max_pool2d(x, 4)),
    "adaptive_max_pool3d.default": lambda: Net(lambda x: F.adaptive_max_pool3d(x, 3), VOLUME),
    "amax.default": lambda: image(lambda x: x.amax((2, 3))),
    "amin.default": lambda: image(lambda x: x.amin(1)),
    "relu.default": lambda: pointwise(torch.relu),
    "relu6.default": lambda: pointwise(lambda x: torch.ops.aten.relu6(x * 4)),
    "hardtanh.default": lambda: pointwise(F.hardtanh),
    "clamp.default": lambda: pointwise(lambda x: x.clamp(-0.5, 0.7)),
    "clamp_min.default": lambda: pointwise(lambda x: torch.clamp_min(x, 0.2)),
    "clamp_max.default": lambda: pointwise(lambda x: torch.clamp_max(x, 0.2)),
    "abs.default": lambda: pointwise(torch.abs),
    "tanh.default": lambda: pointwise(torch.tanh),
    "softplus.default": lambda: pointwise(F.softplus),
    "sigmoid.default": lambda: pointwise(torch.sigmoid),
    "hardsigmoid.default": lambda: pointwise(F.hardsigmoid),
    "hardswish.default": lambda: pointwise(F.hardswish),
    "silu.default": lambda: pointwise(F.silu),
    "mish.default": lambda: pointwise(F.mish),
    "gelu.default": lambda: pointwise(lambda x: F.gelu(x) + F.gelu(x, approximate="tanh")),
    "leaky_relu.default": lambda: pointwise(lambda x: F.leaky_relu(x, 1.5)),
    "elu.default": lambda: pointwise(lambda x: F.elu(x, 1.7)),
    "sort.default": lambda: image(lambda x: torch.sort(x.view(len(x), 1, 2, 6, 6), dim=2).values),
    "softmax.int": lambda: pointwise(lambda x: torch.softmax(x, 1)),
}
"""Operation -> a network in eval mode that contains it (possibly under the name that the export gives it)."""


@functools.cache
def composed(op: str) -> tuple[nn.Module, Composition]:
    """The sample network of an operation (a double-precision copy) and its composition: capturing takes a second."""
    network = NETWORKS[op]().eval()
    composition = compose(network, network.shape)
    return network.double().requires_grad_(False), composition
