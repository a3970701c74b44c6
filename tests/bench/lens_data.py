"""States and unembeddings for the benchmark of LogitLens.

Real residual streams have a few dimensions far larger than all others, the same at every token (massive activations,
Sun et al. 2024), and norms with weights of different sizes; rows of an unembedding have norms of different sizes.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["gaussian_states", "realistic_states", "unembedding_weights"]

_OUTLIERS = 6


def realistic_states(tokens: int, dim: int, *, seed: int) -> NDArray[np.float32]:
    """States (token, dim) after an RMS norm with random weight, float16 before it, with outlier dimensions.

    The dimensions, their sizes and the norm are the same for every seed; what tokens have in common and what each has
    of its own are not.
    """
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    states = rng.standard_normal((tokens, dim), dtype=np.float32)
    sizes = fixed.uniform(50, 100, _OUTLIERS).astype(np.float32)
    states[:, fixed.choice(dim, _OUTLIERS, replace=False)] *= sizes
    states = states.astype(np.float16).astype(np.float32)
    states /= np.sqrt(np.mean(np.square(states), axis=1, keepdims=True) + np.float32(1e-5))
    states *= np.exp(fixed.normal(0, 0.3, dim)).astype(np.float32)
    return states


def gaussian_states(tokens: int, dim: int, *, seed: int) -> NDArray[np.float32]:
    """States (token, dim) without any structure: the hardest case for a bound."""
    return np.random.default_rng(seed).standard_normal((tokens, dim), dtype=np.float32)


def unembedding_weights(vocab: int, dim: int) -> NDArray[np.float16]:
    """Weights (vocab, dim) with norms of different sizes."""
    rng = np.random.default_rng(1)
    weights = np.empty((vocab, dim), np.float16)
    for rows in np.array_split(weights, max(1, vocab // 1000)):  # float32 of all of it would be the peak
        sizes = 0.02 * np.exp(rng.normal(0, 0.2, (len(rows), 1)))
        rows[:] = rng.standard_normal(rows.shape, dtype=np.float32) * sizes.astype(np.float32)
    return weights
