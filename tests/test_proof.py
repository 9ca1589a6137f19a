"""Writing proofs: what is listed, what is refused by name, and the command line around it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import proofs
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import lipaudit
from lipaudit import checker, cli
from lipaudit.errors import UnsupportedOp
from lipaudit.graph.capture import capture
from lipaudit.proof import writer
from lipaudit.proof.steps import listing
from lipaudit.proof.writer import refuse_unlisted, write_proof
from lipaudit.zoo import digits_split, load, weights_file


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole matrices of large maps take the checker half a minute; the torus is enough here."""
    monkeypatch.setattr(writer, "DENSE_SIDE", 64)


def network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers).eval()


def plain(**settings: object) -> nn.Module:
    return network(nn.Conv2d(1, 3, 3, **settings), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "below"), [("digits-aol", 1e-7), pytest.param("digits-cnn", 0.13, marks=pytest.mark.slow)]
)
def test_the_radii_of_a_proof_are_those_of_certify_or_little_less(name: str, below: float, tmp_path: Path) -> None:
    x, y = (torch.from_numpy(part)[:20] for part in digits_split()[2:])
    written = write_proof(tmp_path / "p.json", load(name), x, y, checkpoint=weights_file(name))
    claims = json.loads(written.file.read_text())

    assert checker.check(claims, written.checkpoint.read_bytes(), say=lambda _: None).startswith("accepted")
    certified = lipaudit.certify(load(name), x, y, local="off", global_method="product")
    radii = [float.fromhex(sample["radius"]) for sample in claims["samples"]]
    # The report's radii are larger by what exact borders gain over the torus (`small`), 13 % on digits-cnn; smaller
    # only by the report's own allowance for rounding.
    for radius, report in zip(radii, certified.radius.tolist(), strict=True):
        assert (radius > 0) == (report > 0)
        assert (1 - below) * report <= radius <= report * (1 + 1e-6)
    assert [sample["prediction"] for sample in claims["samples"]] == certified.prediction.tolist()
    assert written.below <= below
    assert written.certified == sum(radius > 0 for radius in radii)
    assert f"{written.certified} of 20 radii" in str(written)


def test_a_checkpoint_that_holds_all_tensors_is_what_the_proof_is_about(tmp_path: Path) -> None:
    model = plain(padding=1, dilation=2)
    model(images())
    checkpoint = tmp_path / "weights.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, checkpoint)
    written = write_proof(tmp_path / "p.json", model, images(), [0, 1], checkpoint=checkpoint)

    assert written.checkpoint == checkpoint
    assert set(json.loads(written.file.read_text())["tensors"]) == {f"module.{name}" for name in model.state_dict()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "weights.safetensors"]


@pytest.mark.parametrize("given", ["none", "another", "a pickle"])
def test_tensors_that_are_in_no_checkpoint_are_written_beside_the_proof(given: str, tmp_path: Path) -> None:
    model, checkpoint = plain(), tmp_path / "weights.pt"
    model(images())
    if given == "a pickle":
        torch.save(model.state_dict(), checkpoint)
    elif given == "another":
        save_file({name: tensor + 1 for name, tensor in model.state_dict().items()}, checkpoint)
    written = write_proof(
        tmp_path / "p.json", model, images(), [0, 1], checkpoint=None if given == "none" else checkpoint
    )

    assert written.checkpoint == tmp_path / "p.json.safetensors"
    assert written.computed == ("0", "3")
    claims = json.loads(written.file.read_text())
    assert checker.check(claims, written.checkpoint.read_bytes(), say=lambda _: None)


class Odd(nn.Module):
    """A network with one operation that the checker does not know."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.linear, self.operation = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 3), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.operation(self.conv(x)).flatten(1))


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "cat": lambda x: torch.cat([x, x], 1)[:, :4],
    "slice": lambda x: functional.pad(x[:, :, 1:], (0, 0, 0, 1)),
    "pad": lambda x: functional.pad(x, (1, 1, 0, 0))[:, :, :, 1:-1],
    "avg_pool2d": lambda x: functional.avg_pool2d(x, 3, stride=1, padding=1),
    "max_pool2d": lambda x: functional.max_pool2d(x, 2, stride=1, dilation=2, padding=1),
    "sort": lambda x: torch.sort(x, dim=2).values,
    "add": lambda x: x + 1.0,
    "sub": lambda x: x - torch.ones(1, 4, 8, 8),
    "view": lambda x: x.reshape(-1, 8, 4, 8),
    "mul": lambda x: x * 2.0,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_checker_has_no_rule_for_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedOp, match=f"proof: no checker rule for {name}"):
        refuse_unlisted(Odd(REFUSED[name]).eval(), (1, 8, 8))


def test_a_network_without_a_linear_end_is_refused() -> None:
    with pytest.raises(UnsupportedOp, match="ends in flatten"):
        refuse_unlisted(network(nn.Conv2d(1, 2, 8), nn.Flatten()), (1, 8, 8))


def test_the_steps_that_are_listed_compute_what_the_network_computes(tmp_path: Path) -> None:
    x = proofs.images(2)
    written = write_proof(tmp_path / "p.json", proofs.everything(), x, [0, 1])
    with torch.no_grad():
        exact = proofs.everything().double()(x.double())
    for sample, logits in zip(json.loads(written.file.read_text())["samples"], exact.tolist(), strict=True):
        found = [int(v, 16) / 2**checker.BITS for v in sample["logits"]]
        # The double copy normalises with means and deviations as float32 rounds them, like the network itself.
        assert found == pytest.approx(logits, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("layer", ["convolution", "linear layer"])
def test_what_would_take_hours_is_refused(layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5), nn.ReLU(), nn.Linear(5, 2))
    model = model if layer == "convolution" else network(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 2))
    monkeypatch.setattr(writer, "MOST_WORK", 100)
    with pytest.raises(UnsupportedOp, match=f"no checker rule for a {layer} of"):
        write_proof(tmp_path / "p.json", model, images(), [0, 1])
    assert not list(tmp_path.glob("*.json"))


def test_names_of_steps_are_those_of_the_layers() -> None:
    names = [step.name for step in listing(capture(proofs.everything(), (3, 6, 6)))]
    assert len(set(names)) == len(names)
    assert {"conv1", "bn1", "conv2", "sort", "largest", "average", "hidden", "last"} <= set(names)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Path]:
    model = plain(bias=False)
    model(images())
    done = write_proof(tmp_path / "p.json", model, images(3), [0, 1, 2])
    return done.file, done.checkpoint


def verify(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_the_command_line_accepts_and_rejects(
    written: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, weights = written
    assert verify(file, "--checkpoint", weights) == 0
    assert capsys.readouterr().out == "accepted: 1 layer bounds, radii of 3 of 3 samples\n"
    assert verify(file, "--checkpoint", weights, "--samples", 2) == 0
    assert "2 of 3 samples" in capsys.readouterr().out

    claims = json.loads(file.read_text())
    true = claims["samples"][1]["margin"]
    claims["samples"][1]["margin"] = wrong = (float.fromhex(true) * 2).hex()
    (tmp_path / "wrong.json").write_text(json.dumps(claims))
    assert verify(tmp_path / "wrong.json", "--checkpoint", weights) == 4
    said = capsys.readouterr().err
    assert f"REJECTED: samples.1.margin: claimed {json.dumps(wrong)}, derived {json.dumps(true)}" in said


def test_files_that_are_no_proofs_are_usage_errors(
    written: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, weights = written
    result = tmp_path / "result.json"
    result.write_text('{"schema": "lipaudit-result/1.1"}')
    (tmp_path / "cut.json").write_bytes(file.read_bytes()[:-100])
    torch.save({}, tmp_path / "w.pt")
    for claims, checkpoint, expected in [
        (result, weights, "add --proof FILE to `lipaudit run`"),
        (tmp_path / "cut.json", weights, "cannot read"),
        (tmp_path / "absent.json", weights, "No such file"),
        (file, tmp_path / "w.pt", "expected safetensors"),
    ]:
        assert verify(claims, "--checkpoint", checkpoint) == 2
        said = capsys.readouterr().err
        assert expected in said
        assert said.count("\n") == 1


def test_the_checker_runs_alone(written: tuple[Path, Path], tmp_path: Path) -> None:
    file, weights = written
    alone = tmp_path / "checker.py"
    alone.write_bytes(Path(checker.__file__).read_bytes())
    # -S -E -I: neither site-packages nor this folder can be imported from.
    command = [sys.executable, "-I", "-S", alone, file, "--checkpoint", weights]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("accepted: 1 layer bounds, radii of 3 of 3 samples\n")

    bent = bytearray(weights.read_bytes())
    bent[-1] ^= 1
    weights.write_bytes(bent)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "checkpoint_sha256" in done.stderr


def test_the_checker_shares_no_code() -> None:
    import ast

    tree = ast.parse(Path(checker.__file__).read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
    assert Path(checker.__file__).read_text().count("\n") < 400


def test_a_run_writes_a_proof_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--samples", "4", "--attacks", "none", "--local", "off", "--device", "cpu", "--proof", "p.json")
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", *options])
    assert ended.value.code == 0
    assert "of 4 radii" in capsys.readouterr().err
    assert verify("p.json", "--checkpoint", "p.json.safetensors") == 0
