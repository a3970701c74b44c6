"""The cheap pass that decides nearly every token: products of int8 codes, and a bound of what they leave out.

The rows of the first block whose products promise most are computed in float32, which gives each token a floor. From
then on a row whose product reaches the threshold of :mod:`analyses.lens_bounds` may be among the best. Rows that reach
the floor without the bound's allowance are computed in float32 at once, which raises the floor. The others wait until
it is final; by then most of them cannot reach it. A token with too many rows that still can is left to
:mod:`analyses.lens_float32`.
"""

import numpy as np
from numpy.typing import NDArray

from analyses.lens_bounds import bound_products, bounds_bytes
from analyses.lens_products import PAIRED_ROWS_AT_ONCE
from analyses.lens_rounding import dot_error
from analyses.lens_shortlist import LISTING_BYTES, Shortlist
from analyses.lens_unembedding import Unembedding
from analyses.places import PLACES_BYTES

__all__ = ["PAIRS_AT_ONCE", "add_screened", "row_blocks", "screen_bytes"]

PAIRS_AT_ONCE = 2**21
"""Pairs of a row and a token whose products are held at once."""

_FIRST_ROWS = 2048
_LOOKED_AT_ONCE = 2**17  # pairs
_PAIR_BYTES = 4 + 4 + 1 + PLACES_BYTES  # product, threshold, whether that is reached, and where
_WAITING_BYTES = 2 * 24  # token, row and bound of one that waits, and once more while others join
_FOUND_BYTES = 9 * 8  # place, row, token, excess, bounds and their parts of one that was just found


def row_blocks(rows: int, tokens: int, k: int) -> list[slice]:
    """Cut rows into blocks of ``PAIRS_AT_ONCE`` pairs, but not of fewer than ``k`` rows."""
    longest = max(k, PAIRS_AT_ONCE // max(1, tokens))
    return [slice(start, min(start + longest, rows)) for start in range(0, rows, longest)]


def screen_bytes(tokens: int, vocab: int, dim: int, k: int) -> int:
    """Bytes of products, thresholds and waiting pairs, beyond the shortlist."""
    products = min(max(PAIRS_AT_ONCE, k * tokens), tokens * vocab) * _PAIR_BYTES
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

    rows_of_code, scale = coded.codes.code, coded.codes.scale
    code, bounds = bound_products(states, norm, unembedding.weights, coded.token_id, coded.codes)
    limit = _waiting_limit(len(coded.token_id), shortlist.k)
    waiting = _Waiting(limit)
    blocks = row_blocks(len(coded.token_id), len(states), shortlist.k)
    product = np.empty((blocks[0].stop, len(states)), np.int32)
    threshold = np.empty(product.shape, np.float32)
    for block in blocks:
        products, thresholds = product[: block.stop - block.start], threshold[: block.stop - block.start]
        coded.products.multiply(rows_of_code[block], code, products)
        if block.start == 0:
            first = slice(0, min(block.stop, max(shortlist.k, _FIRST_ROWS)))
            bounds.thresholds(first, np.zeros(len(states)), thresholds[first])
            largest = coded.products.largest(products[first], thresholds[first], scale[first], shortlist.k)
            row, token = largest.reshape(-1), np.tile(np.arange(len(states)), shortlist.k)
            in_order = np.argsort(row, kind="stable")
            look_at(token[in_order], row[in_order])
            shortlist.drop(~bounds.hold(shortlist.floor))
        bounds.thresholds(block, shortlist.floor, thresholds)
        if block.start == 0:
            thresholds[row, token] = np.inf  # they are in the list
        row, token, excess = coded.products.reaching(products, thresholds, limit)
        row += block.start
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
