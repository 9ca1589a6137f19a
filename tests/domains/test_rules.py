"""Every Lipschitz rule against the steepest slope of a small network that uses it, and against its schema."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from samples import NETWORKS, composed
from torch import nn

from lipaudit.certification.network_bound import compose
from lipaudit.domains.interpreter import Rules
from lipaudit.domains.lipschitz import RULES
from lipaudit.domains.lipschitz.pointwise import JUMPS
from lipaudit.domains.lipschitz.propagator import Value
from lipaudit.domains.rounding import float64
from lipaudit.errors import NotLipschitz, RuleError, UnsupportedOp


def steepest_slope(model: nn.Module, shape: tuple[int, ...], domain: tuple[float, float] | None = None) -> float:
    """The largest norm of the Jacobian (float64) at random points of different sizes, in the domain if there is one."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for scale in (0.3, 1.0, 3.0):
        for _ in range(4):
            x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            x = x if domain is None else (x + 0.5).clamp(*domain)
            logits = model(x.requires_grad_()[None])[0]
            # Row by row: the faster vmap warns about every operation that it has no rule for.
            rows = [torch.autograd.grad(logit, x, retain_graph=True)[0].reshape(-1) for logit in logits]
            largest = max(largest, float(torch.linalg.svdvals(torch.stack(rows))[0]))
    return largest


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("op", NETWORKS)
def test_bound_is_above_the_steepest_slope(op: str) -> None:
    network, composition = composed(op)

    assert composition.network.value >= steepest_slope(network, network.shape, composition.network.domain)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_the_samples_really_use_their_operation() -> None:
    """Except where the export writes one operation as another (`EXPORTED_AS`)."""
    exported_as = {
        "reshape.default": "view.default",
        "flatten.using_ints": "view.default",
        "t.default": "linear.default",
        "chunk.default": "split.Tensor",
        "relu6.default": "hardtanh.default",
    }
    for op in NETWORKS:
        seen = {node.op for node in composed(op)[1].graph.nodes}
        assert seen & {op, exported_as.get(op, op)}, (op, seen)


def test_every_rule_has_a_sample_and_a_rounding_rule() -> None:
    aliases = {"_softmax.default", "_prelu_kernel.default", *JUMPS}
    assert set(RULES) - aliases <= set(NETWORKS)
    assert set(NETWORKS) <= set(RULES)
    assert set(RULES) - aliases <= set(float64.RULES) | float64.EXACT


def test_every_rule_states_its_claim() -> None:
    for op in RULES:
        assert len(RULES.claim(op)) > 15, op


def test_a_rule_that_leaves_an_argument_out_is_refused() -> None:
    rules = Rules("rule")
    with pytest.raises(RuleError, match="expected the arguments"):

        @rules.rule("leaky_relu.default")
        def forgetful(node: object, ledger: object, self: Value) -> Value:
            """Forgets the slope."""
            del node, ledger
            return self


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(x))


def test_unknown_operations_are_listed_with_their_layers() -> None:
    model = Model(lambda x: torch.lgamma(torch.special.i0e(x)) + torch.special.i0e(2 * x)).eval()
    with pytest.raises(UnsupportedOp, match=r"i0e.default x2 .*lgamma.default x1 .*test_rules.py"):
        compose(model, (8,))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.tanh(x),
        lambda x: x * torch.sigmoid(x + 1),
        lambda x: x * torch.sigmoid(x.flip(1)),
        lambda x: x / (1 + torch.relu(x)),
        lambda x: x / (1 + x.flip(1).abs()),
    ],
)
def test_products_and_quotients_of_activations_need_a_domain(function: Callable) -> None:
    with pytest.raises(NotLipschitz, match="give the range of the network input"):
        compose(Model(function).eval(), (8,))


@pytest.mark.parametrize(
    "function",
    [
        torch.floor,
        torch.round,
        torch.sign,
        lambda x: x - torch.ceil(x),
        lambda x: torch.fmod(x, 0.3),
        lambda x: torch.remainder(x, 0.3),
        lambda x: torch.div(x, 0.3, rounding_mode="floor"),
        lambda x: nn.functional.threshold(x, 0.1, 0.0),
        lambda x: nn.functional.softplus(x, threshold=0.1),
        lambda x: nn.functional.softplus(x, beta=100.0, threshold=1.0),
    ],
)
def test_what_jumps_is_refused_with_that_reason(function: Callable) -> None:
    with pytest.raises(NotLipschitz, match=r"jumps.*test_rules.py"):
        compose(Model(function).eval(), (8,))


def test_an_average_over_a_negative_divisor_is_refused_by_name() -> None:
    class Negative(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(x, 2, divisor_override=-1).flatten(1)

    with pytest.raises(UnsupportedOp, match=r"divisor_override above 0 in avg_pool2d.default .*, got -1"):
        compose(Negative().eval(), (1, 4, 4))
