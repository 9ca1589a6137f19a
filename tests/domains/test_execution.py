"""Every operation: its execution in float32 stays within the proved error, or F is refused with its name."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from samples import NETWORKS, composed
from torch import nn

from lipaudit.certification.executed import Execution
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import evaluate, in_dtype
from lipaudit.domains.rounding.float64 import EXACT
from lipaudit.domains.rounding.native import SIZES, Format


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("op", NETWORKS)
def test_execution_in_float32_is_bounded_or_refused(op: str) -> None:
    _, composition = composed(op)
    execution = Execution(composition, ("native", "float64"))
    if execution.why["native"]:
        assert execution.why["float64"] or "rounded in float32" in execution.why["native"]
        assert "(" in execution.why["native"] or "ranges" in execution.why["native"], "the reason names the layer"
        return
    assert all(node.op in EXACT or node.op in SIZES for node in composition.graph.nodes)
    generator = torch.Generator().manual_seed(0)
    in_float32 = in_dtype(composition.graph, torch.float32)
    for x in torch.rand(2, *composition.graph.input_shape, generator=generator):
        bounds = execution.around(x)
        assert bounds["float64"].whole.a < bounds["native"].whole.a < math.inf
        for radius in (0.0, 5.0):
            step = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            moved = (x.double() + radius * step / step.norm()).float()
            reach = float((moved.double() - x.double()).norm()) * (1 + 1e-12)
            own = execution.around(moved)["float64"].whole.a
            off = evaluate(in_float32, moved).double() - evaluate(composition.graph, moved.double())
            assert float(off.norm()) + own <= bounds["native"].whole.at(reach)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_most_operations_without_library_functions_are_known() -> None:
    """So that a rule that is lost does not go unnoticed: refusing is always sound."""
    charged = {
        "conv1d.default", "conv2d.default", "conv3d.default", "conv2d.padding", "conv_transpose2d.input",
        "linear.default", "_native_batch_norm_legit_no_training.default", "avg_pool2d.default",
        "adaptive_avg_pool2d.default", "mean.dim", "sum.dim_IntList", "max_pool2d.default", "relu.default",
        "leaky_relu.default", "prelu.default", "hardswish.default", "hardsigmoid.default", "sort.default",
        "cat.default", "slice.Tensor", "maximum.default", "add.Scalar", "sub.Scalar", "rsub.Scalar",
    }  # fmt: skip
    library = {"gelu.default", "softmax.int", "sigmoid.default", "layer_norm.default"}
    assert {op for op in charged | library if not Execution(composed(op)[1], ("native",)).why["native"]} == charged


@pytest.mark.parametrize(
    ("dtype", "unit", "smallest", "largest"),
    [
        (torch.float64, 2.0**-53, 2.0**-1074, 1.7976931348623157e308),
        (torch.float32, 2.0**-24, 2.0**-149, 3.4028234663852886e38),
        (torch.float16, 2.0**-11, 2.0**-24, 65504.0),
        (torch.bfloat16, 2.0**-8, 2.0**-133, 3.3895313892515355e38),
    ],
)
def test_formats(dtype: torch.dtype, unit: float, smallest: float, largest: float) -> None:
    form = Format(dtype)
    assert (form.unit, form.smallest, form.largest) == (unit, smallest, largest)
    assert form.gamma(3) >= 3 * unit / (1 - 3 * unit)
    assert form.gamma(math.ceil(0.5 / unit)) == math.inf
    assert form.holds(0.5)
    assert form.holds(-math.inf)
    assert form.holds(0.1) is (dtype is torch.float64)
    assert not form.normal(1e-320)


def test_a_sum_that_is_not_charged_for_its_terms_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with one rounding instead of all, executions leave the bound."""
    _, composition = composed("linear.default")
    monkeypatch.setattr(Format, "gamma", lambda form, roundings: form.unit * 0.01 * min(roundings, 1))
    execution, outside = Execution(composition, ("native",)), 0
    in_float32 = in_dtype(composition.graph, torch.float32)
    for x in torch.rand(20, 6, generator=torch.Generator().manual_seed(0)):
        off = evaluate(in_float32, x).double() - evaluate(composition.graph, x.double())
        outside += float(off.norm()) > execution.around(x)["native"].whole.a
    assert outside > 10


def test_a_network_is_not_touched() -> None:
    network, composition = composed("conv2d.default")
    before = copy.deepcopy(network.state_dict())
    Execution(composition, ("native", "float64")).around(torch.rand(composition.graph.input_shape))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Shifted(nn.Module):
    """Whole numbers that float32 does not hold, added to logits."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.dense = nn.Linear(1, 2, bias=False).requires_grad_(False)
        self.dense.weight.copy_(torch.tensor([[1.0], [0.0]]))
        self.register_buffer("shift", torch.tensor([shift, 0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x) + self.shift


def test_whole_numbers_are_rounded_to_the_format_before_they_are_added() -> None:
    network, x = Shifted(2**24 + 1).eval(), torch.tensor([1.0])
    found = Execution(compose(network, (1,)), ("native",)).around(x)["native"]
    off = 1 + 2**24 + 1 - float(network(x[None])[0, 0])
    assert off == 2
    assert found.whole.a >= off


def test_whole_numbers_that_the_format_does_not_hold_are_refused_where_nothing_is_charged() -> None:
    network = Shifted(2**24 + 1).eval()
    network.forward = lambda x: torch.maximum(network.dense(x), network.shift)
    assert (
        "1.67772e+07 in maximum is rounded in float32" in Execution(compose(network, (1,)), ("native",)).why["native"]
    )
