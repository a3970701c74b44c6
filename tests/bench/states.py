"""Synthetic residual streams with the statistics that decide size and speed, for stores of real width.

Per layer: Gaussian states whose dimensions differ in scale, a few outlier dimensions 50 times as large, a mean
direction common to all tokens, and norms that grow over the layers; neighbouring layers are correlated. The rows are
rounded to what a model of the captured dtype would hold.
"""

import numpy as np

__all__ = ["make_states"]

OUTLIERS = 4
GROWTH = (0.5, 8.0)
"""Scale of the first and of the last layer."""


def make_states(seed: int, *, layers: int, tokens: int, dim: int) -> np.ndarray:
    """Make states (layer, token, dim), float32, of one sample."""
    rng = np.random.default_rng(seed)
    early, late = rng.standard_normal((2, tokens, dim), dtype=np.float32)
    scale = np.random.default_rng(0).lognormal(0.0, 0.5, dim).astype(np.float32)
    scale[:OUTLIERS] *= 50.0
    direction = np.random.default_rng(1).standard_normal(dim, dtype=np.float32)
    states = np.empty((layers, tokens, dim), np.float32)
    for layer, turn in enumerate(np.linspace(0.0, np.pi / 2, layers)):
        np.multiply(early, np.float32(np.cos(turn)), out=states[layer])
        states[layer] += late * np.float32(np.sin(turn))
        states[layer] += direction
    states *= scale
    states *= np.linspace(*GROWTH, layers, dtype=np.float32)[:, None, None]
    return states
