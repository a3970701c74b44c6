"""Child process of the benchmark of ranks: ``python -m tests.bench.rank_process FOLDER RANK WORLD DIM BLOCKS IMAGES``.

Loads a random model, and for each line of stdin, the name of a store, extracts the parts of its rank and says ``done``.
The first extraction is the warm-up.
"""

import os
import sys
from pathlib import Path

from engine.capture.extraction import extract_parts
from engine.capture.ranks import Rank, share_cores
from engine.sources import ImageRecord
from tests.bench.random_llava import Silence, build_llava, plan_extraction

PARTS = 8


def main(folder: Path, rank: Rank, dim: int, blocks: int, images: int) -> None:
    """Fill stores until stdin ends."""
    share_cores(os.environ)
    model = build_llava(dim=dim, blocks=blocks, dtype="float32")
    records = [ImageRecord(f"{number:03d}", f"{number:03d}.png", ("a picture",)) for number in range(images)]
    for line in sys.stdin:
        extraction = plan_extraction(
            model,
            folder / line.strip(),
            folder / "images",
            records,
            prompts=1,
            images_per_part=images // PARTS,
            batch_size=4,
        )
        owned = rank.owned([part.number for part in extraction.plan.parts])
        extract_parts(extraction, [part for part in extraction.plan.parts if part.number in owned], Silence())
        print("done", flush=True)


if __name__ == "__main__":
    sizes = [int(argument) for argument in sys.argv[4:]]
    main(Path(sys.argv[1]), Rank(int(sys.argv[2]), int(sys.argv[3]), "the benchmark"), *sizes)
