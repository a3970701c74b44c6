"""``strata``: the group of commands, and how errors reach the terminal."""

import importlib
import sys
from typing import Any

import click

from engine import __version__
from engine.errors import StrataError, UsageError

__all__ = ["main"]

COMMANDS = {
    "extract": "Run a model once over images and prompts and write its activations to a store.",
    "estimate": "Say what extract would write: samples, tokens, bytes, parts, host memory. Writes nothing.",
    "inspect": "Say what is inside a store and how complete it is.",
    "verify": "Check a store against its manifests; exit 1 and one line per problem.",
    "repair": "Remove leftovers and damaged parts, so that extract does exactly those again.",
    "audit": "Run the model again over some samples and compare every stored tensor; exit 1 where one is wrong.",
    "models": "List model families and what was checked of each.",
    "analyze": "Compute an analysis from stores, out-of-core, without the model.",
    "report": "Make one page of results that opens offline in a browser.",
}

_EXTRAS = {"report": "report"}
"""Extra that brings what a command needs, where that is not the one for running models."""


class LazyGroup(click.Group):
    """Imports ``engine.cli.<name>`` for a command only when it is called; help texts need no import."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the command names, in the order of the work."""
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Import and return one command; None where there is none of that name."""
        if name not in COMMANDS:
            return None
        try:
            command = importlib.import_module(f"engine.cli.{name}").command
        except ModuleNotFoundError as error:
            if (error.name or "").startswith(("engine", "analyses")):
                raise
            raise UsageError(
                f"`strata {name}` needs {error.name}, which is not installed; "
                f"install the extra that brings it: pip install 'activation-strata[{_EXTRAS.get(name, 'extract')}]'."
            ) from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, context: click.Context) -> Any:
        """Turn expected errors into one message on stderr and their exit code; ``--debug`` keeps the traceback."""
        try:
            return super().invoke(context)
        except StrataError as error:
            if context.params["debug"]:
                raise
            click.echo(f"strata: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("strata: stopped; finished parts are kept, the same command goes on from there", err=True)
            sys.exit(130)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="strata")
def main(debug: bool) -> None:
    """Run a vision large language model once, keep its activations, analyse them again and again."""
