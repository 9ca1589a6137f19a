"""Layers in the Fourier domain: never below the norm of the matrix that runs, and 1 for orthogonal ones."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from quick import mostly_slow
from torch import nn
from torch.nn import functional

import lipaudit
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import Graph, call, evaluate
from lipaudit.domains.rounding.float64 import local_error
from lipaudit.errors import LipauditError, UnsupportedOp
from lipaudit.graph.capture import capture


def constant(draw: random.Random, *shape: int) -> torch.Tensor:
    """Numbers that look like random ones, made without a generator: torch.export knows none."""
    first = draw.uniform(1, 2)
    angles = [torch.arange(int(np.prod(shape))) * (k * first) + first for k in (12.9898, 78.233)]
    return torch.complex(*(torch.sin(angle) * 1.4 for angle in angles)).reshape(shape)


class Layer(nn.Module):
    """A transform, some steps on complex numbers, and a way back: as a seed has it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        draw = random.Random(seed)
        self.shape = (draw.choice([2, 3]), draw.choice([3, 4, 5]), draw.choice([2, 4, 5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        draw = random.Random(self.seed + 1)
        norms = [None, "backward", "ortho", "forward"]
        norm, back = draw.choice(norms), draw.choice(norms)
        enter = draw.choice(["rfft2", "rfft2", "rfft2", "fft2", "rfft then fft", "rfft", "rfftn", "pair", "complex"])
        if enter == "rfft2":
            sizes = draw.choice([None, None, (x.shape[2] + 1, x.shape[3] - 1)])
            z = torch.fft.rfft2(x, s=sizes, norm=norm)
        elif enter == "fft2":
            z = torch.fft.fft2(x, norm=norm)
        elif enter == "rfft then fft":
            z = torch.fft.fft(torch.fft.rfft(x, norm=norm), dim=2)
        elif enter == "rfft":
            z = torch.fft.rfft(x, dim=draw.choice([1, 2, 3]), norm=norm)
        elif enter == "rfftn":
            z = torch.fft.rfftn(x, dim=(1, 2, 3), norm=norm)
        elif enter == "pair":
            z = torch.view_as_complex(torch.stack([x, 2 * x], -1))
        else:
            z = torch.fft.ifft(torch.complex(x, torch.ones_like(x)) * 1j, dim=2, norm=norm)
        for _ in range(draw.choice([0, 1, 2, 3])):
            z = self.step(z, draw)
        leave = draw.choice(["irfft2", "irfft2", "irfft2 sized", "real", "imag", "parts", "in turn", "irfft", "both"])
        if z.shape[-1] == 1 and leave == "irfft2":
            leave = "real"
        if leave == "irfft2":
            return torch.fft.irfft2(z, norm=back).flatten(1)
        if leave == "irfft2 sized":
            sizes = (z.shape[2] - draw.choice([0, 1]), 2 * z.shape[3] - draw.choice([1, 2, 3]))
            return torch.fft.irfft2(z, s=(max(1, sizes[0]), max(1, sizes[1])), norm=back).flatten(1)
        if leave == "in turn":
            return torch.fft.irfft(torch.fft.ifft(z, dim=2, norm=back), n=2 * z.shape[3] - 1).flatten(1)
        if leave == "irfft":
            return torch.fft.irfft(z, n=draw.choice([2, 3, 5]), dim=draw.choice([1, 2, 3]), norm=back).flatten(1)
        if leave == "parts":
            return torch.view_as_real(z.resolve_conj()).flatten(1)
        if leave == "both":
            return torch.cat([z.real, torch.fft.ifft2(z).imag], 1).flatten(1)
        return (z.real if leave == "real" else torch.fft.ifft2(z, norm=back).imag).flatten(1)

    def step(self, z: torch.Tensor, draw: random.Random) -> torch.Tensor:
        n, c, h, w = z.shape
        kind = draw.choice(
            ["frequencies", "frequencies", "einsum", "channels", "across", "times", "conj", "moved", "reflection",
             "again", "sum", "left", "joined", "cut"]
        )  # fmt: skip
        if kind == "frequencies":  # as Cayley layers have it
            out = draw.choice([1, 2, 3])
            y = constant(draw, h * w, out, c) @ z.permute(2, 3, 1, 0).reshape(h * w, c, n)
            return y.reshape(h, w, out, n).permute(3, 2, 0, 1)
        if kind == "einsum":
            return torch.einsum("oihw,nihw->nohw", constant(draw, 2, c, h, w), z)
        if kind == "channels":
            return torch.einsum("oi,nihw->nohw", constant(draw, 2, c), z)
        if kind == "across":  # over an axis of frequencies
            return constant(draw, h, h) @ z if draw.random() < 0.5 else z @ constant(draw, w, w)
        if kind == "times":
            return z * constant(draw, h, w) / constant(draw, c, 1, 1) * (1 - 2j)
        if kind == "conj":
            return z.conj() if draw.random() < 0.5 else -z
        if kind == "moved":
            return draw.choice([lambda: z.flip(3), lambda: z.roll(1, 2), lambda: z.transpose(2, 3)])()
        if kind == "reflection":
            v = constant(draw, h, w, c, 1)
            y = z.permute(2, 3, 1, 0)
            y = y - 2 * v @ (torch.linalg.inv(v.mH @ v) @ (v.mH @ y))
            return y.permute(3, 2, 0, 1)
        if kind == "again":
            return torch.fft.fft2(z) if draw.random() < 0.5 else torch.fft.ifft(z, dim=1)
        if kind == "sum":
            return torch.add(z, draw.choice([lambda: z.conj(), lambda: 2j * z, lambda: z.flip(2)])(), alpha=0.5) + 1j
        if kind == "left":
            return torch.matmul(z.permute(0, 2, 3, 1), constant(draw, c, c)).permute(0, 3, 1, 2)
        if kind == "joined":
            return torch.cat([z, z.conj() * 0.5 if draw.random() < 0.5 else z * 3], 1)
        return z[:, :, 1:] if h > 1 else z


def matrix(graph: Graph, shape: tuple[int, ...]) -> torch.Tensor:
    zero = torch.zeros(shape, dtype=torch.float64)
    basis = torch.eye(zero.numel(), dtype=torch.float64).reshape(-1, *shape)
    base = evaluate(graph, zero)
    return torch.stack([evaluate(graph, e) - base for e in basis], 1)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3, 4))])
def test_the_bound_is_never_below_the_norm(part: int) -> None:
    bounded = close = 0
    for seed in range(part * 14, part * 14 + 14):
        layer = Layer(seed).eval()
        composition = compose(layer, layer.shape)
        truth = float(torch.linalg.matrix_norm(matrix(composition.graph, layer.shape), 2))
        assert truth <= composition.network.value * (1 + 1e-12), seed
        bounded += any(line.upper.method == "fourier" for line in composition.network.layers)
        close += composition.network.value <= 1.01 * truth
    assert bounded >= 12
    assert close >= 4


def cayley(w: torch.Tensor) -> torch.Tensor:
    """(frequencies, out, in), out >= in: with orthonormal columns."""
    u, v = w[:, : w.shape[2]], w[:, w.shape[2] :]
    one = torch.eye(w.shape[2], dtype=w.dtype)
    skew = u - u.mH + v.mH @ v
    inverse = torch.linalg.inv(one + skew)
    return torch.cat([inverse @ (one - skew), -2 * v @ inverse], 1)


class Orthogonal(nn.Module):
    """Convolutions that are orthogonal for each frequency."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.kind, self.shape = kind, (3, size, size)
        generator = torch.Generator().manual_seed(size)
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator))
        self.psi = nn.Parameter(torch.randn(4, 1, 1, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[-1]
        z = torch.fft.rfft2(x)
        if self.kind == "reflection":  # BRO
            v = torch.fft.rfft2(self.weight[:2], (n, n)).permute(2, 3, 1, 0)
            z = z.permute(2, 3, 1, 0)
            z = z - 2 * v @ torch.linalg.solve(v.mH @ v, v.mH) @ z
            return torch.fft.irfft2(z.permute(3, 2, 0, 1), s=(n, n)).flatten(1)
        w = torch.fft.rfft2(self.weight, (n, n)).reshape(4, 3, -1).permute(2, 0, 1).conj()
        z = z.permute(2, 3, 1, 0).reshape(-1, 3, x.shape[0])
        if self.kind == "root":  # LOT
            values, vectors = torch.linalg.eigh(w.mH @ w)
            w = w @ (vectors / values.sqrt()[:, None] @ vectors.mH)
        else:
            w = cayley(w)
        z = (w @ z).reshape(n, n // 2 + 1, 4, x.shape[0])
        return torch.fft.irfft2(z.permute(3, 2, 0, 1), s=(n, n)).flatten(1)


@pytest.mark.parametrize("size", mostly_slow((5, 6), 1))
@pytest.mark.parametrize("kind", ["cayley", "root", "reflection"])
def test_orthogonal_layers_have_the_bound_one(kind: str, size: int) -> None:
    layer = Orthogonal(kind, size).eval()
    assert 1.0 <= lipaudit.bound(layer, layer.shape).value <= 1 + 1e-4
    image = torch.rand(1, *layer.shape, generator=torch.Generator().manual_seed(1))
    found = lipaudit.certify(layer, image, local="on")
    assert float(found.radius[0]) > 0
    assert "fft" in lipaudit.certify(layer, image, arithmetic="native").why_not


def test_kernels_that_a_network_makes_in_half_precision() -> None:
    """ECO: kernels by the inverse transform of orthogonal matrices, rounded to float16; constants all of them."""
    generator = torch.Generator().manual_seed(0)
    skew = torch.randn(3, 3, 4, 4, generator=generator)
    skew = torch.fft.fft2(skew).permute(2, 3, 0, 1)
    kernel = nn.Parameter(torch.linalg.matrix_exp(skew - skew.mH))

    class Explicit(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            w = torch.fft.ifft2(kernel.permute(2, 3, 0, 1)).real.half().to(x.dtype)
            return functional.conv2d(functional.pad(x, (0, 3, 0, 3), mode="circular"), w).flatten(1)

    assert lipaudit.bound(Explicit().eval(), (3, 4, 4)).value == pytest.approx(1.0, abs=2e-3)


REFUSED = {
    "abs": lambda x: torch.fft.rfft2(x).abs(),
    "sum": lambda x: torch.fft.rfft2(x).sum(1, keepdim=True).real,
    "linalg_solve": lambda x: torch.linalg.solve(torch.eye(4, dtype=torch.cfloat), torch.fft.fft2(x)).real,
    "complex64": lambda x: torch.fft.rfft2(x.to(torch.complex64).real),
    "real activations": lambda x: (torch.fft.fft2(x) + x).real,
    "computed from the input": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.fft.rfft2(x.relu())),
    "several": lambda x: (torch.fft.fft2(x) + torch.fft.fft2(x.relu())).real,
    "hfft": lambda x: torch.fft.hfft(torch.fft.rfft(x)),
    "real numbers": lambda x: torch.exp(x * torch.ones(4, dtype=torch.cfloat)).real,
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_has_no_rule_is_refused_by_name(why: str) -> None:
    class Network(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return REFUSED[why](x).flatten(1)

    with pytest.raises(LipauditError):
        lipaudit.bound(Network().eval(), (2, 4, 4))


@pytest.mark.parametrize("seed", range(4))
def test_an_error_made_inside_grows_no_farther_than_the_ledger_says(seed: int) -> None:
    layer = Layer(seed * 7 + 2).eval()
    composition = compose(layer, layer.shape)
    generator = torch.Generator().manual_seed(seed)
    zero = torch.zeros(layer.shape, dtype=torch.float64)
    nodes = {node.name: node for node in composition.graph.nodes}
    undisturbed: dict[str, torch.Tensor] = {}
    evaluate(composition.graph, zero, visit=lambda node, _, output: undisturbed.update({node.name: output}))
    for line in composition.network.layers:
        if line.upper.method != "fourier":
            continue
        for name, factor in composition.ledger.growth()[line.step]:
            seen: dict[str, torch.Tensor] = {}

            def run(node, arguments, name=name, step=line.step, seen=seen):
                output = call(node, arguments)
                if node.name == name and node.name != step:
                    noise = torch.randn(*output.shape, 2, generator=generator, dtype=torch.float64)
                    seen["noise"] = torch.view_as_complex(noise) if output.is_complex() else noise[..., 0]
                    output = output + seen["noise"]
                seen[node.name] = output
                return output

            evaluate(composition.graph, zero, run=run)
            if "noise" in seen:
                off = float(torch.linalg.vector_norm(seen[line.step] - undisturbed[line.step]))
                moved = float(torch.linalg.vector_norm(seen["noise"]))
                assert off <= factor * moved * (1 + 1e-12), nodes[name].op


@pytest.mark.parametrize("length", mostly_slow((1, 8, 37, 2, 60, 101), 3))
@pytest.mark.parametrize("kind", ["fft", "ifft", "rfft", "irfft"])
def test_transforms_err_by_less_than_their_rule_says(kind: str, length: int) -> None:
    size = length // 2 + 1 if kind == "irfft" else length
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    z = x if kind == "rfft" else torch.complex(x, x.flip(1) * 2)
    if kind == "irfft":  # both are their own conjugates
        z[:, 0] = z[:, 0].real.to(z.dtype)
        if length % 2 == 0:
            z[:, -1] = z[:, -1].real.to(z.dtype)

    class Network(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x if kind == "rfft" else torch.complex(x, x)
            y = torch.fft.irfft(y, n=length) if kind == "irfft" else getattr(torch.fft, kind)(y)
            return (y if kind == "irfft" else y.real).flatten(1)

    graph = capture(Network().eval(), (3, size))
    (node,) = (node for node in graph.nodes if node.op == f"fft_{kind}.default")
    arguments = {**node.args, "self": z[None]}
    computed = call(node, arguments)
    error = local_error(node, arguments, computed)
    angle = (np.outer(np.arange(length), np.arange(length)) % length).astype(np.longdouble) * _two_pi() / length
    whole = z.numpy().astype(np.clongdouble)
    if kind == "irfft":
        rest = whole[:, 1 : length - length // 2].conj()[:, ::-1]
        whole = np.concatenate([whole, rest], 1)
    roots = np.cos(angle) + (1 if kind in ("ifft", "irfft") else -1) * 1j * np.sin(angle)
    exact = whole @ roots.T / (length if kind in ("ifft", "irfft") else 1)
    exact = exact[:, : length // 2 + 1] if kind == "rfft" else exact
    exact = exact.real if kind == "irfft" else exact
    off = np.linalg.norm((computed[0].numpy() - exact).astype(np.complex128))
    assert off <= error <= 1e-8


def _two_pi() -> np.longdouble:
    return 8 * np.arctan(np.longdouble(1))


def test_complex_numbers_have_a_bound_only_within_the_whole_layer() -> None:
    from lipaudit.domains.interpreter import walk
    from lipaudit.domains.lipschitz import RULES, Ledger, Value

    layer = Orthogonal("cayley", 4).eval()
    graph = capture(layer, layer.shape)
    with pytest.raises(UnsupportedOp, match="whole Fourier layer"):
        walk(graph, RULES, Value("input"), Ledger(graph, torch.device("cpu")))
