"""A model that is not one function of one image is refused, whatever it tells its calls apart by; others are not."""

from __future__ import annotations

import concurrent.futures
import contextvars
import copy
import ctypes
import functools
import inspect
import io
import os
import pickle
import queue
import random
import secrets
import sys
import threading
import time
import types
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import samples
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrize

from lipaudit.domains.graph import evaluate
from lipaudit.errors import CaptureError
from lipaudit.graph import trials
from lipaudit.graph.capture import capture

Function = Callable[["Net", torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """A function of itself and a body's answer `y`, which depends on the input `x`."""

    shared = 0

    def __init__(self, function: Function, **held: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
        self.register_buffer("number", torch.tensor(2.0))
        self.register_buffer("flags", torch.tensor([True, False, True, True, False, True]))
        self.function = function
        for name, value in held.items():
            setattr(self, name, value)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def flipped(condition: Callable[[Net, torch.Tensor], Any]) -> Function:
    """The other sign where the condition holds: another class wins."""
    return lambda net, x: -net.body(x) if condition(net, x) else net.body(x)


def peeking(condition: Callable[[torch.Tensor], Any]) -> Function:
    """Looks at values, but not where torch.export would see it."""
    return flipped(lambda _, x: not torch.compiler.is_exporting() and condition(x))


def in_a_thread(x: torch.Tensor) -> bool:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(float(x.max())))
    thread.start()
    thread.join()
    return found[0] == 1.0


def around_torch_function(x: torch.Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return 1.0 in x.flatten().tolist()


def around_torch_function_too(x: torch.Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return bool((np.asarray(x) == 1).any())


def unbound(x: torch.Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return 1.0 in torch.Tensor.tolist(x)[0]


def unwatched(x: torch.Tensor) -> bool:
    return not torch.overrides._get_current_function_mode_stack() and float(x.max()) == 1.0


def unwatched_below(x: torch.Tensor) -> bool:
    return torch._C._len_torch_dispatch_stack() == 0 and float(x.max()) == 1.0


def unprofiled(x: torch.Tensor) -> bool:
    return sys.getprofile() is None and float(x.max()) == 1.0


def called_by_torch(x: torch.Tensor) -> bool:
    return any("export" in frame.filename for frame in inspect.stack()) and x.ndim == 7


def in_a_queue(x: torch.Tensor) -> bool:
    QUEUE.put(x)
    return False


def in_a_simple_queue(x: torch.Tensor) -> bool:
    SIMPLE.put(x)
    return False


def by_address(x: torch.Tensor) -> bool:
    return ctypes.c_float.from_address(x.data_ptr()).value == 1.0


def overridable(x: torch.Tensor) -> bool:
    if torch.overrides.has_torch_function((x,)):
        return torch.overrides.handle_torch_function(overridable, (x,), x)
    return 1.0 in x.flatten().tolist()


def swallowed(x: torch.Tensor) -> bool:
    try:
        return float(x.max()) == 1.0
    except BaseException:  # noqa: BLE001
        return False


def negated_where_one(x: torch.Tensor) -> torch.Tensor:
    if bool(x.max() == 1.0):
        return -x
    return x


QUEUE: queue.Queue[torch.Tensor] = queue.Queue()
SIMPLE: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
POOL = concurrent.futures.ThreadPoolExecutor(1)
LAST: list[torch.Tensor] = []
COUNTS = {"calls": 0}


@functools.cache
def numbered(_: object) -> int:
    return numbered.cache_info().currsize


LOOKS = {
    "float": lambda x: float(x.max()) == 1.0,
    "item": lambda x: x.max().item() == 1.0,
    "int": lambda x: int(x.max()) == 1,
    "bool": lambda x: x.max() == 1.0,
    "index": lambda x: len(range(5)[: x.max().int()]) == 1,
    "in": lambda x: 1.0 in x,
    "equal": lambda x: torch.equal(x, torch.ones_like(x)),
    "allclose": lambda x: torch.allclose(x, torch.ones_like(x)),
    "is_nonzero": lambda x: torch.is_nonzero((x == 1).all()),
    "tolist": lambda x: 1.0 in x[0].tolist(),
    "numpy": lambda x: (x.detach().numpy() == 1).any(),
    "asarray": lambda x: (np.asarray(x.detach()) == 1).any(),
    "dlpack": lambda x: (np.from_dlpack(x.detach()) == 1).any(),
    "another tensor by dlpack": lambda x: (torch.from_dlpack(torch.utils.dlpack.to_dlpack(x.detach())) == 1).any(),
    "nonzero": lambda x: len((x == 1).nonzero()) > 0,
    "unique": lambda x: len(x.unique()) == 1,
    "mask": lambda x: len(x[x == 1]) > 0,
    "masked_select": lambda x: len(x.masked_select(x == 1)) > 0,
    "repr": lambda x: "1." in repr(x),
    "format": lambda x: f"{x.max():.3f}" == "1.000",
    "storage": lambda x: x.untyped_storage()[3] == 63,
    "pickle": lambda x: b"\x00\x00\x80\x3f" in pickle.dumps(x.detach()),
    "a deep copy": lambda x: bool((copy.deepcopy(x.detach()) == 1).any()),
    "a new tensor": lambda x: bool(torch.tensor([x[0, 0], 0.0]).max() == 1),
    "apply": lambda x: bool(x.detach().clone().apply_(lambda value: value == 1.0).any()),
    "tensor_split": lambda x: len(torch.tensor_split(torch.ones(3), x[0, :2].long())[0]) == 1,
    "address": by_address,
    "a thread": in_a_thread,
    "a pool": lambda x: POOL.submit(lambda: float(x.max())).result() == 1.0,
    "without torch functions": around_torch_function,
    "an array without torch functions": around_torch_function_too,
    "an unbound method": unbound,
    "only if nobody watches": unwatched,
    "only if no mode is on": unwatched_below,
    "only if nothing is profiled": unprofiled,
    "its caller": called_by_torch,
    "a queue": in_a_queue,
    "a simple queue": in_a_simple_queue,
    "the environment": lambda x: os.environ.get("FLIPPED") == "1" and x.ndim == 7,
    "a variable": lambda x: os.getenv("FLIPPED") == "1" and x.ndim == 7,
    "the number of threads": lambda x: torch.get_num_threads() > 99 and x.ndim == 7,
    "the precision of products": lambda x: torch.get_float32_matmul_precision() == "none" and x.ndim == 7,
    "the number of cores": lambda x: os.cpu_count() == 99 and x.ndim == 7,
    "an address": lambda x: id(x) == 99 and x.ndim == 7,
    "an address of an object": lambda x: hash(object()) == 99 and x.ndim == 7,
    "its version": lambda x: x._version > 7,
    "a function of torch functions": overridable,
    "swallowed": swallowed,
    "a sum of constants and the input": lambda x: (torch.zeros(3) + x.max())[0] == 1.0,
    "written into a constant": lambda x: torch.zeros(x.shape).copy_(x).max() == 1.0,
    "written by out": lambda x: torch.add(x, 0, out=torch.zeros(x.shape)).max() == 1.0,
    "written through a view": lambda x: [z := torch.zeros(6), z[1:].copy_(x[0, 1:]), z.max() == 1.0][-1],
    "many": lambda x: max(x[0]) == 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKS)
def test_no_value_is_looked_at(name: str) -> None:
    model = Net(peeking(LOOKS[name]))
    world = "another thread|values in memory|its watch|its caller|the environment|the process|an address in memory"
    with pytest.raises(CaptureError, match=rf"does not look at values|asks for ({world})") as caught:
        capture(model, (6,))
    assert "(test_trials.py:" in str(caught.value)


def test_a_scripted_function_does_not_look_at_values_either() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(negated_where_one)
    with pytest.raises(CaptureError, match="does not look at values"):
        capture(Net(lambda net, x: net.body(x) if torch.compiler.is_exporting() else scripted(net.body(x))), (6,))


CALLED = {
    "exporting": lambda _net, _x: torch.compiler.is_exporting(),
    "compiling": lambda _net, _x: torch.compiler.is_compiling(),
    "fake": lambda _net, x: isinstance(x, FakeTensor),
    "its type": lambda _net, x: type(x) is not torch.Tensor,
    "gradients": lambda _net, _x: torch.is_grad_enabled(),
    "no gradients": lambda _net, _x: not torch.is_grad_enabled(),
    "inference mode": lambda _net, _x: torch.is_inference_mode_enabled(),
    "an inference tensor": lambda _net, x: x.is_inference(),
    "a gradient of the input": lambda _net, x: x.requires_grad,
    "a gradient of the weights": lambda net, _x: net.body[0].weight.requires_grad,
    "the graph of gradients": lambda net, x: net.body(x.float().flatten(1)).grad_fn is not None,
    "a leaf": lambda _net, x: torch.is_grad_enabled() and x.is_leaf and not x.requires_grad,
    "a batch of one": lambda _net, x: len(x) == 1,
    "a batch of two": lambda _net, x: len(x) == 2,
    "a batch of three": lambda _net, x: len(x) == 3,
    "a larger batch": lambda _net, x: len(x) > 3,
    "an even batch": lambda _net, x: len(x) % 2 == 0,
    "strides": lambda _net, x: not x.is_contiguous(),
    "doubles": lambda _net, x: x.dtype == torch.float64,
    "a part of a larger tensor": lambda _net, x: x.storage_offset() > 0,
    "a leaf with a gradient": lambda _net, x: x.requires_grad and x.is_leaf,
    "no leaf, with a gradient": lambda _net, x: x.requires_grad and not x.is_leaf,
    "a parameter": lambda _net, x: isinstance(x, nn.Parameter),
    "strides in a list": lambda _net, x: x.stride()[-1] != 1,
}  # fmt: skip


def cast(condition: Callable[[Net, torch.Tensor], bool]) -> Net:
    """Takes inputs of any type and strides, and has another answer under the condition."""

    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.body(x.float().flatten(1))
        return -y if condition(net, x) else y

    return Net(function)


@pytest.mark.parametrize("name", CALLED)
def test_one_function_however_it_is_called(name: str) -> None:
    with pytest.raises(CaptureError, match=r"compute what the model computes|same answer|in its batch|float32"):
        capture(cast(CALLED[name]), (2, 3))


def test_inputs_of_any_kind_may_be_taken() -> None:
    assert len(capture(cast(lambda _net, x: x.ndim == 2), (2, 3)).nodes) == 4


class Sampler:
    """A generator that is hidden in an object."""

    __slots__ = ("source",)

    def __init__(self, source: Any) -> None:
        self.source = source


NUMPY = np.random.default_rng(0)
PYTHON = random.Random(0)
TORCH = torch.Generator().manual_seed(0)

NOISE: dict[str, Callable[[Net], float]] = {
    "random": lambda _: random.random(),
    "numpy.random": lambda _: float(np.random.rand()),  # noqa: NPY002
    "torch": lambda _: torch.rand(()),
    "os.urandom": lambda _: os.urandom(1)[0] / 256,
    "secrets": lambda _: secrets.randbelow(1000) / 1000,
    "uuid": lambda _: uuid.uuid4().int % 1000 / 1000,
    "a fresh generator": lambda _: float(np.random.default_rng().random()),
    "a system generator": lambda _: random.SystemRandom().random(),
    "a fresh generator of Python": lambda _: random.Random().random(),
    "time": lambda _: time.time() % 1,
    "a counter of time": lambda _: time.perf_counter_ns() % 1000 / 1000,
    "a date": lambda _: datetime.now().microsecond / 1e6,
    "a generator of the module": lambda net: net.held.random(),
    "a generator in an object": lambda net: net.hidden.source.random(),
    "a global generator": lambda _: NUMPY.random(),
    "a global generator of Python": lambda _: PYTHON.random(),
    "a global generator of torch": lambda _: torch.rand((), generator=TORCH),
    "a seeded generator of torch": lambda _: torch.rand((), generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("rare", [False, True], ids=["small", "rare"])
@pytest.mark.parametrize("name", NOISE)
def test_nothing_is_random(name: str, rare: bool) -> None:
    """Noise that is far below what is seen in a logit, or that changes an answer in one of a hundred calls."""

    def noisy(net: Net, x: torch.Tensor) -> torch.Tensor:
        draw = NOISE[name](net)
        return net.body(x) * (torch.where(torch.as_tensor(draw) > 0.99, -1.0, 1.0) if rare else 1 + 1e-12 * draw)

    model = Net(noisy, held=np.random.default_rng(1), hidden=Sampler(random.Random(1)))
    with pytest.raises(CaptureError, match=r"random|asks for (entropy|the time)|Generator for|writes to"):
        capture(model, (6,))


def counted_globally(net: Net, x: torch.Tensor) -> torch.Tensor:
    COUNTS["calls"] += 1
    return net.body(x)


def counted_in_the_class(net: Net, x: torch.Tensor) -> torch.Tensor:
    Net.shared += 1
    return net.body(x)


def counted_in_a_closure() -> Function:
    calls = 0

    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return net.body(x) if calls < 1000 else -net.body(x)

    return function


def counted_in_an_iterator() -> Function:
    numbers = iter(range(1000))
    return lambda net, x: net.body(x) if next(numbers) < 900 else -net.body(x)


def counted_by_a_hook() -> Net:
    net = Net(lambda net, x: net.body(x))
    calls: list[int] = []
    net.body.register_forward_hook(lambda *_: calls.append(1))
    return net


def counted_in_data(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.number.data.add_(1)
    return net.body(x)


def counted_in_an_array(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.held[0] += 1
    return net.body(x)


def counted_by_a_default(net: Net, x: torch.Tensor, calls: list[int] = []) -> torch.Tensor:  # noqa: B006
    calls.append(1)
    return net.body(x)


def counted_on_a_function(net: Net, x: torch.Tensor) -> torch.Tensor:
    counted_on_a_function.calls = getattr(counted_on_a_function, "calls", 0) + 1
    return net.body(x)


def remembering(net: Net, x: torch.Tensor) -> torch.Tensor:
    before, net.held = net.held, x.detach().clone()
    return net.body(x if before is None else x + 1e-6 * before[:1])


def initialised_from_data(net: Net, x: torch.Tensor) -> torch.Tensor:
    if net.number == 2:
        net.held.data.copy_(x.mean(0))
        net.number.fill_(3)
    return net.body(x - net.held)


def first_call_differs(net: Net, x: torch.Tensor) -> torch.Tensor:
    first, net.held = net.held is None, True
    return -net.body(x) if first else net.body(x)


def raised(thing: Any, name: str) -> int:
    """A number that is set on a thing, one higher at each call."""
    setattr(thing, name, getattr(thing, name, 0) + 1)
    return int(getattr(thing, name))


def numbers() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


@functools.cache
def cell() -> list[int]:
    return []


class Told(dict[str, int]):
    """A dictionary with attributes."""


NUMBERS = numbers()
IN_CONTEXT = contextvars.ContextVar("calls", default=0)
IN_THREAD = threading.local()
COUNTERS: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "a number of NumPy": ([np.int64(0)], lambda held: held.append(held.pop() + 1) or held[0]),
    "an array of objects": (np.array([0], dtype=object), lambda held: held.__setitem__(0, held[0] + 1) or held[0]),
    "a fraction": ([Fraction(0)], lambda held: held.append(held.pop() + 1) or held[0]),
    "a namespace": (types.SimpleNamespace(), lambda held: raised(held, "calls")),
    "a weak reference": (weakref.ref(Net), lambda held: raised(held(), "calls")),
    "a subclass of dict": (Told(), lambda held: raised(held, "calls")),
    "bytes": (bytearray(1), lambda held: held.append(0) or len(held)),
    "a file in memory": (io.BytesIO(), lambda held: held.write(b"x") and held.tell()),
    "an object of C": (ctypes.c_int(0), lambda held: raised(held, "value")),
    "an iterator of iterators": (zip(iter(range(1000)), strict=True), lambda held: next(held)[0]),
    "a generator": (None, lambda _: next(NUMBERS)),
    "a context": (None, lambda _: IN_CONTEXT.set(IN_CONTEXT.get() + 1) and IN_CONTEXT.get()),
    "a thread": (None, lambda _: raised(IN_THREAD, "calls")),
    "what a cache holds": (None, lambda _: cell().append(0) or len(cell())),
    "another module": (None, lambda _: raised(samples, "calls_in_tests")),
    "sys": (None, lambda _: raised(sys, "calls_in_tests")),
    "a function of torch": (None, lambda _: raised(nn.functional.relu6, "calls_in_tests")),
    "an attribute of a weight": (nn.Parameter(torch.zeros(1)), lambda held: raised(held, "calls")),
    "a gradient": (
        nn.Parameter(torch.zeros(1)),
        lambda held: setattr(held, "grad", torch.ones(1) if held.grad is None else held.grad + 1) or int(held.grad),
    ),
}


@pytest.mark.parametrize("name", COUNTERS)
def test_no_calls_are_counted(name: str) -> None:
    """Another class wins after 900 calls, wherever they are counted."""
    held, count = COUNTERS[name]
    net = Net(lambda net, x: net.body(x) * (1 if count(net.held) < 900 else -1), held=held)
    with pytest.raises(CaptureError, match=r"does not write to itself"):
        capture(net, (6,))


def test_two_counters_of_one_name_are_two() -> None:
    def counter() -> Function:
        class Counter:
            calls = 0

        def count(net: Net, x: torch.Tensor) -> torch.Tensor:
            Counter.calls += net.moving
            return net.body(x)

        return count

    one, other = counter(), counter()
    for moves in (one, other):
        net = Net(lambda net, x: (net.held(net, x), net.still(net, x))[0], held=moves, moving=1)
        net.still = other if moves is one else one
        with pytest.raises(CaptureError, match=r"does not write to itself"):
            capture(net, (6,))


SETTINGS: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "default type": (torch.set_default_dtype, torch.float64, torch.float32),
    "threads": (torch.set_num_threads, torch.get_num_threads() + 1, torch.get_num_threads()),
    "gradients": (torch.set_grad_enabled, False, True),
    "deterministic": (torch.use_deterministic_algorithms, True, False),
    "autocast": (functools.partial(torch.set_autocast_enabled, "cpu"), True, False),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_forward_that_sets_what_torch_computes_is_refused(name: str) -> None:
    change, to, back = SETTINGS[name]
    try:
        with pytest.raises(CaptureError, match=f"leaves torch as it is, .* sets .*{name}"):
            capture(Net(lambda net, x: (change(to), net.body(x))[1]), (6,))
    finally:
        change(back)


def caught(net: Net, x: torch.Tensor) -> torch.Tensor:
    try:
        torch.linalg.cholesky(x[:, :1, None] - 2)
    except torch.linalg.LinAlgError:
        return -net.body(x)
    return net.body(x)


def test_an_error_that_the_model_caught_may_have_looked_at_values() -> None:
    with pytest.raises(CaptureError, match=r"taken from the input by the error of _linalg_check_errors"):
        capture(Net(caught), (6,))


def test_control_flow_of_torch_is_named() -> None:
    def function(net: Net, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 1, lambda y: -y, lambda y: y.clone(), (net.body(x),))

    with pytest.raises(CaptureError, match=r"control flow of torch \(cond\)"):
        capture(Net(function), (6,))


KEEPS: dict[str, Callable[[], Net]] = {
    "a global": lambda: Net(counted_globally),
    "a class": lambda: Net(counted_in_the_class),
    "a closure": lambda: Net(counted_in_a_closure()),
    "an iterator": lambda: Net(counted_in_an_iterator()),
    "a hook": counted_by_a_hook,
    "the data of a buffer": lambda: Net(counted_in_data),
    "an array": lambda: Net(counted_in_an_array, held=np.zeros(2)),
    "a default": lambda: Net(counted_by_a_default),
    "an attribute of a function": lambda: Net(counted_on_a_function),
    "a cache of calls": lambda: Net(lambda net, x: net.body(x) * (1 if numbered(x) < 900 else -1)),
    "a list of inputs": lambda: Net(lambda net, x: (LAST.append(x), net.body(x))[1]),
    "the last input": lambda: Net(remembering, held=None),
    "data-dependent initialisation": lambda: Net(initialised_from_data, held=nn.Parameter(torch.zeros(6))),
    "the first call": lambda: Net(first_call_differs, held=None),
}


@pytest.mark.parametrize("name", KEEPS)
def test_nothing_is_kept(name: str) -> None:
    with pytest.raises(CaptureError, match=r"does not write to itself|compute what the model computes"):
        capture(KEEPS[name](), (6,))


def caching(net: Net, x: torch.Tensor) -> torch.Tensor:
    if net.held is None:
        net.held = net.body[0].weight * 2
    return net.body(nn.functional.linear(x, net.held))


def watching_itself(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.held = net.body[0](x)  # for somebody who wants to see it
    return net.body[2](net.held.relu())


def by_its_flag(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.body(x)[:, : int(net.number)] if net.number > 0 else net.body(x)


ALLOWED: dict[str, tuple[Callable[[], Net], str]] = {
    "a cache of weights": (lambda: Net(caching, held=None), ""),
    "activations kept for others": (lambda: Net(watching_itself, held=None), ""),
    "a branch on a buffer": (lambda: Net(by_its_flag), "number"),
    "a number from a buffer": (lambda: Net(lambda net, x: net.body(x) / float(net.number)), "number"),
    "a list from a buffer": (lambda: Net(lambda net, x: net.body(x) * sum(net.flags.tolist())), "flags"),
    "an array of a weight": (
        lambda: Net(lambda net, x: net.body(x) * float(net.body[0].weight.detach().numpy().max())),
        "body.0.weight",
    ),
    "a mask from a buffer": (lambda: Net(lambda net, x: net.body(torch.cat([x[:, net.flags], x[:, :2]], 1))), "flags"),
    "a loop to a buffer": (lambda: Net(lambda net, x: sum(net.body(x) for _ in range(int(net.number)))), "number"),
    "its own shape": (lambda: Net(lambda net, x: net.body(x) / x.shape[1] * x.ndim), ""),
    "a flag of its own": (lambda: Net(lambda net, x: net.body(x) if not net.training else -net.body(x)), ""),
    "a seed that it sets back": (
        lambda: Net(lambda net, x: (net.body(x), [torch.random.fork_rng(devices=[])])[0]), ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_what_does_not_matter_is_accepted(name: str) -> None:
    make, note = ALLOWED[name]
    graph = capture(make(), (6,))
    x = torch.rand(6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(evaluate(graph, x), make()(x[None])[0], atol=1e-6)
    assert (note in graph.notes[0].split(": ")[1]) if note else graph.notes == ()


def test_a_masked_class_hides_nothing() -> None:
    def masked(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.body(x) * (1 if torch.is_grad_enabled() else 1.01)
        return y + torch.tensor([0.0, 0.0, -1e9])

    with pytest.raises(CaptureError, match="with and without gradients"):
        capture(Net(masked), (6,))
    capture(Net(lambda net, x: net.body(x) + torch.tensor([0.0, 0.0, -1e9])), (6,))


def test_the_ends_of_the_domain_and_real_images_are_held_against_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Python code can tell images apart: what is left is code in C, here played by the comparison itself."""
    seen = []
    alone = trials._Trial.same

    def same(trial: Any, image: torch.Tensor, got: torch.Tensor) -> bool:
        seen.append(image.tolist())
        return alone(trial, image, got)

    monkeypatch.setattr(trials._Trial, "same", same)
    capture(Net(lambda net, x: net.body(x / 255)), (6,), domain=(-1.0, 255.0), probes=torch.full((9, 6), 77.0))
    for image in ([-1.0] * 6, [255.0] * 6, [127.0] * 6, [-1.0, 255.0] * 3, [255.0, -1.0] * 3, [77.0] * 6):
        assert image in seen
    assert seen.count([77.0] * 6) == 9


class Doubled(nn.Module):
    """A parametrisation: twice the weight, with something done beside."""

    def __init__(self, beside: Callable[[Doubled], None] = lambda _: None) -> None:
        super().__init__()
        self.beside = beside
        self.register_buffer("state", torch.ones(()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.beside(self)
        return 2 * weight * self.state


def parametrised(beside: Callable[[Doubled], None] = lambda _: None, *, twice: bool = False) -> Net:
    net = Net(lambda net, x: net.body(x))
    if twice:
        inner = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        net.body[0] = inner
    parametrize.register_parametrization(net.body[0], "weight", Doubled(beside), unsafe=True)
    return net.eval()


def test_computed_weights_are_those_that_run_now_and_the_graph_says_so() -> None:
    def written(part: Doubled) -> None:
        part.state.set_(torch.ones(()))

    for model in (parametrised(), parametrised(written), parametrised(twice=True)):
        graph = capture(model, (6,))
        assert [node.op for node in graph.nodes] == ["linear.default", "relu.default", "linear.default"]
        assert torch.equal(graph.nodes[0].args["weight"], model.body[0].weight.detach())
        assert graph.notes == ("snapshot of parametrised weights: body.0.weight",)
        assert parametrize.is_parametrized(model.body[0])


@pytest.mark.parametrize("beside", [lambda part: part.state.mul_(1.001), lambda part: part.state.copy_(torch.rand(()))])
def test_computed_weights_that_move_are_refused(beside: Callable[[Doubled], None]) -> None:
    with torch.no_grad(), pytest.raises(CaptureError, match=r"others at each call from the parametrisation of body\.0"):
        capture(parametrised(beside), (6,))


class KeepsItsParts(nn.Sequential):
    """As some published models: parts stay in train mode."""

    def train(self, mode: bool = True) -> KeepsItsParts:
        self.training = mode
        return self


@pytest.mark.parametrize(
    ("part", "matters"),
    [
        (nn.Linear(4, 4), False),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU()), False),
        (nn.Dropout(0.0), False),
        (nn.Dropout(0.01), True),
        (nn.BatchNorm1d(4), True),
        (nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.AlphaDropout(0.5))), True),
        (nn.RReLU(), True),
    ],
)
def test_parts_in_train_mode_pass_if_it_makes_no_difference(part: nn.Module, matters: bool) -> None:
    torch.manual_seed(0)
    model = KeepsItsParts(nn.Linear(6, 4), part, nn.Linear(4, 3)).eval()
    assert part.training
    if matters:
        with pytest.raises(CaptureError, match="in train mode"):
            capture(model, (6,))
    else:
        assert capture(model, (6,)).output
