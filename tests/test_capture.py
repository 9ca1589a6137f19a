"""Capture: the graph is the network, and what cannot be certified is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import samples
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lipaudit.domains.graph import Graph, Node, Ref, call, evaluate
from lipaudit.errors import CaptureError
from lipaudit.graph.capture import capture, outline
from lipaudit.graph.trials import HIDES_NAN, plain_kernels
from lipaudit.graph.wrappers import Normalised


class Model(nn.Module):
    def __init__(self, function=lambda model, x: model.head(x), *parts: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("counter", torch.zeros(()))
        self.parts = nn.ModuleList(parts)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def ops(graph: Graph) -> list[str]:
    return [node.op.partition(".")[0] for node in graph.nodes]


def agrees(graph: Graph, model: nn.Module, shape: tuple[int, ...] = (6,)) -> bool:
    """Whether the graph and the model give the same logits, on an input that capture has not seen."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return torch.allclose(evaluate(graph, x), model(x[None])[0], atol=1e-5)


# --- what cannot be certified


def counting(model: Model, x: torch.Tensor) -> torch.Tensor:
    model.counter += 1
    return model.head(x)


def branching(model: Model, x: torch.Tensor) -> torch.Tensor:
    return model.head(x) if x.sum() > 2 else model.head(-x)


def branching_on_a_buffer(model: Model, x: torch.Tensor) -> torch.Tensor:
    return model.head(x) if model.counter == 0 else model.head(-x)


def swallowed_branch(model: Model, x: torch.Tensor) -> torch.Tensor:
    try:
        big = bool(x.sum() > 2)
    except Exception:  # noqa: BLE001  (user code like this exists; the export then takes the wrong branch)
        return model.head(x) * 100
    return model.head(x) if big else model.head(-x)


def scaled_by_a_number(model: Model, x: torch.Tensor) -> torch.Tensor:
    return model.head(x) * (x.sum() * 0).item()


def larger_with_gradients(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = model.head(x)
    return y if y.grad_fn is None else 2 * y


def masked(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[y < 0.3] = 0
    return model.head(y)


def autocasting(model: Model, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model.head(x).float()


def checking(model: Model, x: torch.Tensor) -> torch.Tensor:
    torch._assert(x.min() > -10, "too small")
    return model.head(x)


LOOKED = r"does not look at values, got a number taken from the input by item in the model \(test_capture\.py:\d+\)"

REFUSED = {
    "branch on a value": (branching, LOOKED),
    "branch inside try": (swallowed_branch, LOOKED),
    "branch on export": (
        lambda model, x: model.head(x) * (2 if torch.compiler.is_exporting() else 1),
        "compute what the model computes",
    ),
    "branch on compilation": (
        lambda model, x: model.head(x) * (2 if torch.compiler.is_compiling() else 1),
        "compute what the model computes",
    ),
    "branch on gradients": (larger_with_gradients, "with and without gradients"),
    "number from the input": (scaled_by_a_number, LOOKED),
    "check of values": (checking, LOOKED),
    "unused number": (lambda model, x: (x.sum().item(), model.head(x))[1], LOOKED),
    "numpy": (lambda model, x: model.head(x * torch.from_numpy(x.detach().numpy())), "taken from the input by numpy"),
    "mask": (masked, r"bool values computed from the input by lt\.Scalar in the model \(test_capture\.py:\d+\)"),
    "comparison": (lambda model, x: model.head(torch.where(x > 0.5, x, -x)), r"bool values .* by gt\.Scalar"),
    "cast of a mask": (lambda model, x: model.head((x > 0.5).float()), r"bool values .* by gt\.Scalar"),
    "argmax": (lambda model, x: model.head(functional.one_hot(x.argmax(1), 6).float()), LOOKED),
    "indices of a maximum": (
        lambda model, x: model.head(x.gather(1, x.max(1, keepdim=True).indices) * x),
        r"int64 values .* by max\.dim",
    ),
    "random": (lambda model, x: model.head(functional.dropout(x, 0.5)), "the model is random in eval mode"),
    "barely random": (
        lambda model, x: model.head(x + 1e-9 * torch.rand(6)),
        r"deterministic model, got random numbers by aten\.rand\.default in the model \(test_capture\.py:\d+\)",
    ),
    "barely dropout": (
        lambda model, x: model.head(x + 1e-9 * functional.dropout(x, 0.5)),
        "deterministic model, got random numbers by aten",
    ),
    "samples mixed": (lambda model, x: model.head(x - x.mean(0)), "not to depend on the others"),
    "samples mixed a little": (lambda model, x: model.head(x - 1e-9 * x.mean(0)), "a path from one to the other"),
    "samples mixed in reverse": (lambda model, x: model.head(x + 1e-9 * x.flip(0)), "a path from one to the other"),
    "samples mixed beyond a threshold": (
        lambda model, x: model.head(x + functional.relu(x.amax(0) - 99)),
        "a path from one to the other",
    ),
    "samples sorted": (lambda model, x: model.head(x.sort(0).values), "not to depend on the others"),
    "samples counted": (lambda model, x: model.head(x) * len(x), "not to depend on the others"),
    "samples joined": (lambda model, x: model.head(x.mean(0, keepdim=True)), "not to depend on the others"),
    "batch statistics": (
        lambda model, x: model.head(functional.batch_norm(x, None, None, training=True)),
        "depend|run on",
    ),
    "writes to itself": (counting, "write to itself in eval mode, got writes to counter"),
    "writes to its input": (lambda model, x: model.head(functional.relu(x, inplace=True)), "leaves its input alone"),
    "autocast": (autocasting, r"float32 throughout, got a cast to torch\.bfloat16"),
    "half precision": (lambda model, x: model.head(x.half().float()), r"got a cast to torch\.float16 in the model"),
    "not logits": (lambda model, x: model.head(x)[:, None], "logits of shape"),
    "two outputs": (lambda model, x: (model.head(x), x), "logits of shape"),
    "dictionary": (lambda model, x: {"logits": model.head(x)}, "logits of shape .*, got dict"),
    "NaN": (lambda model, x: model.head(x) / 0 * 0, "finite logits"),
    "constant": (lambda model, x: model.head(torch.zeros_like(x)), "depend on the input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    function, reason = REFUSED[name]

    with pytest.raises(CaptureError, match=reason) as caught:
        capture(Model(function).eval(), (6,))

    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "torch.export talks"


def test_train_mode_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"eval mode, got 4 modules .*call model\.eval\(\)"):
        capture(Model(), (6,))


def test_batch_norm_without_statistics_is_refused() -> None:
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    with pytest.raises(CaptureError, match="not to depend on the others"):
        capture(nn.Sequential(norm, nn.Flatten(), nn.Linear(18, 3)).eval(), (2, 3, 3))


def test_wrong_input_shape_is_one_line() -> None:
    with pytest.raises(CaptureError, match="inputs of shape") as caught:
        capture(Model().eval(), (7,))
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = Model().eval()
    model.stream = (number for number in range(3))
    with pytest.raises(CaptureError, match="can be copied, got TypeError"):
        capture(model, (6,))


# --- what is captured, and how


class StraightThrough(torch.autograd.Function):
    """Its gradient is not the truth; its forward is."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return gradient


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return gradient


def in_place(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y += 1
    y.mul_(2)
    y[:, :2] = x[:, 2:4]
    return model.head(y)


def without_gradients(model: Model, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.head(x.detach() * 2)


CAPTURED: dict[str, tuple[Callable[[Model, torch.Tensor], torch.Tensor], list[str]]] = {
    "dropout that is off": (lambda model, x: model.head(functional.dropout(x, training=False)), ["linear"]),
    "in place": (in_place, ["add", "mul", "slice", "slice_scatter", "linear"]),
    "straight-through gradient": (lambda model, x: model.head(StraightThrough.apply(x)), ["sign", "linear"]),
    "own gradient": (lambda model, x: model.head(Swish.apply(x)), ["sigmoid", "mul", "linear"]),
    "no gradient": (without_gradients, ["mul", "linear"]),
    "checkpoint": (lambda model, x: checkpoint(model.head, x, use_reentrant=False), ["linear"]),
    "shape only": (lambda model, x: model.head(x + x.new_ones(6) + torch.ones_like(x)), ["add", "add", "linear"]),
    "type of another": (lambda model, x: model.head((2 * x).type_as(x)), ["mul", "linear"]),
    "copied into": (lambda model, x: model.head(torch.empty_like(x).copy_(x)), ["linear"]),
    "more precision in between": (lambda model, x: model.head(x.double().float()), ["linear"]),
    "unused indices": (lambda model, x: model.head(x - x.max(1, keepdim=True).values), ["max", "sub", "linear"]),
    "instance norm": (
        lambda model, x: model.head(functional.instance_norm(x[:, None])[:, 0]),
        ["unsqueeze", "instance_norm", "select", "linear"],
    ),
    "a buffer read in Python": (branching_on_a_buffer, ["linear"]),
    "constant indices": (lambda model, x: model.head(x)[:, [2, 1, 0]], ["linear", "index"]),
}


@pytest.mark.parametrize("name", CAPTURED)
def test_captured_right(name: str) -> None:
    function, expected = CAPTURED[name]
    model = Model(function).eval()

    graph = capture(model, (6,))

    assert ops(graph) == expected
    assert agrees(graph, model)


def test_the_model_is_left_alone() -> None:
    model = Model(lambda m, x: m.head(m.norm(x))).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    capture(model, (6,))

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_attribute_cache_stays_as_it_was() -> None:
    """As in LeViT: torch.export would leave its own tensors in there."""

    def caching(model: Model, x: torch.Tensor) -> torch.Tensor:
        if "weight" not in model.cache:
            model.cache["weight"] = model.head.weight * 2
        return functional.linear(x, model.cache["weight"])

    model = Model(caching).eval()
    model.cache = {}
    graph = capture(model, (6,))

    assert model.cache == {}
    assert agrees(graph, model)


def test_constants_are_folded_with_the_weights_that_run() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)).eval()
    graph = capture(layer, (6,))

    assert ops(graph) == ["linear"]
    assert torch.equal(graph.nodes[0].args["weight"], layer.weight.detach())


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="deprecated"):
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    "normed",
    [nn.utils.spectral_norm, old_weight_norm, nn.utils.parametrizations.spectral_norm],
    ids=["old spectral_norm", "old weight_norm", "spectral_norm"],
)
def test_reparametrised_weights_are_constants(normed: Callable[[nn.Module], nn.Module]) -> None:
    model = Model(lambda m, x: m.head(m.parts[0](x)), normed(nn.Linear(6, 6))).eval()
    graph = capture(model, (6,))

    assert [(node.op, node.layer) for node in graph.nodes] == [
        ("linear.default", "parts.0"),
        ("linear.default", "head"),
    ]
    assert agrees(graph, model)


def test_weights_in_double_precision_are_kept() -> None:
    graph = capture(Model().double().eval(), (6,))
    assert graph.nodes[0].args["weight"].dtype == torch.float64


def tripled(module: nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    del module, given
    return output * 3


def one_more(module: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    del module
    return (given[0] + 1,)


def test_hooks_are_part_of_the_function() -> None:
    model = Model(lambda m, x: m.head(m.norm(x))).eval()
    model.norm.register_forward_hook(tripled)
    model.norm.register_forward_pre_hook(one_more)
    graph = capture(model, (6,))

    assert ops(graph) == ["add", "_native_batch_norm_legit_no_training", "mul", "linear"]
    assert agrees(graph, model)


class Attention(nn.Module):
    def __init__(self, part: nn.Module, **options: Any):
        super().__init__()
        self.part, self.head, self.options = part, nn.Linear(6, 3), options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = isinstance(self.part, nn.MultiheadAttention)
        y = self.part(x, x, x, **self.options)[0] if whole else self.part(x)
        return self.head(y.mean(1))


@pytest.mark.parametrize(
    ("make", "options", "has"),
    [
        (lambda: nn.MultiheadAttention(6, 2, batch_first=True), {}, "softmax"),
        (
            lambda: nn.MultiheadAttention(6, 2, batch_first=True),
            {"need_weights": False},
            "scaled_dot_product_attention",
        ),
        (lambda: nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), {}, "scaled_dot_product_attention"),
    ],
    ids=["attention", "attention without weights", "encoder layer"],
)
def test_the_fast_path_of_attention_is_not_in_the_graph(
    make: Callable[[], nn.Module], options: Mapping[str, Any], has: str
) -> None:
    """PyTorch runs these modules as one fused operation in eval mode without gradients."""
    torch.manual_seed(0)
    model = Attention(make(), **options).eval()
    graph = capture(model, (4, 6))

    assert has in ops(graph)
    assert not any("native_multi_head" in op or "transformer" in op for op in ops(graph))
    assert agrees(graph, model, (4, 6))


def test_evaluation_after_permute_and_view() -> None:
    """A view in the export may meet other strides in float64 evaluation."""
    model = Model(lambda m, x: m.head(x.view(-1, 2, 3).permute(0, 2, 1).contiguous().view(-1, 6))).eval()
    assert agrees(capture(model, (6,)), model)


def test_the_batch_may_be_flattened_as_long_as_samples_stay_apart() -> None:
    """Windows and heads are folded into the batch by many vision transformers."""
    model = Model(lambda m, x: m.head(x.view(-1, 2, 3).flip(1).reshape(len(x), 6))).eval()
    assert agrees(capture(model, (6,)), model)


# --- wrappers


def test_compiled_models_are_taken_as_they_were_written() -> None:
    model = Model(lambda m, x: m.head(m.parts[0](m.norm(x))), nn.Sequential(nn.Linear(6, 6))).eval()
    names = [node.layer for node in capture(model, (6,)).nodes]
    compiled = Model(model.function, torch.compile(nn.Sequential(nn.Linear(6, 6)))).eval()

    assert names == ["norm", "parts.0.0", "head"]
    assert [node.layer for node in capture(torch.compile(compiled), (6,)).nodes] == names
    assert isinstance(compiled.parts[0], torch._dynamo.OptimizedModule)


def test_a_model_compiled_in_place_is_captured() -> None:
    model = Model(lambda m, x: m.head(m.norm(x))).eval()
    model.compile()
    assert [node.layer for node in capture(model, (6,)).nodes] == ["norm", "head"]


def test_data_parallel_is_taken_off() -> None:
    model = nn.DataParallel(Model(lambda m, x: m.head(m.norm(x)))).eval()
    assert [node.layer for node in capture(model, (6,)).nodes] == ["norm", "head"]
    assert isinstance(model, nn.DataParallel)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "DataParallel"])
def test_a_hook_on_a_wrapper_is_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(Model().eval()).eval()
    model.register_forward_hook(tripled)
    with pytest.raises(CaptureError, match=r"expected no hooks on (OptimizedModule|DataParallel)"):
        capture(model, (6,))


# --- names


def test_names_sources_and_identities() -> None:
    def function(model: Model, x: torch.Tensor) -> torch.Tensor:
        return model.head(functional.dropout(model.norm(x).clone().detach(), 0.5, training=False))

    graph = capture(Model(function).eval(), (6,))

    assert [node.op for node in graph.nodes] == ["_native_batch_norm_legit_no_training.default", "linear.default"]
    assert [node.layer for node in graph.nodes] == ["norm", "head"]
    assert [node.title for node in graph.nodes] == ["norm", "head"]
    assert all(node.source.startswith("test_capture.py:") for node in graph.nodes)
    assert [node.shape for node in graph.nodes] == [(1, 6), (1, 3)]


def test_dead_code_is_dropped_and_shared_modules_are_counted_each_time() -> None:
    def function(model: Model, x: torch.Tensor) -> torch.Tensor:
        _ = torch.sin(x)
        return model.head(model.norm(torch.relu(model.norm(x))))

    graph = capture(Model(function).eval(), (6,))

    assert [node.layer for node in graph.nodes] == ["norm", "", "norm", "head"]
    assert graph.nodes[1].title == "relu"


def test_a_module_with_two_names_has_the_first() -> None:
    shared = nn.Linear(6, 6)
    model = Model(lambda m, x: m.head(m.parts[1](torch.relu(m.parts[0](x)))), shared, shared).eval()

    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    layers = [node.layer for node in capture(model, (6,)).nodes if node.op == "linear.default"]
    assert layers[0] == "parts.0"
    assert set(layers) <= names


def test_functions_have_the_name_of_the_module_that_calls_them() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.relu(self.inner(x))

    model = Model(lambda m, x: m.head(m.parts[0](x)), Block()).eval()
    graph = capture(model, (6,))
    assert [node.layer for node in graph.nodes] == ["parts.0.inner", "parts.0", "parts.0", "head"]


def test_the_normalisation_in_front_does_not_change_the_names() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 3))
    graph = capture(Normalised(nn.DataParallel(network), (0.5, 0.4), (0.2, 0.3)).eval(), (2, 4, 4))
    assert [node.layer for node in graph.nodes] == ["normalise", "normalise", "0", "1", "2"]


# --- without values


def test_an_outline_is_the_graph_without_values() -> None:
    def function(model: Model, x: torch.Tensor) -> torch.Tensor:
        return model.head(model.norm(x) * model.head.weight.abs().sum() + torch.arange(6, device=x.device))

    model = Model(function).eval()
    whole, empty = capture(model, (6,)), outline(Model(function).eval().to("meta"), (6,))

    assert [(n.op, n.layer, n.shape, n.refs()) for n in empty.nodes] == [
        (n.op, n.layer, n.shape, n.refs()) for n in whole.nodes
    ]
    constants = [v for node in empty.nodes for v in node.args.values() if isinstance(v, torch.Tensor)]
    assert constants
    assert all(constant.is_meta for constant in constants)


def test_an_outline_refuses_what_needs_no_values_to_see() -> None:
    with pytest.raises(CaptureError, match="bool values"):
        outline(Model(masked_by_where).eval().to("meta"), (6,))
    with pytest.raises(CaptureError, match="eval mode"):
        outline(Model().to("meta"), (6,))


def masked_by_where(model: Model, x: torch.Tensor) -> torch.Tensor:
    return model.head(torch.where(x > 0.5, x, -x))


# --- one image at a time


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("op", samples.NETWORKS)
def test_nan_reaches_all_that_depends_on_it(op: str) -> None:
    """For every operation with a rule: an entry that moves with an entry of an argument is NaN when that is NaN."""
    network, composition = samples.composed(op)
    graph = composition.graph
    lost: set[str] = set()

    def visit(node: Node, arguments: dict[str, Any], result: torch.Tensor) -> None:
        for name, value in node.args.items():
            many = isinstance(value, list)
            for number, read in enumerate(value if many else [value]):
                if isinstance(read, Ref) and _loses_nan(node, arguments, result, name, number if many else None):
                    lost.add(node.op)

    for dtype in (torch.float32, torch.float64):
        generator = torch.Generator().manual_seed(3)
        with plain_kernels():
            evaluate(graph, torch.rand(network.shape, generator=generator, dtype=dtype), visit)

    assert lost <= HIDES_NAN


def _loses_nan(node: Node, arguments: Mapping[str, Any], result: torch.Tensor, name: str, number: int | None) -> bool:
    original = arguments[name] if number is None else arguments[name][number]

    def run(entry: int, value: float) -> torch.Tensor:
        changed = original.clone().reshape(-1)
        changed[entry] = value
        changed = changed.reshape(original.shape)
        if number is not None:
            changed = [changed if place == number else tensor for place, tensor in enumerate(arguments[name])]
        return call(node, {**arguments, name: changed})

    for entry in range(0, original.numel(), max(1, original.numel() // 4)):
        start = original.reshape(-1)[entry].item()
        moved = torch.stack([run(entry, start + step) != result for step in (-3.0, -0.1, 0.1, 3.0)]).any(0)
        if bool((moved & ~run(entry, math.nan).isnan()).any()):
            return True
    return False
