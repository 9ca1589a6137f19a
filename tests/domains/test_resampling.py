"""Interpolation, folding and copying against the dense matrix of the operation."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from flat import Flat, Function, bounded, matrix_of, norm_of
from torch.nn import functional

from lipaudit.certification.network_bound import compose
from lipaudit.domains.lipschitz import resampling
from lipaudit.domains.lipschitz.resampling import matrix
from lipaudit.errors import UnsupportedOp

CPU = torch.device("cpu")
MODES = {
    "linear": ("upsample_linear1d", 1),
    "bilinear": ("upsample_bilinear2d", 2),
    "bicubic": ("upsample_bicubic2d", 2),
    "trilinear": ("upsample_trilinear3d", 3),
}
SIZES = [(5, 5), (5, 9), (5, 3), (5, 1), (1, 4), (6, 17), (7, 2), (4, 8)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_weights_are_those_of_torch(mode: str, align_corners: bool, before: int, after: int) -> None:
    op, axes = MODES[mode]
    weights = matrix(resampling._ROWS[op], before, after, align_corners, None, CPU)
    shape = (1, *(1,) * (axes - 1), before)

    def function(x: torch.Tensor) -> torch.Tensor:
        size = (*(1,) * (axes - 1), after)
        return functional.interpolate(x, size, mode=mode, align_corners=align_corners)

    torch.testing.assert_close(weights, matrix_of(function, shape), rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("before", "after"), [*SIZES, (32, 7), (40, 39)])
def test_antialiased_weights_are_those_of_torch(mode: str, before: int, after: int) -> None:
    weights = matrix(resampling._ROWS[f"_upsample_{mode}2d_aa"], before, after, False, None, CPU)

    def function(x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(x, (1, after), mode=mode, antialias=True)

    torch.testing.assert_close(weights, matrix_of(function, (1, 1, before)), rtol=0, atol=1e-13)


IMAGES: dict[str, Function] = {
    **{
        f"{mode} to {size}{', corners' if corners else ''}": (
            lambda x, mode=mode, size=size, corners=corners: functional.interpolate(
                x, size, mode=mode, align_corners=corners
            )
        )
        for mode, size, corners in itertools.product(("bilinear", "bicubic"), ((7, 3), (4, 5), (9, 11)), (False, True))
    },
    "scale factors": lambda x: functional.interpolate(x, scale_factor=(1.3, 0.7), mode="bicubic"),
    "scale factors that are recomputed": lambda x: functional.interpolate(
        x, scale_factor=1.3, mode="bilinear", recompute_scale_factor=True
    ),
    "antialiased": lambda x: functional.interpolate(x, (3, 8), mode="bicubic", antialias=True),
    "nearest": lambda x: functional.interpolate(x, (7, 12)),
    "nearest, shrinking": lambda x: functional.interpolate(x, scale_factor=(0.6, 2)),
    "exactly nearest": lambda x: functional.interpolate(x, (7, 12), mode="nearest-exact"),
    "area": lambda x: functional.interpolate(x, (2, 5), mode="area"),
    "unfold": lambda x: functional.unfold(x, 3, padding=1, stride=2),
    "unfold, dilated": lambda x: functional.unfold(x, 2, dilation=3),
    "windows of an axis": lambda x: x.unfold(2, 3, 1),
    "repeat": lambda x: x.repeat(1, 1, 2, 3),
    "repeat interleaved": lambda x: x.repeat_interleave(3, 2),
    "running sum": lambda x: x.cumsum(3),
    "roll and flip": lambda x: x.roll((1, 2), (2, 3)).flip(1),
    "indices that repeat": lambda x: x[:, :, [0, 0, 3, 0]],
}


@pytest.mark.parametrize("name", IMAGES)
def test_the_bound_is_the_norm_of_the_map(name: str) -> None:
    exact = norm_of(IMAGES[name], (1, 4, 5))
    bound = bounded(IMAGES[name], (1, 4, 5)).value

    assert exact <= bound * (1 + 1e-15)
    assert bound <= exact * (1.05 if name == "area" else 1 + 1e-6)


def test_folding_is_bounded_by_the_windows_that_overlap() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return functional.fold(x, (5, 6), 3, padding=1, stride=2)

    assert norm_of(function, (9, 9)) <= bounded(function, (9, 9)).value <= 2 * (1 + 1e-6)


def test_weights_that_are_not_those_of_torch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(resampling._ROWS, "upsample_bilinear2d", resampling._cubic_rows)
    model = Flat(lambda x: functional.interpolate(x, (7, 3), mode="bilinear")).eval()
    with pytest.raises(UnsupportedOp, match="got other weights"):
        compose(model, (1, 4, 5))


def test_interpolation_keeps_its_norm_between_layers() -> None:
    """The rows after it are not written out, the step is on the ledger under the layer's name."""
    network = bounded(lambda x: functional.interpolate(torch.relu(x), (7, 3), mode="bilinear"), (1, 4, 5))
    (line,) = network.layers
    assert line.op == "upsample_bilinear2d"
    assert "4 to 7 x 5 to 3" in line.upper.because
    assert dataclasses.asdict(line)["law"] == "scale"
