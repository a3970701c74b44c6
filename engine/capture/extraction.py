"""The extraction loop: images in, committed parts out.

While the model runs over one batch, the next images are read on background threads and the last part is compressed and
written on another; host memory holds the part that fills and the part that is written. A part that is already committed
is skipped, which is the whole of resuming.
"""

import math
import platform
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Protocol

from engine.capture.batch import BatchCapture, BatchItem
from engine.capture.forward import capture_batch
from engine.capture.grouping import batches_of
from engine.capture.host_copies import HostCopies
from engine.capture.lens import Lens
from engine.capture.part import PartCollector, SampleSource, batch_item
from engine.capture.prefetch import prefetch
from engine.capture.prefix_reuse import ONCE
from engine.capture.prefixes import Prefixes, capture_prefixes
from engine.capture.probe import Probe
from engine.capture.sink import QUEUE_BYTES, BackgroundSink
from engine.capture.thumbnails import make_thumbnail
from engine.cores import usable_cores
from engine.models.checkpoint import Checkpoint
from engine.models.load import LoadedModel
from engine.models.overflow import naming_overflow
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
        """Hear how long the run stood still for ``images``, the ``model``, ``copies`` to the host or the ``writer``."""

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
    prefix_pass
        How the prefix that prompts of an image share is run: once, if :data:`ONCE`; anything else says why it is run
        with every prompt.
    when_full
        Advice where a batch does not fit the device.
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
    prefix_pass: str = "with every prompt"
    when_full: str = "run the same command again with a smaller --batch-size; finished parts are kept."

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
        packages = ("activation-strata", "torch", "transformers", "zarr", "numcodecs", "zstandard", "pyarrow", "numpy")
        return {
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "attention_kernel": self.loaded.attention_kernel,
            "dtype": self.loaded.dtype,
            "device": self.loaded.device.type,
            "batch_size": self.batch_size,
            "padding_side": "left",
            "prefix_pass": self.prefix_pass,
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
    with BackgroundSink(write, QUEUE_BYTES) as sink, closing(_prepared(extraction, parts)) as prepared:
        for part in parts:
            content, nbytes = _extract(extraction, part, prepared, progress)
            bad += [(sample.sample_id, sample.reason) for sample in content.bad_samples]
            stored += content.samples.num_rows
            waited = sink.seconds_waited
            sink.put(content, nbytes)
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
        return _extract(extraction, part, prepared, progress)[0]


def _extract(
    extraction: Extraction, part: PlannedPart, prepared: Iterator[PreparedOrNot], progress: Progress
) -> tuple[PartContent, int]:
    """Extract a part whose images come next among the prepared ones; its bytes on the host come with it."""
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
    copies = HostCopies()
    model = _Model(extraction, collector, copies, roles)
    groups = batches_of(_samples(extraction, part, prepared, collector), extraction.batch_size, whole_images=model.once)
    while True:
        began = time.perf_counter()
        sources = next(groups, None)
        progress.waited("images", time.perf_counter() - began)
        if sources is None:
            break
        model.run(sources, progress)
    with _timed(progress, "copies"):
        copies.wait()
    run = {**extraction.run, "prefix_pass": model.prefix_pass, "largest_batch": model.largest}
    return collector.finish(run), max(model.nbytes, copies.nbytes)


@contextmanager
def _timed(progress: Progress, what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    progress.waited(what, time.perf_counter() - began)


class _Model:
    """Runs the model over the samples of one part, and hands what it leaves to the collector."""

    def __init__(
        self, extraction: Extraction, collector: PartCollector, copies: HostCopies, roles: Sequence[int] | None
    ) -> None:
        self._extraction = extraction
        self._collector = collector
        self._copies = copies
        self._roles = roles
        self._largest = (0, 0)
        self._images: Counter[str] = Counter()
        self.once = extraction.prefix_pass == ONCE
        self.nbytes = 0

    @property
    def largest(self) -> dict[str, int]:
        """Samples and padded positions of the largest pass."""
        return dict(zip(("samples", "positions"), self._largest, strict=True))

    def run(self, sources: Sequence[SampleSource], progress: Progress) -> None:
        """Run the model over samples: a batch of them, or all of some images whose prefixes are run first."""
        extraction, probe = self._extraction, self._extraction.probe
        items = [batch_item(source, self._roles) for source in sources]
        images = len({item.image for item in items})
        with self._fitting(f"what the prompts of {images} images share", items), _timed(progress, "model"):
            pad_id = extraction.checkpoint.pad_id
            prefixes = capture_prefixes(extraction.loaded, items, probe, pad_id=pad_id) if self.once else None
        self._images["once" if prefixes is not None else "in full"] += images
        if prefixes is not None:
            self._note(len(prefixes.runs), [run.length for run in prefixes.runs])
        for start in range(0, len(items), extraction.batch_size):
            batch = slice(start, start + extraction.batch_size)
            with self._fitting(f"a batch of {len(items[batch])} samples", items), _timed(progress, "model"):
                captured = self._capture(items[batch], probe, prefixes)
            self._collector.add_batch(sources[batch], items[batch], captured)
            self.nbytes += captured.nbytes
            progress.batch_done(len(items[batch]), captured.nbytes)

    def _fitting(self, what: str, items: Sequence[BatchItem]) -> AbstractContextManager[None]:
        longest = max(len(item.layout) for item in items)
        return naming_overflow(
            f"{what} of up to {longest} tokens",
            self._extraction.loaded.devices,
            self._extraction.when_full,
        )

    @property
    def prefix_pass(self) -> str:
        """How the prefixes of this part's images were run."""
        once, full = self._images["once"], self._images["in full"]
        if not self.once or not full:
            return self._extraction.prefix_pass
        why = "with every prompt: the image is not all of what its prompts share"
        return why if not once else f"{ONCE}, of {full} of {once + full} images {why}"

    def _capture(self, items: Sequence[BatchItem], probe: Probe, prefixes: Prefixes | None) -> BatchCapture:
        extraction = self._extraction
        before = {} if prefixes is None else {run.item.image: run.stop for run in prefixes.runs}
        self._note(len(items), [len(item.layout) - before.get(item.image, 0) for item in items])
        return capture_batch(
            extraction.loaded,
            items,
            probe,
            pad_id=extraction.checkpoint.pad_id,
            lens=extraction.lens,
            images_kept=self._collector.images_kept,
            to_host=self._copies.bring,
            padding=extraction.padding,
            prefixes=prefixes,
        )

    def _note(self, samples: int, lengths: Sequence[int]) -> None:
        self._largest = max(self._largest, (samples, max(lengths)), key=math.prod)


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
    threads = min(max(2, usable_cores() // 2), 8)
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
