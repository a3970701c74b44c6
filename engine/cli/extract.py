"""``strata extract``: run a model once and write what happened inside it."""

import os
import sys
from pathlib import Path
from typing import Any

import click
from transformers.utils.logging import disable_progress_bar

from engine.capture.checks import check_image_rows, check_prompt_independence
from engine.capture.extraction import Extraction, Outcome, extract_parts
from engine.capture.ranks import find_local_rank, find_rank
from engine.cli.options import RunOptions, run_options
from engine.cli.planning import Planned, plan_run
from engine.cli.progress import extraction_progress
from engine.errors import StrataError
from engine.models.checkpoint import Checkpoint
from engine.models.load import load_model
from engine.models.prepare import PreparedImage
from engine.models.tables import model_tables
from engine.sources import UnreadableImage, load_image
from engine.store import committed_parts, create_store, is_same_store

__all__ = ["command"]

_NAMED_BAD = 10  # bad samples named on the terminal; all of them stand in the manifests


@click.command(name="extract")
@run_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Store to write, or to go on with.")
@click.option("--rank", type=int, help="This process's number, with --world-size. Default: torchrun's or Slurm's.")
@click.option("--world-size", type=int, help="Number of processes that fill the store.")
@click.option("--skip-bad-samples", is_flag=True, help="Exit 0 although some samples could not be stored.")
def command(**values: Any) -> None:
    """Run a model once over images and prompts and write its activations to a store.

    The same command again resumes: finished parts are skipped, an unfinished one is redone.
    """
    options = RunOptions.from_click(values)
    store: Path = values["out"]
    rank = find_rank(values["rank"], values["world_size"], os.environ)
    planned = plan_run(options, revision=Checkpoint.revision)
    for warning in planned.warnings:
        click.echo(f"note: {warning}", err=True)
    exists = is_same_store(store, planned.plan.record)
    done = committed_parts(store) if exists else set()
    parts = planned.plan.parts
    owned = set(rank.owned([part.number for part in parts]))
    todo = [part for part in parts if part.number in owned - done]
    click.echo(
        f"{planned.plan.sample_count} samples ({len(planned.plan.images)} images × "
        f"{len(planned.plan.prompts)} prompts) in {len(parts)} parts, {len(done)} of them finished"
    )
    if rank.world_size > 1:
        click.echo(rank.describe([part.number for part in parts]))
    if not todo:
        click.echo(f"{store} has every part of this run; nothing to do")
        return
    extraction = _prepare(planned, options, store, exists=exists)
    samples = sum(part.stop - part.start for part in todo) * len(planned.plan.prompts)
    with extraction_progress(samples=samples, parts=len(todo)) as progress:
        outcome = extract_parts(extraction, todo, progress)
    click.echo(f"{outcome.samples} samples in {outcome.parts} parts written to {store}")
    _report_bad(outcome, skip=values["skip_bad_samples"])


def _prepare(planned: Planned, options: RunOptions, store: Path, *, exists: bool) -> Extraction:
    """Load the model, check it on a real image, and create the store where there is none yet."""
    if not sys.stderr.isatty():
        disable_progress_bar()
    loaded = load_model(
        planned.checkpoint, dtype=planned.dtype, device=options.device, local_rank=find_local_rank(os.environ)
    )
    extraction = Extraction(
        store, planned.plan, planned.root, planned.checkpoint, loaded, planned.preparer, options.batch_size
    )
    first = _first_readable(planned)
    check_image_rows(loaded, first)
    if first.prefix:
        pad_id = planned.checkpoint.processor.tokenizer.pad_token_id or 0
        check_prompt_independence(loaded, first, extraction.probe, pad_id=pad_id)
    if not exists:
        tables = model_tables(planned.checkpoint, loaded, unembedding=options.unembedding)
        create_store(store, record=planned.plan.record, plan=planned.plan.table(), **tables._asdict())
    return extraction


def _first_readable(planned: Planned) -> PreparedImage:
    reasons = []
    for record in planned.plan.images:
        try:
            return planned.preparer.prepare(load_image(planned.root / record.uri).pixels)
        except UnreadableImage as error:
            reasons.append(f"{record.uri}: {error.reason}")
    raise StrataError(
        f"none of the {len(reasons)} images can be read; the first is {reasons[0]}. Check --images {planned.root}."
    )


def _report_bad(outcome: Outcome, *, skip: bool) -> None:
    if not outcome.bad:
        return
    click.echo(f"{len(outcome.bad)} samples could not be stored; the manifests keep the reasons:", err=True)
    for sample_id, reason in outcome.bad[:_NAMED_BAD]:
        click.echo(f"  {sample_id}: {reason}", err=True)
    if len(outcome.bad) > _NAMED_BAD:
        click.echo(f"  … and {len(outcome.bad) - _NAMED_BAD} more (strata inspect lists them)", err=True)
    if not skip:
        raise StrataError("the run is finished but not complete; --skip-bad-samples accepts that.")
