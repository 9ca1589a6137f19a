"""The laws of the house: which room stands on which, what is exported, what loads without torch."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from sources import FILES, PACKAGE

import lipaudit

FLOORS = (
    ("checker", "errors", "progress"),
    ("registry", "results", "rounding"),
    ("settings",),
    ("files", "norms", "verdict"),
    ("domains", "report"),
    ("graph",),
    ("certification", "crosscheck", "nn"),
    ("proof", "zoo"),
    ("loading",),
    ("runs",),
    ("api",),
    ("engines", "integrations"),
    ("cli",),
    ("__main__",),
)
"""The rooms of the package, from the ground up: each imports from floors below its own."""


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}


def imports(file: Path) -> set[str]:
    """What a file imports, anywhere in it: modules of ours as whole names, others as they are written."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else str(node.module) for name in inside}
    return names


@functools.cache
def all_imports() -> dict[str, set[str]]:
    return {module: imports(file) for module, file in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_circle_of_modules() -> None:
    graph = {module: (names & set(MODULES)) - {module} for module, names in all_imports().items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_import_goes_to_a_floor_below() -> None:
    floor = {name: number for number, rooms in enumerate(FLOORS) for name in rooms} | {"": -1}
    assert {room(module) for module in MODULES} == set(floor)
    upward = [
        f"{module} imports {name}"
        for module, names in all_imports().items()
        for name in names & set(MODULES)
        if module != "lipaudit" and room(name) != room(module) and floor[room(name)] >= floor[room(module)]
    ]
    assert not upward


def test_the_whole_house_is_taken_in_at_one_look() -> None:
    beside = {"templates", "reports"}
    assert len({path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()} | beside) <= 28


@pytest.mark.parametrize(
    ("place", "forbidden"),
    [
        # Attacks are evidence only as long as they know nothing of the bounds that they test.
        ("crosscheck", ("lipaudit.norms", "lipaudit.domains", "lipaudit.certification")),
        ("verdict", ("torch", "numpy")),
        ("report", ("torch", "torchvision", "numpy", "PIL")),
        ("results", ("torch", "torchvision", "numpy", "PIL")),
    ],
)
def test_who_may_import_whom(place: str, forbidden: tuple[str, ...]) -> None:
    for module, names in all_imports().items():
        if room(module) == place:
            assert not [name for name in names if name.startswith(forbidden)], module


@pytest.mark.parametrize("name", ["errors", "progress", "registry", "checker", "results.audit", "results.bounds"])
def test_the_ground_floor_needs_only_the_standard_library(name: str) -> None:
    outside = {
        names for names in all_imports()[f"lipaudit.{name}"] if names.split(".")[0] not in sys.stdlib_module_names
    }
    assert all(module.startswith("lipaudit.") for module in outside), outside


@pytest.mark.parametrize(
    "code",
    [
        "import lipaudit.cli",
        "from lipaudit import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass",
        "from lipaudit import cli\ntry: cli.main(['run', '--help'])\nexcept SystemExit: pass",
        "import lipaudit; lipaudit.load_audit; lipaudit.results; lipaudit.claims; import lipaudit.verdict.verdict",
    ],
)
def test_what_starts_without_torch(code: str) -> None:
    code += "\nimport sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_exported_names() -> None:
    assert sorted(lipaudit.__all__) == [
        "Settings", "audit", "bound", "certify", "claims", "conv_norm", "dense_norm", "errors", "load_audit", "merge",
        "nn", "results",
    ]  # fmt: skip
    for name in lipaudit.__all__:
        assert getattr(lipaudit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lipaudit.nonsense


def test_no_module_hides_a_public_function() -> None:
    """`import lipaudit.x` binds x in the package: there must be no module of the name of a function."""
    functions = {name for name in lipaudit.__all__ if callable(getattr(lipaudit, name))}
    assert not functions & {module.split(".")[1] for module in MODULES if "." in module}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name for name, file in MODULES.items() if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not silent


ALIEN = {"net.py", "file.py", "examples/resnet.py"}
"""Files of others, in examples."""


def test_files_that_are_named_in_the_text_exist() -> None:
    known = "".join(f"/{file.relative_to(PACKAGE).as_posix()}\n" for file in FILES)
    for file in FILES:
        said = re.findall(
            r"(?<![\w./{])(?:lipaudit/)?((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)\b", file.read_text(encoding="utf-8")
        )
        stale = [name for name in said if f"/{name}\n" not in known and not name.startswith("tests/")]
        assert set(stale) <= ALIEN, f"{file.name} speaks of {stale}"
