"""A GPU that does not exist: tensors that say they are on a device, and are computed on the CPU.

    with pretend() as watch:
        lipaudit.bound(model.to(watch.device), shape)
    watch.launches, watch.waits

It refuses what a CUDA device would refuse: tensors of two devices in one operation (but for numbers of the CPU), CPU
generators for results on the device, `numpy()` without `cpu()`. It counts, for each stage that the test names, kernels
launched, times that the host waits for the device, and copies to it. It says nothing of other arithmetic or of time.

A wrapper subclass on torch's PrivateUse1 backend, with a mode for what makes tensors: autograd, torch.func and
torch.export work. Modes belong to a thread, so torch must run on one.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from sys import _getframe  # before a watch of what models ask for replaces it
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)

aten = torch.ops.aten
_TAKING_INDICES = {  # they take indices of the CPU
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor, aten._unsafe_index_put.default,
}  # fmt: skip
_COPIES = {aten.copy_.default, aten._to_copy.default, aten.copy.default, aten._copy_from.default}
_NO_NUMBERS = {aten.cat.default, aten.stack.default}
_WAITING = {"nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "_unique", "repeat_interleave",
            "bincount", "linalg_eig", "linalg_eigvals"}  # fmt: skip
"""The shape of the result depends on values, or the work is done on the host."""
_READING = {"_local_scalar_dense", "equal", "is_nonzero"}
_METADATA = {"t_", "squeeze_", "unsqueeze_", "transpose_", "swapdims_", "resize_", "set_", "as_strided_"}
_NO_KERNEL = {"empty", "empty_strided", "detach", "new_empty", "empty_like", "new_empty_strided", "lift_fresh"}


class Refused(RuntimeError):
    """What a real device refuses."""


@dataclass
class Counts:
    """What one stage cost."""

    launches: int = 0
    waits: int = 0
    uploads: int = 0
    places: collections.Counter[str] = field(default_factory=collections.Counter)
    """Lines of lipaudit: waits, or launches too with `pretend(launches=True)`."""


@dataclass
class Watch:
    launches_by_line: bool = False
    device: torch.device = DEVICE
    stage: str = "start"
    stages: dict[str, Counts] = field(default_factory=lambda: collections.defaultdict(Counts))

    @property
    def now(self) -> Counts:
        return self.stages[self.stage]

    def launch(self) -> None:
        self.now.launches += 1
        if self.launches_by_line:
            self.now.places[f"launch at {_place()}"] += 1

    def wait(self, kind: str) -> None:
        self.now.waits += 1
        self.now.places[f"wait ({kind}) at {_place()}"] += 1


_WATCHES: list[Watch] = []


def _place() -> str:
    """The innermost line of the package under test."""
    frame = _getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/lipaudit/" in name and "/tests/" not in name:
            return f"{name.rpartition('/lipaudit/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class PretendTensor(torch.Tensor):
    """Says that it is on the device; `raw` is where its entries are."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor, requires_grad: bool = False) -> PretendTensor:
        out = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            layout=raw.layout, device=DEVICE, requires_grad=requires_grad,
        )  # fmt: skip
        out.raw = raw
        torch._C._set_conj(out, raw.is_conj())
        torch._C._set_neg(out, raw.is_neg())
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.raw!r})"

    def __format__(self, spec: str) -> str:
        return self.item().__format__(spec) if self.dim() == 0 else object.__format__(self, spec)

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {NAME} device type tensor to numpy. Use Tensor.cpu() first ({_place()})")
        return self.detach().cpu().resolve_conj().resolve_neg().numpy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with torch.no_grad():
                copy: torch.Tensor = PretendTensor(self.raw.clone())
            copy.requires_grad_(self.requires_grad)
            is_parameter = isinstance(self, torch.nn.Parameter)  # of any subclass, by a flag of the tensor
            memo[id(self)] = torch.nn.Parameter(copy, self.requires_grad) if is_parameter else copy
        return memo[id(self)]


def _raw(tree: Any) -> Any:
    return tree_map(lambda x: x.raw if isinstance(x, PretendTensor) else x, tree)


def _on_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _writes(func: Any) -> bool:
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    mine = [x for x in leaves if isinstance(x, PretendTensor)]
    if not mine and not _on_device(kwargs.get("device")):
        return func(*args, **kwargs)
    if mine and any(isinstance(x, FakeTensor) for x in leaves):
        return _traced(func, args, kwargs)
    name = func._schema.name.split("::")[1]
    if name in _METADATA:
        func(*_raw(args), **_raw(kwargs))
        with torch._C._DisableTorchDispatch():  # the wrapper's own sizes and strides
            func(*args, **kwargs)
        return args[0]
    others = [x for x in leaves if not isinstance(x, PretendTensor) and x.device.type != "meta"]
    if _WATCHES and mine and func not in _COPIES:
        _check_devices(func, args, others)
    if _WATCHES and (generator := kwargs.get("generator")) is not None and generator.device.type == "cpu":
        raise Refused(f"expected a generator on {NAME} for {func}, got one of the CPU at {_place()}")
    to_device = {"device": torch.device("cpu")} if _on_device(kwargs.get("device")) else {}
    out = func(*_raw(args), **{**_raw(kwargs), **to_device})
    if _WATCHES:
        _count(_WATCHES[-1], func, name, args, kwargs)
    return _wrapped(func, name, args, kwargs, out)


def _traced(func: Any, args: Any, kwargs: Any) -> Any:
    """torch.export meets a tensor of ours: it becomes a fake tensor of the same device."""
    mode = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, FakeTensor)).fake_mode
    args, kwargs = tree_map(
        lambda x: mode.from_tensor(x, static_shapes=True) if isinstance(x, PretendTensor) else x, (args, kwargs)
    )
    return func(*args, **kwargs)


def _check_devices(func: Any, args: Any, others: list[torch.Tensor]) -> None:
    mixed = [x for x in others if x.ndim or func in _NO_NUMBERS]
    if func in _TAKING_INDICES:
        mixed = [x for x in mixed if any(x is value for value in args[2:3])]
        if any(x.ndim and not any(x is value for value in args[2:3]) for x in others):
            _WATCHES[-1].now.uploads += 1
    if mixed:
        raise Refused(
            f"expected all tensors of {func} on one device, got {[tuple(x.shape) for x in mixed]} of the CPU among "
            f"those of {NAME} at {_place()}"
        )


def _count(watch: Watch, func: Any, name: str, args: Any, kwargs: Any) -> None:
    target = kwargs.get("device")
    down = func in _COPIES and target is not None and not _on_device(target)
    into_cpu = func in _COPIES and name.startswith("copy") and not isinstance(args[0], PretendTensor)
    if name in _READING:
        watch.wait(name)
    elif down or into_cpu:
        watch.wait("to the CPU")
    elif func in _COPIES and not isinstance(args[1] if name.startswith("copy") else args[0], PretendTensor):
        watch.now.uploads += 1
    elif name in _WAITING or (func in _TAKING_INDICES and _masks(args[1])):
        watch.wait(f"{name}: its size depends on values")
    if not _is_view(func) and name not in _NO_KERNEL | _READING:
        watch.launch()


def _masks(indices: Any) -> bool:
    return any(isinstance(x, PretendTensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(indices))


def _wrapped(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    target = kwargs.get("device")
    if name == "_local_scalar_dense" or (target is not None and not _on_device(target)):
        return out
    if func in _COPIES and name.startswith("copy"):
        return args[0]
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    mine = [x for x in leaves if isinstance(x, PretendTensor)]
    if _writes(func):  # in place, or `out=`: the given wrapper comes back
        given = {id(x.raw): x for x in mine} | {id(x): x for x in leaves if not isinstance(x, PretendTensor)}
        if any(x.raw.shape != x.shape for x in mine):
            # A wrapper keeps its shape. A real device allows it: this is no finding, but where pretending ends.
            raise NotImplementedError(f"{func} gave its output another shape")
        return tree_map(
            lambda x: given[id(x)] if id(x) in given else PretendTensor(x) if isinstance(x, torch.Tensor) else x, out
        )
    # A view of a normal tensor is one, also in inference mode.
    normal = _is_view(func) and not mine[0].is_inference()
    with torch.inference_mode(False) if normal else contextlib.nullcontext():
        out = tree_map(lambda x: PretendTensor(x) if isinstance(x, torch.Tensor) else x, out)
    if _is_view(func) and not torch.is_inference_mode_enabled():
        return return_and_correct_aliasing(func, args, kwargs, out)
    return out


class _Factories(TorchDispatchMode):
    """What makes tensors on the device, or copies them to it, has no argument there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextlib.contextmanager
def pretend(*, launches: bool = False) -> Iterator[Watch]:
    """The device exists inside; `launches`: count the lines that launch kernels too (slower)."""
    threads, lifted = torch.get_num_threads(), torch._C._only_lift_cpu_tensors()
    torch.set_num_threads(1)
    _WATCHES.append(Watch(launches))
    torch._C._set_only_lift_cpu_tensors(True)
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `.data =` does not reach `raw`
    try:
        with _Factories():
            yield _WATCHES[-1]
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        torch._C._set_only_lift_cpu_tensors(lifted)
        _WATCHES.pop()
        torch.set_num_threads(threads)


# What this module does, torch does in C++: to the watch over what a model asks for, it is a part of torch.
sys.modules["torch.pretend_device"] = sys.modules[__name__]
__name__ = "torch.pretend_device"
