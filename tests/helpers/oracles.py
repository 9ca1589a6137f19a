"""What the norm bounds are tested against, and the convolutions they are tested on."""

from __future__ import annotations

import math

import mpmath
import torch
from hypothesis import assume
from hypothesis import strategies as st

from lipaudit.norms.linear_maps import Conv, dense

MODES = ("zeros", "zeros", "circular", "reflect", "replicate")


def truth(conv: Conv) -> float:
    """The norm of the dense matrix in float64, taken as it is: bounds are held against it with zero slack."""
    return float(torch.linalg.svdvals(dense(conv))[0])


def exact_norm(matrix: torch.Tensor) -> mpmath.mpf:
    """The largest singular value to forty digits."""
    with mpmath.workdps(40):
        return mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False)[0]


def lattice_norm(conv: Conv, points: int = 32) -> float:
    """From below: the norm on the infinite lattice at `points` frequencies per axis, from the aliases of a stride.

    Unlike the bounds it uses no polyphase kernel: with F the symbol of the map of stride 1, the map with stride s
    has the symbol [F(w_0), ..., F(w_{s-1})] / sqrt(s) at w_j = (w + 2 pi j) / s.
    """
    axes = range(2, conv.weight.ndim)
    spread = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    weight = conv.weight.new_zeros(*conv.weight.shape[:2], *spread)
    weight[(..., *(slice(None, None, d) for d in conv.dilation))] = conv.weight
    sizes = [max(points, -(-length // s)) for length, s in zip(spread, conv.stride, strict=True)]
    symbol = torch.fft.fftn(weight, s=[n * s for n, s in zip(sizes, conv.stride, strict=True)], dim=tuple(axes))
    folded = symbol.unflatten(0, (conv.groups, -1))
    for axis, (n, s) in enumerate(zip(sizes, conv.stride, strict=True)):
        folded = folded.unflatten(3 + 2 * axis, (s, n))
    frequencies = [4 + 2 * axis for axis in range(len(sizes))]
    aliases = [3 + 2 * axis for axis in range(len(sizes))]
    matrices = folded.permute(0, *frequencies, 1, 2, *aliases).flatten(-1 - len(sizes)) / math.sqrt(
        math.prod(conv.stride)
    )
    return float(torch.linalg.svdvals(matrices).max())


@st.composite
def convolutions(
    draw: st.DrawFn, modes: tuple[str, ...] = ("zeros", "zeros", "circular", "reflect", "replicate")
) -> Conv:
    axes = draw(st.sampled_from([1, 2, 2, 3]))
    small = st.integers

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(small(low, high)) for _ in range(axes))

    mode = draw(st.sampled_from(modes))
    size = each(1, 6 if axes < 3 else 3)
    pads = tuple((draw(small(0, 4)), draw(small(0, 4))) for _ in range(axes))
    if mode != "zeros":  # torch itself allows no more
        pads = tuple((min(a, n - 1), min(b, n - 1)) for (a, b), n in zip(pads, size, strict=True))
    groups = draw(small(1, 3))
    shape = (groups * draw(small(1, 3)), draw(small(1, 3)), *each(1, 4))
    generator = torch.Generator().manual_seed(draw(small(0, 10**6)))
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):  # kernels of one sign peak at frequency zero
        weight = weight.abs()
    conv = Conv(weight, size, each(1, 3), pads, each(1, 3), groups, mode)
    assume(min(conv.output_size) >= 1)
    return conv


def layer(weight: list, size: tuple[int, ...], **settings: object) -> Conv:
    """A convolution from nested lists, with torch's defaults."""
    tensor = torch.tensor(weight, dtype=torch.float64)
    axes = len(size)
    padding = settings.pop("padding", 0)
    defaults = {"stride": (1,) * axes, "padding": ((padding, padding),) * axes, "dilation": (1,) * axes}
    return Conv(tensor, size, **{**defaults, **settings})
