"""How good a trained model is: greedy captions of held-out scenes, read strictly.

A caption counts when the whole text is a sentence of the grammar, closed by ``</s>``, and the set of (size, colour,
shape) that it names is exactly the scene's. Images take the processor's own way, as they would for a user.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from data.train.captions import parse, relation
from data.train.scenes import Scene
from data.train.templates import fill

__all__ = ["Score", "captions_of", "score_captions"]

_LONGEST = 48


class Score(NamedTuple):
    """Shares between 0 and 1."""

    objects: float
    """Captions that name exactly the scene's set of (size, colour, shape)."""
    objects_and_relations: float
    """Captions that also name them from left to right with every relation true."""


def captions_of(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: list[Image.Image],
    prompt: str,
    batch: int = 100,
) -> list[str]:
    """Caption images greedily, all with one prompt, so that no padding is needed.

    Returns
    -------
    list of str
        The generated text; one that did not end within 48 tokens is cut before its last full stop, so that it never
        parses.
    """
    texts: list[str] = []
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        inputs = processor(images=chunk, text=[fill(prompt)] * len(chunk), return_tensors="pt").to(model.dtype)
        with torch.no_grad():
            ids = model.generate(  # type: ignore[misc]  # its self is typed as a protocol
                **inputs, do_sample=False, max_new_tokens=_LONGEST
            )
        for row in ids[:, inputs["input_ids"].shape[1] :].tolist():
            closed = model.generation_config.eos_token_id in row
            text = processor.tokenizer.decode(row, skip_special_tokens=True).strip()
            texts.append(text if closed else text.rstrip("."))
    return texts


def score_captions(chosen: list[Scene], texts: list[str]) -> Score:
    """Compare generated captions with what was drawn.

    Parameters
    ----------
    chosen : list of Scene
    texts : list of str
        One per scene.
    """
    named = related = 0
    for scene, text in zip(chosen, texts, strict=True):
        claim = parse(text)
        if claim is None:
            continue
        kinds = tuple(item.kind for item in scene.objects)
        named += len(claim.objects) == len(kinds) and set(claim.objects) == set(kinds)
        true_relations = tuple(relation(*pair) for pair in pairwise(scene.objects))
        related += claim.objects == kinds and claim.relations == true_relations
    return Score(named / len(chosen), related / len(chosen))
