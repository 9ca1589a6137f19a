"""The page of operations is current and true: each file that it names holds the rule that the domain looks up."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lipaudit
from lipaudit.registry import Registry
from lipaudit.runs.operations import DOMAINS, PACKAGE, Domain, mentioned, operations, others, to_markdown

NAMES = {domain.name: domain for domain in DOMAINS}


def source_of(rule: Callable[..., Any]) -> Path:
    while isinstance(rule, functools.partial):
        rule = rule.func
    return Path(inspect.getsourcefile(inspect.unwrap(rule)) or "")


def test_the_page_of_operations_is_made_from_the_tables() -> None:
    """After a change: python -m lipaudit.runs.operations > docs/operations.md."""
    page = Path(lipaudit.__file__).parents[1] / "docs" / "operations.md"
    assert page.read_text(encoding="utf-8") == to_markdown()


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_a_named_file_holds_the_rule(domain: Domain) -> None:
    for name in operations():
        rule = domain.rule(name)
        assert (rule is None) == (domain.file(name) == ""), name
        assert rule is None or source_of(rule) == PACKAGE / domain.file(name), name
        assert rule is None or name not in domain.exact, name


def test_no_table_of_rules_is_left_out() -> None:
    """A new domain gets a column."""
    names = (
        f"lipaudit.{file.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.')}".removesuffix(".__init__")
        for room in ("domains", "proof")
        for file in (PACKAGE / room).rglob("*.py")
    )
    modules = [importlib.import_module(name) for name in names]
    found = {id(one): name for module in modules for name, one in vars(module).items() if isinstance(one, Registry)}
    assert set(found) <= {id(table) for domain in DOMAINS for table in domain.tables}, found.values()


def test_a_file_that_is_named_beside_the_rules_names_the_operation() -> None:
    for name in operations():
        for file in others(name):
            assert f'{name}"' in (PACKAGE / file).read_text(encoding="utf-8"), (name, file)
    assert "graph/trials.py" in mentioned()["sort.default"]


def test_a_rule_is_seen_as_soon_as_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    def trial() -> None: ...

    trial.__module__ = "lipaudit.domains.zonotope.relaxations"
    monkeypatch.setitem(NAMES["zonotope"].tables[0]._entries, "view.default", trial)
    row = next(line for line in to_markdown().splitlines() if line.startswith("| `view.default` |"))
    assert "zonotope/relaxations" in row
