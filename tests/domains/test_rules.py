"""Every Lipschitz rule against the steepest slope of a small network that uses it, and against its schema."""

from __future__ import annotations

import pytest
import torch
from samples import NETWORKS, composed
from torch import nn

from lipaudit.composition import compose
from lipaudit.domains import roundoff
from lipaudit.domains.lipschitz import RULES
from lipaudit.domains.lipschitz.value import Value
from lipaudit.domains.walk import Rules
from lipaudit.errors import NotLipschitz, RuleError, UnsupportedOp


def steepest_slope(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest norm of the Jacobian (float64) at random points of different sizes."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for scale in (0.3, 1.0, 3.0):
        for _ in range(4):
            x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            jacobian = torch.func.jacrev(lambda z: model(z[None])[0])(x)
            largest = max(largest, float(torch.linalg.svdvals(jacobian.reshape(4, -1))[0]))
    return largest


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("op", NETWORKS)
def test_bound_is_above_the_steepest_slope(op: str) -> None:
    network, composition = composed(op)

    assert composition.network.value >= steepest_slope(network, network.shape)


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
    aliases = {"_softmax.default"}
    assert set(RULES) - aliases <= set(NETWORKS)
    assert set(NETWORKS) <= set(RULES)
    assert set(RULES) - aliases <= set(roundoff.RULES) | roundoff.EXACT


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
    model = Model(lambda x: torch.erf(torch.sin(x)) + torch.sin(x)).eval()
    with pytest.raises(UnsupportedOp, match=r"sin.default x2 .*erf.default x1 .*test_rules.py"):
        compose(model, (8,))


def test_products_of_activations_are_refused_by_name() -> None:
    with pytest.raises(NotLipschitz, match="product of two values"):
        compose(Model(lambda x: x * torch.sigmoid(x)).eval(), (8,))
    with pytest.raises(NotLipschitz, match="divisor depends"):
        compose(Model(lambda x: x / (1 + torch.relu(x))).eval(), (8,))
