"""One generic table: refuses duplicates, keeps the order of registration, knows what each entry claims."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from lipaudit.errors import RuleError

F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[F]):
    """Functions by name. `kind` is the word for an entry in messages ("attack", "norm method", ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, F] = {}

    def register(self, *names: str) -> Callable[[F], F]:
        """Decorator: put the function into the table under each name.

        Raises `RuleError` if a name is taken or the function has no docstring: its first line is the
        claim that the report prints.
        """

        def add(function: F) -> F:
            if not inspect.getdoc(function):
                raise RuleError(f"{self.kind} {names[0]!r} needs a docstring: its first line is its claim")
            for name in names:
                if name in self._entries:
                    raise RuleError(f"{self.kind} {name!r} is registered twice")
                self._entries[name] = function
            return function

        return add

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> F:
        if name not in self._entries:
            raise RuleError(f"no {self.kind} named {name!r}; there are: {', '.join(self._entries)}")
        return self._entries[name]

    def get(self, name: str) -> F | None:
        """The entry of that name; None where there is none."""
        return self._entries.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def claim(self, name: str) -> str:
        """The first line of the entry's docstring."""
        return (inspect.getdoc(self[name]) or "").split("\n", 1)[0]
