"""What five prompts of one image cost the model, against one prompt: the image and what precedes it run once.

Everything between a read image and the rows of its samples on the host is measured: preparing, forward passes, hidden
states and pooled states of all layers. Nothing is written. The fastest rounds count.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from engine.capture import Extraction
from engine.capture.extraction import extract_part
from tests.bench.random_llava import PROMPTS, Silence, build_llava, plan_extraction, write_images
from tests.bench.rows import Row, at_most
from tests.bench.timing import take_turns

__all__ = ["run"]


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure images of as many tokens as LLaVA-1.5 has, 576."""
    dim, blocks, size = (128, 2, 140) if quick else (1024, 8, 336)
    model = build_llava(dim=dim, blocks=blocks, dtype="float32", image_size=size)
    records = write_images(folder / "images", 1)

    def plan(prompts: int) -> Extraction:
        images = {"prompts": prompts, "images_per_part": 1, "batch_size": len(PROMPTS)}
        return plan_extraction(model, folder / f"store-{prompts}", folder / "images", records, **images)

    one, five = plan(1), plan(len(PROMPTS))
    plans = {"one": one, "five": five, "in full": replace(five, prefix_pass=one.prefix_pass)}
    contestants = {
        name: lambda extraction=extraction: extract_part(extraction, extraction.plan.parts[0], Silence())
        for name, extraction in plans.items()
    }
    times = take_turns(contestants, rounds=1 if quick else 4)
    lengths = [len(layout) for layout in five.preparer.prepare_nominal().layouts]
    prefix = five.preparer.prepare_nominal().prefix
    yield Row(
        "five prompts of one image, time",
        times.ratio_of_best("five", "one"),
        f"one prompt ({lengths[0]} tokens, of which all share {prefix}; width {dim}, {blocks} blocks, float32), "
        f"{times.best('one')} against {times.best('five')}; five full passes take {times.best('in full')}",
        at_most(1.5),
    )
