"""Networks from the user's own code: `package.module:factory`. This runs that code, as the user asked."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

import lipaudit
from lipaudit.errors import LoadError


def build_from_user_code(name: str, classes: int | None) -> tuple[nn.Module, str]:
    """The network that `package.module:factory` makes, and the path of the file it is in.

    The module is looked for in the current folder first. The factory is called without arguments, or with
    `num_classes` if it has such a parameter and the number is known; a ready `nn.Module` is taken as it is.
    Raises `LoadError`: the exception of the user's code with its file and line, or what came instead of a
    network. Whatever the code prints goes to stderr.
    """
    module_name, _, attribute = name.partition(":")
    with _in_one_line(name), contextlib.redirect_stdout(sys.stderr):
        module = _import(module_name)
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part, None)
        made = found if isinstance(found, nn.Module) else _call(name, found, classes, module_name)
    if not isinstance(made, nn.Module):
        raise LoadError(
            f"--model {name}: expected a torch.nn.Module, the factory returned {type(made).__name__}; "
            "return the network itself"
        )
    return made, str(getattr(module, "__file__", None) or module_name)


def _import(module_name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise LoadError(
            f"no Python module {module_name!r} in {here} or among the installed packages; "
            "expected --model package.module:factory"
        ) from error


def _call(name: str, factory: Any, classes: int | None, module_name: str) -> Any:
    attribute = name.partition(":")[2]
    if not callable(factory):
        raise LoadError(
            f"--model {name}: {module_name} has no function {attribute!r}; "
            f"expected a function (or class) that returns the network{', without ()' if '(' in attribute else ''}"
        )
    parameters = _parameters(factory)
    keywords = {"num_classes": classes} if "num_classes" in parameters and classes is not None else {}
    required = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in keywords
    ]
    if required:
        hint = "add --num-classes" if required == ["num_classes"] else "write a factory that needs none"
        raise LoadError(f"--model {name}: it needs the arguments {', '.join(required)}; {hint}")
    return factory(**keywords)


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # some C functions have no signature
        return {}


@contextlib.contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one line with its file and line number."""
    try:
        yield
    except LoadError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(f"--model {name}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """`ValueError in net.py:12: the message`: the innermost frame that is not of an installed package."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not _is_ours(f.filename)]
    where = ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" in {Path(error.filename).name}:{error.lineno}"
    elif own := [f for f in own if not f.filename.startswith(("<", sys.base_prefix))]:
        where = f" in {Path(own[-1].filename).name}:{own[-1].lineno}"
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}{where}: {text[:200]}"


def _is_ours(filename: str) -> bool:
    return Path(lipaudit.__file__).parent in Path(filename).parents
