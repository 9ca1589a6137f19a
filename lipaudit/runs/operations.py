"""Which files hold a rule for an operation, domain by domain: docs/operations.md.

`python -m lipaudit.runs.operations > docs/operations.md` computes it from the tables where the domains look rules up.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lipaudit
from lipaudit.domains import cells, intervals, lipschitz
from lipaudit.domains.majorant import steps as majorant
from lipaudit.domains.rounding import extended, float64, native
from lipaudit.domains.zonotope import max_pooling, relaxations, sums_and_concats
from lipaudit.proof import steps
from lipaudit.registry import Registry

PACKAGE = Path(lipaudit.__file__).parent
Table = Registry[Any] | Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Domain:
    """Where a rule for an operation can be."""

    name: str
    when: str
    """When an operation needs a rule here."""
    tables: tuple[Table, ...]
    """Where the rule is looked up, in this order."""
    exact: frozenset[str] = frozenset()
    """Operations that lose nothing here, and need no rule."""

    def rule(self, operation: str) -> Callable[..., Any] | None:
        """The rule itself; None where there is none."""
        return next((table[operation] for table in self.tables if operation in table), None)

    def file(self, operation: str) -> str:
        """The file with the rule, below lipaudit/; empty where there is none."""
        found = self.rule(operation)
        while isinstance(found, functools.partial):
            found = found.func
        return "" if found is None else str(found.__module__).removeprefix("lipaudit.").replace(".", "/") + ".py"


DOMAINS = (
    Domain("lipschitz", "always: a network without it is refused", (lipschitz.RULES,)),
    Domain(
        "intervals",
        "if something behind it may be bounded over the domain of the pixels only: products, attention, layer norms",
        (intervals.RANGES,),
    ),
    Domain(
        "float64",
        "for certificates: how far float64 may be off; or a place in `EXACT` of `domains/rounding/float64.py`, if it "
        "loses nothing",
        (float64.RULES,),
        float64.EXACT,
    ),
    Domain("native", "for certificates of the network as executed, in its own dtype", (native.SIZES,), float64.EXACT),
    Domain("extended", "never: it gives more digits where float64 is too coarse", (extended.RULES,)),
    Domain(
        "zonotope",
        "for local radii, if it is not linear: a linear map that its Lipschitz rule hands to `pend` runs on forms, too",
        (relaxations.BANDS, max_pooling.POOLS, sums_and_concats.JOINS),
    ),
    Domain("majorant", "never: it makes bounds in Linf and L1 tighter than the L2 bound says", (majorant.STEPS,)),
    Domain("proof", "for proofs; `lipaudit/checker.py` needs the same step", (steps.RULES,)),
    Domain(
        "pieces", "never: it lets a function in several steps be read as one of straight pieces", (cells.OPERATIONS,)
    ),
)
LIPSCHITZ, *REST = DOMAINS


def operations() -> list[str]:
    """All that a domain knows, by the file of their Lipschitz rule, then by name."""
    names = {name for domain in DOMAINS for table in (*domain.tables, domain.exact) for name in table}
    return sorted(names, key=lambda name: (not LIPSCHITZ.file(name), LIPSCHITZ.file(name), name))


@functools.cache
def mentioned() -> Mapping[str, frozenset[str]]:
    """Operation -> the files of lipaudit with its name as a string, whether or not with its namespace."""
    found: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for text in _strings(file):
            found.setdefault(text.removeprefix("aten."), set()).add(file.relative_to(PACKAGE).as_posix())
    return {name: frozenset(files) for name, files in found.items()}


def _strings(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def others(operation: str) -> list[str]:
    """Files that name the operation and hold no rule of it."""
    return sorted(mentioned().get(operation, frozenset()) - {domain.file(operation) for domain in DOMAINS})


def to_markdown() -> str:
    """The text of docs/operations.md."""
    names = operations()
    lines = [
        "# Operations",
        "",
        "Which files hold a rule for an operation. Made by `python -m lipaudit.runs.operations > docs/operations.md` "
        "from the tables in which the domains look rules up.",
        "",
        f"| domain | rules for {len(names)} operations | exact | a new operation needs a rule here |",
        "| --- | --- | --- | --- |",
    ]
    for domain in DOMAINS:
        known = sum(domain.rule(name) is not None for name in names)
        lines.append(f"| {domain.name} | {known} | {len(domain.exact) or ''} | {domain.when} |")
    lines += [
        "",
        "A heading is the file of the Lipschitz rules, a cell the file of another rule: `exact` where there is nothing "
        "to lose, empty where there is no rule. The last column has files that name the operation beside that.",
    ]
    family = None
    for name in names:
        if LIPSCHITZ.file(name) != family:
            family = LIPSCHITZ.file(name)
            columns = ("operation", *(domain.name for domain in REST), "also named in")
            lines += ["", f"## {family or 'No Lipschitz rule'}", "", _row(columns), _row(["---"] * len(columns))]
        lines.append(_row((f"`{name}`", *(_cell(domain, name) for domain in REST), _short(others(name)))))
    return "\n".join(lines) + "\n"


def _cell(domain: Domain, name: str) -> str:
    return _short([domain.file(name)]) or ("exact" if name in domain.exact else "")


def _short(files: list[str]) -> str:
    return ", ".join(file.removeprefix("domains/").removesuffix(".py") for file in files)


def _row(cells_: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells_)} |"


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
