"""A LLaVA checkpoint whose blocks do nothing but add a known direction, so that its similarity curve is known.

Ordinary weights of transformers' own classes, saved like any checkpoint. Image features lie in one subspace, token
embeddings in another, both with a marker coordinate of the same height m, and one direction z is empty at layer 0.
Attention's output projection is zero. One neuron of each MLP reads the markers: after the norm they are m / rms, so
block l adds

    c_l · m² / (‖h‖² / dim + ε)

to coordinate z of every token. With s the height along z and A = ‖h_0‖², an image token i and a text token j have the
cosine s_i s_j / √((A_i + s_i²)(A_j + s_j²)), which rises and falls with s: the signs of c_l are the phases.
"""

from pathlib import Path

import numpy as np
import torch

from tests.tiny_llava import TinyShape, build_model, build_processor

__all__ = ["BLOCKS", "BOUNDARIES", "HEIGHTS", "known_heights", "save_planted"]

BLOCKS = 40
DIM = 64
BOUNDARIES = (3, 10, 35)
HEIGHTS = np.interp(range(BLOCKS + 1), (0, *BOUNDARIES, BLOCKS), (0.0, 0.6, 0.15, 1.5, 0.9))
"""Height along z at every layer, of a token with A = 1 + m²; others differ a little."""

Z, IMAGE_MARKER, TEXT_MARKER = range(3)
IMAGE_SPACE, TEXT_SPACE = slice(3, 33), slice(33, DIM)
MARKER = 0.5
# Far enough into the linear part of SiLU that it is the identity in float32.
GAIN = 1000.0


def _steps(epsilon: float) -> np.ndarray:
    """c_1 … c_L: what makes the height of the reference token follow ``HEIGHTS``."""
    square = (1.0 + MARKER**2 + HEIGHTS[:-1] ** 2) / DIM + epsilon
    return np.diff(HEIGHTS) * square / MARKER**2


def known_heights(squares: np.ndarray, epsilon: float) -> np.ndarray:
    """Heights along z (layer, token) in float64.

    Parameters
    ----------
    squares
        (token,) squared norms of the states at layer 0.
    epsilon
        Of the model's norms.
    """
    heights = [np.zeros_like(squares, dtype=np.float64)]
    for step in _steps(epsilon):
        rms_square = (squares + heights[-1] ** 2) / DIM + epsilon
        heights.append(heights[-1] + step * MARKER**2 / rms_square)
    return np.stack(heights)


@torch.no_grad()
def save_planted(folder: Path) -> Path:
    """Write the checkpoint and return its folder."""
    model = build_model(TinyShape(blocks=BLOCKS, dim=DIM))
    language = model.model.language_model
    _plant_text(language.embed_tokens.weight)
    _plant_images(model)
    epsilon = model.config.text_config.rms_norm_eps
    for block, step in zip(language.layers, _steps(epsilon), strict=True):
        block.self_attn.o_proj.weight.zero_()
        mlp, weight = block.mlp, block.post_attention_layernorm.weight
        for matrix in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight):
            matrix.zero_()
        for marker in (IMAGE_MARKER, TEXT_MARKER):
            # The norm's own weight is random and is taken out again.
            mlp.gate_proj.weight[0, marker] = GAIN / weight[marker]
            mlp.up_proj.weight[0, marker] = 1.0 / weight[marker]
        mlp.down_proj.weight[Z, 0] = step / GAIN
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


def _plant_text(embedding: torch.Tensor) -> None:
    embedding.zero_()
    width = TEXT_SPACE.stop - TEXT_SPACE.start
    embedding[:, TEXT_SPACE] = torch.randn(len(embedding), width) / width**0.5
    embedding[:, TEXT_MARKER] = MARKER


def _plant_images(model: torch.nn.Module) -> None:
    """Leave the random vision tower and projector as they are, confined to their subspace, with norms about 1."""
    output = model.model.multi_modal_projector.linear_2
    confined = output.weight.clone()
    output.weight.zero_()
    output.bias.zero_()
    output.weight[IMAGE_SPACE] = confined[IMAGE_SPACE]
    features = torch.cat(list(model.get_image_features(torch.randn(4, 3, 16, 16)).pooler_output))
    output.weight /= features.norm(dim=-1).mean()
    output.bias[IMAGE_MARKER] = MARKER
