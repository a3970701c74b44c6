"""Candidates from float32 logits of every row: the path that needs no codes, and that the screen falls back to."""

import numpy as np
from numpy.typing import NDArray

from analyses.lens_rounding import dot_error, just_below
from analyses.lens_shortlist import Shortlist, entry_limit
from analyses.lens_unembedding import ROWS_AT_ONCE, Unembedding

__all__ = ["add_rows", "add_vocabulary", "float32_bytes"]


def float32_bytes(tokens: int, dim: int) -> int:
    """Bytes of a block's weights and logits, of whether these reach the floor and where, beyond the shortlist."""
    return ROWS_AT_ONCE * (4 * dim + tokens * (4 + 1 + 8))


def add_vocabulary(
    shortlist: Shortlist, states: NDArray[np.float32], norm: NDArray[np.float64], unembedding: Unembedding
) -> None:
    """Pass the whole vocabulary, block by block.

    Parameters
    ----------
    shortlist : Shortlist
        Of these tokens, without entries.
    states : array (token, dim), float32
    norm : array (token,), float64
        Upper bounds of their norms.
    unembedding : Unembedding
    """
    vocab, dim = unembedding.weights.shape
    logits = np.empty((min(vocab, ROWS_AT_ONCE), len(states)), np.float32)
    for start in range(0, vocab, ROWS_AT_ONCE):
        block = slice(start, min(start + ROWS_AT_ONCE, vocab))
        values = logits[: block.stop - start]
        np.matmul(unembedding.rows(block), states.T, out=values)
        forbidden = ~unembedding.allowed[block]
        if forbidden.any():
            values[forbidden] = -np.inf
        error = dot_error(dim, unembedding.norm[block].max(), norm)
        add_rows(shortlist, values, np.arange(start, block.stop), error)


def add_rows(
    shortlist: Shortlist, logits: NDArray[np.float32], token_id: NDArray[np.int64], error: NDArray[np.float64]
) -> None:
    """Add what reaches the floor.

    Parameters
    ----------
    shortlist : Shortlist
    logits : array (row, token), float32
        −∞ where a row may not be chosen.
    token_id : array (row,), int64
    error : array (token,), float64
        Upper bounds of the errors of a token's logits.
    """
    floor, k = shortlist.floor, shortlist.k
    if len(logits) >= k and np.isneginf(floor).any():
        kth = np.partition(logits, len(logits) - k, axis=0)[len(logits) - k]
        floor = np.maximum(floor, just_below(kth - error))
    least = np.maximum(just_below(floor - error), np.finfo(np.float32).min).astype(np.float32)
    places = np.flatnonzero(logits >= least)
    if len(logits) > 1 and len(places) > entry_limit(len(floor), k):  # ties: a few rows after the others
        half = len(logits) // 2
        add_rows(shortlist, logits[:half], token_id[:half], error)
        add_rows(shortlist, logits[half:], token_id[half:], error)
        return
    row, token = np.divmod(places, logits.shape[1])
    shortlist.add(token, token_id[row], logits.reshape(-1)[places], error[token])
