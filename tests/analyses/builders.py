"""Contextualization results with planted curves, for tests of what comes after them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analyses.completeness import Completeness
from analyses.contextualization import Contextualization
from analyses.contextualization_results import StoreResult
from analyses.identity import StoreIdentity
from analyses.part_task import pair_rows

PLANTED = ((0, 3, 10, 35, 40), (0.0, 0.1, 0.02, 0.5, 0.3))
FLAT = ((0, 40), (0.0, 0.0))


def planted_result(
    knots: tuple[Sequence[int], Sequence[float]] = PLANTED,
    *,
    store: str = "planted",
    kinds: Sequence[str] = ("normal",),
    prompts: int = 1,
    images: int = 40,
    blocks: int = 40,
    noise: float = 0.01,
    depends: bool | None = False,
) -> StoreResult:
    """Images whose inter-modal curve has extrema at known layers; both intra-modal curves rise."""
    rng = np.random.default_rng(0)
    layers = np.arange(blocks + 1, dtype=np.int32)
    rows = [
        (kind, f"{kind}-{prompt}", f"{image}/{kind}-{prompt}", str(image))
        for image in range(images)
        for kind in kinds
        for prompt in range(prompts)
    ]
    samples = pd.DataFrame(rows, columns=["prompt_kind", "prompt_id", "sample_id", "image_id"])
    curves = np.stack([np.interp(layers, *knots), 0.3 + layers / blocks / 2, 0.5 + layers / blocks / 3], axis=1)
    cosine = curves + rng.normal(0, 0.05, (len(samples), 1, 3)) + rng.normal(0, noise, (len(samples), blocks + 1, 3))
    result = Contextualization(
        samples=samples,
        layers=layers,
        block_count=blocks,
        rows=pair_rows(False),
        cosine=cosine,
        normed=cosine[:, -1] * 0.6,
        counts=np.full((len(samples), 2), 4),
        text_roles=("instruction", "template"),
        source="pooled",
    )
    counts = Completeness(1, 1, len(samples), len(samples), 0)
    identity = StoreIdentity(store, "tiny/llava", "coco", "p" * 64, "q" * 64, depends, counts)
    return StoreResult(identity, result)
