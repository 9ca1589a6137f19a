"""Operations that have no rule of their own: what they are lowered to, and what hangs on the dtype of the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import samples_fourier
import torch
from samples import NETWORKS, composed
from torch import nn
from torch.nn import functional

from lipaudit.certification.executed import Execution
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import Ref, call, evaluate
from lipaudit.domains.lipschitz import RULES
from lipaudit.domains.rounding import float64
from lipaudit.errors import CaptureError, NotLipschitz, UnsupportedOp
from lipaudit.graph import decompositions
from lipaudit.graph.capture import capture

ATEN, F = torch.ops.aten, functional
IMAGE = (2, 6, 6)
Function = Callable[[torch.Tensor], torch.Tensor]


class Several(nn.Module):
    """Many functions of one image, their outputs side by side."""

    def __init__(self, functions: list[Function]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([function(x).flatten(1) for function in self.functions], 1)


ALIASES: dict[str, tuple[Function, Function]] = {
    "clip": (lambda x: torch.clip(x, 0.2, 0.6), lambda x: torch.clamp(x, 0.2, 0.6)),
    "absolute": (lambda x: torch.absolute(x - 0.5), lambda x: torch.abs(x - 0.5)),
    "multiply": (lambda x: torch.multiply(x, 3.0), lambda x: x * 3.0),
    "subtract": (lambda x: torch.subtract(x, 0.5, alpha=2), lambda x: torch.sub(x, 0.5, alpha=2)),
    "negative": (torch.negative, torch.neg),
    "divide": (lambda x: torch.divide(x, 4.0), lambda x: x / 4.0),
    "true_divide": (lambda x: torch.true_divide(x, torch.tensor(4.0)), lambda x: x / torch.tensor(4.0)),
    "concat": (lambda x: torch.concat([x, 2 * x], 1), lambda x: torch.cat([x, 2 * x], 1)),
    "concatenate": (lambda x: torch.concatenate([x, x], 2), lambda x: torch.cat([x, x], 2)),
    "hstack": (lambda x: torch.hstack([x, x]), lambda x: torch.cat([x, x], 1)),
    "dstack": (lambda x: torch.dstack([x, x]), lambda x: torch.cat([x, x], 2)),
    "column_stack": (lambda x: torch.column_stack([x, x]), lambda x: torch.cat([x, x], 1)),
    "fliplr": (torch.fliplr, lambda x: x.flip(1)),
    "diff": (lambda x: torch.diff(x, dim=2), lambda x: x[:, :, 1:] - x[:, :, :-1]),
    "arctan": (torch.arctan, torch.atan),
    "arcsinh": (torch.arcsinh, torch.asinh),
    "sum_to_size": (lambda x: x.sum_to_size(len(x), 2, 1, 6), lambda x: x.sum(2, keepdim=True)),
    "lerp": (lambda x: torch.lerp(x, x.flip(1), 0.25), lambda x: 0.75 * x + 0.25 * x.flip(1)),
    "movedim": (lambda x: torch.movedim(x, 1, 3), lambda x: x.permute(0, 2, 3, 1)),
    "swapaxes": (lambda x: torch.swapaxes(x, 1, 2), lambda x: x.transpose(1, 2)),
    "unflatten": (lambda x: x.unflatten(3, (2, 3)), lambda x: x.reshape(len(x), 2, 6, 2, 3)),
    "tensor_split": (lambda x: torch.tensor_split(x, 3, 2)[1], lambda x: x[:, :, 2:4]),
    "narrow": (lambda x: x.narrow(2, 1, 3), lambda x: x[:, :, 1:4]),
    "adaptive average": (lambda x: ATEN._adaptive_avg_pool2d(x, [4, 3]), lambda x: F.adaptive_avg_pool2d(x, (4, 3))),
    "convolution": (
        lambda x: ATEN.convolution(x, torch.ones(3, 2, 2, 2), None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
        lambda x: F.conv2d(x, torch.ones(3, 2, 2, 2), None, 2, 1),
    ),
    "transposed convolution": (
        lambda x: ATEN.convolution(x, torch.ones(2, 3, 2, 2), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
        lambda x: F.conv_transpose2d(x, torch.ones(2, 3, 2, 2), None, 2, 1, 1),
    ),
    "softmax": (lambda x: ATEN._softmax(x, 2, False), lambda x: F.softmax(x, 2)),
    "safe softmax": (lambda x: ATEN._safe_softmax(x, 2), lambda x: F.softmax(x, 2)),
    "softmax in its own dtype": (lambda x: F.softmax(x, 2, dtype=torch.float32), lambda x: F.softmax(x, 2)),
    "softmax in a finer dtype": (lambda x: F.softmax(x, 2, dtype=torch.float64).float(), lambda x: F.softmax(x, 2)),
    "log softmax": (lambda x: ATEN._log_softmax(x, 2, False), lambda x: F.log_softmax(x, 2)),
    "layer norm": (
        lambda x: ATEN.native_layer_norm(x, [6], None, None, 0.01)[0],
        lambda x: F.layer_norm(x, (6,), eps=0.01),
    ),
    "group norm": (
        lambda x: torch.cat([ATEN.native_group_norm(one[None], None, None, 1, 2, 36, 2, 0.01)[0] for one in x]),
        lambda x: torch.cat([F.group_norm(one[None], 2, eps=0.01) for one in x]),
    ),
    "RMS norm": (lambda x: ATEN._fused_rms_norm(x, [6], None, 0.01)[0], lambda x: F.rms_norm(x, (6,), eps=0.01)),
    "spreads": (
        lambda x: torch.std_mean(x, (2, 3))[0] + torch.var_mean(x, (2, 3))[1],
        lambda x: x.std((2, 3)) + x.mean((2, 3)),
    ),
}
"""Another name, or the name of the kernel, and the operation that has the rule."""


@pytest.mark.parametrize("part", range(4))
def test_another_name_has_the_bound_of_the_operation_itself(part: int) -> None:
    names = list(ALIASES)[part::4]
    aliased, plain = (Several([ALIASES[name][side] for name in names]).eval() for side in (0, 1))
    one, other = (compose(model, IMAGE, domain=(0.0, 1.0)) for model in (aliased, plain))
    assert all(node.op in RULES for node in one.graph.nodes)
    assert one.network.value == other.network.value, names
    x = torch.rand(IMAGE)
    assert torch.allclose(evaluate(one.graph, x), aliased(x[None])[0], atol=1e-6)


@pytest.mark.parametrize("name", ALIASES)
def test_every_alias_is_the_function_that_it_is_compared_with(name: str) -> None:
    one, other = ALIASES[name]
    x = torch.rand(1, *IMAGE)
    assert torch.allclose(one(x), other(x), atol=1e-6)


class Decomposed(nn.Module):
    """What a core-ATen program has left of: convolution, batch norm, pools, layer norm, attention, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.norm, self.group, self.tokens = nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4, eps=0.01)
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(36, 3)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.group(self.up(F.hardswish(self.norm(self.conv(x))))))
        x = self.tokens(F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 3).flatten(2).transpose(1, 2))
        query, key, value = self.qkv(x).chunk(3, -1)
        x = torch.softmax(query @ key.transpose(1, 2), -1) @ value + F.silu(x)
        return self.head(F.interpolate(x.flatten(1)[:, None], 36)[:, 0])


def test_a_program_that_was_decomposed_to_core_operations_has_the_same_bound() -> None:
    torch.manual_seed(0)
    model = Decomposed().eval()
    expected = compose(model, IMAGE, domain=(0.0, 1.0)).network.value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch", min=1, max=8)
        program = torch.export.export(model, (torch.rand(2, *IMAGE),), dynamic_shapes=({0: batch},), strict=False)
        inner = program.run_decompositions().module()

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.training = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return inner(x)

    composition = compose(Wrapped(), IMAGE, domain=(0.0, 1.0))
    assert expected <= composition.network.value * (1 + 1e-9)
    assert composition.network.value <= 20 * expected


BATCH_NORMS: dict[str, Callable[..., torch.Tensor]] = {
    "functional": lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b),
    "batch_norm": lambda x, w, b, m, v: torch.batch_norm(x, w, b, m, v, False, 0.1, 1e-5, False),
    "native": lambda x, w, b, m, v: torch.native_batch_norm(x, w, b, m, v, False, 0.1, 1e-5)[0],
    "no training": lambda x, w, b, m, v: ATEN._native_batch_norm_legit_no_training(x, w, b, m, v, 0.1, 1e-5)[0],
    "functional legit": lambda x, w, b, m, v: ATEN._native_batch_norm_legit_functional(x, w, b, m, v, False, 0.1, 1e-5)[
        0
    ],
    "no update": lambda x, w, b, m, v: ATEN._batch_norm_no_update(x, w, b, m, v, 0.1, 1e-5)[0],
    "index": lambda x, w, b, m, v: ATEN._batch_norm_impl_index(x, w, b, m, v, False, 0.1, 1e-5, False)[0],
}


@pytest.mark.parametrize("spelling", BATCH_NORMS)
def test_batch_norms_in_every_spelling_are_one_affine_map(spelling: str) -> None:
    layer = nn.BatchNorm2d(2)
    layer.running_var.copy_(torch.tensor([0.25, 4.0]))
    numbers = (layer.weight.detach(), layer.bias.detach(), layer.running_mean, layer.running_var)
    model = Several([lambda x: BATCH_NORMS[spelling](x, *numbers)]).eval()
    composition = compose(model, IMAGE)
    assert composition.graph.nodes[0].op == "_native_batch_norm_legit_no_training.default"
    assert {node.op for node in composition.graph.nodes[1:]} == {"view.default", "cat.default"}
    assert 2 / (1 + 4e-5) ** 0.5 <= composition.network.value <= 2


def test_an_operation_that_leads_nowhere_is_refused_by_its_own_name() -> None:
    model = Several([torch.special.i0e, lambda x: torch.clip(x, 0, 1)]).eval()
    with pytest.raises(UnsupportedOp, match="special_i0e") as caught:
        compose(model, IMAGE)
    assert "prims" not in str(caught.value)
    with pytest.raises(CaptureError, match="a part of hardshrink"):
        capture(Several([F.hardshrink]).eval(), IMAGE)


def test_nothing_is_promised_of_kernels_that_were_replaced_by_others() -> None:
    rewritten = compose(Several([lambda x: torch.lerp(x, x.flip(1), 0.25)]).eval(), IMAGE)
    assert "lerp.Scalar" in Execution(rewritten, ("native",)).why["native"]
    composite = compose(Several([lambda x: torch.clip(x, 0.25, 0.5)]).eval(), IMAGE)
    assert not Execution(composite, ("native",)).why["native"]


def test_a_program_without_such_operations_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(Several([torch.relu]).eval(), (torch.rand(1, *IMAGE),), strict=False)
    program = program.run_decompositions({})
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)
    assert decompositions.lowered(program, {}, ()) == (program, [])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_rms_norm_without_eps_takes_that_of_the_dtype_that_runs(dtype: torch.dtype) -> None:
    eps = decompositions.machine_eps(dtype, torch.device("cpu"))
    x = torch.tensor([[0.75, -0.5, 0.25]], dtype=dtype) * 2.0**-12
    exact = x.double() / (x.double().square().mean() + eps).sqrt()
    assert torch.allclose(F.rms_norm(x, (3,)).double(), exact, rtol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.RMSNorm(3, elementwise_affine=False),
        lambda: Several([lambda x: F.rms_norm(x, (3,))]),
        lambda: Several([lambda x: ATEN._fused_rms_norm(x, [3], None, None)[0]]),
    ],
)
def test_the_graph_of_an_rms_norm_without_eps_is_the_same_function_in_every_dtype(norm: Callable) -> None:
    model = norm().eval()
    graph = capture(model, (3,))
    x = torch.tensor([1e-5, 2e-5, -1e-5])
    assert torch.allclose(evaluate(graph, x.double()).float(), model(x[None])[0], rtol=1e-5)
    steep = torch.finfo(torch.float32).eps ** -0.5
    bound = compose(model, (3,)).network.value
    assert steep * 0.99 < bound < steep * 1.01


def test_softplus_is_smooth_where_its_step_vanishes_in_the_dtype_that_runs() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Softplus()).eval()
    threshold = [node.args["threshold"] for node in capture(model, (1,)).nodes if node.op == "softplus.default"]
    assert threshold == [decompositions.SMOOTH]
    assert capture(model.double(), (1,)).nodes[-1].args["threshold"] == 20
    with pytest.raises(NotLipschitz, match="more than float64 rounds: no Lipschitz bound exists"):
        compose(model, (1,))
    assert decompositions.softplus_jumps(10.0, torch.float32)
    assert not decompositions.softplus_jumps(decompositions.SMOOTH, torch.float64)


WITHOUT_DTYPE = {
    "scale", "scales", "scales_d", "scales_h", "scales_w", "scale_factor", "scale_factors", "range", "initial", "ord",
    "spacing", "min", "max", "p", "correction", "value", "alpha", "addends", "nan",
}  # fmt: skip
"""Optional numbers whose absence means the same in every dtype."""

OF_DTYPE = {
    "rms_norm.eps", "_fused_rms_norm.eps", "nan_to_num.posinf", "nan_to_num.neginf", "linalg_pinv.atol",
    "linalg_pinv.rtol", "linalg_matrix_rank.atol", "linalg_matrix_rank.rtol", "linalg_lstsq.rcond",
}  # fmt: skip
"""Those that mean a number of the dtype: resolved, or of an operation without a rule (a test holds that)."""

NO_CLAMP = {"logit.eps", "special_logit.eps"}


def test_every_optional_number_of_aten_is_known_to_hang_on_the_dtype_or_not() -> None:
    """A version of torch with another one has to be looked at."""
    unknown = set()
    for schema in torch._C._jit_get_all_schemas():
        for argument in schema.arguments:
            kind, key = str(argument.type), f"{schema.name.removeprefix('aten::')}.{argument.name}"
            number = "Optional" in kind and ("number" in kind or "float" in kind) and schema.name.startswith("aten::")
            if number and argument.name not in WITHOUT_DTYPE and "_backward" not in key:
                unknown.add(key.replace("_.", "."))
    assert unknown <= OF_DTYPE | NO_CLAMP
    resolved = {op.split(".")[0] for op in decompositions.OF_DTYPE} | {"_fused_rms_norm"}
    ruled = {op.split(".")[0] for op in RULES}
    assert not {key.split(".")[0] for key in OF_DTYPE} & ruled - resolved


SIZES = (1e-6, 1e-3, 1.0, 30.0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("op", [op for op in NETWORKS if op not in samples_fourier.FUNCTIONS])
def test_a_node_is_the_same_function_in_float32_and_in_float64(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ by no more than its rounding: a constant of the dtype would show at some size of its input."""
    graph = composed(op)[1].graph
    monkeypatch.setattr(float64, "gamma", lambda n: n * 2.0**-24 * 1.02)
    generator = torch.Generator().manual_seed(0)
    for node in graph.nodes:
        if node.op not in (op, "rms_norm.default", "softplus.default"):
            continue
        shapes = {each.name: each.shape for each in graph.nodes} | {"input": (1, *graph.input_shape)}
        for size in SIZES:
            values = {name: size * torch.rand(shapes[name], generator=generator).add(1e-2) for name in {*node.refs()}}
            narrow, wide = (
                {key: _resolved(value, values, kind) for key, value in node.args.items()}
                for kind in (torch.float32, torch.float64)
            )
            exact = call(node, wide)
            off = (call(node, narrow).double() - exact).norm()
            allowed = float64.local_error(node, wide, exact) or 0.0
            rounded = 1e-6 * exact.norm() + 1e-30  # constants of float64, such as 0.3, are rounded too
            assert not off > allowed + rounded, (node.op, size)


def _resolved(value: object, values: dict[str, torch.Tensor], kind: torch.dtype) -> object:
    if isinstance(value, list):
        return [_resolved(one, values, kind) for one in value]
    value = values[value.name] if isinstance(value, Ref) else value
    return value.to(kind) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
