"""Training examples: scenes as pixel arrays with dense labels, and conversations about them as token ids.

Pixels take the way that the processor takes at inference (drawn at file size, resized with PIL's bicubic filter), so
training and use see the same numbers.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from data.train.captions import CAPTIONS, caption
from data.train.scenes import COLOURS, MAX_OBJECTS, SHAPES, SIDE, SIZES, Scene, draw, draw_labels, scenes
from data.train.templates import NORMAL_PROMPTS, QUESTION_PROMPTS, closed, fill
from data.train.tokenizer import IMAGE_TOKEN, ordinary_ids

__all__ = [
    "IGNORE",
    "Conversations",
    "Pool",
    "build_pool",
    "choose_patches",
    "converse",
    "noisy_prompt",
    "normalise",
    "patch_attributes",
]

IGNORE = -100
"""Label that the cross-entropy leaves out, torch's own default."""

_COVERAGE = 0.15
_PROMPT_KINDS = ("normal", "question", "empty", "noisy")
_PROMPT_WEIGHTS = (0.4, 0.15, 0.25, 0.2)


class Pool(NamedTuple):
    """Scenes that fit in memory."""

    scenes: list[Scene]
    pixels: np.ndarray
    """(scene, side, side, 3) uint8, at the vision tower's resolution."""
    owners: np.ndarray
    """(scene, patch) int64: 0 background, k the k-th object from the left, ``IGNORE`` where only an edge is seen."""


class Conversations(NamedTuple):
    """A right-padded batch of filled templates with their answers."""

    ids: torch.Tensor
    """(sample, token) int64."""
    labels: torch.Tensor
    """(sample, token) int64: the id itself in the answer, ``IGNORE`` elsewhere."""


def build_pool(seed: int, count: int, side: int, patch: int) -> Pool:
    """Draw the first ``count`` scenes of a seed.

    Parameters
    ----------
    seed, count : int
    side, patch : int
        What the vision tower sees, in pixels.
    """
    chosen = list(islice(scenes(seed), count))
    pixels = np.stack([np.asarray(draw(scene).resize((side, side), Image.Resampling.BICUBIC)) for scene in chosen])
    owners = np.stack([_patch_owners(scene, SIDE * patch // side) for scene in chosen])
    return Pool(chosen, pixels, owners)


def normalise(pixels: np.ndarray, processor: LlavaProcessor) -> torch.Tensor:
    """Turn resized pixels into the model's ``pixel_values``.

    Parameters
    ----------
    pixels : numpy.ndarray
        (sample, side, side, 3) uint8.

    Returns
    -------
    torch.Tensor
        (sample, 3, side, side) float32.
    """
    images = processor.image_processor
    mean, std = (np.asarray(values, dtype=np.float32) for values in (images.image_mean, images.image_std))
    scaled = (pixels.astype(np.float32) * np.float32(images.rescale_factor) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def patch_attributes(chosen: list[Scene], owners: np.ndarray) -> torch.Tensor:
    """Say of every patch what it shows.

    Parameters
    ----------
    chosen : list of Scene
    owners : numpy.ndarray
        (scene, patch) int64, as in ``Pool``.

    Returns
    -------
    torch.Tensor
        (4, scene, patch) int64: order (0 background), size, colour, shape; the last three are ``IGNORE`` off objects.
    """
    table = np.full((len(chosen), MAX_OBJECTS + 1, 3), IGNORE)
    for row, scene in enumerate(chosen):
        for order, item in enumerate(scene.objects, start=1):
            table[row, order] = (
                list(SIZES).index(item.size),
                list(COLOURS).index(item.colour),
                SHAPES.index(item.shape),
            )
    seen = np.maximum(owners, 0)
    attributes = np.take_along_axis(table, seen[:, :, None], axis=1).transpose(2, 0, 1)
    return torch.from_numpy(np.concatenate([owners[None], attributes]))


def choose_patches(rng: np.random.Generator, owners: np.ndarray, kept: int) -> np.ndarray:
    """Choose some patches of each scene, those on objects first.

    Parameters
    ----------
    rng : numpy.random.Generator
    owners : numpy.ndarray
        (scene, patch) int64, as in ``Pool``.
    kept : int
        Patches to keep.

    Returns
    -------
    numpy.ndarray
        (scene, kept) int64, ascending along a row. An object's patch is preferred to a background patch most of the
        time, not always.
    """
    keys = rng.random(owners.shape) - 0.7 * (owners > 0)
    return np.sort(np.argpartition(keys, kept - 1, axis=1)[:, :kept], axis=1)


def noisy_prompt(rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast) -> str:
    """Draw 11 to 13 random pieces and spell them."""
    pieces = rng.choice(ordinary_ids(tokenizer), size=int(rng.integers(11, 14)))
    return str(tokenizer.decode(pieces)).strip()


def converse(
    rng: np.random.Generator, chosen: list[Scene], tokenizer: PreTrainedTokenizerFast, image_tokens: int
) -> Conversations:
    """Ask for all scenes in one random way, and answer for each with one of its captions.

    Parameters
    ----------
    rng : numpy.random.Generator
    chosen : list of Scene
    tokenizer : transformers.PreTrainedTokenizerFast
    image_tokens : int
        Places that one image takes.
    """
    # One prompt per batch: prompts of different lengths would mostly be padding.
    question = fill(_prompt(rng, tokenizer)).replace(IMAGE_TOKEN, IMAGE_TOKEN * image_tokens)
    answers = [caption(scene, int(rng.integers(CAPTIONS))) for scene in chosen]
    start = len(tokenizer(question)["input_ids"])
    rows = tokenizer([closed(question, answer) for answer in answers])["input_ids"]
    shape = len(rows), max(map(len, rows))
    ids = np.full(shape, tokenizer.pad_token_id)
    labels = np.full(shape, IGNORE)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        labels[row, start : len(tokens)] = tokens[start:]
    return Conversations(torch.from_numpy(ids), torch.from_numpy(labels))


def _prompt(rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast) -> str:
    kind = rng.choice(_PROMPT_KINDS, p=_PROMPT_WEIGHTS)
    if kind == "empty":
        return ""
    if kind == "noisy":
        return noisy_prompt(rng, tokenizer)
    return str(rng.choice(NORMAL_PROMPTS if kind == "normal" else QUESTION_PROMPTS))


def _patch_owners(scene: Scene, patch: int) -> np.ndarray:
    tiles = draw_labels(scene).reshape(SIDE // patch, patch, SIDE // patch, patch)
    shares = np.stack([(tiles == order).mean(axis=(1, 3)).ravel() for order in range(1, MAX_OBJECTS + 1)])
    largest = shares.max(axis=0)
    owners = np.where(largest >= _COVERAGE, shares.argmax(axis=0) + 1, IGNORE)
    return np.where(largest == 0, 0, owners)
