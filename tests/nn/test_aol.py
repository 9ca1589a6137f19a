"""Almost-orthogonal layers against the dense matrix of the weights that really run: norm <= 1 with zero slack."""

from __future__ import annotations

import copy
import importlib
import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from torch.nn.utils import parametrize

import lipaudit
from lipaudit.nn import AOLConv2d, AOLLinear, MaxMin, SpaceToDepth, aol
from lipaudit.nn.almost_orthogonal import AOLRescaling, absolute_sums, aol_rescale
from lipaudit.norms.lattice import polyphase


def dense(weight: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """The matrix (outputs, inputs) of a convolution on size x size images, column by column, in float64."""
    channels = weight.shape[1]
    impulses = torch.eye(channels * size * size, dtype=torch.float64).reshape(-1, channels, size, size)
    return conv2d(impulses, weight.detach().double(), stride=stride, padding=padding).flatten(1).T


def matrix_of(layer: nn.Module, *size: int) -> Tensor:
    """The matrix of a layer as torch runs it, with the float32 weight that runs, in float64."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return weight
    impulses = torch.eye(layer.in_channels * math.prod(size), dtype=torch.float64)
    return layer._conv_forward(impulses.reshape(-1, layer.in_channels, *size), weight, None).flatten(1).T


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


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_no_convolution_exceeds_one(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    for name, weights in WEIGHTS.items():
        for padding, (outputs, inputs) in itertools.product({0, kernel // 2, kernel}, [(4, 2), (2, 4)]):
            layer = AOLConv2d(inputs, outputs, kernel, stride=stride, padding=padding)
            stored(layer).data = weights((outputs, inputs, kernel, kernel))
            assert layer.weight.dtype == torch.float32
            assert norm(dense(layer.weight, 6, stride, padding)) <= 1, (name, padding, outputs)


GEOMETRIES: dict[str, dict] = {
    "grouped": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "stride": 2, "padding": 2},
    "dilated": {"dilation": 2, "padding": 2},
    "dilated, strided": {"dilation": (2, 3), "stride": (2, 3), "padding": 3, "groups": 2},
    "dilation shares a factor with the stride": {"dilation": 4, "stride": 2, "padding": 1},
    "stride beyond the kernel": {"stride": 4},
    "same": {"padding": "same", "dilation": 2},
    "circular": {"padding_mode": "circular", "padding": 1},
    "circular, same": {"padding_mode": "circular", "padding": "same", "groups": 2},
    "circular, strided": {"padding_mode": "circular", "padding": (1, 0), "stride": 2},
    "circular, dilated": {"padding_mode": "circular", "padding": 2, "dilation": 2, "stride": (3, 1)},
}


SMALL = ((4, (7, 7)), (8, (8, 10)))
"""Output channels and sizes of images."""


@pytest.mark.parametrize(
    "cases", [SMALL, pytest.param([*itertools.product((4, 8), ((9, 9), (10, 12)))], marks=pytest.mark.slow)],
    ids=["small", "large"],
)  # fmt: skip
@pytest.mark.parametrize("side", ["fewer", "input", "output"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_no_geometry_exceeds_one(geometry: str, side: str, cases: Iterable[tuple[int, tuple[int, int]]]) -> None:
    torch.manual_seed(0)
    for (name, weights), (outputs, size) in itertools.product(WEIGHTS.items(), cases):
        layer = AOLConv2d(4, outputs, 3, **GEOMETRIES[geometry], side=side)
        stored(layer).data = weights(tuple(stored(layer).shape))
        assert norm(matrix_of(layer, *size)) <= 1, (name, outputs, size)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_layer_has_norm_at_most_one_for_the_dense_matrix_and_for_the_audit(data: st.DataObject) -> None:
    """Random geometry and hostile kernels: the SVD of the dense matrix, and the proof, with zero slack."""
    draw = data.draw
    groups, kernel = draw(st.integers(1, 3)), draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    stride, dilation = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(2))
    circular = draw(st.booleans())
    most = [d * (k - 1) // 2 if circular else 4 for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(draw(st.integers(0, m)) for m in most)
    extent = max(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    size = tuple(draw(st.integers(extent, extent + 4)) for _ in range(2))
    mode, side = "circular" if circular else "zeros", draw(st.sampled_from(["fewer", "input", "output"]))
    layer = AOLConv2d(
        inputs, outputs, kernel, stride, padding, dilation, groups, bias=False, padding_mode=mode, side=side
    )
    torch.manual_seed(draw(st.integers(0, 10**6)))
    if draw(st.integers(0, 5)):
        stored(layer).data = WEIGHTS[draw(st.sampled_from(list(WEIGHTS)))](tuple(stored(layer).shape))
    assert norm(matrix_of(layer, *size)) <= 1
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    assert lipaudit.conv_norm(layer.weight, input_size=size, **geometry).value <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (12, 12), (5, 40), (64, 64)])
def test_no_matrix_exceeds_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for name, weights in [*WEIGHTS.items()] * 5:
        layer = AOLLinear(shape[1], shape[0])
        stored(layer).data = weights(shape)
        assert norm(layer.weight) <= 1, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_rounds_to_at_most_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for shape, _ in itertools.product([(16, 16), (4, 30), (30, 4)], range(10)):
        assert norm(aol_rescale(orthogonal(shape).to(dtype))) <= 1


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
    monkeypatch.setattr("lipaudit.nn.almost_orthogonal.rounding_slack", lambda *_: 0.0)
    torch.manual_seed(0)
    norms = [norm(aol_rescale(torch.randn(16, 1))) for _ in range(20)]
    assert max(norms) > 1


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5), (4, 1)])
def test_the_sums_are_the_rows_of_the_gram_matrix(kernel: tuple[int, int], stride: int) -> None:
    """Of an input pixel in the middle of a large image, where nothing is cut off."""
    torch.manual_seed(0)
    weight, size, pad = torch.randn(3, 2, *kernel, dtype=torch.float64), 18, 6
    matrix = dense(weight, size, stride, pad)
    rows = (matrix.T @ matrix).abs().sum(1).reshape(2, size, size)
    read = tuple(min(stride, k) for k in kernel)  # no tap reads the other phases
    sums = absolute_sums(polyphase(weight, (stride, stride), 1).transpose(1, 2)).reshape(2, *read)
    middle = 6  # a multiple of every stride, as is the padding: its phase is (0, 0)
    torch.testing.assert_close(rows[:, middle : middle + read[0], middle : middle + read[1]], sums)


def test_orthogonal_layers_lose_nothing() -> None:
    assert norm(AOLLinear(6, 6).weight) > 1 - 1e-5
    assert np.linalg.svd(AOLLinear(9, 6).weight.detach().numpy(), compute_uv=False)[-1] > 1 - 1e-5
    depthwise = AOLConv2d(4, 4, 3, padding=1, groups=4)
    assert np.linalg.svd(matrix_of(depthwise, 5, 5).numpy(), compute_uv=False)[-1] > 1 - 1e-5
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


@pytest.mark.parametrize(("shape", "groups"), [((3, 2, 3, 3), 1), ((2, 3, 2, 3), 1), ((4, 2, 3, 2), 2), ((3, 5), 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_the_rescaling(stride: int, shape: tuple[int, ...], groups: int) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    steps = (stride,) * (len(shape) - 2)
    assert torch.autograd.gradcheck(lambda k: aol_rescale(k, steps, groups), kernel)


def test_training_keeps_every_norm_at_most_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        AOLConv2d(2, 4, 3, padding=1), MaxMin(), AOLConv2d(4, 8, 3, 2, 1, groups=2), MaxMin(),
        nn.Flatten(), AOLLinear(72, 10), MaxMin(), AOLLinear(10, 3),
    )  # fmt: skip
    layers = [(model[0], (6, 6)), (model[2], (6, 6)), (model[5], ()), (model[7], ())]
    x, y = torch.randn(64, 2, 6, 6), torch.randint(3, (64,))
    optimiser = torch.optim.SGD(model.parameters(), lr=3.0)  # far too large a step, on purpose
    for _ in range(5):
        assert all(norm(matrix_of(layer, *size)) <= 1 for layer, size in layers)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    assert lipaudit.bound(model.eval(), (2, 6, 6)).value <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_round_the_weight_above_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv, full = AOLConv2d(3, 6, 3, padding=1), AOLLinear(16, 16)
    rounded = norm(full.weight.to(dtype))  # what autocast by itself would run
    for layer, x in ((conv, torch.randn(2, 3, 5, 5)), (full, torch.randn(2, 16))):
        with torch.autocast("cpu", dtype=dtype):
            weight, output = layer.weight, layer(x)
        assert weight.dtype == output.dtype == dtype
        assert norm(dense(weight, 5, 1, 1) if weight.ndim == 4 else weight) <= 1
        output.float().square().sum().backward()
        assert stored(layer).grad.dtype == torch.float32
    assert rounded > 1


def test_replicas_of_data_parallel_run_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """`replicate` as DataParallel calls it, with copies on one device in place of the broadcast to many."""
    replicate = importlib.import_module("torch.nn.parallel.replicate")

    def broadcast(tensors: list[Tensor], devices: list[int], detach: bool = False) -> list[list[Tensor]]:
        del detach
        return [list(tensors) for _ in devices]

    monkeypatch.setattr(replicate, "_broadcast_coalesced_reshape", broadcast)
    torch.manual_seed(0)
    model = nn.Sequential(AOLConv2d(2, 4, 3), MaxMin(), nn.Flatten(), AOLLinear(36, 3))
    for layer in (model[0], model[3]):
        nn.init.normal_(stored(layer))
    x = torch.randn(4, 2, 5, 5)
    first, second = replicate.replicate(model, [0, 1])
    assert torch.equal(torch.cat([first(x[:2]), second(x[2:])]), model(x))
    assert torch.equal(first[3].weight, model[3].weight)
    second(x).sum().backward()
    assert stored(model[0]).grad.any()


@pytest.mark.slow
def test_compiling_keeps_the_norm_at_most_one() -> None:
    torch.manual_seed(0)
    for layer in (AOLConv2d(4, 6, 3, 2, 1, groups=2), AOLLinear(12, 12)):
        for make in (torch.randn, orthogonal, torch.ones):
            stored(layer).data = make(tuple(stored(layer).shape))
            weight = torch.compile(lambda layer=layer: layer.weight * 1.0, fullgraph=True)()
            torch.testing.assert_close(weight, layer.weight, rtol=1e-6, atol=0)
            whole = weight.double()
            if weight.ndim == 4:
                impulses = torch.eye(4 * 49, dtype=torch.float64).reshape(-1, 4, 7, 7)
                whole = layer._conv_forward(impulses, weight.double(), None).flatten(1)
            assert norm(whole) <= 1


def test_existing_layers_can_be_wrapped() -> None:
    torch.manual_seed(0)
    signal, volume = nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.Conv3d(2, 3, 2, dilation=2)
    for layer, size in ((signal, (9,)), (volume, (4, 4, 3)), (nn.Linear(5, 7), ())):
        before = layer.weight.detach().clone() * 3
        layer.weight.data *= 3
        assert aol(layer) is layer
        assert torch.equal(stored(layer), before)
        assert norm(matrix_of(layer, *size)) <= 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "zero or circular padding, got 'reflect'"),
        (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate"), "got 'replicate'"),
        (lambda: nn.Conv2d(2, 2, 3, padding=2, padding_mode="circular"), "at most 1 for kernel 3 and .*, got 2"),
        (lambda: nn.ConvTranspose2d(2, 2, 3), "got ConvTranspose2d"),
        (lambda: nn.BatchNorm2d(2), "got BatchNorm2d"),
        (lambda: AOLLinear(2, 2), "got a parametrised one"),
    ],
)
def test_what_has_no_rescaling_is_refused(layer: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aol(layer())
    with pytest.raises(ValueError, match="expected side fewer, input, output, got 'both'"):
        AOLLinear(2, 2, side="both")


def test_what_is_refused_would_exceed_one() -> None:
    """Circular padding beyond half the kernel, with the rescaling of the lattice, stretches: the refusal is needed."""
    layer = nn.Conv2d(1, 1, 1, padding=2, padding_mode="circular", bias=False)
    parametrize.register_parametrization(layer, "weight", AOLRescaling((1, 1)))
    assert norm(matrix_of(layer, 4, 4)) > 1.9


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
