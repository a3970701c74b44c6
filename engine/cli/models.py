"""``strata models``: families and what was checked of each."""

import click
from rich.table import Table

from engine.cli.console import stdout_console
from engine.models.families import FAMILIES

__all__ = ["command"]


@click.command(name="models")
def command() -> None:
    """List model families and what was checked of each."""
    table = Table(box=None, pad_edge=False)
    for heading in ("family", "models", "image states depend on the prompt", "checked"):
        table.add_column(heading, overflow="fold")
    for family in FAMILIES.values():
        depends = "yes" if family.image_states_depend_on_prompt else "no: the prefix is stored once"
        table.add_row(family.name, family.title, depends, family.checked)
    stdout_console().print(table)
