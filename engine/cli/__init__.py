"""The command line. Each command is imported when it is called, so that analysing needs no torch."""

from engine.cli.main import main

__all__ = ["main"]
