"""Almost-orthogonal layers against the dense matrix of the weights that really run: norm <= 1 with zero slack."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from torch.nn.utils import parametrize

from lipaudit.nn import AOLConv2d, AOLLinear, MaxMin, SpaceToDepth, aol
from lipaudit.nn.aol import aol_rescale, autocorrelation_sums, polyphase


def dense(weight: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """The matrix (outputs, inputs) of a convolution on size x size images, column by column, in float64."""
    channels = weight.shape[1]
    impulses = torch.eye(channels * size * size, dtype=torch.float64).reshape(-1, channels, size, size)
    return conv2d(impulses, weight.detach().double(), stride=stride, padding=padding).flatten(1).T


def norm(matrix: Tensor) -> float:
    return float(np.linalg.svd(matrix.detach().double().numpy(), compute_uv=False)[0])


def stored(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations.weight.original


def orthogonal(shape: tuple[int, ...]) -> Tensor:
    return nn.init.orthogonal_(torch.empty(shape[0], int(np.prod(shape[1:])))).reshape(shape)


def one_huge_column(shape: tuple[int, ...]) -> Tensor:
    weight = torch.randn(shape)
    weight[:, 0] *= 1e20
    return weight


def duplicated(shape: tuple[int, ...]) -> Tensor:
    weight = torch.randn(shape)
    weight[1:] = weight[:1]
    weight[:, 1:] = weight[:, :1]
    return weight


def with_a_zero_channel(shape: tuple[int, ...]) -> Tensor:
    weight = torch.randn(shape)
    weight[:, -1] = 0
    return weight


WEIGHTS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "random": torch.randn,
    "positive": torch.rand,
    "constant": torch.ones,
    "orthogonal": orthogonal,
    "duplicated rows and columns": duplicated,
    "zero": torch.zeros,
    "zero channel": with_a_zero_channel,
    "tiny": lambda shape: torch.randn(shape) * 1e-30,
    "denormal": lambda shape: torch.randn(shape) * 1e-40,
    "huge": lambda shape: torch.randn(shape) * 1e30,
    "one huge column": one_huge_column,
}


@pytest.fixture(params=WEIGHTS)
def weights(request: pytest.FixtureRequest) -> Callable[[tuple[int, ...]], Tensor]:
    torch.manual_seed(0)
    return WEIGHTS[request.param]


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_no_convolution_exceeds_one(kernel: int, stride: int, weights: Callable[[tuple[int, ...]], Tensor]) -> None:
    for padding, (outputs, inputs) in itertools.product({0, kernel // 2, kernel}, [(4, 2), (2, 4)]):
        layer = AOLConv2d(inputs, outputs, kernel, stride=stride, padding=padding)
        stored(layer).data = weights((outputs, inputs, kernel, kernel))
        assert layer.weight.dtype == torch.float32
        assert norm(dense(layer.weight, 6, stride, padding)) <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (12, 12), (5, 40), (64, 64)])
def test_no_matrix_exceeds_one(shape: tuple[int, int], weights: Callable[[tuple[int, ...]], Tensor]) -> None:
    for _ in range(5):
        layer = AOLLinear(shape[1], shape[0])
        stored(layer).data = weights(shape)
        assert norm(layer.weight) <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_rounds_to_at_most_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        assert norm(aol_rescale(orthogonal((16, 16, 1, 1)).to(dtype))[:, :, 0, 0]) <= 1


def test_float64_weights_of_any_scale() -> None:
    torch.manual_seed(0)
    for scale in (1e-310, 1e-200, 1e200, 1e300):
        weight = torch.randn(6, 6, 1, 1, dtype=torch.float64) * scale
        assert 0.3 < norm(aol_rescale(weight)[:, :, 0, 0]) <= 1
    weight[:, 0] = 1e-150
    weight[:, 1] = 1e-320
    assert norm(aol_rescale(weight)[:, :, 0, 0]) <= 1


def test_without_the_slack_rounding_breaks_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zero-slack tests above can fail: it is the outward rounding that makes them pass."""
    monkeypatch.setattr(aol, "rounding_slack", lambda *_: 0.0)
    torch.manual_seed(0)
    norms = [norm(aol_rescale(torch.randn(16, 1, 1, 1))[:, :, 0, 0]) for _ in range(20)]
    assert max(norms) > 1


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5), (4, 1)])
def test_the_sums_are_the_rows_of_the_gram_matrix(kernel: tuple[int, int], stride: int) -> None:
    """Of an input pixel in the middle of a large image, where nothing is cut off."""
    torch.manual_seed(0)
    weight, size, pad = torch.randn(3, 2, *kernel, dtype=torch.float64), 18, 6
    matrix = dense(weight, size, stride, pad)
    rows = (matrix.T @ matrix).abs().sum(1).reshape(2, size, size)
    sums = autocorrelation_sums(polyphase(weight, (stride, stride))).reshape(2, stride, stride)
    middle = 6  # a multiple of every stride, as is the padding: its phase is (0, 0)
    torch.testing.assert_close(rows[:, middle : middle + stride, middle : middle + stride], sums)


def test_orthogonal_layers_lose_nothing() -> None:
    assert norm(AOLLinear(6, 6).weight) > 1 - 1e-5
    assert np.linalg.svd(AOLLinear(6, 9).weight.detach().numpy(), compute_uv=False)[-1] > 1 - 1e-5
    for kernel, stride in [(1, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2), (3, 3)]:
        layer = AOLConv2d(2, 2 * stride**2, kernel, stride=stride, padding=kernel)
        smallest = np.linalg.svd(dense(layer.weight, 6, stride, kernel).numpy(), compute_uv=False)[-1]
        assert smallest > 1 - 1e-5, (kernel, stride)


def test_the_stride_is_not_wasted() -> None:
    """Disjoint patches overlap with nothing: a constant 2x2 patch is a multiple of an isometry's row."""
    layer = AOLConv2d(1, 1, 2, stride=2)
    stored(layer).data.fill_(7.0)
    torch.testing.assert_close(layer.weight, torch.full((1, 1, 2, 2), 0.5))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_the_rescaling(stride: int) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: aol_rescale(k, (stride, stride)), kernel)


@pytest.mark.parametrize("name", ["zero", "zero channel", "tiny", "huge", "one huge column", "constant"])
def test_hostile_kernels_give_finite_gradients(name: str) -> None:
    torch.manual_seed(0)
    layer = AOLConv2d(3, 4, 3, padding=1)
    stored(layer).data = WEIGHTS[name]((4, 3, 3, 3))
    layer(torch.randn(2, 3, 5, 5)).square().sum().backward()
    assert layer.weight.isfinite().all()
    assert stored(layer).grad.isfinite().all()


def test_zero_weights_can_wake_up() -> None:
    layer = AOLLinear(3, 3)
    stored(layer).data.zero_()
    layer(torch.ones(1, 3)).sum().backward()
    assert (layer.weight == 0).all()
    assert (stored(layer).grad != 0).all()


@pytest.mark.parametrize("factor", [2.0**90, 2.0**-90, -1.0])
def test_the_scale_of_the_parameter_does_not_matter(factor: float) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(3, 2, 3, 3)
    torch.testing.assert_close(aol_rescale(kernel * factor).abs(), aol_rescale(kernel).abs())


@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_the_layer_with_the_rescaled_weight(bias: bool) -> None:
    torch.manual_seed(0)
    conv, full = AOLConv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), bias=bias), AOLLinear(6, 4, bias=bias)
    for layer in (conv, full):
        nn.init.normal_(stored(layer))
        assert not torch.equal(layer.weight, stored(layer))
    image, vector = torch.randn(2, 2, 7, 6), torch.randn(5, 6)
    assert torch.equal(conv(image), conv2d(image, conv.weight, conv.bias, (2, 1), (1, 0)))
    assert torch.equal(full(vector), linear(vector, full.weight, full.bias))


def test_copying_and_baking_keep_the_weight() -> None:
    layer = AOLConv2d(2, 3, 3, padding="same")
    nn.init.normal_(stored(layer))
    weight = layer.weight.detach().clone()
    assert torch.equal(copy.deepcopy(layer).weight, weight)
    other = AOLConv2d(2, 3, 3, padding="same")
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other.weight, weight)
    assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original"}
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert torch.equal(layer.weight, weight)


def test_the_exported_graph_is_plain() -> None:
    """Only the layers touch the input, with one sort an activation: the weights are functions of parameters."""
    model = nn.Sequential(
        SpaceToDepth(), AOLConv2d(4, 8, 3, padding=1), MaxMin(), nn.Flatten(), AOLLinear(32, 6), MaxMin()
    )
    program = torch.export.export(model.eval(), (torch.rand(1, 1, 4, 4),), strict=False).run_decompositions({})
    live, ops = set(), []
    for node in program.graph.nodes:
        if node.name in program.graph_signature.user_inputs or live & set(node.all_input_nodes):
            live.add(node)
            if node.op == "call_function":
                ops.append(str(node.target).removeprefix("aten.").split(".")[0])
    activation = ["view", "sort", "<built-in function getitem>", "view"]
    assert ops == ["pixel_unshuffle", "conv2d", *activation, "view", "linear", *activation]
