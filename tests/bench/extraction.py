"""The whole extraction against bare forward passes over the same batches.

Measured from the first image read to the last part committed; building the model and creating the store are start-up.
The bare passes get batches that were collated before. Both use as many threads as torch chooses, so the writer has no
core of its own. Parts are small beside the default of 2 GiB, so that their fixed costs and the wait for the last one
weigh more than in a real run. The fastest rounds count: a forward pass suffers more from a busy machine than a writer.
"""

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch

from engine.capture import Extraction
from engine.capture.forward import collate
from engine.capture.part import SampleSource, batch_item
from engine.sources import load_image
from tests.bench.random_llava import build_llava, extract_all, plan_extraction, write_images
from tests.bench.rows import Row, at_most
from tests.bench.timing import take_turns

__all__ = ["run"]

BATCH_SIZE = 4


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure one dtype whose states must be widened on the way to the disk."""
    dim, blocks, samples = (256, 2, 8) if quick else (2048, 8, 16)
    llava = build_llava(dim=dim, blocks=blocks, dtype="bfloat16")
    images = write_images(folder / "images", samples)
    number = count()

    def plan() -> Extraction:
        return plan_extraction(
            llava,
            folder / f"store-{next(number)}",
            folder / "images",
            images,
            prompts=1,
            images_per_part=samples // 2,
            batch_size=BATCH_SIZE,
        )

    batches = _batches(plan())
    rounds = 2 if quick else 4
    pending = [plan() for _ in range(1 + rounds)]

    def extract() -> None:
        extraction = pending.pop()
        extract_all(extraction)
        shutil.rmtree(extraction.store)

    def forward() -> None:
        with torch.inference_mode():
            for inputs in batches:
                llava.loaded.model(**inputs, use_cache=False, logits_to_keep=1)

    times = take_turns({"extraction": extract, "forward": forward}, rounds=rounds)
    yield Row(
        "extraction, wall time",
        times.ratio_of_best("extraction", "forward"),
        f"bare forward passes over the same batches of {BATCH_SIZE} (width {dim}, {blocks} blocks, bfloat16), "
        f"{times.best('forward')} against {times.best('extraction')}",
        at_most(1.25),
    )


def _batches(extraction: Extraction) -> list[dict[str, torch.Tensor]]:
    """Inputs of the forward passes of an extraction."""
    sources = [
        SampleSource(number, record, image, extraction.preparer.prepare(image.pixels), 0, extraction.plan.prompts[0])
        for number, record in enumerate(extraction.plan.images)
        for image in [load_image(record, extraction.images)]
    ]
    items = [batch_item(source, None) for source in sources]
    groups = [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]
    pad_id = extraction.checkpoint.processor.tokenizer.pad_token_id or 0
    dtype = extraction.loaded.model.dtype
    collated = [collate(group, pad_id=pad_id) for group in groups]
    return [{**inputs, "pixel_values": inputs["pixel_values"].to(dtype)} for inputs in collated]
