"""How sure the lens is, and how far from the model's own prediction: entropy, and divergence from the last layer.

The usual trajectory of a LogitLens (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the
Tuned Lens"), as `analyses.lens_distributions` defines both: H(p_l) and KL(p_L ‖ p_l), in nats.
"""

import numpy as np
from numpy.typing import NDArray

from analyses.lens_distributions import distributions
from analyses.lens_model import LensModel
from analyses.lens_states import named_states, normed_states
from analyses.lens_task import LensTask
from analyses.lens_tokens import LensTokens
from engine.store import Part

__all__ = ["MEASURES", "WHATS", "trajectory"]

MEASURES = ("entropy", "kl")
WHATS = ("image", "last_text")
"""Of what: the mean over the sample's image tokens, or its last text token."""


def trajectory(part: Part, task: LensTask, tokens: LensTokens, model: LensModel) -> NDArray[np.float32]:
    """Entropy and divergence (measure, what, sample, layer) of a part's samples; of length 0 where not asked for."""
    shape = (len(MEASURES), len(WHATS), len(tokens.of_sample), len(task.layers))
    if not task.trajectory:
        return np.zeros((0, *shape[1:]), np.float32)
    assert model.unembedding is not None
    last_text = tokens.last_text if task.last_text else np.full_like(tokens.last_text, -1)
    place = np.union1d(tokens.place, last_text[last_text >= 0])
    final = np.empty((len(place), model.unembedding.weights.shape[1]), np.float32)
    for block in normed_states(part, place, [task.blocks], model.norm):
        final[block.start : block.stop] = block.states
    of_token = np.empty((len(MEASURES), len(task.layers), len(place)))
    for block in normed_states(part, place, task.layers, model.norm):
        run = slice(block.start, block.stop)
        with named_states(part, place, block, task.layers):
            of_token[:, block.layer, run] = distributions(block.states, final[run], model.unembedding)
    return _per_sample(of_token, place, tokens, last_text).astype(np.float32)


def _per_sample(
    of_token: NDArray[np.float64], place: NDArray[np.int64], tokens: LensTokens, last_text: NDArray[np.int64]
) -> NDArray[np.float64]:
    measures, layers, _ = of_token.shape
    found = np.full((measures, len(WHATS), len(last_text), layers), np.nan)
    for row, (own, last) in enumerate(zip(tokens.of_sample, last_text, strict=True)):
        if len(own):
            found[:, 0, row] = of_token[:, :, np.searchsorted(place, tokens.place[own])].mean(axis=2)
        if last >= 0:
            found[:, 1, row] = of_token[:, :, np.searchsorted(place, last)]
    return found
