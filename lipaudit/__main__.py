"""`python -m lipaudit` is `lipaudit`."""

from __future__ import annotations

from lipaudit.cli import main

main()
