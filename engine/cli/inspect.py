"""``strata inspect``: what is inside a store and how complete it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from engine.cli.console import printable, stdout_console
from engine.cli.rank_table import make_rank_table
from engine.cli.sizes import format_bytes, format_dims
from engine.errors import UsageError
from engine.store import (
    ArraySummary,
    Store,
    StoreSummary,
    open_store,
    rank_progress,
    read_filling,
    recorded_world_size,
    recorded_world_sizes,
    summarise,
)

__all__ = ["command"]


_RECORDED = 0  # ranks: as many as manifests say


@click.command(name="inspect")
@click.argument("store", type=str)
@click.option("--bad", is_flag=True, help="List every sample that could not be stored, with its reason.")
@click.option(
    "--ranks",
    type=click.IntRange(min=0),
    is_flag=False,
    flag_value=_RECORDED,
    help="Say how far each of so many ranks is; without a number (after STORE) those that the parts say. By default "
    "those that wrote most of the parts, where there are several or parts are missing.",
)
def command(store: str, bad: bool, ranks: int | None) -> None:
    """Say what is inside a store and how complete it is; reads records, no arrays.

    While a store fills it says of every rank how many of its parts are committed, which one it is writing or left when
    it died, and how long the rest takes at its rate so far: samples of the parts that it wrote, by the time that
    extracting them took, or by the usual time from one commit to the next where that is longer.
    """
    opened = open_store(store if "://" in store else Path(store))
    summary = summarise(opened)
    click.echo(_describe(summary))
    _tell_progress(opened, summary, ranks)
    if summary.arrays:
        stdout_console().print(_array_table(summary))
    for array in summary.arrays:
        if kept := _describe_kept(array):
            click.echo(kept)
    for sample in summary.bad_samples if bad else ():
        click.echo(f"bad: {printable(sample['sample_id'])}: {printable(sample['reason'])}")


def _tell_progress(store: Store, summary: StoreSummary, ranks: int | None) -> None:
    """Print a line per rank, where there is something to tell."""
    filling = read_filling(store)
    manifests = list(filling.manifests.values())
    if ranks == _RECORDED and len(sizes := recorded_world_sizes(manifests)) != 1:
        found = f"runs of {' and '.join(map(str, sizes))} ranks wrote parts" if sizes else "no part is committed"
        raise UsageError(f"--ranks without a number: {found} of {store.url}; say how many, such as --ranks 4.")
    world_size = ranks or recorded_world_size(manifests)
    if ranks is not None or world_size > 1 or summary.committed_parts < summary.planned_parts:
        stdout_console().print(make_rank_table(rank_progress(filling, world_size)))


def _describe(summary: StoreSummary) -> str:
    """Say what was run, as far as the record knows (only blocks and layers are always there), and what is done."""
    record = summary.record
    model, source, capture = record["model"], record.get("source", {}), record["capture"]
    state = "complete" if summary.committed_parts == summary.planned_parts else "not complete"
    lines = [
        f"{summary.url}  (format {record['format_version']})",
        f"model    {model.get('id', 'unknown')}  revision {model.get('revision', 'unknown')}",
        f"         {model.get('dtype', 'unknown dtype')}, {model['blocks']} blocks",
        f"source   {source.get('kind', 'unknown')}, {source.get('images', 'unknown number of')} images",
        f"prompts  {', '.join(prompt['prompt_id'] for prompt in record.get('prompts', ())) or 'unknown'}",
        f"capture  {', '.join(capture.get('tensors', ()))}; layers {_numbers(capture['layers'])}; "
        f"shared prefix {'stored once' if capture.get('share_prefix') else 'not used'}"
        + "; thumbnails"
        * bool(capture.get("thumbnails")),
        *_describe_choices(capture),
        f"parts    {summary.committed_parts} of {summary.planned_parts}, {state}; "
        f"{summary.samples} of {summary.planned_samples} samples, {summary.tokens:,} tokens, "
        f"{format_bytes(summary.stored_bytes)}",
    ]
    if summary.bad_samples:
        lines.append(f"bad      {len(summary.bad_samples)} samples could not be stored (--bad lists them)")
    return "\n".join(lines)


def _describe_choices(capture: Mapping[str, Any]) -> list[str]:
    """Say what is chosen for single tensors and what is kept of blocks; formats before 0.3 know of neither."""
    states = f"hidden states of layers {_numbers(capture['residual_layers'])}" if capture.get("residual_layers") else ""
    blocks = f"blocks {_numbers(capture['blocks'])}" if capture.get("blocks") else ""
    queries = f"attention of {', '.join(capture['queries'])}" if capture.get("queries") else ""
    pieces = f"{capture['lens_topk']} pieces per state" if capture.get("lens_topk") else ""
    roles = f"tokens of {', '.join(capture['roles'])}" if capture.get("roles") else ""
    dtypes = ", ".join(f"{name} as {dtype}" for name, dtype in capture.get("dtypes", {}).items())
    said = "; ".join(filter(None, (states, pieces, blocks, roles, queries, dtypes)))
    return [f"         {said}"] if said else []


def _describe_kept(array: ArraySummary) -> str:
    """Say what an array keeps that has room for more; nothing of others."""
    layers = f"layers {_numbers(list(array.layers))}" if array.layers is not None else ""
    blocks = f"blocks {_numbers(list(array.blocks))}" if array.blocks is not None else ""
    roles = f"tokens of {', '.join(array.roles)}" if array.roles is not None else ""
    kept = " and ".join(filter(None, (layers, blocks, roles)))
    return f"{array.path} keeps {kept}; the rest is {'-1' if array.dtype == 'int32' else 'NaN'}" if kept else ""


def _numbers(numbers: list[int]) -> str:
    contiguous = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}..{numbers[-1]}" if contiguous else ", ".join(map(str, numbers))


def _array_table(summary: StoreSummary) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("array", "dimensions", "stored as", "captured as"):
        table.add_column(heading)
    for heading in ("raw", "on disk", "ratio", "files"):
        table.add_column(heading, justify="right")
    for array in summary.arrays:
        if len(array.dims) < 2:
            continue
        dims = format_dims(array.dims, array.shape, array.kept)
        sizes = (format_bytes(array.raw_bytes), format_bytes(array.stored_bytes), f"{array.ratio:.2f}")
        table.add_row(array.path, dims, array.dtype, array.captured_dtype, *sizes, str(array.files))
    return table
