"""Child process of the memory benchmark: ``python -m tests.bench.memory_of_extraction FOLDER DIM BLOCKS IMAGES``.

Prints bytes as JSON: ``peak``, the high-water mark of resident memory while a random model is extracted; ``before``,
what was resident when it began, the model included; ``predicted``, what ``strata estimate`` says of the same run. A
small extraction of the same model runs first, so that everything is imported and the model's working memory is there.
"""

import json
import sys
from pathlib import Path

from engine.capture import Extraction
from engine.cli.planning import Planned
from engine.cli.prediction import predict
from engine.plan import CaptureChoice
from tests.bench.random_llava import BenchModel, build_llava, extract_all, plan_extraction, write_images
from tests.bench.resident import reset_peak, resident

BATCH_SIZE = 4
PARTS = 5


def main(folder: Path, dim: int, blocks: int, images: int) -> None:
    """Measure one extraction in parts of equal size."""
    model = build_llava(dim=dim, blocks=blocks, dtype="bfloat16")
    records = write_images(folder / "images", images)
    plans = {
        name: plan_extraction(
            model,
            folder / name,
            folder / "images",
            records[:taken],
            prompts=1,
            images_per_part=taken // parts,
            batch_size=BATCH_SIZE,
            tensors=("residual", "pooled"),
        )
        for name, taken, parts in (("warm", 2 * BATCH_SIZE, 2), ("measured", images, PARTS))
    }
    extract_all(plans["warm"])
    reset_peak()
    before = resident("VmRSS")
    extract_all(plans["measured"])
    print(json.dumps({"peak": resident("VmHWM"), "before": before, "predicted": _predicted(model, plans["measured"])}))


def _predicted(model: BenchModel, extraction: Extraction) -> int:
    nominal = extraction.preparer.prepare_nominal()
    planned = Planned(
        plan=extraction.plan,
        checkpoint=model.checkpoint,
        preparer=extraction.preparer,
        images=extraction.images,
        dtype=model.loaded.dtype,
        capture=CaptureChoice(**extraction.plan.record["capture"]),
        tokens=nominal.stored_tokens(None),
        tensor_tokens={},
        sequences=tuple(map(len, nominal.layouts)),
        prefix=nominal.prefix,
        warnings=(),
    )
    return predict(planned, batch_size=BATCH_SIZE, unembedding=False).host_memory


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
