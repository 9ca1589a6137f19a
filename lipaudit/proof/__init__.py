"""A proof in a file, for `lipaudit/checker.py`, which shares no code with the rest."""

from lipaudit.proof.writer import write_proof

__all__ = ["write_proof"]
