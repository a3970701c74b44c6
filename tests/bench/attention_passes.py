"""Forward passes of a random LLaVA over one long sequence: bare, with attention captured, and eager.

As a child process of the benchmark, ``python -m tests.bench.attention_passes KIND DIM BLOCKS TOKENS`` prints as JSON
by how many bytes resident memory rose during one pass of that kind. Reads ``/proc``, hence Linux only.
"""

import json
import sys
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from engine.capture.batch import BatchItem, collate, whole_runs
from engine.capture.forward import capture_batch
from engine.capture.probe import Probe
from engine.capture.queries import DEFAULT_QUERIES
from engine.models.prepare import Preparer
from engine.prompts import Prompt
from tests.bench.random_llava import IMAGE_SIZE, PROMPTS, BenchModel, build_llava
from tests.bench.resident import reset_peak, resident

__all__ = ["KINDS", "make_passes"]

KINDS = ("bare", "captured", "eager")


def make_passes(model: BenchModel, tokens: int) -> dict[str, Callable[[], object]]:
    """Passes over one sequence of at least so many tokens, by kind."""
    item = _item(model, tokens)
    inputs = collate(whole_runs([item]), pad_id=0)
    blocks = tuple(range(1, model.checkpoint.block_count + 1))
    probe = Probe((0,), False, False, len(blocks), attention=True, queries=DEFAULT_QUERIES, blocks=blocks)

    def bare() -> None:
        with torch.inference_mode():
            model.loaded.model(**inputs, use_cache=False, logits_to_keep=1)

    def captured() -> None:
        capture_batch(model.loaded, [item], probe, pad_id=0)

    def eager() -> None:
        model.loaded.model.set_attn_implementation("eager")
        try:
            with torch.inference_mode():
                model.loaded.model(**inputs, use_cache=False, logits_to_keep=1, output_attentions=True)
        finally:
            model.loaded.model.set_attn_implementation("sdpa")

    return dict(zip(KINDS, (bare, captured, eager), strict=True))


def _item(model: BenchModel, tokens: int) -> BatchItem:
    """One image and a prompt that is long enough."""
    text = PROMPTS[0]
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (90, 120, 150))
    while True:
        prompt = Prompt("long", "custom", text)
        prepared = Preparer(model.checkpoint, [prompt], share_prefix=False).prepare(image)
        layout = prepared.layouts[0]
        if len(layout) >= tokens:
            return BatchItem(
                "image/long", 0, layout, prepared.pixel_values, prepared.side_texts[0], np.ones(len(layout), bool), 0
            )
        # About one token a word, and a word more than is missing.
        text += " ".join(["", *([PROMPTS[0]] * (1 + (tokens - len(layout)) // 10))])


def main(kind: str, dim: int, blocks: int, tokens: int) -> None:
    """Measure one pass; a short one of the same kind runs first, so that everything is imported."""
    model = build_llava(dim=dim, blocks=blocks, dtype="float32")
    make_passes(model, 1)[kind]()
    measured = make_passes(model, tokens)[kind]
    reset_peak()
    before = resident("VmRSS")
    measured()
    print(json.dumps(resident("VmHWM") - before))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
