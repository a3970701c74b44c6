"""``strata verify``: check a store against its own records."""

from pathlib import Path

import click
from rich.progress import Progress

from engine.cli.console import stdout_console
from engine.cli.sizes import format_bytes, format_count
from engine.errors import StrataError
from engine.store import open_store, summarise, verify

__all__ = ["command"]


@click.command(name="verify")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Also decode every chunk and check what the values and tables say.")
def command(store: Path, deep: bool) -> None:
    """Check that every planned part is there, bit for bit as it was written.

    Prints one line per problem, naming the file, and exits 1 if there is any. With --deep also what was wrong when it
    was written: values that are not finite, rows of attention that do not sum to 1, segments, roles, keys and queries
    that contradict one another, samples that are planned and nowhere; by file, array, layer and sample.
    """
    console = stdout_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("bytes hashed, then decoded" if deep else "bytes hashed")
        found = verify(store, lambda done, total: bar.update(task, completed=done, total=total), deep=deep)
    for note in found.notes:
        click.echo(f"note: {note}")
    for problem in found.problems:
        click.echo(f"{problem.file}: {problem.message}")
    if found.problems:
        raise StrataError(
            f"{store} has {format_count(len(found.problems), 'problem')}: strata repair {store} removes what is "
            "damaged, and the same strata extract writes it again"
        )
    summary = summarise(open_store(store))
    if summary.bad_samples:
        click.echo(
            f"note: {len(summary.bad_samples)} of {summary.planned_samples} planned samples could not be stored "
            f"(strata inspect --bad {store})"
        )
    click.echo(
        f"{store} is sound: {format_count(summary.committed_parts, 'part')}, "
        f"{format_count(summary.samples, 'sample')}, "
        f"{format_bytes(summary.stored_bytes)}, every file as it was written"
        + "; every value is one that it can be"
        * deep
    )
