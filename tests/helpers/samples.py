"""One sample per registered thing: every rule gets a small network that uses it. Tests fail where one is missing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import samples_bounded
import samples_fourier
import torch
from torch import nn
from torch.nn import functional

from lipaudit.certification.network_bound import Composition, compose


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


def _mirrored(x: torch.Tensor) -> torch.Tensor:
    """The first of each pair of coordinates, mirrored at a line of which only rounded sines are known."""
    a, b = x.chunk(2, 1)
    beyond = (0.6 * a - 0.8 * b) > 0
    return torch.where(beyond, 0.28 * a + 0.96 * b, a)


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


def wave(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Constants of both signs, the same numbers in any type."""
    return torch.sin(torch.arange(1.0, 1 + math.prod(shape))).reshape(shape).to(like)


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
    "folded.default": lambda: pointwise(_mirrored),
    "piecewise.default": lambda: pointwise(lambda x: x - 2 * F.hardtanh(x, -0.25, 0.5)),
    "elu.default": lambda: pointwise(lambda x: F.elu(x, 1.7)),
    "conv_transpose1d.default": lambda: conv(nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1), SIGNAL),
    "conv_transpose2d.input": lambda: conv(nn.ConvTranspose2d(2, 4, 3, 2, (1, 0), groups=2, dilation=2), IMAGE),
    "conv_transpose3d.input": lambda: conv(nn.ConvTranspose3d(2, 2, 2, stride=3), VOLUME),
    "matmul.default": lambda: image(lambda x: torch.relu(wave(x, 2, 5, 6) @ x @ wave(x, 6, 4)) @ wave(x, 4)),
    "mm.default": lambda: Net(lambda x: torch.relu(torch.mm(x, wave(x, 6, 5))), VECTOR),
    "bmm.default": lambda: image(
        lambda x: torch.bmm(x.flatten(0, 1), wave(x, 2, 6, 3).repeat(len(x), 1, 1)).view(len(x), -1)
    ),
    "addmm.default": lambda: Net(lambda x: torch.addmm(x[:, :1], x, wave(x, 6, 5), beta=2, alpha=-3), VECTOR),
    "baddbmm.default": lambda: Net(
        lambda x: torch.baddbmm(wave(x, 3), x, wave(x, 1, 4, 3).repeat(len(x), 1, 1)), (5, 4)
    ),
    "tensordot.default": lambda: image(lambda x: torch.tensordot(x, wave(x, 6, 2, 3), ([3, 1], [0, 1]))),
    "einsum.default": lambda: image(
        lambda x: torch.einsum("...khw,hkm->...mw", x.repeat(1, 2, 1, 1), wave(x, 6, 4, 3))
    ),
    "rsub.Tensor": lambda: image(lambda x: torch.ops.aten.rsub.Tensor(x, torch.relu(x - 0.5), alpha=2)),
    "addcmul.default": lambda: image(lambda x: torch.addcmul(torch.relu(x - 0.3), x[:, :1], wave(x, 2, 6, 6), value=2)),
    "rot90.default": lambda: image(lambda x: torch.rot90(x, 1, (2, 3))),
    "channel_shuffle.default": lambda: Net(lambda x: F.channel_shuffle(x, 2), (4, 2, 2)),
    "tile.default": lambda: image(lambda x: torch.relu(x.tile(1, 3, 1, 1))),
    "repeat_interleave.self_int": lambda: image(lambda x: torch.relu(x.repeat_interleave(2, 1))),
    "repeat_interleave.self_Tensor": lambda: Net(
        lambda x: torch.repeat_interleave(x, torch.tensor([1, 2, 0, 1, 3, 1]), 1, output_size=8), VECTOR
    ),
    "unfold.default": lambda: image(lambda x: torch.relu(x.unfold(2, 3, 2))),
    "im2col.default": lambda: image(lambda x: torch.relu(F.unfold(x, 3, padding=1, stride=2))),
    "col2im.default": lambda: Net(lambda x: F.fold(x, (4, 4), 2, padding=1), (4, 25)),
    "tril.default": lambda: image(lambda x: x.tril()),
    "triu.default": lambda: image(lambda x: x.triu(1)),
    "index.Tensor": lambda: image(lambda x: x[:, :, [0, 5, 2], [1, 1, 3]]),
    "_unsafe_index.Tensor": lambda: image(lambda x: torch.ops.aten.upsample_bilinear2d(x, [9, 4], False)),
    "index_select.default": lambda: image(lambda x: torch.relu(x.index_select(2, torch.tensor([4, 4, 0])))),
    "gather.default": lambda: Net(lambda x: x.gather(1, torch.tensor([[5, 0, 3]]).repeat(len(x), 1)), VECTOR),
    "take_along_dim.default": lambda: Net(lambda x: x.take_along_dim(torch.tensor([[5, 0, 5]]), 1), VECTOR),
    "diagonal.default": lambda: image(lambda x: x.diagonal(1, 2, 3)),
    "constant_pad_nd.default": lambda: image(lambda x: torch.relu(torch.constant_pad_nd(x, (1, -2), 0.5))),
    "upsample_nearest1d.vec": lambda: Net(lambda x: F.interpolate(x, 13), SIGNAL),
    "upsample_nearest2d.vec": lambda: image(lambda x: torch.relu(F.interpolate(x, scale_factor=(2, 1.5)))),
    "upsample_nearest3d.vec": lambda: Net(lambda x: F.interpolate(x, (2, 5, 6)), VOLUME),
    "upsample_nearest1d.default": lambda: Net(lambda x: torch.ops.aten.upsample_nearest1d(x, [5]), SIGNAL),
    "upsample_nearest2d.default": lambda: image(lambda x: torch.ops.aten.upsample_nearest2d(x, [9, 4])),
    "upsample_nearest3d.default": lambda: Net(lambda x: torch.ops.aten.upsample_nearest3d(x, [9, 4, 2]), VOLUME),
    "_upsample_nearest_exact1d.vec": lambda: Net(lambda x: F.interpolate(x, 13, mode="nearest-exact"), SIGNAL),
    "_upsample_nearest_exact2d.vec": lambda: image(lambda x: F.interpolate(x, (4, 9), mode="nearest-exact")),
    "_upsample_nearest_exact3d.vec": lambda: Net(lambda x: F.interpolate(x, 5, mode="nearest-exact"), VOLUME),
    "_upsample_nearest_exact1d.default": lambda: Net(
        lambda x: torch.ops.aten._upsample_nearest_exact1d(x, [5]), SIGNAL
    ),
    "_upsample_nearest_exact2d.default": lambda: image(lambda x: torch.ops.aten._upsample_nearest_exact2d(x, [9, 4])),
    "_upsample_nearest_exact3d.default": lambda: Net(
        lambda x: torch.ops.aten._upsample_nearest_exact3d(x, [9, 4, 2]), VOLUME
    ),
    "upsample_linear1d.vec": lambda: Net(lambda x: F.interpolate(x, 13, mode="linear"), SIGNAL),
    "upsample_bilinear2d.vec": lambda: image(lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear")),
    "upsample_trilinear3d.vec": lambda: Net(lambda x: F.interpolate(x, (3, 5, 8), mode="trilinear"), VOLUME),
    "upsample_bicubic2d.vec": lambda: image(lambda x: F.interpolate(x, (9, 4), mode="bicubic")),
    "_upsample_bilinear2d_aa.vec": lambda: image(lambda x: F.interpolate(x, (4, 9), mode="bilinear", antialias=True)),
    "_upsample_bicubic2d_aa.vec": lambda: image(
        lambda x: F.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True)
    ),
    "upsample_linear1d.default": lambda: Net(lambda x: torch.ops.aten.upsample_linear1d(x, [5], True), SIGNAL),
    "upsample_trilinear3d.default": lambda: Net(
        lambda x: torch.ops.aten.upsample_trilinear3d(x, [9, 4, 1], True), VOLUME
    ),
    "_upsample_bilinear2d_aa.default": lambda: image(
        lambda x: torch.ops.aten._upsample_bilinear2d_aa(x, [3, 4], False)
    ),
    "_upsample_bicubic2d_aa.default": lambda: image(lambda x: torch.ops.aten._upsample_bicubic2d_aa(x, [3, 8], False)),
    "where.self": lambda: image(lambda x: torch.where(torch.eye(6) > 0, x, torch.relu(2 * x[:, :1] - 1))),
    "where.ScalarSelf": lambda: image(lambda x: torch.where(torch.eye(6) > 0, 0.5, x)),
    "where.ScalarOther": lambda: image(lambda x: torch.where(torch.eye(6) > 0, x, 0.5)),
    "masked_fill.Scalar": lambda: Net(
        lambda x: torch.softmax(x.masked_fill(torch.eye(6)[:1] > 0, -torch.inf), 1), VECTOR
    ),
    "masked_fill.Tensor": lambda: image(lambda x: x.masked_fill(torch.eye(6) > 0, torch.tensor(0.5))),
    "slice_scatter.default": lambda: image(lambda x: torch.slice_scatter(x, torch.sin(9 * x[:, :, 1:4]), 2, 1, 4)),
    "select_scatter.default": lambda: image(lambda x: torch.select_scatter(x, torch.relu(x[:, 0] * 2), 1, 1)),
    "maximum.default": lambda: image(lambda x: torch.maximum(2 * x[:, :1] - 1, torch.relu(x))),
    "minimum.default": lambda: image(lambda x: torch.minimum(2 * x, torch.tensor(0.7))),
    "max.other": lambda: image(lambda x: torch.max(2 * x - 1, x.flip(3))),
    "min.other": lambda: image(lambda x: torch.min(2 * x - 1, x.flip(3))),
    "fmax.default": lambda: image(lambda x: torch.fmax(2 * x - 1, x.flip(3))),
    "fmin.default": lambda: image(lambda x: torch.fmin(2 * x - 1, x.flip(3))),
    "clamp.Tensor": lambda: image(lambda x: torch.clamp(3 * x, torch.tensor(0.2), 1 + x[:, :1])),
    "clamp_min.Tensor": lambda: image(lambda x: torch.ops.aten.clamp_min.Tensor(3 * x, torch.tensor(0.5))),
    "clamp_max.Tensor": lambda: image(lambda x: torch.ops.aten.clamp_max.Tensor(3 * x, x.flip(3))),
    "max.dim": lambda: image(lambda x: x.max(2).values),
    "min.dim": lambda: image(lambda x: x.min(1)[0]),
    "max.default": lambda: image(lambda x: torch.stack([one.max().view(1) for one in x])),
    "min.default": lambda: image(lambda x: torch.stack([one.min().view(1) for one in x])),
    "aminmax.default": lambda: image(lambda x: torch.cat(list(torch.aminmax(x, dim=2)), 1)),
    "max_pool2d_with_indices.default": lambda: image(
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2, return_indices=True)[0]
    ),
    "max_pool3d_with_indices.default": lambda: Net(lambda x: F.max_pool3d(x, 2, 1, return_indices=True)[0], VOLUME),
    "mean.default": lambda: image(lambda x: torch.stack([one.mean().view(1) for one in x])),
    "sum.default": lambda: image(lambda x: torch.stack([one.sum().view(1) for one in x])),
    "cumsum.default": lambda: image(lambda x: x.cumsum(2)),
    "linalg_vector_norm.default": lambda: image(lambda x: torch.linalg.vector_norm(x - 0.5, dim=(1, 2))),
    "norm.ScalarOpt_dim": lambda: image(lambda x: torch.ops.aten.norm.ScalarOpt_dim(x - 0.5, 1, [1])),
    "atan.default": lambda: pointwise(torch.atan),
    "asinh.default": lambda: pointwise(torch.asinh),
    "sin.default": lambda: pointwise(torch.sin),
    "cos.default": lambda: pointwise(torch.cos),
    "erf.default": lambda: pointwise(torch.erf),
    "erfc.default": lambda: pointwise(torch.erfc),
    "log_sigmoid.default": lambda: pointwise(F.logsigmoid),
    "selu.default": lambda: pointwise(F.selu),
    "celu.default": lambda: pointwise(lambda x: F.celu(x, 0.7)),
    "prelu.default": lambda: pointwise(lambda x: F.prelu(x, wave(x, 12) * 2)),
    "rrelu.default": lambda: pointwise(lambda x: F.rrelu(x, 1.5, 2)),
    "threshold.default": lambda: pointwise(lambda x: F.threshold(x, 0.3, 0.3)),
    "topk.default": lambda: image(lambda x: x.topk(2, 2).values),
    "sort.default": lambda: image(lambda x: torch.sort(x.view(len(x), 1, 2, 6, 6), dim=2).values),
    "hypot.default": lambda: image(lambda x: torch.hypot(2 * x - 1, torch.hypot(x[:, :1] - 0.5, torch.tensor(0.1)))),
    "logaddexp.default": lambda: image(lambda x: torch.logaddexp(3 * x, torch.logaddexp(x[:, :1], torch.tensor(0.5)))),
    "logaddexp2.default": lambda: image(lambda x: torch.logaddexp2(3 * x, x.flip(1))),
    "median.dim": lambda: image(lambda x: x.median(2).values),
    "median.default": lambda: image(lambda x: torch.stack([one.median().view(1) for one in x])),
    "kthvalue.default": lambda: image(lambda x: x.kthvalue(2, 3).values),
    "cummax.default": lambda: image(lambda x: x.cummax(2).values),
    "cummin.default": lambda: image(lambda x: x.cummin(3).values),
    "cdist.default": lambda: image(lambda x: torch.cat([torch.cdist(x, wave(x, 3, 6), p=p) for p in (1.0, 2.0)], 2)),
    "_cdist_forward.default": lambda: image(lambda x: torch.ops.aten._cdist_forward(wave(x, 3, 6), x, 2.0, None)),
    "scatter.src": lambda: Net(
        lambda x: x.scatter(1, torch.tensor([[5, 0, 3]]).expand(len(x), 3), torch.relu(3 * x[:, :3])), VECTOR
    ),
    "scatter.value": lambda: Net(lambda x: x.scatter(1, torch.tensor([[5, 0]]).expand(len(x), 2), 0.5), VECTOR),
    "scatter_add.default": lambda: Net(
        lambda x: x.scatter_add(1, torch.tensor([[5, 0, 5, 5]]).expand(len(x), 4), torch.relu(3 * x[:, :4])), VECTOR
    ),
    "index_copy.default": lambda: image(lambda x: x.index_copy(2, torch.tensor([4, 1]), torch.sin(4 * x[:, :, :2]))),
    "index_fill.int_Scalar": lambda: image(lambda x: x.index_fill(2, torch.tensor([4, 1]), 0.5)),
    "index_add.default": lambda: image(
        lambda x: x.index_add(2, torch.tensor([4, 1, 4]), torch.sin(4 * x[:, :, :3]), alpha=-2)
    ),
    "index_put.default": lambda: image(
        lambda x: (
            torch.ops.aten.index_put(x, [None, None, torch.tensor([4, 1])], torch.sin(4 * x[:, :, :2]))
            + torch.ops.aten.index_put(x, [None, None, torch.tensor([4, 4])], x[:, :, :1], True)
        )
    ),
    "_unsafe_index_put.default": lambda: image(
        lambda x: torch.ops.aten._unsafe_index_put(x, [None, torch.tensor([1])], torch.relu(2 * x[:, :1]))
    ),
    "grid_sampler_2d.default": lambda: image(
        lambda x: (
            F.grid_sample(x, wave(x, 1, 4, 5, 2).expand(len(x), 4, 5, 2), align_corners=False)
            + F.grid_sample(
                x, wave(x, 1, 4, 5, 2).expand(len(x), 4, 5, 2) * 1.3, "nearest", "reflection", align_corners=True
            )
        )
    ),
    "grid_sampler_3d.default": lambda: Net(
        lambda x: F.grid_sample(x, wave(x, 1, 2, 3, 2, 3).expand(len(x), 2, 3, 2, 3), align_corners=True), VOLUME
    ),
    "softmax.int": lambda: pointwise(lambda x: torch.softmax(x, 1)),
    **{op: lambda f=f: Net(f, samples_fourier.SHAPE) for op, f in samples_fourier.FUNCTIONS.items()},
}
"""Operation -> a network in eval mode that contains it (possibly under the name that the export gives it)."""
NETWORKS |= samples_bounded.networks(Net)


@functools.cache
def composed(op: str) -> tuple[nn.Module, Composition]:
    """The sample network of an operation (a double-precision copy) and its composition: capturing takes a second.

    Bounds that need the range of the input hold for entries in [0, 1]: `composition.network.domain` is not None.
    """
    seed = torch.get_rng_state()
    network = NETWORKS[op]().eval()
    torch.set_rng_state(seed)
    twin = NETWORKS[op]().eval()  # closures hold some of its layers, which a deep copy would share
    composition = compose(network, network.shape, domain=(0.0, 1.0))
    return twin.double().requires_grad_(False), composition
