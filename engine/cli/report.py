"""``strata report``: one page to look at results with, opened from disk, without a network."""

from pathlib import Path

import click
from rich.progress import Progress

from analyses.report import IMAGES, make_report
from analyses.results import write_page
from engine.cli.console import stdout_console
from engine.cli.sizes import format_bytes
from engine.errors import UsageError

__all__ = ["command"]


@click.command(name="report")
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--store",
    "stores",
    multiple=True,
    help="A store of the results: pictures, words and attention of single images are read from it, and it is verified. "
    "Repeat for several.",
)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The page, FILE.html.")
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=IMAGES,
    show_default=True,
    help="Images that are shown at most; fewer where the page would grow beyond 8 MB.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed that chooses them.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Verify each store, which reads all of it.")
def command(results: Path, *, stores: tuple[str, ...], out: Path, images: int, seed: int, verify: bool) -> None:
    """Make one page of a results folder: phase diagram, LogitLens, attention and provenance.

    The page holds all that it shows and loads nothing. What was not computed, or needs a --store, it names with the
    command that gives it.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: browsers open files that end with .html; name one")
    console = stdout_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("bytes verified")
        report = make_report(
            results,
            stores,
            images=images,
            seed=seed,
            verified=verify,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    write_page(out, report.html)
    click.echo(f"{out}  ({format_bytes(len(report.html.encode()))}, opens in any browser, needs no network)")
