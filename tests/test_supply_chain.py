"""What the package does not do: run code out of files, reach the network on its own, start other programs."""

from __future__ import annotations

import ast
import socket
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hostile.networks import NAME, stored
from sources import FILES, PACKAGE

from lipaudit import cli

NETWORK = {"urllib", "http", "socket", "ssl", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "asyncio", "xmlrpc"}
CODE = {"pickle", "cPickle", "dill", "marshal", "shelve", "subprocess", "multiprocessing", "ctypes", "code", "runpy"}
MAY = {
    "loading/downloads.py": {"urllib", "http"},
    "loading/hubs.py": {"urllib", "huggingface_hub"},  # the errors of urllib; the hub's own client
    "results/leaderboards.py": {"huggingface_hub"},  # data classes of model cards, which fetch nothing
}
"""Who may import what of the network."""

CALLS = {"eval", "exec", "compile", "__import__"}
"""Builtins that run text."""


def imported(tree: ast.Module) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


def dotted(node: ast.expr) -> str:
    """`torch.load` of the expression; "" for anything but names and attributes."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    return [(dotted(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> Any:
    found = next((k.value for k in call.keywords if k.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else None


def complaints(text: str, room: str = "") -> list[str]:
    """What a file does that it must not."""
    tree = ast.parse(text)
    found = sorted(imported(tree) & CODE)
    found += sorted((imported(tree) & (NETWORK | {"huggingface_hub"})) - MAY.get(room, set()))
    for name, call in calls(tree):
        if name in CALLS or name in ("os.system", "os.popen") or name.startswith(("os.exec", "os.spawn")):
            found.append(name)
        if name.rpartition(".")[2] == "load" and name.startswith("torch") and keyword(call, "weights_only") is not True:
            found.append("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") is not False:
            found.append("np.load without allow_pickle=False")
        if name.startswith("torch.hub.load") or name.endswith("load_state_dict_from_url"):
            found.append(name)
    return found


def test_no_code_out_of_files_and_no_network_of_its_own() -> None:
    rooms = {file.relative_to(PACKAGE).as_posix(): file.read_text(encoding="utf-8") for file in FILES}
    assert {room: found for room, text in rooms.items() if (found := complaints(text, room))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import subprocess", "from urllib.request import urlopen",
        "def f():\n    import socket", "import huggingface_hub", "eval('1')", "exec('1')", "import os\nos.system('x')",
        "import torch\ntorch.load('x')", "import torch\ntorch.load('x', weights_only=False)",
        "import torch\ntorch.load('x', None, weights_only=safe)", "import numpy as np\nnp.load('x')",
        "import torch\ntorch.hub.load_state_dict_from_url('x')",
    ],
)  # fmt: skip
def test_the_check_sees_what_it_looks_for(text: str) -> None:
    assert complaints(text)


def test_the_lists_of_who_may_are_not_too_long() -> None:
    for room, names in MAY.items():
        assert names <= imported(ast.parse((PACKAGE / room).read_text(encoding="utf-8")))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Opening a connection, or asking for an address, is written down and fails."""
    tried: list[str] = []

    def refuse(*arguments: object, **_: object) -> NoReturn:
        tried.append(str(arguments[-1]))
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tried


def test_the_watch_on_the_network_works(no_network: list[str]) -> None:
    with pytest.raises(OSError, match="no network"):
        urllib.request.urlopen("http://example.org", timeout=1)
    assert no_network


OFFLINE = {
    "digits": (["bounds", "digits-aol"], 0),
    "weights of a hub": (["run", "--model", "timm:resnet18", "--dataset", "cifar10"], 2),
    "weights of another hub": (["bounds", "torchvision:resnet18"], 2),
    "a data set": (["run", "--model", "digits-aol", "--dataset", "mnist"], 2),
    "weights and data": (["run", "--model", "resnet18", "--dataset", "cifar10"], 2),
}


@pytest.mark.parametrize("forbidden", ["--offline", "LIPAUDIT_OFFLINE"])
@pytest.mark.parametrize("name", OFFLINE)
def test_offline_opens_no_connection(
    name: str, forbidden: str, no_network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    arguments, code = OFFLINE[name]
    if forbidden.startswith("--"):
        arguments = [*arguments, forbidden]
    else:
        monkeypatch.setenv(forbidden, "1")
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == code
    assert not no_network


def test_the_users_own_files_need_no_network(
    no_network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(stored(), "weights.pt")
    np.savez("images.npz", x=np.random.default_rng(0).random((2, 1, 6, 6), dtype=np.float32), y=[0, 1])
    with pytest.raises(SystemExit) as ended:
        cli.main(
            [
                "run", "--model", NAME, "--checkpoint", "weights.pt", "--mean", "none", "--dataset", "npz:images.npz",
                "--attacks", "none", "--local", "off",
            ]
        )  # fmt: skip
    assert ended.value.code == 0
    assert not no_network
