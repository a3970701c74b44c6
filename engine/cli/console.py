"""Where tables and progress are printed."""

from rich.console import Console

__all__ = ["stdout_console"]

_PLAIN_WIDTH = 120  # of tables that go into a file or a pipe, where there is no terminal to ask


def stdout_console() -> Console:
    """Return a console on stdout, as wide as the terminal, or wide enough for a log file."""
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)
