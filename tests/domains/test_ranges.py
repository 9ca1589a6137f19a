"""Every range rule against what a small network really computes: random, corner and gradient-pushed inputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import pytest
import samples_bounded
import samples_fourier
import torch
from samples import IMAGE, NETWORKS, VECTOR, Net, composed, image, pointwise
from torch import nn
from torch.nn import functional

from lipaudit.domains.graph import Graph, call, evaluate
from lipaudit.domains.intervals import RANGES, Range, ranges
from lipaudit.domains.intervals.shape import JUMPING
from lipaudit.domains.lipschitz import RULES
from lipaudit.errors import BadThreat, LipauditError, UnsupportedOp
from lipaudit.graph.capture import capture

ATEN, F = torch.ops.aten, functional
TOKENS = (5, 8)
LOW, HIGH = -0.5, 1.5


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A module with weights and biases of size one, so that none of them goes unnoticed."""
    torch.manual_seed(4)
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def layer(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    module = seeded(make)
    return Net(lambda x: torch.relu(module(x)), shape, module)


def tokens(function: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """The function of five tokens of eight entries that a dense layer has spread out."""
    spread = seeded(lambda: nn.Linear(8, 8))
    return Net(lambda x: function(spread(x)), TOKENS, spread)


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(len(x), 5, 2, 4).transpose(1, 2)


def attend(x: torch.Tensor, **settings: object) -> torch.Tensor:
    return F.scaled_dot_product_attention(heads(x), heads(x) * 2, heads(x) - 0.3, **settings)


def cosines(x: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(x, dim=-1)
    return unit @ unit.transpose(-2, -1) * 10


def shares(x: torch.Tensor) -> torch.Tensor:
    y = torch.relu(x)
    return y / (y.sum(2, keepdim=True) + 1e-3)


def shared_heads(x: torch.Tensor) -> torch.Tensor:
    """Four heads of queries, two of keys and values, far apart."""
    queries = x.reshape(len(x), 5, 4, 2).transpose(1, 2)
    values = queries[:, :2] + 50 * torch.arange(2.0)[:, None, None]
    return F.scaled_dot_product_attention(queries, queries[:, 2:], values, enable_gqa=True)


def blind_query(x: torch.Tensor) -> torch.Tensor:
    """Every token sees the next one; the last one would see the first, but that one is hidden."""
    mask = torch.eye(5).roll(1, 1) * torch.tensor([0.0, 1, 1, 1, 1])
    return attend(torch.sigmoid(x) + 1, attn_mask=mask > 0) + attend(torch.sigmoid(x) + 1, attn_mask=mask.log())


def running_statistics() -> nn.Module:
    norm = seeded(lambda: nn.InstanceNorm2d(2, affine=True, track_running_stats=True))
    norm.running_mean.copy_(torch.tensor([0.3, -2.0]))
    return Net(lambda x: norm(x), IMAGE, norm)


def weights(*shape: int) -> torch.Tensor:
    """Constants of either sign, made of operations that can be exported."""
    return (torch.sin(torch.arange(math.prod(shape)) * 7.0) * 1.5).reshape(shape)


def each(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of one sample, for functions that would mix the samples of a batch."""
    return lambda x: torch.stack([function(sample) for sample in x])


def recurrent() -> nn.Module:
    cell = seeded(lambda: nn.LSTM(8, 3, bidirectional=True, batch_first=True))
    return Net(lambda x: cell(x)[0], TOKENS, cell)


EXTRA: dict[str, Callable[[], nn.Module]] = {
    "biased convolutions": lambda: image(lambda x: F.conv2d(x, weights(4, 1, 2, 3), weights(4) * 9, groups=2)),
    "transposed": lambda: layer(lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2), IMAGE),
    "matmul of two": lambda: tokens(lambda x: torch.cat([x @ weights(8, 5), x @ (x - 1).mT], 2)),
    "matmul of softmax": lambda: tokens(lambda x: (heads(x) @ heads(x).mT).softmax(-1) @ heads(x)),
    "matmul of signs": lambda: tokens(lambda x: (x - 2) @ torch.relu(x).mT + torch.relu(x) @ (x + 1).mT),
    "matmul with one sign unknown": lambda: tokens(
        lambda x: torch.relu(x) @ torch.cat([x[:, :, :1], torch.relu(x)[:, :, 1:]], 2).mT
    ),
    "linear attention": lambda: tokens(
        lambda x: torch.relu(x) @ (torch.relu(x).mT @ F.pad(x, (0, 1), value=1.0)) / 3.0
    ),
    "bmm of two": lambda: tokens(lambda x: torch.bmm(x, x.mT)),
    "einsum of two": lambda: tokens(lambda x: torch.einsum("bnc,bmc->bnm", x, x - 1)),
    "convolution of two": lambda: image(
        each(lambda x: F.conv2d(x[None], x.mean(1, keepdim=True)[None].expand(3, 2, 1, 6) - 0.4)[0])
    ),
    "bicubic by scale": lambda: image(lambda x: F.interpolate(x, scale_factor=(1.5, 2.2), mode="bicubic")),
    "powers": lambda: pointwise(lambda x: x**3 + x**2 + 1 / (x + 30) ** 2 + (x + 30) ** 0.5 + (x + 30) ** -3),
    "x times x": lambda: pointwise(lambda x: x * x + x * torch.sigmoid(x)),
    "root of a square": lambda: pointwise(lambda x: torch.sqrt(x * x + 0.1) + torch.rsqrt(x.square() + 0.1)),
    "quotient of two": lambda: pointwise(lambda x: x / (-0.2 - torch.relu(x))),
    "by its own sum": lambda: tokens(shares),
    "by a sum of both signs": lambda: tokens(lambda x: x / x.sum(2, keepdim=True)),
    "normalised": lambda: tokens(cosines),
    "norms": lambda: tokens(
        lambda x: torch.cat([x.norm(dim=2), x.norm(p=1, dim=1), F.normalize(x, dim=2).norm(dim=2)], 1)
    ),
    "_prelu_kernel.default": lambda: image(lambda x: ATEN._prelu_kernel(x - 0.3, weights(1, 2, 1, 1))),
    "leaky_relu falling": lambda: pointwise(lambda x: F.leaky_relu(x, -0.4)),
    "threshold with a jump": lambda: pointwise(lambda x: F.threshold(x, 0.3, 2.0) + F.threshold(x, 0.3, -2.0)),
    "layer norm": lambda: layer(lambda: nn.LayerNorm(8), TOKENS),
    "layer norm of an image": lambda: layer(lambda: nn.LayerNorm([6, 6], eps=1e-2), IMAGE),
    "rms norm without eps": lambda: tokens(lambda x: F.rms_norm(x, (8,))),
    "instance norm with running statistics": running_statistics,
    "gated": lambda: pointwise(lambda x: F.glu(x, 1)),
    "group norm": lambda: layer(lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "variances": lambda: image(lambda x: torch.cat([x.var((2, 3)), ATEN.var.correction(x, [1, 3], correction=3)], 1)),
    "deviation of everything": lambda: image(each(lambda x: ATEN.std.correction(x)[None])),
    "softmax over tokens": lambda: tokens(lambda x: torch.softmax(x * 3, 1)),
    "log softmax over tokens": lambda: tokens(lambda x: torch.log_softmax(x * 9, 1)),
    "attention": lambda: tokens(attend),
    "attention with masks": lambda: tokens(
        lambda x: attend(x, attn_mask=weights(5, 5).masked_fill(torch.eye(5) > 0, -torch.inf))
        + attend(x, attn_mask=x[:, None, :, :5], is_causal=False)
    ),
    "attention without a key": lambda: tokens(blind_query),
    "attention with shared heads": lambda: tokens(shared_heads),
    "attention with constant queries": lambda: tokens(
        lambda x: F.scaled_dot_product_attention(weights(1, 2, 3, 4), heads(x), heads(x))
    ),
    "length moved": lambda: tokens(
        lambda x: (
            F.layer_norm(x, (8,)).transpose(1, 2).unsqueeze(1).roll(1, 2).permute(0, 1, 3, 2)[:, :, 1:4]
            .select(1, 0).mean(1).view(len(x), 2, 4)
        )
    ),
    "length before a removed axis": lambda: tokens(
        lambda x: F.layer_norm(heads(x), (4,)).permute(0, 2, 3, 1).mean(3)
        + F.layer_norm(heads(x), (4,)).permute(0, 2, 3, 1).select(3, 1)
    ),
    "length through weights": lambda: tokens(
        lambda x: torch.cat(
            [
                F.linear(F.layer_norm(x, (8,)), weights(3, 8), weights(3)),
                F.conv1d(F.layer_norm(x, (8,)).mT, weights(6, 4, 2), weights(6), padding=1, groups=2).mT[:, 1:, :2],
                torch.split(F.pad(F.rms_norm(x, (8,)), (0, 0, 0, 2)), 5, 1)[0].unbind(1)[0][:, None].expand(-1, 5, 8),
            ],
            2,
        )
    ),
}  # fmt: skip
"""What the networks of `samples.py` leave out: an operation, or a case of one."""

SAMPLES = {**EXTRA, **{name: make for name, make in NETWORKS.items() if name not in samples_fourier.FUNCTIONS}}
"""Complex numbers have no ranges."""

ON_THE_UNIT_BOX = set(samples_bounded.networks(Net))
"""Networks that are defined for entries in [0, 1]."""

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@functools.cache
def captured(name: str) -> Graph:
    if name in NETWORKS:
        return composed(name)[1].graph  # captured for the Lipschitz rules already
    network = EXTRA[name]().eval()
    return capture(network, network.shape)


def everything(graph: Graph) -> list[str]:
    return ["input", *(node.name for node in graph.nodes)]


def values_of(graph: Graph, x: torch.Tensor) -> dict[str, torch.Tensor]:
    values = {"input": x[None]}
    evaluate(graph, x, lambda node, _, output: values.update({node.name: output}))
    return values


def inputs_in(graph: Graph, low: float, high: float) -> Iterator[torch.Tensor]:
    """Random points, corners, and for every node the corners that drive some of its entries up and down."""
    generator = torch.Generator().manual_seed(0)

    def uniform() -> torch.Tensor:
        return low + (high - low) * torch.rand(graph.input_shape, generator=generator, dtype=torch.float64)

    def corner(direction: torch.Tensor) -> torch.Tensor:
        return torch.full_like(direction, low).masked_fill(direction > 0, high)

    yield from (torch.full(graph.input_shape, end, dtype=torch.float64) for end in (low, high))
    yield from (uniform().clamp(low, high) for _ in range(10))
    yield from (corner(uniform() - (low + high) / 2) for _ in range(10))
    yield from (low + (corner(uniform() - (low + high) / 2) - low) * 1e-9 for _ in range(2))
    x = uniform().requires_grad_()
    for output in values_of(graph, x).values():
        for _ in range(2 if output.requires_grad else 0):
            entry = int(torch.randint(output.numel(), (), generator=generator))
            (slope,) = torch.autograd.grad(output.flatten()[entry], x, retain_graph=True)
            yield from (corner(slope), corner(-slope))


def assert_inside(found: dict[str, Range], values: dict[str, torch.Tensor]) -> None:
    for name, value in values.items():
        z = found[name]
        assert bool((z.low <= value).all()), (name, float((z.low - value).max()))
        assert bool((value <= z.high).all()), (name, float((value - z.high).max()))
        if z.length is not None:
            norm = torch.linalg.vector_norm(value, dim=z.axis, keepdim=True)
            assert bool((norm <= z.length).all()), (name, float((norm - z.length).max()))


@pytest.mark.parametrize("narrow", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SAMPLES)
def test_every_value_lies_in_its_range(name: str, narrow: bool) -> None:
    graph = captured(name)
    box = (0.2, 0.25) if narrow else (0.0, 1.0) if name in ON_THE_UNIT_BOX else (LOW, HIGH)
    found = ranges(graph, *box, everything(graph))

    assert set(found) == set(everything(graph))
    for x in inputs_in(graph, *box):
        assert_inside(found, values_of(graph, x.detach()))


@pytest.mark.parametrize("name", [n for n in SAMPLES if not n.startswith(("attention", "lstm", "scaled_dot"))])
def test_the_range_of_a_point_is_its_value(name: str) -> None:
    graph = captured(name)
    found = ranges(graph, 0.3, 0.3, everything(graph))

    for node, value in values_of(graph, torch.full(graph.input_shape, 0.3, dtype=torch.float64)).items():
        low, high = found[node].low, found[node].high
        width = float(torch.where(low == high, 0.0, high - low).max())
        assert width <= 1e-6 * (1 + float(value[value.isfinite()].abs().max())), node


ZOO = """
linear.default conv1d.default conv2d.default conv3d.default conv2d.padding conv_transpose2d.input matmul.default
einsum.default relu.default gelu.default sigmoid.default silu.default hardswish.default hardsigmoid.default
leaky_relu.default clamp_min.default hardtanh.default tanh.default clamp.Tensor maximum.default max.other view.default
permute.default transpose.int _unsafe_view.default unbind.int cat.default slice.Tensor split_with_sizes.default
split.Tensor select.int stack.default unsqueeze.default squeeze.dim roll.default
slice_scatter.default add.Tensor sub.Tensor adaptive_avg_pool2d.default mean.dim avg_pool2d.default avg_pool1d.default
sum.dim_IntList _native_batch_norm_legit_no_training.default mul.Tensor div.Tensor addcmul.default layer_norm.default
group_norm.default rms_norm.default neg.default scaled_dot_product_attention.default max_pool2d.default amax.default
max.dim adaptive_max_pool2d.default softmax.int pad.default expand.default unfold.default repeat_interleave.self_int
im2col.default upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec sqrt.default rsqrt.default var.dim
pow.Tensor_Scalar square.default linalg_vector_norm.default std.dim index.Tensor lstm.input col2im.default
"""
"""The operations of the classifiers in timm and torchvision."""

EXPORTED_AS = {"reshape.default", "flatten.using_ints", "t.default", "chunk.default", "relu6.default"}
"""Operations that torch.export writes as another one."""


def test_every_operation_of_the_zoo_and_every_lipschitz_rule_has_a_range_rule() -> None:
    assert not {*ZOO.split(), *RULES} - set(RANGES) - set(samples_fourier.FUNCTIONS)


def test_every_range_rule_is_sampled_and_states_its_claim() -> None:
    used = {node.op for name in SAMPLES for node in captured(name).nodes}
    assert set(RANGES) - used <= EXPORTED_AS | {"_softmax.default", *JUMPING}
    for op in RANGES:
        assert len(RANGES.claim(op)) > 15, op


def test_ranges_are_sharp_for_one_layer() -> None:
    dense = seeded(lambda: nn.Linear(6, 4))
    graph = capture(Net(dense, VECTOR, dense).eval(), VECTOR)
    found = ranges(graph, LOW, HIGH, everything(graph))["linear"]
    weight, bias = dense.weight.detach().double(), dense.bias.detach().double()

    assert torch.allclose(found.high[0], (weight * torch.where(weight > 0, HIGH, LOW)).sum(1) + bias, rtol=1e-12)
    assert torch.allclose(found.low[0], (weight * torch.where(weight > 0, LOW, HIGH)).sum(1) + bias, rtol=1e-12)


def test_layer_norm_bounds_its_length_and_the_next_layer_uses_it() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(x * 100))

    model = Normed().eval()
    graph = capture(model, (64,))
    found = ranges(graph, -1, 1, everything(graph))
    rows = torch.linalg.vector_norm(model.head.weight.detach().double(), dim=1)

    assert found["layer_norm"].axis == -1
    assert float(found["layer_norm"].length) == pytest.approx(8.0, rel=1e-6)
    assert found["layer_norm"].widest == pytest.approx(math.sqrt(63), rel=1e-6)
    assert found["linear"].widest <= float((8 * rows + model.head.bias.detach().abs()).max()) * (1 + 1e-6)


def test_a_convolution_uses_the_lengths_of_pixels_up_to_the_last_digit() -> None:
    """Pixels of the given lengths that point along the taps reach the bound of the output they lie under."""
    graph = capture(layer(lambda: nn.Conv2d(4, 6, 2, stride=2, padding=1, groups=2), (4, 5, 5)).eval(), (4, 5, 5))
    node = next(node for node in graph.nodes if node.op == "conv2d.default")
    arguments = {name: v.double() if isinstance(v, torch.Tensor) else v for name, v in node.args.items()}
    length = torch.rand(1, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    wide = torch.full((1, 4, 5, 5), 100.0, dtype=torch.float64)
    found = RANGES[node.op](node, {}, **{**arguments, "input": Range(-wide, wide, -3, length)})

    taps = arguments["weight"][0] / torch.linalg.vector_norm(arguments["weight"][0], dim=0)
    pixels = torch.zeros_like(wide)
    pixels[0, :2, 1:3, 1:3] = taps * length[0, :, 1:3, 1:3]
    reached = float(call(node, {**arguments, "input": pixels})[0, 0, 1, 1])
    assert reached <= float(found.high[0, 0, 1, 1]) <= reached * (1 + 1e-9)


def test_an_overflow_makes_ranges_infinite_and_never_nan() -> None:
    def explode(x: torch.Tensor) -> torch.Tensor:
        huge = torch.exp(torch.exp(x * 100))
        inside = torch.tanh(huge - huge.flip(1)) + torch.softmax(huge, 1) + F.gelu(-huge)
        return inside + 0 * huge + F.layer_norm(huge, (6,))

    graph = capture(Net(lambda x: explode(x * 0.01), VECTOR).eval(), VECTOR)
    found = ranges(graph, 0, 1e3, everything(graph))
    assert not any(bool(end.isnan().any()) for z in found.values() for end in (z.low, z.high))
    assert found["tanh"].widest == 1.0
    assert found["softmax"].widest <= 1.0
    assert found["layer_norm"].widest <= math.sqrt(5) * (1 + 1e-9)
    assert found[graph.output].widest == math.inf


def test_only_the_wanted_ranges_are_returned() -> None:
    graph = captured("gelu.default")
    found = ranges(graph, LOW, HIGH, {"input", "gelu"})
    assert set(found) == {"input", "gelu"}
    assert set(ranges(graph, LOW, HIGH, set())) == set()


def test_nothing_is_claimed_of_what_jumps() -> None:
    graph = capture(Net(lambda x: torch.floor(x) + torch.frac(x), VECTOR).eval(), VECTOR)
    assert {z.widest for name, z in ranges(graph, 0, 1, everything(graph)).items() if name != "input"} == {math.inf}


def test_unknown_operations_are_refused_with_their_layer() -> None:
    graph = capture(Net(lambda x: torch.special.i0(x), VECTOR).eval(), VECTOR)
    with pytest.raises(UnsupportedOp, match=r"special_i0.default x1 .*layer <top>, samples.py"):
        ranges(graph, 0, 1, set())


def test_unknown_cases_are_refused_with_their_layer() -> None:
    graph = capture(Net(lambda x: torch.einsum("bi,bi,bi->bi", x, x, x), VECTOR).eval(), VECTOR)
    with pytest.raises(UnsupportedOp, match=r"einsum of two tensors.*layer <top>, samples.py"):
        ranges(graph, 0, 1, set())


def test_a_network_that_is_undefined_on_the_domain_is_an_error() -> None:
    graph = capture(Net(lambda x: torch.clamp_min(x, 2.0).neg().sqrt().nan_to_num(), VECTOR).eval(), VECTOR)
    with pytest.raises(LipauditError):
        ranges(graph, 0, 1, set())


@pytest.mark.parametrize("box", [(1.0, 0.0), (0.0, math.inf), (math.nan, 1.0)])
def test_a_domain_that_is_no_interval_is_refused(box: tuple[float, float]) -> None:
    with pytest.raises(BadThreat, match="low <= high"):
        ranges(captured("relu.default"), *box, set())
