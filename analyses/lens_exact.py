"""The logit that every path must arrive at, to the last bit.

A logit is the real sum of products of the stored weights and the normed state, rounded to float64 and then to float32.
The products are exact in float64 (24 + 24 bits of mantissa). An ordinary float64 sum settles nearly all of them: where
both ends of its error interval round to the same float32, that is the logit. The others are summed by ``math.fsum``,
which rounds once.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from analyses.lens_rounding import FLOAT64, growth

__all__ = ["PairSums", "exact_logits", "pair_sums", "rank_pieces"]

PairSums = Callable[
    [NDArray[np.floating], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]
]
"""Float64 dot products of ``weights[row]`` and ``states[column]``, as :func:`pair_sums` gives them."""

_ROWS_AT_ONCE = 256


def pair_sums(
    weights: NDArray[np.floating],
    states: NDArray[np.float64],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Float64 dot products of pairs in NumPy.

    Parameters
    ----------
    weights : array (rows, dim), float16 or float32
    states : array (columns, dim), float64
    row, column : arrays (pair,), int64
        In any order.

    Returns
    -------
    array (pair,), float64
    """
    sums = np.empty(len(row))
    order = np.argsort(column, kind="stable")
    for pairs in np.split(order, np.flatnonzero(np.diff(column[order])) + 1):
        for start in range(0, len(pairs), _ROWS_AT_ONCE):
            block = pairs[start : start + _ROWS_AT_ONCE]
            sums[block] = weights[row[block]].astype(np.float64) @ states[column[block[0]]]
    return sums


def exact_logits(
    weights: NDArray[np.floating],
    states: NDArray[np.float32],
    token: NDArray[np.int64],
    token_id: NDArray[np.int64],
    *,
    sums: NDArray[np.float64],
    norms: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Logits of pairs of a token and a vocabulary id.

    Parameters
    ----------
    weights : array (vocab, dim), float16 or float32
        The unembedding.
    states : array (token, dim), float32
        After the final norm, finite.
    token, token_id : arrays (pair,), int64
    sums : array (pair,), float64
        Their dot products, summed in float64 in any order.
    norms : array (pair,), float64
        Upper bounds of the product of both norms.

    Returns
    -------
    array (pair,), float32
    """
    error = growth(states.shape[1], FLOAT64) * norms
    below, above = (sums - error).astype(np.float32), (sums + error).astype(np.float32)
    for pair in np.flatnonzero(below != above):
        products = weights[token_id[pair]].astype(np.float64) * states[token[pair]].astype(np.float64)
        above[pair] = math.fsum(products)
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
