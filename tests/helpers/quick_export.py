"""torch.export without work that it repeats at every call: two fifths of the time of a small capture.

It asks the dispatcher for all composite operations once a namespace, 29 times a call, and registers some 5,700 kernels
through a decorator whose annotations are computed anew each time. What is done is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._export import utils
from torch._ops import OperatorBase

_COMPOSITE = "CompositeImplicitAutograd"


def install() -> None:
    """For the rest of this process. Does nothing where torch looks otherwise inside."""
    if not hasattr(utils, "_materialize_cpp_cia_ops") or not hasattr(OperatorBase, "py_impl"):
        return
    materialise, py_impl = utils._materialize_cpp_cia_ops, OperatorBase.py_impl
    known: list[int] = [-1]

    def materialise_new() -> None:
        count = len(torch._C._dispatch_get_registrations_for_dispatch_key(_COMPOSITE))
        if known[0] != count:
            materialise()
            known[0] = count

    def plain(self: OperatorBase, key: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        if not isinstance(key, torch._C.DispatchKey) or key == torch._C.DispatchKey.Python or key in self.py_kernels:
            return py_impl(self, key)

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self.py_kernels[key] = function
            self._dispatch_cache.clear()
            return function

        return register

    utils._materialize_cpp_cia_ops = materialise_new
    OperatorBase.py_impl = plain
