"""Models: everything that a module may do beside computing logits."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hostile.case import Act, Case
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from lipaudit.api import bound, certify
from lipaudit.errors import CaptureError, LipauditError, NotLipschitz, UnsupportedOp
from lipaudit.results.bounds import NetworkBound

WIDTH = 6
Make = Callable[[], nn.Module]
Function = Callable[["Net", torch.Tensor], Any]


class Net(nn.Module):
    """A function of itself and the input; it has two dense layers to use."""

    def __init__(self, function: Function | None = None, seed: int = 0, **parts: Any) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.function = function
        self.calls = 0
        for name, part in parts.items():
            setattr(self, name, part)
        self.register_buffer("counter", torch.zeros(()))
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        return plainly(self, x) if self.function is None else self.function(self, x)


def plainly(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.head(net.body(x).relu())


def bounded(model: nn.Module, shape: tuple[int, ...]) -> NetworkBound:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the model's own: they are its matter
        return bound(model, shape, domain=(0.0, 1.0))


def answers(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(x.to(like)).double()


def right(make: Make, plain: Make | None = None, shape: tuple[int, ...] = (WIDTH,), slack: float = 1e-3) -> Act:
    """The bound is that of the plain network, and no difference of the model's own answers exceeds it."""

    def act() -> None:
        model = make()
        found = bounded(model, shape)
        generator = torch.Generator().manual_seed(1)
        x, y = torch.rand(2, 64, *shape, generator=generator)
        moved = (answers(model, x) - answers(model, y)).norm(dim=1)
        assert bool((moved <= found.value * (x - y).double().flatten(1).norm(dim=1) * (1 + slack) + 1e-6).all())
        if plain is not None:
            assert np.allclose(found.pairwise, bounded(plain(), shape).pairwise, rtol=1e-6, atol=0)

    return act


def tried(make: Make, shape: Any = (WIDTH,)) -> Act:
    return lambda: bounded(make(), shape) and None


def of(function: Function, **parts: Any) -> Make:
    """A network of that function; the parts are made anew each time."""
    return lambda: Net(function, **{name: part() for name, part in parts.items()})


def changed(change: Callable[[Net], Any]) -> Make:
    """The plain network, changed; what the change returns, if it is a module."""

    def make() -> nn.Module:
        net = Net()
        found = change(net)
        return found if isinstance(found, nn.Module) else net

    return make


# --- what computes the same as the plain network, or something that is known


class WrongGradient(torch.autograd.Function):
    """Computes x, says that the gradient is zero."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        del ctx
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        del ctx
        return gradient * 0


class StraightThrough(torch.autograd.Function):
    """Computes the sign, says that it is the identity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        del ctx
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        del ctx
        return gradient


def doubled_by_a_hook(net: Net) -> None:
    net.body.register_forward_hook(lambda module, inputs, output: output * 2)


def doubled_before_by_a_hook(net: Net) -> None:
    net.body.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def twice(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.head((net.body(x) * 2).relu())


def twice_before(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.head(net.body(2 * x).relu())


def in_place(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = net.body(x)
    F.relu_(h)
    return net.head(h)


def alias(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = net.body(x)
    part = h[:, :]  # the same memory
    part.mul_(2)
    return net.head(h.relu())


def slices(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = net.body(x).clone()
    h[:, 0] = h[:, 0] * 2
    h[:, 1:] *= 2
    return net.head(h.relu())


def copied_input(net: Net, x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x *= 2
    return plainly(net, x)


def printing(net: Net, x: torch.Tensor) -> torch.Tensor:
    print("x" * 100)  # noqa: T201
    print("y", file=sys.stderr)  # noqa: T201
    return plainly(net, x)


def warning(net: Net, x: torch.Tensor) -> torch.Tensor:
    warnings.warn("beware", stacklevel=1)
    return plainly(net, x)


def counting_python(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.calls += 1
    return plainly(net, x)


def caching(net: Net, x: torch.Tensor) -> torch.Tensor:
    if not hasattr(net, "cache"):
        net.cache = torch.full((WIDTH,), 2.0)
    return net.head((net.body(x) * net.cache).relu())


def replaced_forward(net: Net) -> None:
    net.forward = types.MethodType(twice, net)


def closed_over(net: Net) -> None:
    net.forward = lambda x: twice(net, x)


def tied(net: Net) -> None:
    net.head.weight = nn.Parameter(net.body.weight[:3])
    net.head.weight.data = net.body.weight.data[:3]


def of_tied(net: Net, x: torch.Tensor) -> torch.Tensor:
    return F.linear(F.linear(x, net.body.weight, net.body.bias).relu(), net.body.weight[:3], net.head.bias)


def same_layer_twice(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.head(net.body(net.body(x).relu()).relu())


def two_layers(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.head(net.other(net.body(x).relu()).relu())


def body_of_net() -> nn.Module:
    return Net().body


def pruned(net: Net) -> None:
    prune.l1_unstructured(net.body, "weight", amount=0.5)


def of_pruned(net: Net) -> None:
    pruned(net)
    prune.remove(net.body, "weight")


def nested(net: Net) -> nn.Module:
    model: nn.Module = net
    for _ in range(60):
        model = nn.Sequential(model)
    return model.eval()


def odd_name(net: Net) -> nn.Module:
    outer = nn.Module.__new__(nn.Sequential)
    nn.Sequential.__init__(outer)
    outer.add_module("x {{7*7}} <script>", net)
    return outer.eval()


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Net()


def one_class() -> Act:
    model = nn.Linear(WIDTH, 1).eval()
    return lambda: certify(model, torch.rand(2, WIDTH)) and None


def equal_classes() -> Act:
    def act() -> None:
        model = Net()
        model.head.weight.data[:] = model.head.weight.data[:1].clone()
        model.head.bias.data[:] = 0
        assert not certify(model, torch.rand(3, WIDTH), local="off").radius.any()

    return act


def without_spread() -> Act:
    """Logits that do not depend on the input: no bound is too small, no radius too large."""

    def act() -> None:
        model = Net()
        model.head.weight.data[:] = 0
        assert 0.0 <= bounded(model, (WIDTH,)).value < 1e-250
        assert (certify(model, torch.rand(3, WIDTH), local="off").radius > 1e200).all()

    return act


def under(context: Callable[[], Any], make: Make = Net, plain: Make = Net) -> Act:
    """The same with a global setting of torch."""

    def act() -> None:
        expected = bounded(plain(), (WIDTH,)).pairwise
        model = make()
        with context():
            found = bounded(model, (WIDTH,))
        assert np.allclose(found.pairwise, expected, rtol=1e-6, atol=0)

    return act


class setting:  # noqa: N801  (a context)
    """Sets something of torch, and puts it back."""

    def __init__(self, change: Callable[[], None], back: Callable[[], None]) -> None:
        self.change, self.back = change, back

    def __enter__(self) -> None:
        self.change()

    def __exit__(self, *_: object) -> None:
        self.back()


def flushing() -> setting:
    return setting(lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False))


def doubles() -> setting:
    return setting(lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32))


def on_meta_by_default() -> setting:
    return setting(lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None))


def hooked_everywhere() -> Any:
    """A hook on every module of the process: part of what each of them computes."""
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * 2 if isinstance(module, nn.Linear) else None
    )
    return setting(lambda: None, handle.remove)


def with_global_hook() -> Act:
    def act() -> None:
        expected = bounded(Net(lambda net, x: 2 * net.head((2 * net.body(x)).relu())), (WIDTH,)).pairwise
        with hooked_everywhere():
            found = bounded(Net(), (WIDTH,))
        assert np.allclose(found.pairwise, expected, rtol=1e-6, atol=0)

    return act


def compiled(net: Net) -> nn.Module:
    return torch.compile(net)  # type: ignore[return-value]


def quantised(net: Net) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)


def script(net: Net) -> nn.Module:
    del net
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, 3))).eval()


def trace(net: Net) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net, torch.rand(2, WIDTH)).eval()


def half_head(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.head(net.body(x).relu().to(torch.bfloat16).to(torch.float32))


def with_autocast(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return plainly(net, x).float()


SAME: dict[str, tuple[Make, Make | None]] = {
    "plain": (Net, Net),
    "a backward hook": (changed(lambda net: net.body.register_full_backward_hook(lambda *_: None) and None), Net),
    "a hook on the gradient of a weight": (changed(lambda net: net.body.weight.register_hook(lambda g: g * 0) and None), Net),
    "a hook that looks": (changed(lambda net: net.body.register_forward_hook(lambda *_: None) and None), Net),
    "a hook that doubles the output": (changed(doubled_by_a_hook), of(twice)),
    "a hook that doubles the input": (changed(doubled_before_by_a_hook), of(twice_before)),
    "a hook on the whole": (changed(lambda net: net.register_forward_hook(lambda m, i, o: o * 2) and None), of(lambda net, x: 2 * plainly(net, x))),
    "a wrong gradient": (of(lambda net, x: plainly(net, WrongGradient.apply(x))), Net),
    "detached": (of(lambda net, x: net.head(net.body(x).detach().relu())), Net),
    "without gradients inside": (of(lambda net, x: torch.no_grad()(plainly)(net, x)), Net),
    "ReLU in place": (of(in_place), Net),
    "a view written to": (of(alias), of(twice)),
    "slices written to": (of(slices), None),
    "a copy of the input written to": (of(copied_input), of(twice_before)),
    "printing": (of(printing), Net),
    "warning": (of(warning), Net),
    "a cache made by the first call": (of(caching), of(twice)),
    "forward replaced": (changed(replaced_forward), of(twice)),
    "forward replaced by a closure": (changed(closed_over), of(twice)),
    "tied weights": (changed(tied), of(of_tied)),
    "a layer used twice": (of(same_layer_twice), of(two_layers, other=body_of_net)),
    "weight norm": (changed(lambda net: parametrizations.weight_norm(net.body).eval() and None), Net),
    "the old weight norm": (changed(lambda net: warned(nn.utils.weight_norm, net.body) and None), Net),
    "spectral norm": (changed(lambda net: parametrizations.spectral_norm(net.body).eval() and None), None),
    "an orthogonal weight": (changed(lambda net: parametrizations.orthogonal(net.body).eval() and None), None),
    "pruned": (changed(pruned), changed(of_pruned)),
    "one layer in train mode": (changed(lambda net: net.head.train() and None), Net),
    "frozen": (changed(lambda net: net.requires_grad_(False) and None), Net),
    "nested sixty deep": (changed(nested), Net),
    "a name that is no name": (changed(odd_name), Net),
    "made in inference mode": (in_inference_mode, Net),
    "compiled": (changed(compiled), Net),
    "data parallel": (changed(nn.DataParallel), Net),
    "compiled and data parallel": (changed(lambda net: torch.compile(nn.DataParallel(net))), Net),
    "in float64": (changed(lambda net: net.double() and None), Net),
    "dead dropout": (of(lambda net, x: F.dropout(plainly(net, x), 0.5, training=net.training)), Net),
    "dead code": (of(lambda net, x: (x.sum() * 2, x.sort())[0] * 0 if False else plainly(net, x)), Net),
    "an unused layer that has no rule": (changed(lambda net: net.add_module("unused", nn.Bilinear(2, 2, 2).eval())), Net),
    "a non-tensor attribute of any kind": (changed(lambda net: setattr(net, "extra", {"a": [lambda: 1, object()]})), Net),
}  # fmt: skip


def warned(function: Callable[..., Any], *arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


NUMBERS = itertools.count()

REFUSED: dict[str, tuple[Make, type[LipauditError], str]] = {
    "in train mode": (lambda: Net().train(), CaptureError, "call model.eval() first"),
    "a layer in train mode that drops": (changed(lambda net: setattr(net, "head", nn.Sequential(nn.Dropout(), net.head).train())), CaptureError, "got 3 modules in train mode (first: head)"),
    "counting its calls": (of(counting_python), CaptureError, "writes to calls"),
    "batch norm without statistics": (
        of(lambda net, x: net.head(net.norm(x)), norm=lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False)),
        CaptureError, "Expected more than 1 value per channel",
    ),
    "train mode switched on by forward": (of(lambda net, x: F.dropout(net.train().head(x), 0.5)), CaptureError, ""),
    "dropout that is always on": (of(lambda net, x: net.head(F.dropout(x, 0.5))), CaptureError, "random"),
    "noise": (of(lambda net, x: net.head(x + torch.randn_like(x))), CaptureError, "random"),
    "a little noise": (of(lambda net, x: net.head(x) + 1e-7 * torch.randn(3)), CaptureError, ""),
    "noise of Python": (of(lambda net, x: net.head(x) * (1 + random.random())), CaptureError, "random"),
    "noise of NumPy": (of(lambda net, x: net.head(x) * float(np.random.default_rng().random())), CaptureError, "asks for entropy"),
    "the time": (of(lambda net, x: net.head(x) * (1 + time.perf_counter_ns() % 1000)), CaptureError, "asks for the time"),
    "another answer at every call": (of(lambda net, x: net.head(x) * next(NUMBERS)), CaptureError, "writes to global NUMBERS"),
    "a branch on values": (of(lambda net, x: net.head(x if x.sum() > 3 else -x)), CaptureError, "look at values"),
    "a loop on values": (of(lambda net, x: looping(net, x)), CaptureError, "look at values"),
    "a number taken out": (of(lambda net, x: net.head(x) * x.sum().item()), CaptureError, ""),
    "NumPy inside": (of(lambda net, x: net.head(torch.from_numpy(np.tanh(x.numpy())))), CaptureError, ""),
    "a list inside": (of(lambda net, x: net.head(torch.tensor(x.tolist()))), CaptureError, ""),
    "a swallowed branch": (of(lambda net, x: swallowed(net, x)), CaptureError, ""),
    "another function when exported": (of(lambda net, x: exported(net, x)), CaptureError, "differ"),
    "another function with gradients": (of(lambda net, x: net.head(x) * (2 if torch.is_grad_enabled() else 1)), CaptureError, "gradients"),
    "another function of two images": (of(lambda net, x: net.head(x) * len(x)), CaptureError, "in its batch"),
    "a mean over the batch": (of(lambda net, x: net.head(x - x.mean(0))), CaptureError, "in its batch"),
    "a mean over the batch of no weight": (of(lambda net, x: net.head(x) + 1e-20 * x.mean(0).sum()), CaptureError, "in its batch"),
    "a softmax over the batch": (of(lambda net, x: net.head(x.softmax(0))), CaptureError, "in its batch"),
    "the batch reversed": (of(lambda net, x: net.head(x.flip(0))), CaptureError, "in its batch"),
    "sums along the batch": (of(lambda net, x: net.head(x.cumsum(0))), CaptureError, "in its batch"),
    "the largest of the batch": (of(lambda net, x: net.head(x) / x.amax()), CaptureError, "in its batch"),
    "writing to a buffer": (of(lambda net, x: counted(net, x)), CaptureError, "writes to counter"),
    "writing to a weight": (of(lambda net, x: grown(net, x)), CaptureError, ""),
    "writing to the input": (of(lambda net, x: net.head(x.mul_(2))), CaptureError, "leaves its input alone"),
    "clamping the input in place": (of(lambda net, x: net.head(x.clamp_(0, 1))), CaptureError, "leaves its input alone"),
    "a tuple": (of(lambda net, x: (net.head(x), x)), CaptureError, "got tuple"),
    "a dict": (of(lambda net, x: {"logits": net.head(x)}), CaptureError, "got dict"),
    "a list": (of(lambda net, x: [net.head(x)]), CaptureError, "got list"),
    "nothing": (of(lambda net, x: None), CaptureError, "got NoneType"),
    "a string": (of(lambda net, x: "cat"), CaptureError, "got str"),
    "an array": (of(lambda net, x: net.head(x).detach().numpy()), CaptureError, "got ndarray"),
    "a label": (of(lambda net, x: net.head(x).argmax(1)), CaptureError, "expected logits of shape"),
    "labels in a column": (of(lambda net, x: net.head(x).argmax(1, keepdim=True)), CaptureError, "expected logits of shape"),
    "complex logits": (of(lambda net, x: net.head(x) * 1j), CaptureError, "expected logits of shape"),
    "a scalar": (of(lambda net, x: net.head(x).sum()), CaptureError, "expected logits of shape"),
    "logits of three axes": (of(lambda net, x: net.head(x)[:, :, None]), CaptureError, "expected logits of shape"),
    "logits without the batch": (of(lambda net, x: net.head(x)[0]), CaptureError, "expected logits of shape"),
    "no logits": (of(lambda net, x: net.head(x)[:, :0]), CaptureError, ""),
    "NaN": (of(lambda net, x: net.head(x) * float("nan")), CaptureError, "got NaN or inf"),
    "inf": (of(lambda net, x: net.head(x) * 1e39), CaptureError, "got NaN or inf"),
    "weights of NaN": (changed(lambda net: net.body.weight.data.fill_(float("nan")) is None), CaptureError, "got NaN or inf"),
    "weights that overflow": (changed(lambda net: net.body.weight.data.mul_(1e38).mul_(1e5) is None), CaptureError, "got NaN or inf"),
    "raising": (of(lambda net, x: 1 / 0), CaptureError, "ZeroDivisionError: division by zero"),
    "raising many lines": (of(lambda net, x: raising(ValueError("a\nb\nc"))), CaptureError, "ValueError: a"),
    "raising what steers the terminal": (of(lambda net, x: raising(ValueError("\x1b[2Ja"))), CaptureError, "[2Ja"),
    "leaving with success": (of(lambda net, x: sys.exit(0)), CaptureError, "SystemExit"),
    "without end": (of(lambda net, x: net(x)), CaptureError, "RecursionError"),
    "a lock": (changed(lambda net: setattr(net, "lock", threading.Lock())), CaptureError, "can be copied"),
    "a generator": (changed(lambda net: setattr(net, "numbers", (i for i in range(3)))), CaptureError, "can be copied"),
    "without forward": (lambda: nn.Module().eval(), CaptureError, "forward"),
    "a list of modules": (lambda: nn.ModuleList([nn.Linear(WIDTH, 3)]).eval(), CaptureError, "forward"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)).eval(), CaptureError, "of a lazy module"),
    "on the meta device": (lambda: Net().to("meta"), CaptureError, "on the meta device"),
    "a sparse weight": (changed(lambda net: setattr(net.body, "weight", nn.Parameter(net.body.weight.detach().to_sparse()))), CaptureError, "body.weight as torch.sparse"),
    "quantised": (changed(quantised), CaptureError, ""),
    "quantised on the fly": (of(lambda net, x: net.head(torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255))), UnsupportedOp, "fake_quantize"),
    "a script": (changed(script), CaptureError, "TorchScript"),
    "a trace": (changed(trace), CaptureError, "TorchScript"),
    "complex weights": (changed(lambda net: warned(net.to, torch.complex64) and None), CaptureError, "torch.complex64"),
    "a layer in another precision": (changed(lambda net: net.head.double() and None), CaptureError, "RuntimeError"),
    "a hook on a wrapper": (changed(lambda net: hooked(nn.DataParallel(net))), CaptureError, "no hooks on DataParallel"),
    "a random hook": (changed(lambda net: net.body.register_forward_hook(lambda m, i, o: o * random.random()) and None), CaptureError, "random"),
    "sign, and another gradient": (of(lambda net, x: net.head(StraightThrough.apply(net.body(x)))), NotLipschitz, "sign jumps"),
    "rounding": (of(lambda net, x: net.head(net.body(x).round())), NotLipschitz, "round jumps"),
    "a threshold": (of(lambda net, x: net.head((net.body(x) > 0).float())), CaptureError, "bool values"),
    "the order of values": (of(lambda net, x: net.head(net.body(x).argsort(1).float())), CaptureError, "int64 values"),
    "a root at zero": (of(lambda net, x: net.head(x.sqrt())), NotLipschitz, "x^0.5 is unbounded at 0"),
    "a quotient that may be zero": (of(lambda net, x: net.head(1 / net.body(x))), NotLipschitz, "x^-1 is unbounded"),
    "an inverse": (of(lambda net, x: net.head((x[:, :, None] * torch.eye(WIDTH) + torch.eye(WIDTH)).inverse()[:, 0])), UnsupportedOp, "inv"),
    "an inner optimisation": (of(lambda net, x: torch.linalg.solve(torch.eye(WIDTH) * 2 + x[:, :, None] * 0.1, x[:, :, None])[:, :3, 0]), UnsupportedOp, "solve"),
}  # fmt: skip


def looping(net: Net, x: torch.Tensor) -> torch.Tensor:
    while x.abs().max() > 0.5:
        x = x / 2
    return net.head(x)


def swallowed(net: Net, x: torch.Tensor) -> torch.Tensor:
    try:
        big = bool(x.sum() > 2)
    except Exception:  # noqa: BLE001  (user code like this exists; the export then takes the wrong branch)
        return net.head(x) * 100
    return net.head(x) if big else net.head(-x)


def exported(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.head(x) * (0.01 if torch.compiler.is_exporting() else 1)


def counted(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.counter += 1
    return net.head(x)


def grown(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.head.weight.data.mul_(1.01)
    return net.head(x)


def raising(error: Exception) -> torch.Tensor:
    raise error


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module.eval()


def case(name: str, act: Act, error: type[LipauditError] | None = None, says: str = "") -> Case:
    return Case(name, lambda folder: act, error, says)


CASES = [
    *(case(name, right(make, plain)) for name, (make, plain) in SAME.items()),
    *(case(name, tried(make), error, says) for name, (make, error, says) in REFUSED.items()),
    case("in bfloat16", right(changed(lambda net: net.bfloat16() and None), slack=0.05)),
    case("in float16", right(changed(lambda net: net.half() and None), slack=0.05)),
    case("bfloat16 in the middle", tried(of(half_head)), CaptureError, "expected torch.float32 throughout"),
    case("autocast inside", tried(of(with_autocast)), CaptureError, "turn autocast off"),
    case("no parameters", right(of(lambda net, x: x[:, :3] * 2))),
    case("no parameters at all", right(lambda: nn.Sequential(nn.Flatten(), nn.ReLU()).eval())),
    case("logits that do not depend on the input", without_spread()),
    case("classes that are equal", equal_classes()),
    case("one class", one_class(), CaptureError, "at least two logits"),
    case("a hook on every module", with_global_hook()),
    case("inference mode around", under(torch.inference_mode)),
    case("no gradients around", under(torch.no_grad)),
    case(
        "autocast around", under(lambda: torch.autocast("cpu", dtype=torch.bfloat16)), CaptureError, "turn autocast off"
    ),
    case("double precision by default", under(doubles)),
    case("the meta device by default", under(on_meta_by_default), CaptureError, "set_default_device('cpu')"),
    case("anomaly detection", under(lambda: torch.autograd.set_detect_anomaly(True, check_nan=False))),
    case("denormals flushed", under(flushing), LipauditError, "set_flush_denormal(False)"),
    case("an input of another shape", tried(Net, (WIDTH + 1,)), CaptureError, "check the input shape"),
    case("an input of no axes", tried(Net, ()), CaptureError, "input shape"),
    case("an input of no entries", tried(Net, (0,)), CaptureError, "input shape"),
    case("an input of negative size", tried(Net, (-6,)), CaptureError, "input shape"),
    case("an input of half a number", tried(Net, (6.5,)), CaptureError, "input shape"),
    case("an input beyond memory", tried(Net, (2**45,)), CaptureError, "input shape"),
]
