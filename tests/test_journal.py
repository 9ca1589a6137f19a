"""What an interrupted run need not do again: kept whole or not at all, and only for the same audit."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipaudit
from lipaudit.certification import local_search
from lipaudit.crosscheck import runner
from lipaudit.errors import ResumeError
from lipaudit.files.journal import MANIFEST, Journal, discard, fingerprint, holds_parts
from lipaudit.results.audit import Audit
from lipaudit.runs import audit as pipeline
from lipaudit.runs.audit import BEFORE

SETTINGS = {"settings": {"seed": 0}}


def put(journal: Journal, part: str = "a", about: str = "it") -> None:
    journal.put(part, about, 1.5, numbers=np.arange(5.0), words=np.array(["ε", "b"]), none=np.empty(0))


def test_a_part_comes_back_as_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "la-x.partial", SETTINGS, "then")
    assert journal.get("a", "it") is None
    put(journal)

    again = Journal(tmp_path / "la-x.partial", SETTINGS, "now")
    kept = again.get("a", "it")
    assert kept is not None
    assert kept["numbers"].tolist() == [0, 1, 2, 3, 4]
    assert kept["words"].tolist() == ["ε", "b"]
    assert len(kept["none"]) == 0
    assert (again.run, again.started, again.restored) == ("la-x", "then", 1.5)
    assert again.get("a", "something else") is None
    assert again.get("b", "it") is None
    assert Journal(tmp_path / "other", SETTINGS, "now").run == ""


def test_a_part_that_is_not_whole_is_absent(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SETTINGS, "now")
    put(journal)
    file = tmp_path / "a.npz"
    whole = file.read_bytes()
    for length in range(0, len(whole), 13):
        file.write_bytes(whole[:length])
        assert journal.get("a", "it") is None, length
    at = whole.index(np.arange(5.0).tobytes())
    for start, end in ((at, at + 40), (len(whole) // 2, len(whole)), (0, len(whole))):
        file.write_bytes(whole[:start] + bytes(end - start) + whole[end:])
        assert journal.get("a", "it") is None, start
    file.write_bytes(whole)
    assert journal.get("a", "it") is not None


def test_a_file_half_written_is_not_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, SETTINGS, "now")

    def killed(file: Any, **_arrays: object) -> None:
        file.write(b"PK half")
        raise KeyboardInterrupt

    monkeypatch.setattr("lipaudit.files.journal.np.savez", killed)
    with pytest.raises(KeyboardInterrupt):
        put(journal)
    assert not holds_parts(tmp_path)
    assert journal.get("a", "it") is None


def test_fingerprints_tell_values_types_and_shapes_apart() -> None:
    values = [np.arange(4.0), np.arange(4.0, dtype=np.float32), np.arange(4.0).reshape(2, 2), np.arange(1.0, 5.0), "0"]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint(1, np.arange(2)) == fingerprint(1, np.arange(2))
    assert fingerprint("a", "bc") != fingerprint("ab", "c")


def test_the_journal_of_another_audit_is_refused_by_what_differs(tmp_path: Path) -> None:
    Journal(tmp_path, {"settings": {"seed": 0, "eps": ("1",)}, "versions": {"torch": "1"}}, "now")
    with pytest.raises(ResumeError, match=r"another seed \(was 0, is 1\), another torch \(was \"1\", is \"2\"\); put"):
        Journal(tmp_path, {"settings": {"seed": 1, "eps": ("1",)}, "versions": {"torch": "2"}}, "now")
    with pytest.raises(ResumeError, match=r"another new \(was null, is 3\)"):
        Journal(tmp_path, {"settings": {"seed": 0, "eps": ("1",), "new": 3}, "versions": {"torch": "1"}}, "now")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ResumeError, match="delete"):
        Journal(tmp_path, SETTINGS, "now")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResumeError, match="cannot keep a journal in"):
        Journal(tmp_path / "file" / "x", SETTINGS, "now")


# --- audits


Run = Callable[..., Audit]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


@pytest.fixture
def run(network: nn.Module) -> Run:
    """An audit of ten batches or more; keywords replace its settings."""
    x = torch.rand(9, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    given = {
        "eps": ("0.2", "0.5"), "attacks": ("deepfool", "fab-t-quick", "pgd-at-radius", "apgd-ce"), "batch_size": 4,
        "local": "on", "local_samples": 3,
    }  # fmt: skip

    def audit(**changes: Any) -> Audit:
        inputs = changes.pop("inputs", x)
        model = changes.pop("model", network)
        return lipaudit.audit(model, inputs, network(x).argmax(1), **{**given, **changes})

    return audit


def found(audit: Audit) -> tuple[object, ...]:
    """What must not depend on interruptions."""
    records = [dataclasses.replace(record, seconds=0.0) for record in audit.attacks]
    return audit.samples, records, audit.slope, audit.verdict, audit.thumbnails, audit.warnings, audit.skipped


def stop_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, count: int) -> None:
    """The count-th call of a function is a Ctrl-C, the others are real."""
    real, calls = getattr(module, name), []

    def limited(*arguments: Any, **keywords: Any) -> Any:
        calls.append(name)
        if len(calls) == count:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(module, name, limited)


def test_an_audit_interrupted_anywhere_finds_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = tmp_path / "la-1.partial", found(run())
    began, kept = set(), 0
    for module, name, count in ((local_search, "local_radius", 3), *((runner, "_run_batch", n) for n in (1, 3, 2, 4))):
        with monkeypatch.context() as patch:
            stop_at(patch, module, name, count)
            with pytest.raises(KeyboardInterrupt):
                run(journal=folder)
        began.add(json.loads((folder / MANIFEST).read_text())["started"])
        parts = len(list(folder.glob("*.npz")))
        assert parts >= kept + count - 1
        kept = parts
    result = run(journal=folder)
    assert found(result) == expected
    assert (result.run, {result.started}) == ("la-1", began)
    assert result.timing[BEFORE] > 0


def test_what_is_finished_is_not_done_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(journal=tmp_path)
    for module, name in ((local_search, "local_radius"), (runner, "_run_batch")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("done again"))
    second = run(journal=tmp_path)
    assert found(second) == found(first)
    assert [record.seconds for record in second.attacks] == [record.seconds for record in first.attacks]


def test_parts_that_are_lost_are_made_again(run: Run, tmp_path: Path) -> None:
    expected = found(run(journal=tmp_path))
    parts = sorted(tmp_path.glob("*.npz"))
    assert len(parts) >= 10 + 3
    for number, part in enumerate(parts):
        if number % 3 == 0:
            part.unlink()
        elif number % 3 == 1:
            part.write_bytes(part.read_bytes()[:-40])
    assert found(run(journal=tmp_path)) == expected


def test_a_batch_is_seeded_by_itself(run: Run, tmp_path: Path) -> None:
    """The last batch alone, after all others came from the journal, finds what it found as the last of many."""
    run = functools.partial(run, local="off", attacks=("deepfool", "apgd-ce"), eps=("0.5",))
    expected = found(run(journal=tmp_path))
    for part in tmp_path.glob("attack-apgd-ce-*.npz"):
        held = part.read_bytes()
        part.unlink()
        assert found(run(journal=tmp_path)) == expected
        assert part.read_bytes() != b""
        part.write_bytes(held)


def test_other_settings_are_refused(run: Run, tmp_path: Path) -> None:
    given = {"attacks": ("deepfool", "apgd-ce"), "local": "off", "local_samples": None}
    run(journal=tmp_path, **given)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"seed": 1}, r"another seed \(was 0, is 1\)"),
        ({"eps": ("0.2",)}, "another eps"),
        ({"attacks": ("deepfool",)}, "another attacks"),
        ({"batch_size": 5}, r"another batch size \(was 4, is 5\)"),
        ({"local": "on"}, r'another local \(was "off", is "on"\)'),
        ({"time_limit": 600.0}, "another time limit"),
        ({"mean": (0.5,), "std": (0.25,)}, "another network"),
    ]
    for change, says in changes:
        with pytest.raises(ResumeError, match=says):
            run(journal=tmp_path, **{**given, **change})


def test_one_weight_or_one_pixel_or_one_version_is_another_audit(
    run: Run, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"attacks": "none", "local": "off", "journal": tmp_path}
    run(**given)
    with pytest.raises(ResumeError, match="another images"):
        run(**given, inputs=torch.rand(9, 1, 6, 6))
    weight = network[3].weight
    one = weight[2, 3].item()
    with torch.no_grad():
        weight[2, 3] = np.nextafter(np.float32(one), np.float32(9)).item()
    with pytest.raises(ResumeError, match="another network"):
        run(**given)
    with torch.no_grad():
        weight[2, 3] = one
    run(**given)
    monkeypatch.setattr("lipaudit.runs.provenance.version", lambda package: f"{package} of tomorrow")
    with pytest.raises(ResumeError, match=r"another torch .*is \"torch of tomorrow\""):
        run(**given)


def test_a_full_disk_ends_the_journal_and_not_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_arrays: object) -> None:
        raise OSError(28, "No space left on device")

    expected = run(attacks=("deepfool",), local="off")
    monkeypatch.setattr("lipaudit.files.journal.np.savez", full)
    result = run(attacks=("deepfool",), local="off", journal=tmp_path)
    assert result.samples == expected.samples
    assert result.status == "complete"
    assert "No space left on device" in result.warnings[-1]
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_time_before_the_interruption_counts(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"attacks": ("deepfool", "fab-t-quick"), "local": "off", "time_limit": 1e6, "journal": tmp_path}
    with monkeypatch.context() as patch:
        stop_at(patch, runner, "_run_batch", 2)
        with pytest.raises(KeyboardInterrupt):
            run(**given)
    (part,) = tmp_path.glob("attack-*.npz")
    arrays = dict(np.load(part))
    np.savez(part, **(arrays | {"seconds": np.array(2e6)}))
    late = run(**given)
    # What is finished counts, however late it is; nothing new begins.
    assert [(record.attacked, record.status) for record in late.attacks] == [(4, "done"), (0, "not run")]
    assert late.attacks[0].why == "time limit reached at 4 of 9 samples"


def test_a_journal_can_be_removed(tmp_path: Path) -> None:
    put(Journal(tmp_path / "x", SETTINGS, "now"))
    discard(tmp_path / "x")
    discard(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_bounds_of_layers_are_kept_from_the_first_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after the bounds, before any image: they are not computed again, and come out the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
    x = torch.rand(3, 1, 6, 6)
    given = {"attacks": "none", "local": "off", "journal": tmp_path / "run.partial"}
    run = functools.partial(lipaudit.audit, model, x, model(x).argmax(1), **given)

    def interrupted(*_arguments: object, **_settings: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "certify_in", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert holds_parts(tmp_path / "run.partial")
    whole = lipaudit.audit(model, x, model(x).argmax(1), attacks="none", local="off")
    with monkeypatch.context() as patch:
        patch.setattr("lipaudit.domains.lipschitz.propagator.norm_bound", interrupted)
        patch.setattr("lipaudit.domains.lipschitz.propagator.lower_bound", interrupted)
        again = run()
    for one, other in zip(again.bound.layers, whole.bound.layers, strict=True):
        assert dataclasses.replace(one, seconds=0.0) == dataclasses.replace(other, seconds=0.0)
    assert again.samples.radius == whole.samples.radius
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    fresh = lipaudit.audit(model, x, model(x).argmax(1), **given | {"journal": tmp_path / "other.partial"})
    (tmp_path / "mixed.partial").mkdir()
    for part in (tmp_path / "run.partial").glob("bound-*"):
        shutil.copy(part, tmp_path / "mixed.partial")
    mixed = lipaudit.audit(model, x, model(x).argmax(1), **given | {"journal": tmp_path / "mixed.partial"})
    assert mixed.bound.pairwise == fresh.bound.pairwise
