"""What a model's Python code learns of the numbers in its input, and of the world outside, while it runs.

Note [Watched runs]
    The graph has one path; the model has as many as its Python code can tell inputs apart. So the model is run once
    with every tensor followed that depends on the input (by its storage: views share it), below autograd for the
    operations that are dispatched (`item`, `equal`, `nonzero`, masks as indices), above it for the methods that reach
    into memory (`tolist`, `numpy`, `data_ptr`, storages). Of such a tensor, Python may ask for what is known without
    its entries: shape, type, strides and the like (`METADATA`); whatever else it gets that is no tensor is a finding.
    A profile of the same run sees calls that go around torch's hooks, and those that ask for the time, for entropy,
    for the environment, the process, addresses or the caller, or hand work to another thread, where nothing would be
    seen.
    Then the path of the model is the same for all inputs of that shape, under the same circumstances; those are
    changed one by one in `capture`. What a model does in C code of its own stays unseen, and the answers on every
    audited image are held against the graph for that reason too.
"""

from __future__ import annotations

import _thread
import concurrent.futures
import datetime
import functools
import gc
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lipaudit.errors import CaptureError
from lipaudit.graph.lowering import SHAPE_ONLY, innermost, is_random
from lipaudit.graph.replay import masks_in, name_of, tensors_in, without_masks

METADATA = frozenset(
    {
        "grad_fn", "grad", "backward", "register_hook", "_base", "__dict__", "__class__", "__setstate__",
        "size", "stride", "dim", "ndimension", "ndim", "numel", "nelement", "__len__", "element_size", "itemsize",
        "nbytes", "storage_offset", "get_device", "requires_grad", "output_nr", "retains_grad", "names", "type",
        "__hash__", "dim_order", "can_cast", "has_names", "is_same_size", "is_set_to", "__get__", "shape",
        "sym_size", "sym_size.int", "sym_stride", "sym_stride.int", "sym_numel", "sym_numel.default",
        "_batch_norm_impl_index",
    }
)  # fmt: skip
"""What Python may ask of a tensor that depends on the input, besides `is_...`: none of it reads an entry.

The number that `_batch_norm_impl_index` returns says which kernel ran, chosen by shape and type.
"""

_PLAIN = (type(None), torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format)
"""Results that hold no entries of a tensor."""

COPYING = frozenset({"tensor", "as_tensor", "asarray", "new_tensor", "__deepcopy__", "from_dlpack"})
"""They may copy entries without an operation: what comes out must still be known to depend on the input."""

LOOKING = frozenset({"apply_", "map_", "map2_", "_version", "is_nonzero"})
"""They hand values to Python whatever comes out."""

_SHAPING = frozenset({"nonzero", "argwhere", "unique", "masked_select"})
"""The shapes of their results depend on values, which torch.export does not have."""

_SPECIAL = COPYING | LOOKING | _SHAPING | {"tensor_split"}

_SHAPED_BY = {"aten.masked_select.default": 1, "aten.index.Tensor": 1, "aten._unsafe_index.Tensor": 1}
"""Of operations whose shapes depend on values: which argument decides them; of the others, all."""

_MEMORY = frozenset({"tolist", "numpy", "data_ptr", "untyped_storage", "apply_", "map_", "map2_", "__reduce_ex__"})

_OUTSIDE: dict[Any, str] = {
    **{
        getattr(time, name): "the time"
        for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns",
                     "process_time", "process_time_ns", "thread_time", "thread_time_ns", "localtime", "gmtime")
    },
    **{getattr(os, name): "entropy" for name in ("urandom", "getrandom") if hasattr(os, name)},
    **dict.fromkeys((os.getpid, os.getppid, os.getcwd, os.cpu_count, sys.getrecursionlimit, sys.getswitchinterval,
                     sys.getrefcount, sys.getallocatedblocks, gc.isenabled, gc.get_count, gc.get_objects,
                     torch.get_num_threads, torch.get_num_interop_threads), "the process"),
    **dict.fromkeys((id, hash), "an address in memory"),
    _thread.start_new_thread: "another thread",
    open: "a file",
    sys._getframe: "its caller",
    sys.getprofile: "its caller",
    sys.gettrace: "its caller",
    torch._C._to_dlpack: "values in memory",
    torch._C._len_torch_function_stack: "its watch",
    torch._C._len_torch_dispatch_stack: "its watch",
    torch._C._get_function_stack_at: "its watch",
    torch._C._get_dispatch_stack_at: "its watch",
}  # fmt: skip
"""C functions that tell a model more than its input, and what about."""

_OUTSIDE_PYTHON = {
    id(os._Environ.__getitem__.__code__): "the environment",
    id(concurrent.futures.ThreadPoolExecutor.submit.__code__): "another thread",
    id(concurrent.futures.ProcessPoolExecutor.submit.__code__): "another process",
    id(torch.are_deterministic_algorithms_enabled.__code__): "the process",
    id(torch.get_float32_matmul_precision.__code__): "the process",
    id(queue.Queue.put.__code__): "another thread",
    id(threading.Condition.notify.__code__): "another thread",
    **{
        id(function.__code__): "its watch"
        for function in (
            torch.overrides._get_current_function_mode, torch.overrides._get_current_function_mode_stack,
            torch.utils._python_dispatch._get_current_dispatch_mode,
            torch.utils._python_dispatch._get_current_dispatch_mode_stack,
        )
    },
}  # fmt: skip
"""The same in Python, by the address of their code."""

_CLOCKS = frozenset({"now", "utcnow", "today"})

_SUSPECT = _MEMORY | _CLOCKS | {"put"} | {function.__name__ for function in _OUTSIDE}
"""Names of C functions that are worth a look: there are very many calls."""

_SILENT = frozenset({"logging", "warnings", "tqdm", "torch"})
"""Packages that ask for the time and the like for themselves. For the rest of the standard library, it is the code
that calls it that counts."""


class Watch:
    """Follows what depends on the input through runs of one model, see Note [Watched runs]."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._tensors = {part._cdata: name for name, tensor in tensors for part in _parts(tensor)}
        self._storages: dict[int, StorageWeakRef] = {}
        """By address: which is not given to another storage as long as somebody refers to this one."""
        self.looked: list[str] = []
        """What was asked of values that depend on the input, and where; for an error message."""
        self._raised: list[str] = []
        """Errors of operations on them in this run."""
        self.outside: list[str] = []
        """What was asked of the world."""
        self.random: list[str] = []
        """Operations that drew random numbers, and where."""
        self.constants: list[tuple[str, Any]] = []
        """What was read of tensors that do not depend on the input, in this order: function and result."""
        self.read: dict[str, None] = {}
        """The same for people: names of buffers, or places."""

    def run(self, model: nn.Module, inputs: torch.Tensor) -> Any:
        """The model's answer. What was seen is added up in `looked` and `outside`; `constants` is this run's."""
        self._mark([inputs])
        self.constants, self._raised = [], []
        profile, collecting = sys.getprofile(), gc.isenabled()
        gc.disable()  # what others have told it to call when it collects is not the model's doing
        if profile is None:
            sys.setprofile(self._profile)
        try:
            with _Operations(self), _Calls(self):
                result = model(inputs)
            self.looked += self._raised  # whether an operation fails may depend on values, and the model went on
            return result
        finally:
            if profile is None:
                sys.setprofile(None)
            if collecting:
                gc.enable()

    def depends(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Whether one of them has entries that depend on the input of a run."""
        return any(part._cdata in self._storages for tensor in tensors for part in _parts(tensor))

    def _mark(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            for part in _parts(tensor):
                if part._cdata not in self._storages:
                    self._storages[part._cdata] = StorageWeakRef(part)

    def operation(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that was dispatched."""
        if isinstance(op, torch._ops.HigherOrderOperator):
            raise CaptureError(
                f"expected a forward in plain operations, got control flow of torch ({op.name()}) in {self._place()}; "
                "write it out"
            )
        facts = _facts(op)
        if facts.random and is_random(op, _named(op, args, kwargs)):
            self.random.append(f"{op} in {self._place()}")
        if not self.depends(tensors_in(args)) and not (kwargs and self.depends(tensors_in(kwargs.values()))):
            return op(*args, **kwargs)
        if facts.ignored is not None:
            items = _named(op, args, kwargs).items()
            if not self.depends(tensors_in(value for name, value in items if name != facts.ignored)):
                return op(*args, **kwargs)
        name = str(op).removeprefix("aten.")
        if facts.shaping and self._decides(op, args, kwargs):
            self._look("item" if op is torch.ops.aten._local_scalar_dense.default else name)
        try:
            result = op(*args, **kwargs)
        except Exception:
            self._raised.append(f"the error of {name} in {self._place()}")
            raise
        self._mark(tensors_in([result]))
        if facts.written:  # what is written to depends on the input from now on
            named = _named(op, args, kwargs)
            self._mark(tensors_in(named.get(name) for name in facts.written))
        return result

    def _decides(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the operation hands values to Python, as a number or in the shape of its result."""
        if torch.Tag.data_dependent_output in op.tags:
            return True
        place = _SHAPED_BY.get(str(op))
        deciding = tensors_in([*args, *kwargs.values()] if place is None else [args[place]])
        if "index.Tensor" in str(op):
            deciding = (tensor for tensor in deciding if tensor.dtype in (torch.bool, torch.uint8))
        return self.depends(deciding)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function of torch that was called from Python."""
        result = function(*args, **kwargs)
        name = name_of(function)
        if name == "__getitem__" and (masks := masks_in(args[1])) and not self.depends(masks):
            self._read(name, without_masks(args[1]), masks)
        plain = isinstance(result, torch.Tensor) and name not in _SPECIAL
        if plain or name in METADATA or (name.startswith("is_") and name not in LOOKING):
            return result
        numbers = name in LOOKING or any(map(_tells, tree_leaves(result)))
        given = [*args, *kwargs.values()]
        if self.depends(tensors_in(given)):
            copied = name in COPYING and not self.depends(tensors_in([result]))
            split = name == "tensor_split" and self.depends(tensors_in(given[1:]))
            if numbers or copied or split:
                self._look(name)
        elif (numbers or name in _SHAPING) and (tensors := list(tensors_in(given))):
            self._read(name, result, tensors)
        return result

    def _read(self, name: str, result: Any, tensors: list[torch.Tensor]) -> None:
        # torch.export takes the entries of a list one by one.
        self.constants += [("item", leaf) for leaf in tree_leaves(result)] if name == "tolist" else [(name, result)]
        parts = [part._cdata for tensor in tensors for part in _parts(tensor)]
        names = [self._tensors[part] for part in parts if part in self._tensors]
        self.read |= dict.fromkeys(names or [self._place()])

    def _look(self, name: str) -> None:
        self.looked.append(f"{name} in {self._place()}")

    def _place(self) -> str:
        """Layer and line of the model's code that is running."""
        frame: FrameType | None = sys._getframe(1)
        frames, layer = [], None
        while frame is not None:
            if _module(frame) not in sys.stdlib_module_names | {"lipaudit"}:
                frames.append((frame.f_code.co_filename, frame.f_lineno))
            itself = frame.f_locals.get("self")
            if layer is None and isinstance(itself, nn.Module):
                layer = self._names.get(id(itself))
            frame = None if layer == "" else frame.f_back
        return f"{layer or 'the model'} ({innermost(frames[::-1]) or 'source unknown'})"

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            if argument.__name__ not in _SUSPECT:
                return
            itself = getattr(argument, "__self__", None)
            if isinstance(itself, torch.Tensor):
                if argument.__name__ in _MEMORY and _module(frame) != "lipaudit" and self.depends([itself]):
                    self._look(argument.__name__)
                return
            kind = _OUTSIDE.get(argument)  # by name alone, it may be something else
            if kind is None and argument.__name__ == "put" and isinstance(itself, queue.SimpleQueue):
                kind = "another thread"
            if kind is None and argument.__name__ in _CLOCKS and _is_date(itself):
                kind = "the time"
            if kind is not None:
                self._ask(kind, frame)
        elif event == "call" and id(frame.f_code) in _OUTSIDE_PYTHON and frame.f_back is not None:
            self._ask(_OUTSIDE_PYTHON[id(frame.f_code)], frame.f_back)

    def _ask(self, kind: str, frame: FrameType) -> None:
        caller: FrameType | None = frame
        while caller is not None and _module(caller) in sys.stdlib_module_names - _SILENT:
            caller = caller.f_back
        if caller is None or _module(caller) in _SILENT | {"lipaudit"}:
            return
        importing: FrameType | None = caller
        while importing is not None:
            if importing.f_code.co_name == "<module>" and "importlib._bootstrap" in str(importing.f_back):
                return  # what an import asks for
            importing = importing.f_back
        self.outside.append(f"{kind} in {self._place()}")


class _Operations(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return self.watch.operation(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return self.watch.call(func, args, kwargs or {})


def _parts(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """The storages that hold its entries."""
    if tensor.layout != torch.strided:
        held = (tensor.indices(), tensor.values()) if tensor.layout == torch.sparse_coo else ()
        return [storage for part in held for storage in _parts(part)]
    with torch._C.DisableTorchFunction():
        try:
            return [tensor.untyped_storage()]
        except (NotImplementedError, RuntimeError):  # wrappers, such as those of torch.func, have none of their own
            return []


@dataclass(frozen=True)
class _Facts:
    """What matters of an operation."""

    random: bool
    shaping: bool
    """It may hand values to Python, as a number or as a shape."""
    ignored: str | None
    """The argument of which it reads no more than the shape; see decompositions.py, Note [Dependence]."""
    written: tuple[str, ...]


@functools.cache
def _facts(op: Any) -> _Facts:
    tags = set(op.tags)
    written = (a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    return _Facts(
        torch.Tag.nondeterministic_seeded in tags,
        bool(tags & {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}),
        SHAPE_ONLY.get(str(op)),
        tuple(written),
    )


def _named(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {a.name: value for a, value in zip(op._schema.arguments, args, strict=False)} | kwargs


def _tells(leaf: Any) -> bool:
    """Whether a result may hold entries of a tensor in another form."""
    return not isinstance(leaf, (torch.Tensor, *_PLAIN)) and type(leaf).__module__ not in ("torch.utils.hooks", "torch")


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_date(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, datetime.date)
