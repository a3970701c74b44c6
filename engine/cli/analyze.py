"""``strata analyze``: one subcommand per analysis, made from the registry of analyses.

Analyses of other packages join them. Their declarations are loaded for the list of commands and when they are called,
so that what is wrong with one of them reaches no other command.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from analyses.plugins import load_plugin, plugin_names, survey
from analyses.registry import ALL, ANALYSES, Option, options_of, run
from engine.cli.console import stdout_console
from engine.cli.options import ByteSize

__all__ = ["command"]


_HELP = {
    **{analysis.name: analysis.help for analysis in ANALYSES.values()},
    ALL: f"{' and '.join(ANALYSES)}, one after the other; analyses of other packages are run by name",
}


class _Analyses(click.Group):
    """Our analyses, and those that installed packages declare."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return our names, then the usable ones of other packages."""
        return [*_HELP, *(analysis.name for analysis in survey(_HELP)[0])]

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Make one command; None where nobody declares that name.

        Raises
        ------
        UsageError
            Another package declares it and is broken.
        """
        if name in _HELP:
            return _subcommand(name, _HELP[name])
        if name in plugin_names():
            return _subcommand(name, load_plugin(name, _HELP).help)
        return None

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """List all commands; say in one line what is wrong with each broken package."""
        usable, problems = survey(_HELP)
        with formatter.section("Commands"):
            helps = _HELP | {analysis.name: analysis.help for analysis in usable}
            formatter.write_dl([(name, _sentence(text)) for name, text in helps.items()])
        if problems:
            with formatter.section("Broken analyses of other packages"):
                for problem in problems:
                    formatter.write(f"  {problem}\n")


@click.group(name="analyze", cls=_Analyses)
def command() -> None:
    """Compute an analysis from stores, out-of-core, without the model.

    Writes NAME.parquet (a tidy table), NAME.zarr (a labelled dataset) and NAME.png and .svg (the figure) into the
    folder given by --out. What an analysis needs from another it computes. Other packages add analyses of their own.
    """


class _Names(click.ParamType):
    """Names separated by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Split the text."""
        return value if isinstance(value, tuple) else tuple(name.strip() for name in value.split(",") if name.strip())


def _click_option(option: Option) -> click.Option:
    flag = f"--{option.name.replace('_', '-')}"
    if option.type is bool:
        return click.Option([flag], is_flag=True, default=option.default, help=_sentence(option.help))
    names = option.type is tuple
    kind: Any = click.Choice(option.choices) if option.choices else _Names() if names else option.type
    empty = option.default in ((), "")  # the help says what that means
    shown = not empty and (",".join(option.default) if names else True)
    return click.Option([flag], type=kind, default=option.default, show_default=shown, help=_sentence(option.help))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _subcommand(name: str, text: str) -> click.Command:
    common: list[click.Parameter] = [
        click.Argument(["stores"], nargs=-1, required=True),
        click.Option(["--out"], required=True, type=click.Path(path_type=Path), help="Folder for the results."),
        click.Option(["--workers"], type=click.IntRange(min=1),
                     help="Threads of this process; default: one per usable CPU, at most 8, fewer if they do not fit."),
        click.Option(["--memory"], type=ByteSize(), default=2 * 2**30, show_default="2GiB",
                     help="Peak memory that may be used; refused early when it is too small."),
        click.Option(["--scheduler"], metavar="ADDRESS", help="Address of an existing Dask scheduler, tcp://…"),
    ]  # fmt: skip
    own = [_click_option(option) for option in options_of(name)]
    return click.Command(name, params=[*common, *own], callback=_runner(name), help=_sentence(text))


def _runner(name: str) -> Callable[..., None]:
    def callback(
        stores: tuple[str, ...], out: Path, workers: int | None, memory: int, scheduler: str | None, **options: Any
    ) -> None:
        with _progress() as progress:
            written = run(
                name,
                stores,
                out,
                workers=workers,
                memory=memory,
                scheduler=scheduler,
                progress=progress,
                notify=lambda sentence: click.echo(f"note: {sentence}", err=True),
                **options,
            )
        for path in written:
            click.echo(path)

    return callback


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar over parts on a terminal, and nothing otherwise."""
    console = stdout_console()
    if not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("parts")
        yield lambda done, total: bar.update(task, completed=done, total=total)
