"""Entropy of what a layer would predict, and how far that is from the model's own prediction.

With p_l the softmax of lens(h_l), after the softcap where the model has one, and L the last layer:

    entropy = −Σ p_l ln p_l      and      KL(p_L ‖ p_l) = Σ p_L (ln p_L − ln p_l),      both in nats.

Both run over all ids of the unembedding, as the model's own softmax does: no id is left out here, special pieces and
padding included. Blocks of the vocabulary pass by once. Every sum is relative to the largest logit so far and is
rescaled when a larger one comes (Milakov and Gimelshein 2018, arXiv 1805.02867), so logits of a block are all that is
held. Logits and exponentials are float32, sums float64.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.lens_top import StateError
from analyses.lens_unembedding import ROWS_AT_ONCE, Unembedding
from engine.errors import UsageError

__all__ = ["Distributions", "distribution_bytes", "distributions"]

_TOKENS_AT_ONCE = 512
_BLOCKS_HELD = 6  # logits of both layers, exponentials, a product of two, and what capping or comparing makes
_FLOAT32 = 4


class Distributions(NamedTuple):
    """Of each token.

    Attributes
    ----------
    entropy : array (token,), float64
        Nats.
    kl_from_final : array (token,), float64
        KL(p_L ‖ p_l), nats.
    """

    entropy: NDArray[np.float64]
    kl_from_final: NDArray[np.float64]


def distributions(
    states: NDArray[np.float32], final_states: NDArray[np.float32], unembedding: Unembedding
) -> Distributions:
    """Entropy of a layer's distributions, and divergence of the last layer's from them.

    Parameters
    ----------
    states, final_states : arrays (token, dim), float32
        Of one layer and of the last one, the same tokens, each after the final norm.
    unembedding : Unembedding

    Raises
    ------
    UsageError
        The shapes do not fit each other.
    StateError
        A logit is not finite.
    """
    if states.shape != final_states.shape or states.shape[1:] != unembedding.weights.shape[1:]:
        raise UsageError(
            f"states of shape {states.shape}, those of the last layer of shape {final_states.shape} and an unembedding "
            f"of shape {unembedding.weights.shape} do not fit: the first two must be equal, and all as wide"
        )
    found = Distributions(np.empty(len(states)), np.empty(len(states)))
    for start in range(0, len(states), _TOKENS_AT_ONCE):
        tokens = slice(start, start + _TOKENS_AT_ONCE)
        found.entropy[tokens], found.kl_from_final[tokens] = _of_block(
            states[tokens], final_states[tokens], unembedding
        )
    wrong = np.flatnonzero(~np.isfinite(found.entropy + found.kl_from_final))
    if len(wrong):
        reason = "has logits that are not finite, at its layer or at the last, so it has no distribution"
        raise StateError(int(wrong[0]), reason)
    return found


def distribution_bytes(dim: int) -> int:
    """Bytes that `distributions` needs at most beyond its arguments and its result."""
    return _FLOAT32 * ROWS_AT_ONCE * (_BLOCKS_HELD * _TOKENS_AT_ONCE + dim)


def _of_block(
    states: NDArray[np.float32], final_states: NDArray[np.float32], unembedding: Unembedding
) -> Distributions:
    own, final = _Sums(len(states)), _Sums(len(states))
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
        for start in range(0, len(unembedding.weights), ROWS_AT_ONCE):
            rows = unembedding.rows(slice(start, start + ROWS_AT_ONCE))
            logits = unembedding.cap(rows @ states.T)
            final_logits = unembedding.cap(rows @ final_states.T)
            own.add(logits, logits)
            final.add(final_logits, final_logits - logits)
        # KL = Σ p_L (z_L − z_l) − ln Σ e^z_L + ln Σ e^z_l
        return Distributions(own.log - own.mean, np.maximum(final.mean - final.log + own.log, 0))


class _Sums:
    """Σ e^z and Σ e^z · value over the vocabulary, per token, both relative to e^(largest z so far)."""

    def __init__(self, tokens: int) -> None:
        self._largest = np.full(tokens, -np.inf)
        self._sum = np.zeros(tokens)
        self._weighted = np.zeros(tokens)

    def add(self, logits: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Add a block (row, token) of logits z, and of values to average."""
        largest = np.maximum(self._largest, logits.max(axis=0))
        fading = np.exp(self._largest - largest)
        weights = np.exp(logits - largest.astype(np.float32))
        self._sum = fading * self._sum + weights.sum(axis=0, dtype=np.float64)
        weights *= values
        self._weighted = fading * self._weighted + weights.sum(axis=0, dtype=np.float64)
        self._largest = largest

    @property
    def log(self) -> NDArray[np.float64]:
        """Ln Σ e^z (token,)."""
        return self._largest + np.log(self._sum)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the values (token,), weighted by the softmax."""
        return self._weighted / self._sum
