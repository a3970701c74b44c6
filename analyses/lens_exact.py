"""The logit that every path must arrive at, to the last bit.

A logit is the real sum of products of the stored weights and the normed state, rounded to float64 and then to float32.
The products are exact in float64 (24 + 24 bits of mantissa). An ordinary float64 sum settles nearly all of them: where
both ends of its error interval round to the same float32, that is the logit. The others are summed by ``math.fsum``,
which rounds once.
"""

import math

import numpy as np
from numpy.typing import NDArray

from analyses.lens_rounding import FLOAT64, growth, norm_bounds

__all__ = ["exact_logits", "rank_pieces"]

_ROWS_AT_ONCE = 256


def exact_logits(
    weights: NDArray[np.floating],
    states: NDArray[np.float32],
    token: NDArray[np.int64],
    token_id: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Logits of pairs of a token and a vocabulary id.

    Parameters
    ----------
    weights : array (vocab, dim), float16 or float32
        The unembedding.
    states : array (token, dim), float32
        After the final norm, finite.
    token, token_id : arrays (pair,), int64
        ``token`` ascending.

    Returns
    -------
    array (pair,), float32
    """
    logits = np.empty(len(token), np.float32)
    starts = np.flatnonzero(np.diff(token, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(token)], strict=True):
        state = states[token[start]]
        for begin in range(start, stop, _ROWS_AT_ONCE):
            pairs = slice(begin, min(begin + _ROWS_AT_ONCE, stop))
            logits[pairs] = _of_state(weights[token_id[pairs]], state)
    return logits


def _of_state(rows: NDArray[np.floating], state: NDArray[np.float32]) -> NDArray[np.float32]:
    wide, h = rows.astype(np.float64), state.astype(np.float64)
    sums = wide @ h
    error = growth(len(h), FLOAT64) * np.sqrt(np.vecdot(wide, wide) * (h @ h)) * (1 + 1e-6)
    logits = sums + error
    below, above = (sums - error).astype(np.float32), logits.astype(np.float32)
    for row in np.flatnonzero(below != above):
        above[row] = math.fsum(wide[row] * h)
    return above + np.float32(0)  # −0 becomes 0


def rank_pieces(
    token: NDArray[np.int64], token_id: NDArray[np.int64], logit: NDArray[np.floating], k: int
) -> NDArray[np.int64]:
    """Return the places of the ``k`` best pairs of every token: logit descending, of equal ones the smaller id first.

    Returns
    -------
    array (place,), int64
        Into the pairs, token after token in ascending order; of a token with fewer than ``k`` pairs, all.
    """
    order = np.lexsort((token_id, -logit, token))
    ordered = token[order]
    first = np.searchsorted(ordered, ordered)
    return order[np.arange(len(order)) - first < k]
