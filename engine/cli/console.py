"""Where tables and progress are printed."""

from rich.console import Console

__all__ = ["printable", "stdout_console"]

_PLAIN_WIDTH = 120  # of tables that go into a file or a pipe, where there is no terminal to ask


def stdout_console() -> Console:
    """Return a console on stdout, as wide as the terminal, or wide enough for a log file."""
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def printable(text: str) -> str:
    """Write out what a terminal would obey instead of showing it; ids and reasons come from files of other people."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
