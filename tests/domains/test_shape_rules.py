"""Padding, masks, transposed convolutions, reductions, broadcasting: exact where they can be, refused where not."""

from __future__ import annotations

import math

import pytest
import torch
from flat import Flat, Function, bounded, matrix_of, norm_of, steepest
from samples import wave
from torch.nn import functional

import lipaudit
from lipaudit.certification.network_bound import compose
from lipaudit.errors import LipauditError, NotLipschitz, UnsupportedOp
from lipaudit.graph.watching import Watch
from lipaudit.norms.linear_maps import Conv, Transposed, dense

SHAPE = (2, 4, 5)
AFFINE: dict[str, Function] = {
    "crop": lambda x: functional.pad(x, (-1, -1, 0, -2)),
    "crop and pad": lambda x: functional.pad(x, (1, -2), value=3.0),
    "padded with ones": lambda x: functional.pad(x, (0, 1), value=1.0),
    "reflected": lambda x: functional.pad(x, (2, 3, 1, 0), mode="reflect"),
    "border repeated": lambda x: functional.pad(x, (2, 3, 1, 0), mode="replicate"),
    "wrapped around": lambda x: functional.pad(x, (2, 3, 1, 0), mode="circular"),
    "masked": lambda x: x.masked_fill(torch.eye(5)[:4] > 0, 7.0),
    "mask that stretches": lambda x: x[:, :1].masked_fill(torch.eye(5)[None, :4].repeat(3, 1, 1) > 0, 7.0),
    "chosen or constant": lambda x: torch.where(torch.eye(5)[:4] > 0, 2 * x, wave(x, 5)),
    "chosen from one column": lambda x: torch.where(torch.eye(5)[:4] > 0, x[..., :1], torch.zeros(1).to(x)),
    "stretched and shifted": lambda x: x[:, :1] + wave(x, 3, 4, 5),
    "stretched and scaled": lambda x: x[:, :1] * wave(x, 3, 4, 5),
    "stretched and divided": lambda x: x[:, :1] / (2 + wave(x, 3, 1, 5)),
    "an axis more": lambda x: x * wave(x, 1, 1, 2, 4, 5)[0] - wave(x, 1, 2, 4, 5),
    "constant minus": lambda x: torch.sub(wave(x, 5), x, alpha=3),
    "sum": lambda x: x.sum(2, keepdim=True),
    "mean": lambda x: x.mean((1, 3)),
    "sum of all but the samples": lambda x: x.sum((1, 2, 3))[:, None],
    "addcmul": lambda x: torch.addcmul(wave(x, 5), x, wave(x, 4, 5), value=-3),
    "shift by addcmul": lambda x: torch.addcmul(x, wave(x, 5), wave(x, 4, 1)),
}


@pytest.mark.parametrize("name", AFFINE)
def test_the_bound_is_the_norm_of_the_map(name: str) -> None:
    exact = norm_of(AFFINE[name], SHAPE)
    bound = bounded(AFFINE[name], SHAPE).value

    assert exact <= bound * (1 + 1e-14)
    assert bound <= exact * (1 + 1e-6)


TRANSPOSED = [
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": (2, 3), "padding": (0, 1), "output_padding": (1, 2)},
    {"stride": 3, "dilation": 2},
    {"stride": 1, "padding": 2, "groups": 2},
    {"stride": 4, "groups": 2},
]


@pytest.mark.parametrize("settings", TRANSPOSED)
def test_a_transposed_convolution_is_the_transpose_of_one(settings: dict) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return functional.conv_transpose2d(x, wave(x, 2, 1, 3, 2), wave(x, settings.get("groups", 1)), **settings)

    network = bounded(function, SHAPE, method="tight")
    exact = norm_of(function, SHAPE)
    assert exact <= network.value <= exact * 1.25


def test_the_transposed_map_is_what_torch_computes() -> None:
    weight = torch.randn(4, 3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    conv = Conv(weight, (10, 9), (2, 3), ((1, 1), (0, 0)), (1, 2), groups=2)

    def function(x: torch.Tensor) -> torch.Tensor:
        return functional.conv_transpose2d(x, weight, None, (2, 3), (1, 0), (1, 0), 2, (1, 2))

    shape = Transposed(conv).input_shape
    assert function(torch.zeros(shape, dtype=torch.float64)).shape == (1, 6, 10, 9)
    torch.testing.assert_close(dense(Transposed(conv)), matrix_of(function, shape[1:]))


def test_same_max_pooling_is_a_max_pool() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(functional.pad(x, (0, 1, 1, 2), value=-math.inf), 3, 2)

    bound = bounded(function, SHAPE).value
    assert steepest(function, SHAPE) <= bound <= 2 * (1 + 1e-9)
    certificates = lipaudit.certify(Flat(function).eval(), torch.rand(9, *SHAPE))
    assert (certificates.radius > 0).any()  # not of all: one entry may be the largest of two windows


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.pad(x, (0, 1), value=-math.inf).relu(),
        lambda x: (
            functional.max_pool2d(y := functional.pad(x, (0, 1), value=-math.inf), 2).flatten(1)[:, :1]
            + y.exp().flatten(1)
        ),
        lambda x: -functional.max_pool2d(-functional.pad(x, (0, 1), value=math.inf), 2),
    ],
)
def test_infinite_padding_in_front_of_anything_else_is_refused(function: Function) -> None:
    with pytest.raises(NotLipschitz, match=r"padding with -?inf is understood only"):
        bounded(function, SHAPE)


def test_masks_of_minus_infinity_take_entries_out() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(5).to(x).masked_fill(torch.arange(5) > 2, -math.inf)
        return torch.softmax(x.flatten(1)[:, :5] + mask, 1)

    assert steepest(function, SHAPE) <= bounded(function, SHAPE).value
    certificates = lipaudit.certify(Flat(function).eval(), torch.rand(2, *SHAPE))
    assert (certificates.radius > 0).all()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: functional.conv2d(x, wave(x, 2, 2, 1, 1), x.mean((0, 2, 3)) * 0 + x[0, :, 0, 0]), "bias"),
        (lambda x: functional.linear(x, wave(x, 3, 5), x[0, 0, 0, :3]), "bias"),
        (lambda x: functional.linear(wave(x, 1, 5), x[0, 0]), "depend"),
        (lambda x: functional.prelu(x, x[0, :, 0, 0]), "weight of prelu"),
        (lambda x: functional.conv_transpose2d(x, wave(x, 2, 2, 3, 3), x[0, :, 0, 0]), "bias"),
        (lambda x: torch.linalg.vector_norm(x, 3, 1), "order 1, 2 or inf"),
        (lambda x: x.topk(2, 1, sorted=False).values, "sorted=True"),
        (lambda x: x + math.nan, "NaN"),
        (lambda x: functional.rrelu(x, training=True), "deterministic"),
    ],
)
def test_what_the_rules_do_not_read_is_refused(
    function: Function, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another guard would catch it first: the rules do not rely on that."""
    monkeypatch.setattr(
        "lipaudit.graph.capture.first_calls",
        lambda model, probe: model(probe).isnan() is not None and (Watch(model), []),
    )
    monkeypatch.setattr("lipaudit.graph.capture.hold", lambda *_: None)
    with pytest.raises(LipauditError, match=reason):
        compose(Flat(function).eval(), SHAPE)


def test_output_padding_beyond_the_stride_is_refused() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return functional.conv_transpose2d(x, wave(x, 2, 2, 3, 3), output_padding=1, dilation=2)

    with pytest.raises(UnsupportedOp, match="output_padding below the stride"):
        bounded(function, SHAPE)


@pytest.mark.parametrize("order", [1, 2, math.inf])
@pytest.mark.parametrize("dim", [1, (1, 2, 3)])
def test_norms(order: float, dim: object) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return (
            torch.linalg.vector_norm(x, order, dim).flatten(1)
            if dim == 1
            else torch.linalg.vector_norm(x, order, dim)[:, None]
        )

    count = 2 if dim == 1 else 40
    bound = bounded(function, SHAPE).value
    assert steepest(function, SHAPE) <= bound * (1 + 1e-14)
    assert bound <= (math.sqrt(count) if order == 1 else 1.0) * (1 + 1e-9)


def test_maxima_of_branches() -> None:
    def maxout(x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x @ wave(x, 5, 3), x @ wave(x, 3, 5).T)

    bound = bounded(maxout, SHAPE).value
    norms = [norm_of(lambda x: x @ wave(x, 5, 3), SHAPE), norm_of(lambda x: x @ wave(x, 3, 5).T, SHAPE)]
    assert steepest(maxout, SHAPE) <= bound <= math.hypot(*norms) * (1 + 1e-6)
