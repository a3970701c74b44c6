"""The extraction loop: images in, committed parts out.

While the model runs over one batch, the next images are read on background threads and the last part is compressed and
written on another; host memory holds the part that fills and the part that is written. A part that is already committed
is skipped, which is the whole of resuming.
"""

import math
import os
import platform
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from engine.capture.forward import BatchCapture, capture_batch
from engine.capture.host_copies import HostCopies
from engine.capture.lens import Lens
from engine.capture.part import PartCollector, SampleSource, batch_item
from engine.capture.prefetch import prefetch
from engine.capture.probe import Probe
from engine.capture.sink import BackgroundSink
from engine.capture.thumbnails import make_thumbnail
from engine.errors import StrataError
from engine.models.checkpoint import Checkpoint
from engine.models.load import LoadedModel
from engine.models.prepare import PreparedImage, Preparer
from engine.plan import Plan, PlannedPart
from engine.sources import ImageReader, ImageRecord, LoadedImage, UnreadableImage, load_image
from engine.store import PartContent, in_dtypes, lens_layers, write_part
from engine.vocabulary import ROLE_CODES

__all__ = ["Extraction", "Outcome", "Progress", "extract_part", "extract_parts"]


PreparedOrNot = tuple[LoadedImage, PreparedImage, bytes | None] | UnreadableImage


class Progress(Protocol):
    """What the command line wants to hear while an extraction runs."""

    def batch_done(self, samples: int, state_bytes: int) -> None:
        """One forward pass is finished."""

    def waited(self, what: str, seconds: float) -> None:
        """Hear that the model stood still for ``images`` to be read, or for the ``writer`` to take a finished part."""

    def part_done(self, manifest: Mapping[str, object]) -> None:
        """One part is committed (called on the writer's thread)."""


@dataclass(frozen=True)
class Extraction:
    """Everything a run needs.

    Attributes
    ----------
    store
        Folder of a store that was created for ``plan``.
    plan, images
        What to extract, and where the images are.
    checkpoint, loaded, preparer
        The model and what prepares its inputs.
    batch_size
        Samples per forward pass; does not change values.
    padding
        Positions of padding before the longest sample of a pass; does not change values either.
    lens
        Decodes states where the plan captures lens.
    rank, world_size
        Which of how many processes this is; manifests say so, for whoever watches the store fill.
    """

    store: Path
    plan: Plan
    images: ImageReader
    checkpoint: Checkpoint
    loaded: LoadedModel
    preparer: Preparer
    batch_size: int
    padding: int = 0
    lens: Lens | None = None
    rank: int = 0
    world_size: int = 1

    @property
    def probe(self) -> Probe:
        """What the plan captures."""
        capture = self.plan.record["capture"]
        chosen = capture.get("residual_layers")
        return Probe(
            layers=tuple(capture["layers"]),
            residual="residual" in capture["tensors"],
            pooled="pooled" in capture["tensors"],
            block_count=self.checkpoint.block_count,
            attention="attention" in capture["tensors"],
            queries=tuple(capture["queries"]),
            blocks=tuple(capture["blocks"]),
            mass="attention-mass" in capture["tensors"],
            attention_output="attention-output" in capture["tensors"],
            mlp_output="mlp-output" in capture["tensors"],
            residual_layers=None if chosen is None else tuple(chosen),
            lens_layers=tuple(lens_layers(capture)),
            tensor_roles={name: tuple(roles) for name, roles in capture.get("tensor_roles", {}).items()},
            tensor_blocks={name: tuple(blocks) for name, blocks in capture.get("tensor_blocks", {}).items()},
        )

    @property
    def run(self) -> dict[str, object]:
        """How this run computes, for the manifests."""
        packages = ("activation-strata", "torch", "transformers", "zarr", "numcodecs", "numpy")
        return {
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "attention_kernel": self.loaded.attention_kernel,
            "dtype": self.loaded.dtype,
            "device": self.loaded.device.type,
            "batch_size": self.batch_size,
            "padding_side": "left",
            "model_revision": self.plan.record["model"]["revision"],
            "rank": self.rank,
            "world_size": self.world_size,
        }


class Outcome(NamedTuple):
    """What a run left: parts and samples it stored, and (sample id, reason) of those it could not store."""

    parts: int
    samples: int
    bad: tuple[tuple[str, str], ...]


def extract_parts(extraction: Extraction, parts: Sequence[PlannedPart], progress: Progress) -> Outcome:
    """Extract and commit the given parts.

    Raises
    ------
    StrataError
        Where writing fails (the disk is full, say); parts committed before stay valid.
    """
    bad: list[tuple[str, str]] = []
    stored = 0

    def write(content: PartContent) -> None:
        chosen = in_dtypes(content, extraction.plan.record["capture"]["dtypes"])
        progress.part_done(write_part(extraction.store, chosen, plan_sha256=extraction.plan.sha256))

    # The first images of a part are prepared while the part before it is extracted.
    with BackgroundSink(write) as sink, closing(_prepared(extraction, parts)) as prepared:
        for part in parts:
            content = _extract(extraction, part, prepared, progress)
            bad += [(sample.sample_id, sample.reason) for sample in content.bad_samples]
            stored += content.samples.num_rows
            waited = sink.seconds_waited
            sink.put(content)
            progress.waited("writer", sink.seconds_waited - waited)
            del content
    return Outcome(len(parts), stored, tuple(bad))


def extract_part(extraction: Extraction, part: PlannedPart, progress: Progress) -> PartContent:
    """Run the model over the images of one part; nothing is written.

    Raises
    ------
    StrataError
        Where a batch does not fit the device.
    """
    with closing(_prepared(extraction, [part])) as prepared:
        return _extract(extraction, part, prepared, progress)


def _extract(
    extraction: Extraction, part: PlannedPart, prepared: Iterator[PreparedOrNot], progress: Progress
) -> PartContent:
    """Extract a part whose images come next among the prepared ones."""
    capture = extraction.plan.record["capture"]
    roles = None if capture["roles"] is None else [ROLE_CODES[name] for name in capture["roles"]]
    collector = PartCollector(
        part.number,
        extraction.probe,
        dtype=extraction.loaded.dtype,
        dim=extraction.checkpoint.dim,
        heads=extraction.loaded.language.heads,
        mantissa_bits=capture["mantissa_bits"],
        lens_ranks=0 if extraction.lens is None else extraction.lens.topk,
        thumbnails=capture.get("thumbnails", False),
    )
    largest = (0, 0)
    batches = _batches(_samples(extraction, part, prepared, collector), extraction.batch_size)
    copies = HostCopies()
    while True:
        began = time.perf_counter()
        sources = next(batches, None)
        progress.waited("images", time.perf_counter() - began)
        if sources is None:
            break
        items = [batch_item(source, roles) for source in sources]
        longest = max(len(item.layout) for item in items)
        largest = max(largest, (len(items), longest), key=math.prod)
        try:
            captured = capture_batch(
                extraction.loaded,
                items,
                extraction.probe,
                pad_id=extraction.checkpoint.pad_id,
                lens=extraction.lens,
                images_kept=collector.images_kept,
                to_host=copies.bring,
                padding=extraction.padding,
            )
        except torch.OutOfMemoryError as error:
            raise StrataError(
                f"a batch of {len(items)} samples of up to {longest} tokens does not fit {extraction.loaded.device}: "
                "run the same command again with a smaller --batch-size; finished parts are kept."
            ) from error
        collector.add_batch(sources, items, captured)
        progress.batch_done(len(items), _stored_bytes(captured))
    copies.wait()
    batch = {"samples": largest[0], "positions": largest[1]}
    return collector.finish({**extraction.run, "largest_batch": batch})


def _stored_bytes(captured: BatchCapture) -> int:
    blocks = (
        () if captured.block_rows is None else (*captured.block_rows.key.values(), *captured.block_rows.token.values())
    )
    return sum(rows.nbytes for layers in (captured.states, *captured.pieces, *blocks) for rows in layers)


def _prepared(extraction: Extraction, parts: Sequence[PlannedPart]) -> Generator[PreparedOrNot]:
    """Read and prepare the images of parts, one after the other, ahead of the model."""
    thumbnails = extraction.plan.record["capture"].get("thumbnails", False)

    def ready(record: ImageRecord) -> PreparedOrNot:
        try:
            image = load_image(record, extraction.images)
        except UnreadableImage as error:
            return error
        return image, extraction.preparer.prepare(image.pixels), make_thumbnail(image.pixels) if thumbnails else None

    records = (record for part in parts for record in extraction.plan.images[part.start : part.stop])
    # A GPU takes some fifty images a second, which a thread or two cannot prepare.
    threads = min(max(2, (os.cpu_count() or 1) // 2), 8)
    return prefetch(ready, records, ahead=max(threads, extraction.batch_size), threads=threads)


def _samples(
    extraction: Extraction, part: PlannedPart, prepared: Iterator[PreparedOrNot], collector: PartCollector
) -> Iterator[SampleSource]:
    """Every sample of a part whose image can be read; the others are recorded as bad."""
    plan = extraction.plan
    records = plan.images[part.start : part.stop]
    for number, (record, outcome) in enumerate(zip(records, prepared, strict=False)):
        for index, prompt in enumerate(plan.prompts):
            if isinstance(outcome, UnreadableImage):
                collector.add_bad(f"{record.image_id}/{prompt.prompt_id}", f"image {record.uri}: {outcome.reason}")
            else:
                image, ready_image, thumbnail = outcome
                yield SampleSource(number, record, image, ready_image, index, prompt, thumbnail)


def _batches(samples: Iterator[SampleSource], size: int) -> Iterator[list[SampleSource]]:
    batch: list[SampleSource] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
