"""What a model reads of its constants in Python, for torch.export: which has no entries to show.

Note [Read at capture]
    A buffer or a parameter that Python code looks at (`if self.n > 0`, `float(self.temperature)`) is a constant like
    any other. A watched run records what was read, in this order, and here the model is given the same answers while
    it is exported. The graph that comes out is held against the model like any other.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class Replay(TorchFunctionMode):
    """Answers what the model reads of its constants with what it read before; see Note [Read at capture]."""

    def __init__(self, constants: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.constants = constants
        self._names = {name for name, _ in constants} | {"tolist"}
        self._next = iter(constants)

    @contextlib.contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """While the model runs, and each time from the first answer: below the modes of torch.export."""

        def begin(*_: object) -> None:
            self._next = iter(self.constants)
            self.__enter__()

        def end(*_: object) -> None:
            self.__exit__(None, None, None)

        hooks = [model.register_forward_pre_hook(begin, prepend=True)] if self.constants else []
        hooks += [model.register_forward_hook(end, always_call=True)] if self.constants else []
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name, kwargs = name_of(func), kwargs or {}
        if name not in self._names or (name == "__getitem__" and not masks_in(args[1])):
            return func(*args, **kwargs)
        if name == "tolist":
            entries = [one for _, one in itertools.islice(self._next, args[0].numel())]
            return np.array(entries, dtype=object).reshape(args[0].shape).tolist()
        expected, result = next(self._next, ("", None))
        if expected != name:
            return func(*args, **kwargs)
        return func(args[0], result) if name == "__getitem__" else result


def masks_in(index: Any) -> list[torch.Tensor]:
    """The masks among the indices of a tensor."""
    return [tensor for tensor in tensors_in([index]) if tensor.dtype in (torch.bool, torch.uint8)]


def without_masks(index: Any) -> Any:
    """The same index with the places where masks are true, in the axes that they stand for."""
    places: list[Any] = []
    for one in index if isinstance(index, tuple) else (index,):
        mask = isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)
        places += one.nonzero(as_tuple=True) if mask else [one]
    return tuple(places)


def name_of(function: Any) -> str:
    """Of a function or a property of torch."""
    name = getattr(function, "__name__", str(function))
    return getattr(getattr(function, "__self__", None), "__name__", name) if name in ("__get__", "__set__") else name


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors in there, also in lists and dictionaries."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())
