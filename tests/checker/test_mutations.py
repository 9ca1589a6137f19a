"""A true proof is accepted; one with any single field changed is not."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
from proofs import Proof, accepted, prove, remembering

from lipaudit import checker
from lipaudit.checker import DIGITS

NETWORKS = ("digits-aol", "digits-cnn", "everything")

Path = tuple[str | int, ...]

STANDS = {
    "hint": "a hint says where to look for a proof; if one is found there as well, the claim is the same",
    "name of the last step": "no other field speaks of it, so it is only what it is called",
}
"""Fields that may be changed, as far as the claims stay what they are, and why. There are no others."""


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Proof, bytes]]:
    folder = tmp_path_factory.mktemp("proofs")
    return {name: prove(folder, name, 1 if name.startswith("digits") else 2) for name in NETWORKS}


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("digits-aol", 15),
        ("digits-cnn", 15),
        ("everything", 1),
        pytest.param("digits-aol", 1, marks=pytest.mark.slow),
        pytest.param("digits-cnn", 1, marks=pytest.mark.slow),
    ],
)
def test_every_change_of_a_field_is_rejected(
    name: str, every: int, true: dict[str, tuple[Proof, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    claims, weights = true[name]
    remembering(monkeypatch)
    assert accepted(claims, weights)
    changes = list(mutations(claims))
    assert len(changes) > 300

    survived = []
    for path, value in changes[::every]:
        mutated = changed(claims, path, value)
        # As JSON: to Python, true is 1 and 1.0 is 1.
        if json.dumps(mutated) == json.dumps(claims) or stands(claims, path):
            continue
        if accepted(mutated, weights):
            survived.append((path, value))
    assert survived == []


def stands(claims: Proof, path: Path) -> bool:
    """Whether a change there is one of `STANDS`."""
    return path[-1:] == ("hint",) or path == ("steps", len(claims["steps"]) - 1, "name")


def mutations(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every way to change one field: numbers nudged, texts changed, lists cut, repeated and turned, fields lost."""
    if isinstance(value, dict | list):
        yield from ((path, other) for other in (None, 0, "x"))
    if isinstance(value, dict):
        for key, inner in value.items():
            yield path, {k: v for k, v in value.items() if k != key}
            yield path, {(f"{k}x" if k == key else k): v for k, v in value.items()}
            yield from mutations(inner, (*path, key))
        yield path, {**value, "more": 1}
    elif isinstance(value, list):
        if value:
            yield from ((path, other) for other in (value[1:], value[:-1], [*value, value[-1]], [value[0], *value]))
        yield from ((path, other) for other in (value[::-1], [*value[1:], *value[:1]], []))
        for k, inner in enumerate(value):
            yield from mutations(inner, (*path, k))
    elif isinstance(value, str):
        yield from ((path, other) for other in texts(value))
    elif isinstance(value, int):
        others = (value + 1, value - 1, -value, 10**9, -(10**400), float(value), str(value), True, None, [], {})
        yield from ((path, other) for other in others)
    else:
        assert value is None
        yield path, "input"
        yield path, 0


def texts(value: str) -> Iterator[str]:
    """Numbers in hexadecimal a unit up and down; any text with a character changed, lost, added."""
    if "0x" in value and "p" in value:
        number = float.fromhex(value)
        yield math.nextafter(number, math.inf).hex()
        yield math.nextafter(number, -math.inf).hex()
        yield (-number).hex()
        yield (number * (1 + 2.0 ** (1 - DIGITS))).hex()
        yield (number * (1 - 2.0 ** (1 - DIGITS))).hex()
        yield (number * 2).hex()
        yield repr(number)
    elif value.lstrip("-").startswith("0x"):
        yield hex(int(value, 16) + 1)
        yield hex(int(value, 16) - 1)
    yield "0x1.0p+5000"
    middle = len(value) // 2
    yield value[:middle] + ("A" if value[middle] != "A" else "B") + value[middle + 1 :]
    yield value[:-1]
    yield value + "A"
    yield ""


def changed(claims: Proof, path: Path, value: Any) -> Any:
    if not path:
        return value
    mutated = shallow = dict(claims)
    for key in path[:-1]:
        shallow[key] = copy.copy(shallow[key])
        shallow = shallow[key]
    shallow[path[-1]] = value
    return mutated


@pytest.mark.parametrize("name", NETWORKS)
def test_names_of_tensors_and_steps_cannot_be_exchanged(
    name: str, true: dict[str, tuple[Proof, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    claims, weights = true[name]
    remembering(monkeypatch)
    exchanges: list[tuple[Path, Any]] = []
    for k, step in enumerate(claims["steps"]):
        for key, used in step["tensors"].items():
            others = [name for name in (*claims["tensors"], None) if name != used]
            exchanges += [(("steps", k, "tensors", key), other) for other in others]
        for place, source in enumerate(step["inputs"]):
            others = [name for name in ("input", *(one["name"] for one in claims["steps"])) if name != source]
            exchanges += [(("steps", k, "inputs", place), other) for other in others]
    for one, other in itertools.permutations(claims["tensors"], 2):
        if claims["tensors"][one] != claims["tensors"][other]:
            exchanges.append((("tensors", one), claims["tensors"][other]))
    # Some of them, always the same: most of their time goes into layers with weights that are not theirs.
    for path, value in random.Random(0).sample(exchanges, min(len(exchanges), 100)):
        assert not accepted(changed(claims, path, value), weights), (path, value)


UNREADABLE = {"nothing": "", "other text": "hello", "too deep": "[" * 200_000, "an endless number": "9" * 5_000}
TWICE = {
    "a radius": ('"radius":', '"radius": "0x1.0p+9", "radius":'),
    "all steps": ('"steps":', '"steps": [], "steps":'),
}


@pytest.mark.parametrize("name", [*UNREADABLE, *TWICE])
def test_a_file_that_is_no_proof_ends_in_one_line(
    name: str, true: dict[str, tuple[Proof, bytes]], tmp_path: FilePath
) -> None:
    claims, weights = true["everything"]
    text = UNREADABLE[name] if name in UNREADABLE else json.dumps(claims).replace(*TWICE[name], 1)
    (tmp_path / "forged.json").write_text(text)
    (tmp_path / "weights").write_bytes(weights)
    ended = subprocess.run(
        [sys.executable, checker.__file__, tmp_path / "forged.json", "--checkpoint", tmp_path / "weights"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2 if name in UNREADABLE else 4, "")
    assert ended.stderr.startswith("rejected: ")
    assert ended.stderr.count("\n") == 1


def in_front(claims: Proof, steps: list[Proof]) -> Proof:
    first = {**claims["steps"][0], "inputs": [steps[-1]["name"]]}
    return {**claims, "steps": [*steps, first, *claims["steps"][1:]]}


def chain(count: int, op: str, inputs: int = 1, **settings: Any) -> list[Proof]:
    names = ["input", *(f"more{k}" for k in range(count))]
    pairs = itertools.pairwise(names)
    return [{"name": b, "op": op, "inputs": [a] * inputs, "settings": settings, "tensors": {}} for a, b in pairs]


@pytest.mark.parametrize(
    "steps",
    [
        chain(20_000, "relu"),
        chain(1, "pad_channels", before=10**12, after=0),
    ],
    ids=["steps", "channels"],
)
def test_no_proof_takes_for_ever(steps: list[Proof], true: dict[str, tuple[Proof, bytes]]) -> None:
    claims, weights = true["everything"]
    started = time.process_time()
    assert not accepted(in_front(claims, steps), weights)
    assert time.process_time() - started < 5


def test_what_a_proof_prints_is_of_one_line(true: dict[str, tuple[Proof, bytes]]) -> None:
    claims, weights = true["everything"]
    told = json.loads(json.dumps(claims).replace('"conv1"', json.dumps("conv1\n\x1b[31maccepted")))
    with pytest.raises(checker.Rejected, match="printable name") as caught:
        checker.check(told, weights, say=lambda _: None)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_dropped_step_is_missed(
    name: str, true: dict[str, tuple[Proof, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    claims, weights = true[name]
    remembering(monkeypatch)
    for k, step in enumerate(claims["steps"][:-1]):
        rest = copy.deepcopy(claims["steps"][:k] + claims["steps"][k + 1 :])
        for later in rest:
            later["inputs"] = [step["inputs"][0] if source == step["name"] else source for source in later["inputs"]]
        bounds = [bound for bound in claims["bounds"] if step["name"] not in bound["steps"]]
        for kept in (claims["bounds"], bounds):
            assert not accepted({**claims, "steps": rest, "bounds": kept}, weights)


@pytest.mark.parametrize("name", NETWORKS)
def test_another_byte_in_the_checkpoint_is_seen(
    name: str, true: dict[str, tuple[Proof, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    claims, weights = true[name]
    remembering(monkeypatch)
    start = 8 + int.from_bytes(weights[:8], "little")
    draw = random.Random(0)
    places = [*range(8), start, len(weights) - 1, *(draw.randrange(len(weights)) for _ in range(40))]
    for place in places:
        bent = bytearray(weights)
        bent[place] ^= 1 << draw.randrange(8)
        assert not accepted(claims, bytes(bent)), place
        # Nor is it the SHA-256 of the whole file alone that tells: every tensor has its own.
        named = {**claims, "checkpoint_sha256": hashlib.sha256(bent).hexdigest()}
        if place >= start and in_a_tensor_of(claims, weights, place - start):
            assert not accepted(named, bytes(bent)), place


def in_a_tensor_of(claims: Proof, weights: bytes, offset: int) -> bool:
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    spans = [header[name]["data_offsets"] for name in claims["tensors"]]
    return any(first <= offset < last for first, last in spans)


def test_what_may_be_changed_is_little(true: dict[str, tuple[Proof, bytes]]) -> None:
    assert len(STANDS) == 2
    for claims, _ in true.values():
        free = {path for path, _ in mutations(claims) if stands(claims, path)}
        assert len(free) == len(claims["bounds"]) + 1
