"""``strata estimate``: what extract would write and take, from shapes alone."""

from typing import Any

import click
from rich.table import Table

from engine.cli.console import stdout_console
from engine.cli.options import RunOptions, run_options
from engine.cli.planning import Planned, plan_run
from engine.cli.prediction import WRITTEN_PER_SECOND, Prediction, predict
from engine.cli.sizes import format_bytes, format_count, format_dims, format_duration

__all__ = ["command"]


@click.command(name="estimate")
@run_options
@click.option(
    "--tflops",
    type=click.FloatRange(min=0, min_open=True),
    default=100.0,
    show_default=True,
    help="Speed that the time is estimated for: what your device sustains in this dtype (100 is a third of the 16-bit "
    "peak of one A100).",
)
def command(**values: Any) -> None:
    """Say what extract would write and take: samples, tokens, bytes, parts, files, host memory, time.

    Reads the configuration, the processor and the annotations. Loads no weights and writes nothing.
    """
    options = RunOptions.from_click(values)
    planned = plan_run(options, revision=lambda checkpoint: checkpoint.commit or "not read")
    for warning in planned.warnings:
        click.echo(f"note: {warning}", err=True)
    images, prompts = len(planned.plan.images), len(planned.plan.prompts)
    click.echo(
        f"{format_count(planned.plan.sample_count, 'sample')}: {format_count(images, 'image')} × "
        f"{format_count(prompts, 'prompt')}, "
        f"{images * planned.tokens:,} stored tokens "
        f"({planned.tokens} per image; the longest sequence has {planned.sequence})"
    )
    prediction = predict(planned, batch_size=options.batch_size, unembedding=options.unembedding)
    stdout_console().print(_array_table(prediction))
    click.echo(
        f"{format_count(prediction.parts, 'part')} of up to {format_count(prediction.images_per_part, 'image')}, "
        f"{prediction.files:,} files\n"
        f"host memory beside the model: up to {format_bytes(prediction.host_memory)} "
        "(the part that fills, the part that is written, one batch)\n"
        + _prefix_line(planned, prediction)
        + _time(planned, prediction, values["tflops"])
    )
    if planned.capture.thumbnails:
        click.echo("thumbnails are not counted: one JPEG per image, of a size that depends on what it shows")


def _array_table(prediction: Prediction) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("array", "dimensions", "stored as", "raw bytes", "on disk, about"):
        table.add_column(heading, justify="right" if "bytes" in heading or "disk" in heading else "left")
    for item in (*prediction.arrays, *prediction.model_arrays):
        array = item.array
        if len(array.shape) > 1:
            dims = format_dims(array.dims, array.shape, array.kept_shape)
            table.add_row(array.path, dims, array.dtype, format_bytes(array.raw_bytes), format_bytes(item.on_disk))
    small = sum(item.raw_bytes for item in prediction.model_arrays if len(item.array.shape) == 1)
    table.add_row("coordinates and norm", "", "", format_bytes(prediction.coordinate_bytes + small), "")
    table.add_row("all", "", "", format_bytes(prediction.raw_bytes), format_bytes(prediction.on_disk))
    return table


def _prefix_line(planned: Planned, prediction: Prediction) -> str:
    if not planned.prefix_once:
        return ""
    return (
        f"  of which {format_bytes(prediction.prefix_cache)} on the device that runs the model: keys and values of the "
        f"{planned.prefix_once} tokens per image that run once for all prompts\n"
    )


def _time(planned: Planned, prediction: Prediction, tflops: float) -> str:
    from engine.models.work import forward_flops, lens_flops  # noqa: PLC0415  (torch is for these lines of the page)

    of_lens = lens_flops(planned.checkpoint, prediction.lens_states, planned.dtype)
    per_image = forward_flops(planned.checkpoint, planned.sequences, prefix=planned.prefix_once)
    flops = per_image * len(planned.plan.images) + of_lens
    computing, writing = flops / (tflops * 1e12), prediction.captured_bytes / WRITTEN_PER_SECOND
    took, wrote = format_duration(computing), format_duration(writing)
    return (
        f"time without start-up: {max((computing, took), (writing, wrote))[1]}\n"
        f"  forward passes {took}: {flops / 1e12:,.{int(flops < 1e13)}f} TFLOP at {tflops:g} TFLOP/s (--tflops)"
        + f", {100 * of_lens / flops:.0f} % of it lens"
        * bool(of_lens)
        + "\n"
        f"  writing, meanwhile, {wrote}: {format_bytes(prediction.captured_bytes)} at {WRITTEN_PER_SECOND / 1e9:g} GB/s"
    )
