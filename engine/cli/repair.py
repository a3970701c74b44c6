"""``strata repair``: remove from a store what the next extraction must do again."""

from pathlib import Path

import click
from rich.progress import Progress

from engine.cli.console import stdout_console
from engine.cli.sizes import format_count
from engine.errors import StrataError
from engine.inputs import name_few
from engine.store import Repair, repair

__all__ = ["command"]

_STAGING = ".staging/"


@click.command(name="repair")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--retry-bad", is_flag=True, help="Also remove the parts that lack samples which could not be stored.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed and why; remove nothing.")
def command(store: Path, retry_bad: bool, dry_run: bool) -> None:
    """Remove leftovers and damaged parts, so that the same strata extract does exactly those again.

    Checks the store as strata verify does. Then removes what a crash left, files among the parts that no record lists,
    damaged files of the model's tables and the plan, and every part of which anything is damaged or missing, its
    manifest first. Sound parts, what a living process writes and what may be your own stay as they are; links are not
    followed. Exits 1 where something is wrong that it must leave.
    """
    console = stdout_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("bytes hashed")
        done = repair(
            store,
            retry_bad=retry_bad,
            dry_run=dry_run,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for removal in done.removals:
        click.echo(f"{'would remove' if dry_run else 'removed'} {removal.name}: {removal.reason}")
    for file, message in done.kept:
        click.echo(f"left {file}: {message}")
    click.echo(f"{store}: {_describe(done, dry_run)}")
    if any(not file.startswith(_STAGING) for file, _ in done.kept):
        raise StrataError(f"{store} is not yet sound: see what was left above")


def _describe(done: Repair, dry_run: bool) -> str:
    """Say what comes next."""
    removed = f"{format_count(len(done.removals), 'thing')} {'to remove' if dry_run else 'removed'}"
    again = [f"does {name_few(f'part {number}' for number in done.redone)}"] if done.redone else []
    again += [f"writes {name_few(done.rewritten)}"] if done.rewritten else []
    if not again:
        return f"{removed}, nothing to extract again"
    return f"{removed}; the same strata extract {' and '.join(again)} again"
