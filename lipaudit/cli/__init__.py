"""The command line: commands, their options, one run, what the terminal shows."""

from lipaudit.cli.commands import commands, main

__all__ = ["commands", "main"]
