"""From stored states to logits with nothing but the store: stored last layer, stored final norm, stored unembedding."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.store import ModelTables

__all__ = ["StoredLogits", "stored_logits"]


class StoredLogits(NamedTuple):
    """Logits of some states.

    Attributes
    ----------
    values
        (row, vocab) float32.
    leverage
        (row, vocab) float32: sum of the magnitudes that each logit is made of; a relative error of all components by at
        most r moves it by no more than 2 r of this (once itself, once through the norm's denominator).
    """

    values: NDArray[np.float32]
    leverage: NDArray[np.float32]


def stored_logits(tables: ModelTables, states: NDArray[np.floating]) -> StoredLogits:
    """Apply the stored final norm and unembedding to states (row, dim) of the last layer.

    Parameters
    ----------
    tables
        A store's tables; the unembedding is read block by block and must be there.
    """
    assert tables.unembedding is not None
    normed = _final_norm(tables, states.astype(np.float32))
    values, leverage = [], []
    for block in tables.unembedding.blocks:
        rows = block.compute(scheduler="synchronous").astype(np.float32)
        values.append(normed @ rows.T)
        leverage.append(np.abs(normed) @ np.abs(rows).T)
    logits = np.concatenate(values, axis=1)
    cap = tables.logit_softcap
    if cap is not None:
        logits = cap * np.tanh(logits / cap)  # slope at most 1, so the leverage stays a bound
    return StoredLogits(logits.astype(np.float32), np.concatenate(leverage, axis=1))


def _final_norm(tables: ModelTables, states: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square norm (Zhang and Sennrich 2019) or layer norm (Ba, Kiros and Hinton 2016), in float32."""
    if tables.norm_kind == "layer":
        states = states - states.mean(axis=-1, keepdims=True)
    scale = np.sqrt(np.square(states).mean(axis=-1, keepdims=True) + np.float32(tables.norm_eps))
    normed = states / scale * (tables.final_norm_weight.astype(np.float32) + np.float32(tables.norm_weight_offset))
    bias = tables.final_norm_bias
    return normed if bias is None else normed + bias.astype(np.float32)
