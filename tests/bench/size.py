"""Bytes on disk against raw 16-bit states: of a random LLaVA, and of the demo model over its own scenes."""

from collections.abc import Iterator
from pathlib import Path

from engine.models.checkpoint import open_checkpoint
from engine.models.load import load_model
from engine.sources import read_source
from engine.store import open_store, summarise
from tests.bench.random_llava import BenchModel, build_llava, extract_all, plan_extraction, write_images
from tests.bench.rows import Row, at_most

__all__ = ["run"]

GOALS = {"bfloat16": at_most(0.72), "float16": at_most(0.90)}
DEMO = Path(__file__).parents[2] / "data" / "demo"


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure both dtypes of both models; the goals are for states of real width, which the demo's are not."""
    dim, blocks, samples = (256, 2, 4) if quick else (1024, 4, 8)
    random_images = write_images(folder / "images", samples)
    demo_images = read_source("folder", annotations=None, images=DEMO / "images").records
    checkpoint = open_checkpoint(str(DEMO / "model"))
    for dtype, goal in GOALS.items():
        demo = BenchModel(checkpoint, load_model(checkpoint, dtype=dtype, device="cpu"))
        for name, model, root, images in (
            (f"random LLaVA of width {dim}", build_llava(dim=dim, blocks=blocks, dtype=dtype), folder, random_images),
            ("demo model", demo, DEMO, demo_images),
        ):
            store = folder / f"{dtype}-{model.checkpoint.dim}"
            extraction = plan_extraction(
                model, store, root / "images", images, prompts=1, images_per_part=len(images), batch_size=4
            )
            extract_all(extraction)
            states = next(array for array in summarise(open_store(store)).arrays if array.path == "token/hidden_states")
            against = f"the same hidden states at 16 bits, {states.raw_bytes / 1e6:.1f} MB"
            yield Row(f"size on disk, {dtype}, {name}", states.ratio, against, goal)
