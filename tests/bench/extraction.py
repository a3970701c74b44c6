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
from tests.bench.random_llava import build_llava, collated_batches, extract_all, plan_extraction, write_images
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

    batches = collated_batches(plan())
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
