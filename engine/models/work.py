"""How much arithmetic a forward pass is, from shapes alone: no weight is read."""

import itertools
from collections.abc import Sequence

import torch
from transformers import AutoModelForImageTextToText

from engine.models.checkpoint import Checkpoint
from engine.models.load import find_language_model

__all__ = ["forward_flops", "lens_flops"]


def forward_flops(checkpoint: Checkpoint, sequence_lengths: Sequence[int], *, prefix: int = 0) -> float:
    """Floating-point operations of the forward passes over one image with all its prompts.

    Two per weight and token in the blocks, and four per pair of positions and dimension for attention (Kaplan et al.
    2020, arXiv 2001.08361, table 1); everything before the language model counts two per weight and position of the
    vision tower. The attention inside that tower (a tenth of it) and the unembedding of the last position are left out.

    Parameters
    ----------
    checkpoint
        Its configuration says all sizes.
    sequence_lengths
        Tokens of each prompt's sequence, image tokens included.
    prefix
        Leading tokens, the image among them, that run once for all prompts; 0 where each prompt runs in full.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(checkpoint.config)
    language = find_language_model(model)
    in_blocks = _weights(language.blocks)
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    in_language = {*map(id, itertools.chain(model.get_decoder().parameters(), [language.unembedding]))}
    before = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in in_language)
    before -= sum(_weights(module) for module in embeddings if id(module.weight) not in in_language)

    per_pair = 4 * checkpoint.dim * checkpoint.block_count
    vision = 2 * before * _vision_positions(checkpoint)

    def of_text(length: int) -> int:
        return 2 * in_blocks * length + per_pair * length**2

    once = of_text(prefix)
    images = 1 if prefix else len(sequence_lengths)
    return float(once + sum(of_text(length) - once for length in sequence_lengths) + vision * images)


def lens_flops(checkpoint: Checkpoint, states: int, dtype: str) -> float:
    """Floating-point operations of LogitLens: of each state a product with the unembedding, in 16 bits two.

    Parameters
    ----------
    checkpoint
        Its configuration says all sizes.
    states
        Stored tokens times layers.
    dtype
        What the model runs in.
    """
    vocab = int(checkpoint.config.get_text_config().vocab_size)
    return float(2 * vocab * checkpoint.dim * states * (1 if dtype == "float32" else 2))


def _weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _vision_positions(checkpoint: Checkpoint) -> int:
    vision = checkpoint.config.vision_config
    return (int(vision.image_size) // int(vision.patch_size)) ** 2 + 1
