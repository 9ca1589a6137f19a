"""Rules over ranges: against the steepest slope that ascent finds in the domain, and against known constants."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import samples_bounded
import torch
from samples import Net, composed
from torch import nn
from torch.nn import functional

from lipaudit.certification.margins import ErrorRecursion
from lipaudit.certification.network_bound import Composition, compose
from lipaudit.domains.graph import evaluate
from lipaudit.domains.lipschitz.propagator import ROOM
from lipaudit.domains.rounding import float64
from lipaudit.errors import CaptureError, NotLipschitz, UnsupportedOp

F = functional
IMAGE = (2, 6, 6)
TOKENS = (5, 6)
Function = Callable[[torch.Tensor], torch.Tensor]


def image(function: Function) -> nn.Module:
    return Net(function, IMAGE)


def squeeze_and_excitation() -> nn.Module:
    conv, down, up = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def function(x: torch.Tensor) -> torch.Tensor:
        y = F.silu(conv(x))
        return y * torch.sigmoid(up(F.relu(down(y.mean((2, 3), keepdim=True)))))

    return Net(function, (2, 5, 5), conv, down, up)


def gated_unit() -> nn.Module:
    value, gate = nn.Linear(6, 8), nn.Linear(6, 8)
    return Net(lambda x: F.silu(value(x)) * gate(x), TOKENS, value, gate)


def spatial_gate() -> nn.Module:
    """gMLP."""
    wide, norm, mix = nn.Linear(6, 12), nn.LayerNorm(6), nn.Linear(5, 5)

    def function(x: torch.Tensor) -> torch.Tensor:
        left, right = F.gelu(wide(x)).chunk(2, -1)
        return left * mix(norm(right).transpose(1, 2)).transpose(1, 2)

    return Net(function, TOKENS, wide, norm, mix)


def response_norm() -> nn.Module:
    """GRN, as in ConvNeXt V2."""
    layer = nn.Linear(2, 4)

    def function(x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(layer(x.permute(0, 2, 3, 1)))
        length = y.norm(p=2, dim=(1, 2), keepdim=True)
        return y + y * (length / (length.mean(-1, keepdim=True) + 1e-2))

    return Net(function, (2, 4, 4), layer)


def transformer() -> nn.Module:
    norm, qkv, mlp = nn.LayerNorm(6, eps=1e-2), nn.Linear(6, 18), nn.Sequential(nn.Linear(6, 9), nn.GELU())

    def function(x: torch.Tensor) -> torch.Tensor:
        query, key, value = qkv(norm(x)).reshape(len(x), 5, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(len(x), 5, 6)
        return mlp(norm(x))

    return Net(function, TOKENS, norm, qkv, mlp)


def windows(cosine: bool) -> nn.Module:
    """Swin: shifted windows, a relative bias, a mask; with `cosine`, normalised queries and keys."""
    layer = nn.Linear(6, 18)

    def function(x: torch.Tensor) -> torch.Tensor:
        bias = torch.linspace(-1, 1, 32).reshape(1, 2, 4, 4).to(x)
        mask = torch.zeros(4, 1, 4, 4).to(x)
        mask[2, 0, :2, 2:] = -100
        y = torch.roll(x, (-1, -1), (2, 3)).permute(0, 2, 3, 1)
        y = y.reshape(len(x), 2, 2, 2, 2, 6).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 6)
        query, key, value = layer(F.layer_norm(y, (6,), eps=1e-2)).reshape(-1, 4, 3, 2, 3).permute(2, 0, 3, 1, 4)
        if cosine:
            query, key = F.normalize(query, dim=-1, eps=0.1), F.normalize(key, dim=-1, eps=0.1)
        scores = (query * 3) @ key.transpose(-2, -1) + bias
        scores = (scores.view(-1, 4, 2, 4, 4) + mask[None]).view(-1, 2, 4, 4)
        return (scores.softmax(-1) @ value).transpose(1, 2).reshape(len(x), -1)

    return Net(function, (6, 4, 4), layer)


def linear_attention(kind: str) -> nn.Module:
    layer = nn.Linear(6, 18)

    def function(x: torch.Tensor) -> torch.Tensor:
        query, key, value = layer(x).chunk(3, -1)
        if kind == "relu":
            both = query.relu() @ (key.relu().transpose(1, 2) @ F.pad(value, (0, 1), value=1.0))
            return both[..., :-1] / (both[..., -1:] + 0.1)
        query, key = F.normalize(query, dim=1, eps=0.1), F.normalize(key, dim=1, eps=0.1)
        return value @ (query.transpose(1, 2) @ key * 2).softmax(-1)

    return Net(function, TOKENS, layer)


def multi_head() -> nn.Module:
    layer = nn.MultiheadAttention(6, 2, batch_first=True)
    return Net(lambda x: layer(x, x, x)[0], TOKENS, layer)


def dynamic_convolution() -> nn.Module:
    layer = nn.Linear(2, 2 * 3 * 9)

    def function(x: torch.Tensor) -> torch.Tensor:
        kernel = layer(x.mean((2, 3))).reshape(len(x) * 3, 2, 3, 3)
        return F.conv2d(x.reshape(1, -1, 6, 6), kernel, padding=1, groups=len(x)).reshape(len(x), 3, 6, 6)

    return Net(function, IMAGE, layer)


def written_out(kind: str) -> Function:
    """Normalisations that a model writes out in pieces."""

    def function(x: torch.Tensor) -> torch.Tensor:
        if kind == "layer":
            mean = x.mean(1, keepdim=True)
            return (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 0.01)
        if kind == "rms":
            return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 0.01)
        return x * torch.sigmoid(x) / (x.var((2, 3), unbiased=False, keepdim=True) + 0.01).sqrt()

    return function


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "products of images": lambda: image(lambda x: x * torch.tanh(x.flip(1)) + x * x[:, :1]),
    "matrix products": lambda: image(lambda x: torch.matmul(x, x.transpose(2, 3) - 0.5) @ x[:, :1]),
    "einsum": lambda: image(lambda x: torch.einsum("bchw,bcwk->bhk", x, x.flip(2))),
    "einsum with lone indices": lambda: image(lambda x: torch.einsum("bchw,bcwk->bc", x, x.flip(2))),
    "quotient of images": lambda: image(lambda x: (x.flip(1) - 0.5) / (x + 0.3)),
    "quotient by a sum": lambda: image(lambda x: (x - 0.5) / (x.sum((2, 3), keepdim=True) + 0.3)),
    "constant quotient": lambda: image(lambda x: torch.tensor(2.0) / (x + 0.3)),
    "unit vectors": lambda: image(lambda x: F.normalize(x - 0.5, dim=1, eps=0.1) + F.normalize(x + 0.5, dim=1)),
    "squeeze and excitation": squeeze_and_excitation,
    "gated unit": gated_unit,
    "spatial gate": spatial_gate,
    "response norm": response_norm,
    "transformer": transformer,
    "windows": lambda: windows(False),
    "cosine windows": lambda: windows(True),
    "linear attention": lambda: linear_attention("relu"),
    "cross-covariance": lambda: linear_attention("xcit"),
    "multi-head": multi_head,
    "dynamic convolution": dynamic_convolution,
    "layer norm in pieces": lambda: image(written_out("layer")),
    "RMS norm in pieces": lambda: image(written_out("rms")),
    "EvoNorm": lambda: image(written_out("evo")),
    "running instance norm": lambda: samples_bounded.running_instance_norm(Net),
}
SCALES = dict.fromkeys(("squeeze and excitation", "gated unit", "transformer", "windows"), (0.1, 1.0, 10.0))
CASES = [(name, scale) for name in ARCHITECTURES for scale in SCALES.get(name, (1.0,))]


@functools.cache
def built(name: str, scale: float) -> tuple[nn.Module, Composition]:
    """The architecture with all its weight matrices times `scale`, in double precision, and its composition."""
    torch.manual_seed(0)
    network = ARCHITECTURES[name]().eval()
    with torch.no_grad():
        for part in network.parts:
            for parameter in part.parameters():
                parameter.mul_(scale if parameter.ndim > 1 else 1.0)
    composition = compose(network, network.shape, domain=(0.0, 1.0))
    return network.double().requires_grad_(False), composition


def climbed_slope(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The steepest slope on the way of gradient ascent on |J^T u|, u the top singular vector, inside [0, 1]."""
    generator, steepest = torch.Generator().manual_seed(0), 0.0
    for start in range(3):
        x = torch.rand(shape, generator=generator, dtype=torch.float64)
        x = x.round() if start == 1 else x
        for _ in range(8):
            x = x.detach().requires_grad_()
            logits = model(x[None])[0]
            rows = [torch.autograd.grad(logit, x, retain_graph=True)[0].reshape(-1) for logit in logits]
            left, values, _ = torch.linalg.svd(torch.stack(rows), full_matrices=False)
            steepest = max(steepest, float(values[0]))
            (slope,) = torch.autograd.grad(logits @ left[:, 0], x, create_graph=True)
            if not slope.requires_grad:
                break
            (uphill,) = torch.autograd.grad(slope.square().sum(), x, materialize_grads=True)
            x = (x + 0.1 * uphill / uphill.abs().max().clamp_min(1e-300)).clamp(0, 1)
    return steepest


@pytest.fixture
def differentiable_attention() -> object:
    """The fused kernels have no second derivative."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


@pytest.mark.usefixtures("differentiable_attention")
@pytest.mark.parametrize(("name", "scale"), CASES)
def test_the_bound_of_an_architecture_is_above_the_slope_that_ascent_finds(name: str, scale: float) -> None:
    network, composition = built(name, scale)
    slope = climbed_slope(network, network.shape)

    assert 0 < slope <= composition.network.value < math.inf


@pytest.mark.usefixtures("differentiable_attention")
@pytest.mark.parametrize("op", sorted(set(samples_bounded.networks(Net)) - {"lstm.input"}))
def test_the_bound_of_a_rule_is_above_the_slope_that_ascent_finds(op: str) -> None:
    network, composition = composed(op)
    assert 0 < climbed_slope(network, network.shape) <= composition.network.value < math.inf


@pytest.mark.parametrize("case", [*CASES, *samples_bounded.networks(Net)], ids=str)
def test_rounding_covers_single_precision(case: tuple[str, float] | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_certificates.py, without the room for rounding that float32 would exceed."""
    composition = (composed(case) if isinstance(case, str) else built(*case))[1]
    monkeypatch.setattr(composition.ledger, "room", math.inf)
    monkeypatch.setattr(float64, "gamma", lambda n: n * 2.0**-24 * 1.02)
    recursion = ErrorRecursion(composition)
    for seed in range(3):
        x = torch.rand(composition.graph.input_shape, generator=torch.Generator().manual_seed(seed))
        _, allowed = recursion(x.double())
        lost = evaluate(composition.graph, x).double() - evaluate(composition.graph, x.double())
        assert float(lost.norm()) <= allowed < math.inf


class Plain(nn.Module):
    """A function followed by the identity, so that bound and truth can be compared."""

    def __init__(self, function: Function, outputs: int):
        super().__init__()
        self.function = function
        self.head = nn.Linear(outputs, outputs, bias=False)
        self.head.weight.data = torch.eye(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(x).flatten(1))


def known(function: Function, shape: tuple[int, ...], domain: tuple[float, float] | None = (0.0, 1.0)) -> float:
    with torch.no_grad():
        outputs = function(torch.full((1, *shape), 0.25)).numel()
    return compose(Plain(function, outputs).eval(), shape, domain=domain).network.value


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
    """Constants are given for one sample."""
    samples = max(len(x) for x in (query, key, value, options.get("attn_mask", query)))
    operands = [x.to(query.dtype).expand(samples, *x.shape[1:]) for x in (query, key, value)]
    return F.scaled_dot_product_attention(*operands, **options)


PAIR = torch.tensor([1.0, -1.0]).reshape(1, 1, 2, 1)
ONE = torch.ones(1, 1, 1, 1)
EXACT: dict[str, tuple[Function, tuple[int, ...], float]] = {
    # Two keys +-2 and values +-3: out = 3 tanh(0.5 * 2 q).
    "query": (lambda x: attend(x[:, None, None], 2 * PAIR, 3 * PAIR, scale=0.5), (1,), 3.0),
    # The scale of queries of four entries is 1/2 where none is given.
    "default scale": (
        lambda x: attend(x[:, None, None], F.pad(2 * PAIR, (0, 3)), 3 * PAIR), (4,), 3.0
    ),
    # out = 3 tanh(0.5 * 4 (k1 - k2) / 2), one query of length 4.
    "key": (lambda x: attend(4 * ONE, x[:, None, :, None], 3 * PAIR, scale=0.5), (2,), 3 * 0.5 * 4 / math.sqrt(2)),
    "mask": (lambda x: attend(ONE, PAIR, 3 * PAIR, attn_mask=x[:, None, None]), (2,), 3 / math.sqrt(2)),
    # One key: all five queries read the same value.
    "value": (lambda x: attend(ONE.expand(1, 1, 5, 1), ONE, x[:, None, None]), (1,), math.sqrt(5)),
    "shared value": (
        lambda x: attend(ONE.expand(1, 4, 1, 1), ONE, x[:, None, None], enable_gqa=True), (1,), 2.0
    ),
    "square": (lambda x: x * x, (3,), 2.0),
    "outer product": (lambda x: x[:, :1] * torch.tensor([[1.0, 2.0]]) * x[:, 1:2], (2,), 2 * math.sqrt(5)),
    "short vectors": (lambda x: F.normalize(x - 0.5, dim=1, eps=0.25), (3,), 4.0),
    "long vectors": (lambda x: F.normalize(x + 1, dim=1), (4,), 0.5),
    "layer norm": (lambda x: F.layer_norm(x, (4,), eps=0.04), (4,), 5.0),
    # Flattest at (0, 1, 1, 1): a standard deviation of sqrt(3) / 4 times the gap.
    "layer norm of a gap": (
        lambda x: F.layer_norm(x + 1e5 * torch.eye(4)[:1], (4,), eps=0.0), (4,), 4 / (99999 * math.sqrt(3))
    ),
    "RMS norm": (lambda x: F.rms_norm(x, (4,), eps=0.04), (4,), 5.0),
    "standard deviation": (lambda x: x.std(1, keepdim=True), (5,), 0.5),
    "variance": (lambda x: x.var(1, unbiased=False, keepdim=True), (4,), 0.5),
    "square root": (lambda x: torch.sqrt(x + 0.04), (3,), 2.5),
    "softmax": (lambda x: torch.softmax(x, 1), (2,), 0.5),
    "log-softmax": (lambda x: torch.log_softmax(1e3 * x, 1), (2,), 1e3 * math.sqrt(2)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_known_constants_are_met(name: str) -> None:
    """Each is the truth, so that nothing below it can be sound, and the rule gives no more."""
    function, shape, truth = EXACT[name]
    assert truth <= known(function, shape) <= truth * (1 + 10 * ROOM)


def test_softmax_is_sharper_where_no_probability_reaches_one_half() -> None:
    def flat(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(0.1 * x, 1)

    # All probabilities are at most 1 / (1 + 9 exp(-0.1)).
    assert known(flat, (10,)) <= 0.1 * 0.11
    assert known(flat, (10,), domain=None) == pytest.approx(0.05, rel=1e-6)


def test_normalisation_needs_no_domain() -> None:
    model = Plain(lambda x: F.group_norm(F.layer_norm(x, (4,)), 2), 8).eval()
    assert compose(model, (2, 4)).network.domain is None


def test_weights_of_a_normalisation_meet_those_that_follow() -> None:
    """A channel that is scaled up and then down again costs nothing."""
    norm, head = nn.LayerNorm(2, eps=0.01), nn.Linear(2, 2, bias=False)
    norm.weight.data = torch.tensor([100.0, 1.0])
    head.weight.data = torch.tensor([[0.01, 0.0], [0.0, 1.0]])
    bound = compose(nn.Sequential(norm, head).eval(), (2,)).network
    assert 10 <= bound.value <= 10 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x / (x - 0.5), "divisor stays away from 0"),
        (lambda x: torch.sqrt(x), "unbounded at 0"),
        (lambda x: torch.log(x), "unbounded at 0"),
        (lambda x: (x - 0.25) ** -1, "unbounded at 0"),
        (lambda x: F.layer_norm(x, (4,), eps=0.0), "give it an eps"),
        (lambda x: F.rms_norm(x, (4,), eps=0.0), "give it an eps"),
    ],
)
def test_what_is_unbounded_in_the_domain_is_refused(function: Function, reason: str) -> None:
    with pytest.raises(NotLipschitz, match=reason):
        compose(Plain(function, 4).eval(), (4,), domain=(0.0, 1.0))


@pytest.mark.parametrize("function", [torch.exp, lambda x: torch.exp(x) * x.exp().exp()])
def test_ranges_beyond_float64_are_refused(function: Function) -> None:
    """By its ranges, or before, where the network itself overflows at an end of the domain."""
    with pytest.raises((NotLipschitz, CaptureError), match=r"to be bounded|expected finite logits"):
        compose(Plain(function, 4).eval(), (4,), domain=(0.0, 1e4))


def test_products_without_a_domain_are_refused_with_the_remedy() -> None:
    with pytest.raises(NotLipschitz, match=r"domain=\(0, 1\)"):
        compose(Plain(lambda x: x * torch.tanh(x), 4).eval(), (4,))


def test_states_of_an_lstm_are_refused() -> None:
    layer = nn.LSTM(4, 3, batch_first=True)
    model = Net(lambda x: layer(x)[1][0].transpose(0, 1), (5, 4), layer).eval()
    with pytest.raises(UnsupportedOp, match="output sequence"):
        compose(model, (5, 4))
