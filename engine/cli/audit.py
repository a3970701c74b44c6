"""``strata audit``: stored values against a fresh forward pass."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from engine.audit import AuditReport, FreshPasses, TensorVerdict, audit_store, check_images, draw_samples
from engine.cli.console import stdout_console
from engine.errors import StrataError, UsageError
from engine.models.checkpoint import Checkpoint, open_checkpoint
from engine.models.load import load_model
from engine.sources import ImageFolder, ImageReader, read_source
from engine.store import Store, open_store

__all__ = ["command"]

_NAMED = 10  # mismatches on the terminal
_WIDE = 240  # of the table in a file or a pipe, where one line per tensor is worth more than fitting a page


@click.command(name="audit")
@click.argument("store", type=str)
@click.option("--model", required=True, help="Folder or hub id of the model that the store was extracted with.")
@click.option("--images", type=click.Path(path_type=Path), help="The image folder, as strata extract was given it.")
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    help="The annotation file; needed only where images are inside it (Parquet).",
)
@click.option("--samples", type=click.IntRange(min=1), default=8, show_default=True, help="Samples to run again.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed draws other samples.")
@click.option("--device", help="cpu, cuda, cuda:1, …  Default: the GPUs if there are any.")
def command(
    *,
    store: str,
    model: str,
    images: Path | None,
    annotations: Path | None,
    samples: int,
    seed: int,
    device: str | None,
) -> None:
    """Run the model again over some samples and compare every tensor that the store has of them.

    \b
    strata audit STORE --model MODEL --images IMAGES

    Prompts, layers and dtype come from the store; images are known by their sha256, the model by its revision. One line
    per tensor names its worst sample, layer and position. Exit code 1 where a tensor is wrong.

    How close is close enough is measured: every sample runs alone, then under another attention kernel (SDPA's math, or
    for a model with a softcap eager attention over reversed keys), then twice in a padded batch. The floor of a layer
    is the largest difference among these passes, over all tokens of the audited samples, in the layer and its two
    neighbours. A stored vector may differ by three times the floor, or by an angle and length that are rounding
    (1 − cosine up to 1e-4 in 16 bits, 1e-6 in float32): smaller damage than both is not seen. Three forward passes per
    sample; nothing is written. For damaged files use strata verify.
    """  # noqa: D301
    opened = open_store(store if "://" in store else Path(store))
    if not opened.parts:
        raise StrataError(f"no part of {store} is committed yet: there is nothing to audit; run strata extract first")
    checkpoint = _checkpoint(opened.record["model"], model)
    reader = _images(opened.record["source"], annotations=annotations, images=images)
    table = opened.samples
    rows = table.iloc[draw_samples(list(table["sample_id"]), list(table["part"]), count=samples, seed=seed)]
    if rows.empty:
        raise StrataError(f"no part of {store} has a sample that could be stored: strata inspect --bad lists why")
    check_images(rows, reader)
    if not sys.stderr.isatty():
        disable_progress_bar()
    loaded = load_model(checkpoint, dtype=opened.record["model"]["dtype"], device=device)
    passes = FreshPasses(opened.record, checkpoint, loaded, reader)
    console = stdout_console()
    console.width = console.width if console.is_terminal else _WIDE
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("samples", total=len(rows))
        report = audit_store(opened, rows, passes, lambda: bar.advance(task))
    click.echo(_headline(opened, passes, len(rows)))
    console.print(_verdict_table(report))
    _conclude(store, report)


def _checkpoint(stored: Mapping[str, Any], model: str) -> Checkpoint:
    """Open the model at the revision that the store names; refuse another one."""
    revision = str(stored["revision"])
    commit = None if Path(model).is_dir() or ":" in revision else revision
    checkpoint = open_checkpoint(model, revision=commit)
    found = checkpoint.revision()
    if found != revision:
        raise UsageError(
            f"--model {model} is not the model of this store: its revision is {found}, the store was extracted from "
            f"{stored['id']} at {revision}. Give --model that one: other weights have other states."
        )
    return checkpoint


def _images(source: Mapping[str, Any], *, annotations: Path | None, images: Path | None) -> ImageReader:
    kind = str(source["kind"])
    if annotations is not None or kind == "parquet":
        return read_source(kind, annotations=annotations, images=images, split=source.get("split")).images
    if images is None:
        raise UsageError(
            f"the store keeps no images; name the folder that strata extract read with --images (its source was "
            f"'{kind}'), or with --annotations the Parquet file that holds them"
        )
    if not images.is_dir():
        raise StrataError(f"the image folder {images} is no folder; check --images")
    return ImageFolder(images)


def _headline(store: Store, passes: FreshPasses, count: int) -> str:
    model = store.record["model"]
    parts = len(store.parts)
    own, other = passes.kernels
    return (
        f"{count} of {len(store.samples)} samples of {store.url} ({parts} part{'s' if parts > 1 else ''}) against "
        f"{model['id']} in {model['dtype']} on {passes.loaded.device}, batch 1, attention kernel {own} and, for the "
        f"floor, {other} and a padded batch of two"
    )


def _verdict_table(report: AuditReport) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("tensor", ""):
        table.add_column(heading, no_wrap=True)
    for heading in ("difference", "3 × floor", "1 − cosine", "bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("worst at", overflow="fold")
    for verdict in report.verdicts:
        table.add_row(*_cells(verdict))
    return table


def _cells(verdict: TensorVerdict) -> tuple[str, ...]:
    worst = verdict.worst
    if worst is None:
        return (verdict.tensor, "nothing to compare", "", "", "", "", "")
    numbers = (worst.difference, worst.bound, worst.angle, verdict.tolerance)
    place = f"{verdict.sample_id}: {verdict.place}"
    return (verdict.tensor, "ok" if worst.passed else "WRONG", *(f"{number:.1e}" for number in numbers), place)


def _conclude(store: str, report: AuditReport) -> None:
    for note in report.notes:
        click.echo(f"note: {note}")
    for mismatch in report.mismatches[:_NAMED]:
        click.echo(f"differs: {mismatch}")
    if len(report.mismatches) > _NAMED:
        click.echo(f"… and {len(report.mismatches) - _NAMED} more")
    if not report.passed:
        wrong = [verdict.tensor for verdict in report.verdicts if not verdict.passed]
        what = [*wrong, *(["tokens or tables"] if report.mismatches else [])]
        raise StrataError(
            f"{store} is not what this model gives: {', '.join(what)}. `strata verify` says whether files were damaged "
            "since they were written; if not, extract the store again."
        )
    click.echo(f"{store} is what this model gives")
