"""The pytest plugin: in projects of its users, in processes of their own, and called directly."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lipaudit
from lipaudit.errors import BadThreat, LoadError
from lipaudit.integrations import pytest_plugin
from lipaudit.integrations.pytest_plugin import assert_certified
from lipaudit.loading.user_data import as_arrays
from lipaudit.results.threat import eps_value, threats_of

ROOT = Path(__file__).parents[2]
MODULE = "lipaudit.integrations.pytest_plugin"


class Threshold(nn.Module):
    """Logits (x - 0.5, 0) of one number x: the certified radius is |x - 0.5|."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.linear.weight.data = torch.tensor([[1.0], [0.0]])
        self.linear.bias.data = torch.tensor([-0.5, 0.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


X = torch.tensor([[1.0], [0.9], [0.8], [0.51], [0.25], [0.26], [0.3], [0.0]])
Y = torch.tensor([0, 0, 0, 0, 1, 1, 0, 1])
"""Radii 0.5, 0.4, 0.3, 0.01, 0.25, 0.24, none (wrong), 0.5."""


def model() -> nn.Module:
    return Threshold().eval()


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Where lipaudit is installed with its entry point, the plugin is already there, and must not come twice.
    there = any(point.value == MODULE for point in entry_points(group="pytest11"))
    plugin = [] if there else ["-p", MODULE]
    command = [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", *plugin]
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command[3:5] = ["-c", code]
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_the_entry_point_names_the_plugin() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    points = declared["project"]["entry-points"]["pytest11"]

    assert points == {"lipaudit": MODULE}
    assert EntryPoint("lipaudit", points["lipaudit"], "pytest11").load() is pytest_plugin


def test_a_project_that_does_not_use_it_does_not_notice(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_nothing_is_loaded():\n"
        "    assert not {'torch', 'numpy', 'art', 'lipaudit.runs.audit'} & set(sys.modules)\n"
    )
    done = run_pytest(tmp_path, "-q")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_in_a_project(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from lipaudit.integrations.pytest_plugin import assert_certified as the_function\n\n"
        "def test_good(assert_certified):\n"
        "    audit = assert_certified('digits-aol', 'digits', samples=20)\n"
        "    assert audit.certified_accuracy(36 / 255) >= 0.5\n\n"
        "def test_bad(assert_certified):\n"
        "    assert_certified('digits-aol', 'digits', eps='1/2', at_least=0.99, samples=20)\n\n"
        "def test_the_fixture_is_the_function(assert_certified):\n"
        "    assert assert_certified is the_function\n"
    )
    done = run_pytest(tmp_path)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 2 passed" in done.stdout
    assert "E       AssertionError: certified accuracy at eps 1/2 = 0.500 (L2) is " in done.stdout
    assert "pytest_plugin.py" not in done.stdout  # the failure points at the user's line
    assert "Captured" not in done.stdout  # and libraries have nothing to add


def test_what_is_certified_passes_and_comes_back() -> None:
    audit = assert_certified(model(), (X, Y), eps=0.1, at_least=0.75)

    assert (audit.certified[0].count, audit.certified[0].total) == (6, 8)
    assert audit.attacks == ()
    assert audit.samples.radius[:3] == pytest.approx((0.5, 0.4, 0.3), rel=1e-6)


def test_a_failure_says_what_was_certified_what_was_wanted_and_what_to_do() -> None:
    with pytest.raises(AssertionError) as failed:
        assert_certified(model(), (X, Y), eps=0.1, at_least=0.76)

    lines = str(failed.value).splitlines()
    assert lines[0] == "certified accuracy at eps 0.1 (L2) is 75.0%, expected 0.76 or more"
    assert lines[1] == "6 of 8 images are certified, 1 more are right but not certified, 1 are wrong"
    assert lines[2].startswith("median certified radius 0.300, Lipschitz bound 1.00")
    assert lines[3].startswith('to do: certify around single images too (local="on")')
    assert len(lines) == 4


def test_the_remedy_fits_the_failure() -> None:
    with pytest.raises(AssertionError, match="too many answers are wrong for any certificate"):
        assert_certified(model(), (X, 1 - Y), at_least=0.5)
    with pytest.raises(AssertionError, match="to do: train for a small Lipschitz bound"):
        assert_certified(model(), (X, Y), eps=0.45, local="on")


def test_the_budget_is_the_one_given_to_the_last_digit() -> None:
    """36/255 as a float has no short decimal: cut, it would certify less than was asked for."""
    for eps, text in ((36 / 255, "36/255"), (0.2, "0.2"), (1 / 3, "85/255"), (2**-0.5, repr(2**-0.5))):
        assert threats_of((eps,), ("l2",))[0].eps == (text,)
        assert eps_value(text) == eps
    with pytest.raises(AssertionError, match=r"eps 0\.30000000000000004 "):
        assert_certified(model(), (X, Y), eps=0.1 + 0.2, at_least=0.9)


def test_a_certificate_that_an_attack_breaks_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from lipaudit.certification import certificates

    honest = certificates._certificate
    monkeypatch.setattr(
        certificates,
        "_certificate",
        lambda *given: dataclasses.replace(found := honest(*given), radius=9 * found.radius),
    )
    with pytest.raises(AssertionError, match=r"Integrity failure: .* contradicted.*Do not rely on certificates"):
        assert_certified(model(), (X, Y), at_least=0.1, attacks="deepfool")


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(BadThreat, match="share above 0 and up to 1, got 50"):
        assert_certified(model(), (X, Y), at_least=50)
    with pytest.raises(BadThreat, match="eps above 0"):
        assert_certified(model(), (X, Y), eps=0)
    with pytest.raises(LoadError, match="one label per input, got 8 inputs and 7 labels"):
        assert_certified(model(), (X, Y[:7]))
    with pytest.raises(LoadError, match="got int"):
        assert_certified(model(), 3)
    with pytest.raises(LoadError, match="samples of 1 or more"):
        assert_certified(model(), (X, Y), samples=0)


class Pairs(Dataset):
    def __init__(self, convert: Any = None) -> None:
        self.convert = convert or (lambda one: one)

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.convert(X[row]), int(Y[row])


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [X.numpy(), Y.tolist()],
        (X.numpy(), np.eye(2)[Y.numpy()]),
        TensorDataset(X, Y),
        Pairs(),
        Pairs(lambda one: one.numpy()),
        DataLoader(TensorDataset(X, Y), batch_size=3),
        DataLoader(Pairs(), batch_size=8),
    ],
    ids=["pair", "arrays and a list", "one-hot", "TensorDataset", "Dataset", "arrays", "DataLoader", "one batch"],
)
def test_data_of_every_form(data: Any) -> None:
    known = lipaudit.certify(model(), X, Y, local="off").radius.tolist()
    found = assert_certified(model(), data, eps=0.1).samples.radius

    assert list(found) == known


def test_samples_are_drawn_as_the_command_line_draws_them() -> None:
    rows = np.sort(np.random.default_rng(5).choice(8, 3, replace=False))
    for data in ((X, Y), Pairs()):
        inputs, labels = as_arrays(data, samples=3, seed=5)
        assert torch.equal(torch.as_tensor(inputs), X[rows])
        assert torch.equal(torch.as_tensor(labels), Y[rows])
    inputs, labels = as_arrays(DataLoader(Pairs(), batch_size=2), samples=3)
    assert torch.equal(inputs, X[:3])
    assert torch.equal(labels, Y[:3])
    with pytest.raises(LoadError, match="transform that makes tensors"):
        as_arrays(Pairs(str))
    with pytest.raises(LoadError, match="at least one image"):
        as_arrays((X[:0], Y[:0]))
