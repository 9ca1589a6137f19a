"""The page of attacks is the table."""

from __future__ import annotations

from pathlib import Path

import lipaudit
from lipaudit.crosscheck import ATTACKS
from lipaudit.crosscheck.catalogue import to_markdown


def test_the_page_of_attacks_is_made_from_the_table() -> None:
    """After a change: python -m lipaudit.crosscheck.catalogue > docs/attacks.md."""
    page = Path(lipaudit.__file__).parents[1] / "docs" / "attacks.md"
    assert page.read_text(encoding="utf-8") == to_markdown()
    assert all(f"| `{name}` |" in to_markdown() for name in ATTACKS)
