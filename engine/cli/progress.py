"""How far an extraction is: a bar on a terminal, one plain line per part otherwise."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engine.cli.sizes import format_bytes

__all__ = ["ExtractionProgress", "extraction_progress"]

_IN_WORDS = {"images": "images", "model": "the model", "copies": "copies to the host", "writer": "the writer"}


class ExtractionProgress:
    """Counts what happened and shows it.

    Parameters
    ----------
    bar
        A rich progress display, or None for plain lines.
    samples, parts
        What is to be done.
    """

    def __init__(self, bar: Progress | None, *, samples: int, parts: int) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=samples, rate="") if bar else None
        self._parts = parts
        self._parts_done = 0
        self._samples = 0
        self._bytes = 0
        self._waited = dict.fromkeys(_IN_WORDS, 0.0)
        self._began = time.perf_counter()

    def batch_done(self, samples: int, state_bytes: int) -> None:
        """One forward pass is finished."""
        self._samples += samples
        self._bytes += state_bytes
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=samples, rate=self._rate())

    def waited(self, what: str, seconds: float) -> None:
        """Hear how long the run stood still for ``images``, the ``model``, ``copies`` to the host or the ``writer``."""
        self._waited[what] += seconds

    def part_done(self, manifest: Mapping[str, object]) -> None:
        """One part is committed."""
        self._parts_done += 1
        if self._bar is None:
            click.echo(
                f"part {manifest['part']} committed ({self._parts_done} of {self._parts}): "
                f"{manifest['samples']} samples, {manifest['tokens']} tokens; {self._rate()}"
            )

    def _rate(self) -> str:
        seconds = max(time.perf_counter() - self._began, 1e-9)
        what, waited = max(self._waited.items(), key=lambda item: item[1])
        waits = f"waits {waited / seconds:.0%} of the time for {_IN_WORDS[what]}"
        return f"{self._samples / seconds:.1f} samples/s, {format_bytes(self._bytes / seconds)}/s, {waits}"


@contextmanager
def extraction_progress(*, samples: int, parts: int) -> Iterator[ExtractionProgress]:
    """Show progress on stdout while the context is open."""
    console = Console()
    if not console.is_terminal:
        yield ExtractionProgress(None, samples=samples, parts=parts)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("samples  {task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        yield ExtractionProgress(bar, samples=samples, parts=parts)
