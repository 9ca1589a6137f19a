"""What a model holds at one moment: weights that are computed, and everything that a run may have written.

Note [Hidden state]
    A model may keep numbers anywhere: in buffers and attributes, in objects that these hold, in what its functions
    close over, in class attributes and in globals, in generators of random numbers. `State` reads all of that which can
    be reached from the modules and from the functions that belong to their classes, hooks and attributes, into one
    short token each, to be compared before and after a run. Code of torch, NumPy and the standard library is not
    looked into; the generators of random numbers that these share are.
"""

from __future__ import annotations

import functools
import random
import sys
import types
import warnings
import zlib
from collections import deque
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

_FOREIGN = frozenset({"torch", "numpy", "lipaudit", "functorch", *sys.stdlib_module_names} - {"__main__"})
"""Packages whose code is not looked into."""

_MOST_OBJECTS = 200_000

_NUMBERS = (bool, int, float, complex, str, bytes, type(None))


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
        self.tokens: dict[str, Any] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.generators: set[str] = set()
        """Places of generators of random numbers."""
        self._seen: dict[int, Any] = {}
        """Kept, so that no number stands for two objects."""
        self._classes: set[type] = set()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of iterators that will no longer be copied
            for name, module in model.named_modules():
                self._walk(module, name or type(module).__name__, named=name)
            for place, generator in _generators().items():
                self._walk(generator, place)

    def changes(self, later: State) -> list[str]:
        """Where `later` is something else."""
        missing = object()
        places = [*self.tokens, *(place for place in later.tokens if place not in self.tokens)]
        return [p for p in places if self.tokens.get(p, missing) != later.tokens.get(p, missing)]

    def _walk(self, value: Any, place: str, named: str | None = None) -> None:  # noqa: C901  (one case after the other)
        if isinstance(value, _NUMBERS):
            self.tokens[place] = (type(value).__name__, repr(value))
            return
        if id(value) in self._seen or len(self._seen) > _MOST_OBJECTS:
            return
        self._seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            self.tensors[place] = value
            self.tokens[place] = _token(value) if self.entries else None
        elif isinstance(value, np.ndarray):
            self.tokens[place] = (value.shape, zlib.crc32(np.ascontiguousarray(value).tobytes()))
        elif isinstance(value, (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)):
            self.tokens[place] = _position(value)
            self.generators.add(place)
        elif isinstance(value, nn.Module):
            prefix = place if named is None else named
            for name, held in vars(value).items():
                inner = held.items() if name in ("_parameters", "_buffers") else [(name, held)]
                for key, one in inner if name != "_modules" else ():
                    self._walk(one, f"{prefix}.{key}".removeprefix("."))
            self._class(type(value))
        elif isinstance(value, Mapping):
            self.tokens[place] = ("keys", tuple(map(_short, value)))
            for key, one in list(value.items()):
                self._walk(one, f"{place}[{_short(key)}]")
        elif isinstance(value, (list, tuple, deque, Set)):
            self.tokens[place] = ("length", len(value))
            for number, one in enumerate(list(value)):
                self._walk(one, f"{place}[{number}]")
        else:
            self._object(value, place)

    def _object(self, value: Any, place: str) -> None:
        if isinstance(value, types.MethodType):
            self._walk(value.__func__, place)
            self._walk(value.__self__, f"{place}.__self__")
        elif isinstance(value, types.FunctionType):
            self._function(value, place)
        elif isinstance(value, functools.partial):
            self._walk([value.func, value.args, value.keywords], place)
        elif isinstance(value, functools._lru_cache_wrapper):
            self.tokens[place] = (value.cache_info().misses, value.cache_info().currsize)
            self._walk(value.__wrapped__, f"{place}.__wrapped__")
        elif isinstance(value, types.GeneratorType):
            self.tokens[place] = value.gi_frame and value.gi_frame.f_lasti
        elif isinstance(value, type):
            self._class(value)
        elif type(value).__module__ in ("builtins", "itertools", "collections") and hasattr(value, "__next__"):
            self.tokens[place] = repr(value.__reduce__()[1:])
        elif _foreign(type(value)) and not hasattr(value, "__torch_function__"):
            return
        else:
            for name in [n for kind in type(value).__mro__ for n in getattr(kind, "__slots__", ())]:
                if hasattr(value, name):
                    self._walk(getattr(value, name), f"{place}.{name}")
            for name, one in list(getattr(value, "__dict__", {}).items()):
                self._walk(one, f"{place}.{name}")
            self._class(type(value))

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            if _foreign(base) or base in self._classes:
                continue
            self._classes.add(base)
            for name, value in list(vars(base).items()):
                if name not in ("__dict__", "__weakref__", "__doc__", "__annotations__"):
                    inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                    self._walk(inner, f"{base.__name__}.{name}")

    def _function(self, function: types.FunctionType, place: str) -> None:
        if _foreign(function):
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._walk(cell.cell_contents, f"{place}: {name}")
            except ValueError:  # an empty cell
                continue
        for what in ("__defaults__", "__kwdefaults__", "__dict__"):
            self._walk(getattr(function, what), f"{place}.{what}")
        for name in _names(function.__code__):
            if name in function.__globals__:
                self._walk(function.__globals__[name], f"global {name}")


def _names(code: types.CodeType) -> list[str]:
    """The global names that a function and those inside it may read."""
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


def _foreign(value: Any) -> bool:
    return str(getattr(value, "__module__", None) or "builtins").partition(".")[0] in _FOREIGN


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
