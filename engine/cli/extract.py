"""``strata extract``: run a model once and write what happened inside it."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from transformers.utils.logging import disable_progress_bar

from engine.capture.attention_checks import check_attention
from engine.capture.checks import FURTHER_PROMPTS, check_image_rows, check_prompt_dependence
from engine.capture.extraction import Extraction, extract_parts
from engine.capture.lens import Lens
from engine.capture.prefix_reuse import ONCE, choose_prefix_pass
from engine.capture.ranks import Rank, find_local_rank, find_rank, share_cores
from engine.cli.console import printable
from engine.cli.free_space import check_free_space
from engine.cli.options import RunOptions, run_options
from engine.cli.planning import Planned, plan_run
from engine.cli.progress import extraction_progress
from engine.cli.sizes import format_count
from engine.errors import StrataError
from engine.inputs import name_few
from engine.models.checkpoint import Checkpoint
from engine.models.load import load_model
from engine.models.overflow import naming_overflow
from engine.models.prepare import PreparedImage, Preparer
from engine.models.tables import model_tables
from engine.sources import UnreadableImage, load_image
from engine.store import committed_parts, create_store, is_same_store, missing_files, remove_leftovers

__all__ = ["command"]

_NAMED_BAD = 10  # bad samples named on the terminal; all of them stand in the manifests


@click.command(name="extract")
@run_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Store to write, or to go on with.")
@click.option("--rank", type=int, help="This process's number, with --world-size. Default: torchrun's or Slurm's.")
@click.option(
    "--world-size",
    type=int,
    help="Number of processes that fill the store. Those on one machine, started by hand, share its cores if "
    "LOCAL_WORLD_SIZE is their number.",
)
@click.option("--force", is_flag=True, help="Start although the estimate says that the disk is too small.")
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
    remove_leftovers(store)
    lacking = missing_files(store) if exists else ()
    try:
        done = committed_parts(store, planned.plan.sha256)
    except StrataError:
        if not exists:
            _prepare(planned, options, store, rank, complete=False)  # repair, which comes next, needs store.json
        raise
    parts = planned.plan.parts
    owned = set(rank.owned([part.number for part in parts]))
    todo = [part for part in parts if part.number in owned - done.keys()]
    if rank.world_size > 1:
        click.echo(rank.describe([part.number for part in parts]))
    click.echo(
        f"{format_count(planned.plan.sample_count, 'sample')} ({format_count(len(planned.plan.images), 'image')} × "
        f"{format_count(len(planned.plan.prompts), 'prompt')}) in {format_count(len(parts), 'part')}, "
        f"{len(done)} of them finished"
    )
    if lacking:
        click.echo(f"{name_few(lacking)} of {store} will be written again")
    complete = exists and not lacking
    if todo and not values["force"]:
        check_free_space(store, planned, [part for part in parts if part.number not in done], tables=not complete)
    if todo or lacking or (done and not exists):
        extraction = _prepare(planned, options, store, rank, complete=complete)
        samples = sum(part.stop - part.start for part in todo) * len(planned.plan.prompts)
        with extraction_progress(samples=samples, parts=len(todo)) as progress:
            outcome = extract_parts(extraction, todo, progress)
        click.echo(
            f"{format_count(outcome.samples, 'sample')} in {format_count(outcome.parts, 'part')} written to {store}"
        )
    else:
        whose = "every part of this run" if rank.world_size == 1 else "every part of this rank"
        click.echo(f"{store} has {whose}; nothing to do")
    manifests = committed_parts(store)
    _report_bad(store, {part: manifests[part] for part in sorted(owned)}, skip=values["skip_bad_samples"])


def _prepare(planned: Planned, options: RunOptions, store: Path, rank: Rank, *, complete: bool) -> Extraction:
    """Load the model, check it on a real image, and create the store, or what it lacks outside of its parts."""
    if not sys.stderr.isatty():
        disable_progress_bar()
    share_cores(os.environ)
    loaded = load_model(
        planned.checkpoint, dtype=planned.dtype, device=options.device, local_rank=find_local_rank(os.environ)
    )
    checkpoint, topk = planned.checkpoint, planned.capture.lens_topk
    extraction = Extraction(
        store,
        planned.plan,
        planned.images,
        checkpoint,
        loaded,
        planned.preparer,
        options.batch_size,
        lens=None if topk is None else Lens.of(checkpoint, loaded, topk),
        rank=rank.rank,
        world_size=rank.world_size,
    )
    with naming_overflow(
        "a check of the model on the first image",
        loaded.devices,
        "free its memory, choose a 16-bit --dtype or another --device; finished parts are kept.",
    ):
        extraction = _checked(extraction, planned)
    if not complete:
        tables = model_tables(checkpoint, loaded, unembedding=options.unembedding)
        create_store(store, record=planned.plan.record, plan=planned.plan.table(), **tables._asdict())
    return extraction


def _checked(extraction: Extraction, planned: Planned) -> Extraction:
    """Check the model on a real image, and choose how prefixes are run."""
    checkpoint, loaded = extraction.checkpoint, extraction.loaded
    asked = (*planned.plan.prompts, *FURTHER_PROMPTS)
    first = _first_readable(planned, Preparer(checkpoint, asked, share_prefix=False))
    check_image_rows(loaded, first, checkpoint.family)
    # The checks look at tokens of their own.
    probe = extraction.probe._replace(tensor_roles={})
    check_prompt_dependence(
        loaded,
        first,
        probe,
        depends=checkpoint.family.image_states_depend_on_prompt,
        pad_id=checkpoint.pad_id,
    )
    if probe.attended_blocks:
        check_attention(loaded, first, probe._replace(blocks=probe.attended_blocks), pad_id=checkpoint.pad_id)
    if planned.prefix:
        extraction = replace(extraction, prefix_pass=choose_prefix_pass(loaded, first, probe, pad_id=checkpoint.pad_id))
        if extraction.prefix_pass != ONCE:
            click.echo(f"note: the prefix of each image runs {extraction.prefix_pass}", err=True)
    return extraction


def _first_readable(planned: Planned, preparer: Preparer) -> PreparedImage:
    reasons = []
    for record in planned.plan.images:
        try:
            return preparer.prepare(load_image(record, planned.images).pixels)
        except UnreadableImage as error:
            reasons.append(f"{record.uri}: {error.reason}")
    raise StrataError(
        f"none of the {len(reasons)} images can be read; the first is {reasons[0]}. "
        f"They are looked for in {planned.images}."
    )


def _report_bad(store: Path, manifests: Mapping[int, Mapping[str, Any]], *, skip: bool) -> None:
    """Name what could not be stored, of earlier runs too, and how to try it again."""
    bad = [(part, sample) for part, manifest in manifests.items() for sample in manifest["bad_samples"]]
    if not bad:
        return
    click.echo(f"{len(bad)} samples could not be stored when their parts were extracted:", err=True)
    for _, sample in bad[:_NAMED_BAD]:
        click.echo(f"  {printable(sample['sample_id'])}: {printable(sample['reason'])}", err=True)
    if len(bad) > _NAMED_BAD:
        click.echo(f"  … and {len(bad) - _NAMED_BAD} more (strata inspect --bad lists them)", err=True)
    if not skip:
        raise StrataError(
            f"the run is finished but not complete. To try again, mend the cause, run `strata repair --retry-bad "
            f"{store}` and then the same command, which extracts those parts anew; mending that changes the annotation "
            "or Parquet file makes another plan, for another --out. --skip-bad-samples accepts the samples that there "
            "are."
        )
