"""What a model holds at one moment: weights that are computed, and everything that a run may have written.

Note [Hidden state]
    A model may keep numbers anywhere: in buffers and attributes, in objects that these hold, in what its functions
    close over, in class attributes, in globals of its own module or of another that it names, in generators of random
    numbers. `State` reads all of that which can be reached from the modules and from the functions that belong to their
    classes, hooks and attributes, into one short token each, to be compared before and after a run. Code of torch,
    NumPy and the standard library is not looked into: of their modules, functions and objects, only numbers that were
    set on them. What objects of the standard library hold is: by what pickle would take of them, or else by what the
    garbage collector knows. Shared generators of random numbers count too.
"""

from __future__ import annotations

import contextvars
import functools
import gc
import random
import sys
import threading
import types
import warnings
import weakref
import zlib
from collections import defaultdict, deque
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

_FOREIGN = frozenset({"torch", "numpy", "lipaudit", "functorch", *sys.stdlib_module_names} - {"__main__"})
"""Packages whose code is not looked into."""

_CLOSED = _FOREIGN - sys.stdlib_module_names | {"logging", "warnings"}
"""Those whose objects are not looked into either: they keep caches, and records that no answer depends on."""

_MOST_OBJECTS = 200_000

_NUMBERS = (bool, int, float, complex, str, bytes, type(None), np.generic)


_OLD_NORMS = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")


def computes_weights(model: nn.Module) -> bool:
    """Whether `fix_parametrized` would find something to fix."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return any(map(is_parametrized, model.modules())) or any(type(hook).__module__ in _OLD_NORMS for hook in hooks)


def fix_parametrized(model: nn.Module) -> list[str]:
    """Weights that are computed at each pass become plain ones of the value that they have now; gives their names.

    Those of torch.nn.utils.parametrize, and of the older `weight_norm` and `spectral_norm`, which are hooks. Not by
    torch's `remove_parametrizations`: it takes the property off the class, which other copies share.
    """
    fixed = []
    for prefix, module in list(model.named_modules()):
        if "parametrizations" in prefix.split("."):
            continue  # goes with the weight that it computes
        values = {}
        if is_parametrized(module):
            values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
        for key, hook in list(module._forward_pre_hooks.items()):
            if type(hook).__module__ in _OLD_NORMS:
                hook(module, ())
                values[hook.name] = getattr(module, hook.name).detach().clone()
                del module._forward_pre_hooks[key], module.__dict__[hook.name]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
            fixed.append(f"{prefix}.{name}".removeprefix("."))
    return fixed


class State:
    """Everything that can be reached from a model, see Note [Hidden state]."""

    def __init__(self, model: nn.Module, *, entries: bool = True) -> None:
        """`entries`: also those of tensors, which takes the time."""
        self.entries = entries
        self.tokens: defaultdict[str, list[Any]] = defaultdict(list)
        """By place: two things may have the same name."""
        self.tensors: list[tuple[str, torch.Tensor]] = []
        self.generators: set[str] = set()
        """Places of generators of random numbers."""
        self._seen: dict[int, Any] = {}
        """Kept, so that no number stands for two objects."""
        self._classes: set[type] = set()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of iterators that will no longer be copied
            for name, module in model.named_modules():
                self._walk(module, name or type(module).__name__, named=name)
            for place, shared in (_generators() | _hooks()).items():
                self._walk(shared, place)

    def changes(self, later: State) -> list[str]:
        """Where `later` is something else."""
        places = [*self.tokens, *(place for place in later.tokens if place not in self.tokens)]
        return [place for place in places if self.tokens.get(place) != later.tokens.get(place)]

    def _walk(self, value: Any, place: str, named: str | None = None) -> None:  # noqa: C901  (one case after the other)
        if isinstance(value, _NUMBERS):
            self.tokens[place].append((type(value).__name__, repr(value)))
            self._attributes(value, place)
            return
        if id(value) in self._seen or len(self._seen) > _MOST_OBJECTS:
            return
        self._seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            self.tensors.append((place, value))
            self.tokens[place].append(_token(value) if self.entries else None)
            self._attributes(value, place)
            if value.is_leaf and value.grad is not None:
                self._walk(value.grad, f"{place}.grad")
        elif isinstance(value, np.ndarray):
            objects = value.dtype.hasobject
            self.tokens[place].append((value.shape, objects or zlib.crc32(np.ascontiguousarray(value).tobytes())))
            self._walk(value.tolist() if objects else None, f"{place}.tolist()")
        elif isinstance(value, (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)):
            self.tokens[place].append(_position(value))
            self.generators.add(place)
        elif isinstance(value, nn.Module):
            prefix = place if named is None else named
            for name, held in vars(value).items():
                inner = held.items() if name in ("_parameters", "_buffers") else [(name, held)]
                for key, one in inner if name != "_modules" else ():
                    self._walk(one, f"{prefix}.{key}".removeprefix("."))
            self._class(type(value))
        elif isinstance(value, Mapping):
            self.tokens[place].append(("keys", tuple(map(_short, value))))
            for key, one in list(value.items()):
                self._walk(one, f"{place}[{_short(key)}]")
            self._attributes(value, place)
        elif isinstance(value, (list, tuple, deque, Set)):
            self.tokens[place].append(("length", len(value)))
            for number, one in enumerate(list(value)):
                self._walk(one, f"{place}[{number}]")
            self._attributes(value, place)
        else:
            self._object(value, place)

    def _attributes(self, value: Any, place: str, *, numbers: bool = False) -> None:
        """What was set on an object; or only the numbers of that."""
        for name, one in list(getattr(value, "__dict__", {}).items()):
            if not numbers or isinstance(one, _NUMBERS):
                self._walk(one, f"{place}.{name}")

    def _object(self, value: Any, place: str) -> None:
        if isinstance(value, types.MethodType):
            self._walk(value.__func__, place)
            self._walk(value.__self__, f"{place}.__self__")
        elif isinstance(value, types.FunctionType):
            self._function(value, place)
        elif isinstance(value, types.ModuleType):
            self._module(value, [] if _is_foreign(value.__name__) else list(vars(value)))
        elif isinstance(value, type):
            self._class(value)
        elif _foreign(type(value)) and not hasattr(value, "__torch_function__"):
            closed = str(type(value).__module__).partition(".")[0] in _CLOSED
            self._attributes(value, place, numbers=True) if closed else self._walk(_held(value), place)
        else:
            for name in [n for kind in type(value).__mro__ for n in getattr(kind, "__slots__", ())]:
                if hasattr(value, name):
                    self._walk(getattr(value, name), f"{place}.{name}")
            self._attributes(value, place)
            self._class(type(value))

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            if _foreign(base) or base in self._classes:
                continue
            self._classes.add(base)
            for name, value in list(vars(base).items()):
                if name not in ("__dict__", "__weakref__", "__doc__", "__annotations__", "_abc_impl"):
                    inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                    self._walk(inner, f"{base.__name__}.{name}")

    def _function(self, function: types.FunctionType, place: str) -> None:
        if _foreign(function):
            self._attributes(function, place, numbers=True)
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._walk(cell.cell_contents, f"{place}: {name}")
            except ValueError:  # an empty cell
                continue
        for what in ("__defaults__", "__kwdefaults__", "__dict__"):
            self._walk(getattr(function, what), f"{place}.{what}")
        names = sorted(_names(function.__code__))
        for name in names:
            value = function.__globals__.get(name, sys.modules.get(name))
            if isinstance(value, types.ModuleType):
                self._module(value, names)
            elif value is not None:
                self._walk(value, f"global {name}")

    def _module(self, module: types.ModuleType, names: list[str]) -> None:
        """The globals of these names in a module, and in those that it has under one of them."""
        modules = [module]
        for one in modules:
            foreign = _is_foreign(one.__name__)
            for name in names:
                value = vars(one).get(name)
                if isinstance(value, types.ModuleType):
                    modules += [] if value in modules else [value]
                elif value is not None and (not foreign or isinstance(value, (types.FunctionType, *_NUMBERS))):
                    self._walk(value, f"{one.__name__}.{name}")


def _names(code: types.CodeType) -> set[str]:
    """The names that a function and those inside it may read, also by their spelling."""
    names = {*code.co_names, *(constant for constant in code.co_consts if isinstance(constant, str))}
    return names.union(*(_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)))


def _held(value: Any) -> list[Any]:
    """What an object of the standard library holds."""
    if isinstance(value, contextvars.ContextVar):
        return [value.get(None)]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, threading.local):
        return [vars(value)]
    if isinstance(value, functools._lru_cache_wrapper):
        info = value.cache_info()
        return [info.misses, info.currsize, *gc.get_referents(value)]
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        return [frame.f_lasti, dict(frame.f_locals), value.gi_yieldfrom] if frame else []
    if isinstance(value, (types.CodeType, types.FrameType, types.TracebackType)):
        return []
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # noqa: BLE001  (pickle does not take it; what is raised is up to the class)
        return [one for one in gc.get_referents(value) if not isinstance(one, (type, types.ModuleType))]
    return [] if isinstance(reduced, str) else list(reduced[1:3])


def _foreign(value: Any) -> bool:
    return _is_foreign(getattr(value, "__module__", None) or "builtins")


def _is_foreign(module: Any) -> bool:
    return str(module).partition(".")[0] in _FOREIGN


def _short(key: Any) -> str:
    return repr(key) if isinstance(key, _NUMBERS) else type(key).__name__


def _token(tensor: torch.Tensor) -> Any:
    kind = (tuple(tensor.shape), str(tensor.dtype))
    if tensor.is_meta or tensor.layout != torch.strided or type(tensor).__torch_dispatch__ is not _PLAIN_DISPATCH:
        return kind
    entries = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return (*kind, zlib.crc32(entries.numpy().data))


_PLAIN_DISPATCH = torch.Tensor.__torch_dispatch__


def _generators() -> dict[str, Any]:
    """The generators of random numbers that all share."""
    shared: dict[str, Any] = {
        "random": random._inst,
        "numpy.random": np.random.mtrand._rand,
        "torch.default_generator": torch.default_generator,
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        shared |= {f"torch.cuda[{k}]": generator for k, generator in enumerate(torch.cuda.default_generators)}
    return shared


def _hooks() -> dict[str, Any]:
    """What runs with every module."""
    hooks = nn.modules.module
    return {"forward pre-hooks": hooks._global_forward_pre_hooks, "forward hooks": hooks._global_forward_hooks}


def _position(generator: Any) -> int:
    """Where a generator of random numbers stands."""
    if isinstance(generator, torch.Generator):
        return zlib.crc32(generator.get_state().numpy().data)
    if isinstance(generator, random.Random):
        try:
            return hash(generator.getstate())
        except NotImplementedError:  # SystemRandom, whose entropy the profile sees
            return 0
    state = generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()
    return zlib.crc32(repr([np.asarray(v).tobytes() for v in _leaves(state)]).encode())


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for one in value.values() for leaf in _leaves(one)]
    if isinstance(value, tuple):
        return [leaf for one in value for leaf in _leaves(one)]
    return [value]
