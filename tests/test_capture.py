"""Capture: the graph is the network, and what cannot be certified is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lipaudit.capture import capture
from lipaudit.errors import CaptureError
from lipaudit.graph import evaluate


class Model(nn.Module):
    def __init__(self, function=lambda model, x: model.head(x)):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("counter", torch.zeros(()))
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def counting(model: Model, x: torch.Tensor) -> torch.Tensor:
    model.counter += 1
    return model.head(x)


def branching(model: Model, x: torch.Tensor) -> torch.Tensor:
    return model.head(x) if x.sum() > 2 else model.head(-x)


def swallowed_branch(model: Model, x: torch.Tensor) -> torch.Tensor:
    try:
        big = bool(x.sum() > 2)
    except Exception:  # noqa: BLE001  (user code like this exists; the export then takes the wrong branch)
        return model.head(x) * 100
    return model.head(x) if big else model.head(-x)


REFUSED = {
    "branch on a value": (branching, "do not depend on values"),
    "branch inside try": (swallowed_branch, "compute what the model computes|number taken from the input"),
    "random": (
        lambda model, x: model.head(functional.dropout(x, 0.5)),
        "same answer twice|deterministic|not to depend",
    ),
    "samples mixed": (lambda model, x: model.head(x - x.mean(0)), "not to depend on the others"),
    "writes to itself": (counting, "write to itself"),
    "batch statistics": (
        lambda model, x: model.head(functional.batch_norm(x, None, None, training=True)),
        "depend|run on",
    ),
    "not logits": (lambda model, x: model.head(x)[:, None], "logits of shape"),
    "two outputs": (lambda model, x: (model.head(x), x), "logits of shape"),
    "NaN": (lambda model, x: model.head(x) / 0 * 0, "finite logits"),
    "constant": (lambda model, x: model.head(torch.zeros_like(x)), "depend on the input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(CaptureError, match=reason):
        capture(Model(function).eval(), (6,))


def test_train_mode_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"eval mode, got 3 modules .*call model\.eval\(\)"):
        capture(Model(), (6,))


def test_wrong_input_shape_is_one_line() -> None:
    with pytest.raises(CaptureError, match="inputs of shape") as caught:
        capture(Model().eval(), (7,))
    assert "\n" not in str(caught.value)


def test_the_model_is_left_alone() -> None:
    model = Model(lambda m, x: m.head(m.norm(x))).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    capture(model, (6,))

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_names_sources_and_identities() -> None:
    def function(model: Model, x: torch.Tensor) -> torch.Tensor:
        return model.head(functional.dropout(model.norm(x).clone().detach(), 0.5, training=False))

    graph = capture(Model(function).eval(), (6,))

    assert [node.op for node in graph.nodes] == ["_native_batch_norm_legit_no_training.default", "linear.default"]
    assert [node.layer for node in graph.nodes] == ["norm", "head"]
    assert all(node.source.startswith("test_capture.py:") for node in graph.nodes)
    assert [node.shape for node in graph.nodes] == [(1, 6), (1, 3)]


def test_constants_are_folded_with_the_weights_that_run() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)).eval()
    graph = capture(layer, (6,))

    assert [node.op for node in graph.nodes] == ["linear.default"]
    assert torch.equal(graph.nodes[0].args["weight"], layer.weight.detach())


def test_evaluation_after_permute_and_view() -> None:
    """A view in the export may meet other strides in float64 evaluation."""
    model = Model(lambda m, x: m.head(x.view(-1, 2, 3).permute(0, 2, 1).contiguous().view(-1, 6))).eval()
    x = torch.rand(6)
    torch.testing.assert_close(evaluate(capture(model, (6,)), x), model(x[None])[0])


def test_dead_code_is_dropped_and_shared_modules_are_counted_each_time() -> None:
    def function(model: Model, x: torch.Tensor) -> torch.Tensor:
        _ = torch.sin(x)
        return model.head(model.norm(model.norm(x)))

    assert [node.layer for node in capture(Model(function).eval(), (6,)).nodes] == ["norm", "norm", "head"]
