"""The cheap pass that decides nearly every token: products of int8 codes, and a bound of what they leave out.

A row whose product reaches the threshold of :mod:`analyses.lens_bounds` may be among the best. Rows that reach the
floor without the bound's allowance are computed in float32 at once, which raises the floor. The others wait until it
is final; by then most of them cannot reach it. A token with too many rows that still can is left to
:mod:`analyses.lens_float32`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from analyses.lens_bounds import bound_products, bounds_bytes
from analyses.lens_float32 import add_rows
from analyses.lens_products import PAIRED_ROWS_AT_ONCE
from analyses.lens_rounding import dot_error
from analyses.lens_shortlist import LISTING_BYTES, Shortlist
from analyses.lens_unembedding import Unembedding

__all__ = ["PAIRS_AT_ONCE", "add_screened", "row_blocks", "screen_bytes"]

PAIRS_AT_ONCE = 2**22
"""Pairs of a row and a token whose products are held at once."""

_FIRST_ROWS = 512
_LOOKED_AT_ONCE = 2**17  # pairs
_PAIR_BYTES = 4 + 4 + 4 + 1  # product, threshold, product in float32, and whether that reaches
_WAITING_BYTES = 2 * 24  # token, row and bound of one that waits, and once more while others join
_FOUND_BYTES = 9 * 8  # place, row, token, excess, bounds and their parts of one that was just found


def row_blocks(rows: int, tokens: int) -> Iterator[slice]:
    """Cut rows into blocks: each three times as long as all before it, so that the floor keeps up."""
    start, longest = 0, max(1, PAIRS_AT_ONCE // max(1, tokens))
    while start < rows:
        stop = min(rows, start + min(longest, max(3 * start, _FIRST_ROWS)))
        yield slice(start, stop)
        start = stop


def screen_bytes(tokens: int, vocab: int, dim: int, k: int) -> int:
    """Bytes of products, thresholds and waiting pairs, beyond the shortlist."""
    products = min(PAIRS_AT_ONCE, tokens * vocab) * _PAIR_BYTES
    waiting = tokens * (_waiting_limit(vocab, k) + 1) * (_WAITING_BYTES + _FOUND_BYTES)
    looked_at = _LOOKED_AT_ONCE * LISTING_BYTES + PAIRED_ROWS_AT_ONCE * dim * (4 + 8)
    return products + bounds_bytes(tokens, vocab) + waiting + looked_at


def _waiting_limit(rows: int, k: int) -> int:
    """Pairs per token beyond which float32 logits of all rows are cheaper than looking at each pair."""
    return max(4 * k, min(rows // 16, 1024))


def add_screened(
    shortlist: Shortlist,
    states: NDArray[np.float32],
    norm: NDArray[np.float64],
    unembedding: Unembedding,
) -> None:
    """Add every candidate of the tokens that codes can decide, and drop the other tokens.

    Parameters
    ----------
    shortlist : Shortlist
        Of these tokens, without entries.
    states : array (token, dim), float32
    norm : array (token,), float64
        Upper bounds of their norms.
    unembedding : Unembedding
        With coded rows.
    """
    coded = unembedding.coded
    assert coded is not None
    dim = states.shape[1]

    def look_at(token: NDArray[np.int64], row: NDArray[np.int64]) -> None:
        for start in range(0, len(token), _LOOKED_AT_ONCE):
            tokens, rows = token[start : start + _LOOKED_AT_ONCE], row[start : start + _LOOKED_AT_ONCE]
            token_id = coded.token_id[rows]
            logit = coded.products.of_pairs(unembedding.weights, states, token_id, tokens)
            shortlist.add(tokens, token_id, logit, dot_error(dim, coded.codes.norm[rows], norm[tokens]))

    longest_seed = unembedding.norm[coded.seed_id].max(initial=0.0)
    add_rows(shortlist, coded.seed @ states.T, coded.seed_id, dot_error(dim, longest_seed, norm))
    code, bounds = bound_products(states, norm, unembedding.weights, coded.token_id, coded.codes)
    shortlist.drop(~bounds.hold(shortlist.floor))
    limit = _waiting_limit(len(coded.token_id), shortlist.k)
    waiting = _Waiting(limit)
    pairs = min(PAIRS_AT_ONCE, len(coded.token_id) * len(states))
    product, threshold = np.empty(pairs, np.int32), np.empty(pairs, np.float32)
    for rows in row_blocks(len(coded.token_id), len(states)):
        shape = rows.stop - rows.start, len(states)
        thresholds = threshold[: shape[0] * shape[1]].reshape(shape)
        bounds.thresholds(rows, shortlist.floor, thresholds)
        products = product[: shape[0] * shape[1]].reshape(shape)
        row, token, excess = coded.products.reaching(coded.codes.code[rows], code, thresholds, products, limit)
        row += rows.start
        upper, allowance = bounds.of_pairs(row, token, excess, shortlist.floor)
        likely = upper - allowance >= shortlist.floor[token]
        look_at(token[likely], row[likely])
        waiting.add(token[~likely], row[~likely], upper[~likely])
        full = np.bincount(token, minlength=len(states)) > limit
        shortlist.drop(full | waiting.crowded(shortlist.floor))
    waiting.prune(shortlist.floor)
    look_at(waiting.token, waiting.row)


class _Waiting:
    """Pairs in the order of rows, each with what its logit cannot exceed; out once the floor rises above that."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.token = np.empty(0, np.int64)
        self.row = np.empty(0, np.int64)
        self._upper = np.empty(0)

    def add(self, token: NDArray[np.int64], row: NDArray[np.int64], upper: NDArray[np.float64]) -> None:
        self.token = np.concatenate([self.token, token])
        self.row = np.concatenate([self.row, row])
        self._upper = np.concatenate([self._upper, upper])

    def crowded(self, floor: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tokens (token,) that have too many pairs even after pruning."""
        counts = np.bincount(self.token, minlength=len(floor))
        if counts.max() > self._limit:
            self.prune(floor)
            counts = np.bincount(self.token, minlength=len(floor))
        return counts > self._limit

    def prune(self, floor: NDArray[np.float64]) -> None:
        kept = self._upper >= floor[self.token]
        self.token, self.row, self._upper = self.token[kept], self.row[kept], self._upper[kept]
