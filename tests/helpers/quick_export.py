"""torch.export without work that it repeats at every call: half of the time of a small capture.

It looks for all composite operations in every namespace, and registers some 5,700 kernels so that these stay whole,
each through a decorator whose annotations are computed anew. Here this is done once; what is done is the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._decomp import decompositions_for_rng
from torch._functorch import config
from torch._subclasses import fake_impls
from torch.export import exported_program

_FROM = {
    exported_program: ("_collect_all_valid_cia_ops", "_override_composite_implicit_decomp"),
    decompositions_for_rng: ("PhiloxStateTracker",),
    fake_impls: ("_deregister_op_impl", "_is_op_registered_to_fake_rule", "op_implementations_dict"),
}


def install() -> None:
    """For the rest of this process. Does nothing where torch looks otherwise inside."""
    if not all(hasattr(module, name) for module, names in _FROM.items() for name in names):
        return
    if not config.functionalize_rng_ops:  # nothing reads these tensors, made at each call
        decompositions_for_rng.PhiloxStateTracker.reset = staticmethod(lambda: None)
    exported_program._collect_all_valid_cia_ops = _once(exported_program._collect_all_valid_cia_ops)
    exported_program._override_composite_implicit_decomp = _again(exported_program._override_composite_implicit_decomp)


def _once(collect: Callable[[], set[Any]]) -> Callable[[], set[Any]]:
    """The composite operations, looked for anew only where some were added."""
    known: dict[tuple[int, int], set[Any]] = {}

    def collected() -> set[Any]:
        registered = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        size = (len(registered), len(torch.ops._dir))
        if size not in known:
            known[size] = collect()
        return known[size]

    return collected


def _again(override: Callable[..., Any]) -> Callable[..., Any]:
    """What an override of the same operations, found in the same state, registered the last time."""
    last: list[Any] = [None, {}, {}]

    @contextlib.contextmanager
    def overridden(table: dict[Any, Callable[..., Any]]) -> Iterator[None]:
        before = {op: dict(op.py_kernels) for op in table}
        unruled = {op for op in table if not fake_impls._is_op_registered_to_fake_rule(op)}
        if last[0] != (table, before, unruled):
            with override(table):
                kernels = {op: dict(op.py_kernels) for op in table}
                rules = {op: fake_impls.op_implementations_dict[op] for op in unruled}
                last[:] = (table, before, unruled), kernels, rules
                yield
            return
        _put(last[1])
        for op, rule in last[2].items():
            fake_impls.register_op_impl(op)(rule)
        try:
            yield
        finally:
            _put(before)
            for op in table:
                fake_impls._deregister_op_impl(op)

    return overridden


def _put(kernels: dict[Any, dict[Any, Any]]) -> None:
    for op, registered in kernels.items():
        op.py_kernels.clear()
        op.py_kernels.update(registered)
        op._dispatch_cache.clear()
