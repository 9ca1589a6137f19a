"""The mutants still apply, and a few of them are killed; `score.py` runs all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant
from score import ROOT, applied, copied, mutated


def test_every_mutant_applies_and_is_python() -> None:
    for mutant in MUTANTS:
        text = applied(mutant, ROOT)
        assert text != (ROOT / mutant.file).read_text(encoding="utf-8"), mutant.name
        compile(text, mutant.file, "exec")
        assert mutant.tests, mutant.name
        assert all((ROOT / test.partition("::")[0]).is_file() for test in mutant.tests), mutant.name


def test_there_are_enough_with_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 60
    assert 6 <= sum(mutant.quick for mutant in MUTANTS) <= 15


def test_a_mutant_that_does_not_apply_is_an_error(tmp_path: Path) -> None:
    copy = copied(tmp_path)
    stale = Mutant("stale", "lipaudit/rounding.py", "no such line", "", ("tests/test_local.py",))
    with pytest.raises(ValueError, match="stale: 0 places"), mutated(stale, copy):
        pass
    before = (copy / MUTANTS[0].file).read_text(encoding="utf-8")
    with mutated(MUTANTS[0], copy):
        assert (copy / MUTANTS[0].file).read_text(encoding="utf-8") != before
    assert (copy / MUTANTS[0].file).read_text(encoding="utf-8") == before


@pytest.mark.slow
def test_a_few_are_killed() -> None:
    found = subprocess.run(
        [sys.executable, str(ROOT / "tests/mutation/score.py"), "--quick"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "SURVIVED" not in found.stdout
