"""``strata estimate``: what extract would write, from shapes alone."""

import math
from collections import Counter
from typing import Any

import click
from rich.table import Table

from engine.cli.console import stdout_console
from engine.cli.options import RunOptions, run_options
from engine.cli.planning import Planned, plan_run
from engine.cli.sizes import format_bytes
from engine.plan import PlannedPart
from engine.store import predict_size

__all__ = ["command"]

# Measured share that stays after compression: of the captured bytes of states, by dtype (float32 hardly compresses),
# and of pooled means, most of whose roles have no token.
_POOLED_ON_DISK = 0.5
_STATES_ON_DISK = {"float16": 0.87, "bfloat16": 0.69, "float32": 0.92}
_CAPTURED_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}


@click.command(name="estimate")
@run_options
def command(**values: Any) -> None:
    """Say what extract would write: samples, tokens, bytes, parts, host memory.

    Reads the configuration, the processor and the annotations. Loads no weights and writes nothing.
    """
    options = RunOptions.from_click(values)
    planned = plan_run(options, revision=lambda checkpoint: checkpoint.commit or "not read")
    for warning in planned.warnings:
        click.echo(f"note: {warning}", err=True)
    plan = planned.plan
    images, prompts = len(plan.images), len(plan.prompts)
    click.echo(
        f"{plan.sample_count} samples: {images} images × {prompts} prompts, {images * planned.tokens:,} stored tokens "
        f"({planned.tokens} per image; the longest sequence has {planned.sequence})"
    )
    stdout_console().print(_array_table(planned))
    click.echo(_summary(planned, options.batch_size, unembedding=options.unembedding))


def _array_table(planned: Planned) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("array", "dimensions", "stored as", "raw bytes", "on disk, about"):
        table.add_column(heading, justify="right" if "bytes" in heading or "disk" in heading else "left")
    whole = planned.part_arrays(len(planned.plan.images))
    total = 0.0
    for array in whole:
        if len(array.shape) < 2:
            continue
        dims = " × ".join(f"{name} {length:,}" for name, length in zip(array.dims, array.shape, strict=True))
        states = array.path == "token/hidden_states"
        on_disk = _states_on_disk(planned, math.prod(array.shape)) if states else _POOLED_ON_DISK * array.raw_bytes
        total += on_disk
        table.add_row(array.path, dims, array.dtype, format_bytes(array.raw_bytes), format_bytes(on_disk))
    coordinates = [array.raw_bytes for array in whole if len(array.shape) < 2]
    table.add_row("coordinates", "", "int32", format_bytes(sum(coordinates)), "")
    raw = sum(array.raw_bytes for array in whole)
    table.add_row("all", "", "", format_bytes(raw), format_bytes(total))
    return table


def _states_on_disk(planned: Planned, values: int) -> float:
    return values * _CAPTURED_ITEMSIZE[planned.dtype] * _STATES_ON_DISK[planned.dtype]


def _summary(planned: Planned, batch_size: int, *, unembedding: bool) -> str:
    parts = planned.plan.parts
    sizes = Counter(_images_of(part) for part in parts)
    files = sum(count * _files_of_part(planned, images) for images, count in sizes.items())
    text_config = planned.checkpoint.config.get_text_config()
    matrix = text_config.vocab_size * planned.checkpoint.dim * (2 if planned.dtype == "float16" else 4)
    common = f"unembedding {format_bytes(matrix)}" if unembedding else "no unembedding"
    largest = max(sizes)
    return (
        f"{len(parts)} parts of up to {largest} images, about {files:,} files; {common}\n"
        f"host memory for captured states: up to {format_bytes(_host_memory(planned, largest, batch_size))} "
        "(the part that fills, the part that is written, one batch)"
    )


def _images_of(part: PlannedPart) -> int:
    return part.stop - part.start


def _files_of_part(planned: Planned, images: int) -> int:
    size = predict_size(planned.part_arrays(images))
    return size.data_files + size.metadata_files


def _host_memory(planned: Planned, images: int, batch_size: int) -> int:
    """Two parts in the captured dtype, one layer of a part in the stored dtype, one batch."""
    capture = planned.plan.record["capture"]
    captured_row = planned.checkpoint.dim * _CAPTURED_ITEMSIZE[planned.dtype]
    arrays = planned.part_arrays(images)
    states = [array for array in arrays if array.path == "token/hidden_states"]
    others = sum(array.raw_bytes for array in arrays if array not in states)
    part = others + sum(array.shape[0] * array.shape[1] * captured_row for array in states)
    slab = sum(array.raw_bytes // array.shape[0] for array in states)
    batch = batch_size * planned.sequence * len(capture["layers"]) * captured_row
    return 2 * part + slab + batch
