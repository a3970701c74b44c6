"""The cheap pass that decides nearly every token: products of int8 codes, and a bound of what they leave out.

The rows of the first block whose products promise most are computed in float32, which gives each token a floor. From
then on a row whose product reaches the threshold of :mod:`analyses.lens_bounds` may be among the best. Rows that reach
the floor without the bound's allowance are computed in float32 at once, which raises the floor. The others wait until
it is final; by then most of them cannot reach it. A token with too many rows that still can is left to
:mod:`analyses.lens_float32`.
"""

import numpy as np
from numpy.typing import NDArray

from analyses.lens_bounds import Bounds, bound_products, bounds_bytes
from analyses.lens_products import PAIRED_ROWS_AT_ONCE, Int8Products
from analyses.lens_rounding import dot_error
from analyses.lens_shortlist import LISTING_BYTES, Shortlist
from analyses.lens_unembedding import Unembedding

__all__ = ["PAIRS_AT_ONCE", "add_screened", "row_blocks", "screen_bytes"]

PAIRS_AT_ONCE = 2**21
"""Pairs of a row and a token whose products are held at once."""

_FIRST_ROWS = 2048
_COMPARED_AT_ONCE = 2**17  # pairs; their thresholds stay in a core's own cache
_LOOKED_AT_ONCE = 2**17  # pairs
_PAIR_BYTES = 4 + 1 + 8  # product, whether it reaches its threshold, and where
_COMPARED_BYTES = 4 + 4  # threshold, product in float32
_WAITING_BYTES = 2 * 24  # token, row and bound of one that waits, and once more while others join
_FOUND_BYTES = 9 * 8  # place, row, token, product, bounds and their parts of one that was just found


def row_blocks(rows: int, tokens: int, k: int) -> list[slice]:
    """Cut rows into blocks of ``PAIRS_AT_ONCE`` pairs, but not of fewer than ``k`` rows."""
    longest = max(k, PAIRS_AT_ONCE // max(1, tokens))
    return [slice(start, min(start + longest, rows)) for start in range(0, rows, longest)]


def screen_bytes(tokens: int, vocab: int, dim: int, k: int) -> int:
    """Bytes of products, thresholds and waiting pairs, beyond the shortlist."""
    products = min(max(PAIRS_AT_ONCE, k * tokens), tokens * vocab) * _PAIR_BYTES
    first = min(max(_FIRST_ROWS, k), vocab) * tokens * 3 * 4  # thresholds, excess, and that of a token together
    compared = max(_COMPARED_AT_ONCE, tokens) * _COMPARED_BYTES
    waiting = tokens * (_waiting_limit(vocab, k) + 1) * (_WAITING_BYTES + _FOUND_BYTES)
    looked_at = _LOOKED_AT_ONCE * LISTING_BYTES + PAIRED_ROWS_AT_ONCE * dim * (4 + 8)
    return products + max(first, compared) + bounds_bytes(tokens, vocab) + waiting + looked_at


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
    comparison = _Comparison(blocks[0].stop, len(states), coded.products)
    for block in blocks:
        products = product[: block.stop - block.start]
        coded.products.multiply(rows_of_code[block], code, products)
        if block.start == 0:
            first = slice(0, min(block.stop, max(shortlist.k, _FIRST_ROWS)))
            promised = np.empty((first.stop, len(states)), np.float32)
            bounds.thresholds(first, bounds.with_floor(np.zeros(len(states))), promised)
            largest = coded.products.largest(products[first], promised, scale[first], shortlist.k)
            row, token = largest.reshape(-1), np.tile(np.arange(len(states)), shortlist.k)
            in_order = np.argsort(row, kind="stable")
            look_at(token[in_order], row[in_order])
            shortlist.drop(~bounds.hold(shortlist.floor))
        reached = comparison.reached(products, block.start, bounds, shortlist.floor)
        if block.start == 0:
            reached[row, token] = False  # they are in the list
        row, token = _first_places(reached, limit)
        found = products[row, token]
        row += block.start
        upper, allowance = bounds.of_pairs(row, token, found)
        likely = upper - allowance >= shortlist.floor[token]
        look_at(token[likely], row[likely])
        waiting.add(token[~likely], row[~likely], upper[~likely])
        full = np.bincount(token, minlength=len(states)) > limit
        shortlist.drop(full | waiting.crowded(shortlist.floor))
    waiting.prune(shortlist.floor)
    look_at(waiting.token, waiting.row)


class _Comparison:
    """Compares products with thresholds, which are made for a few rows at a time, in memory that is held."""

    def __init__(self, rows: int, tokens: int, products: Int8Products) -> None:
        self._products = products
        self._step = max(1, _COMPARED_AT_ONCE // tokens)
        self._threshold, self._rounded = np.empty((2, min(self._step, rows), tokens), np.float32)
        self._reached = np.empty((rows, tokens), np.bool_)

    def reached(
        self, product: NDArray[np.int32], first_row: int, bounds: Bounds, floor: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Whether products (row, token), rounded to float32, reach their thresholds; overwritten by the next call."""
        factors = bounds.with_floor(floor)
        reached = self._reached[: len(product)]
        for start in range(0, len(product), self._step):
            part = slice(start, min(start + self._step, len(product)))
            threshold, rounded = self._threshold[: part.stop - start], self._rounded[: part.stop - start]
            bounds.thresholds(slice(first_row + start, first_row + part.stop), factors, threshold)
            self._products.to_float32(product[part], rounded)
            np.greater_equal(rounded, threshold, out=reached[part])
        return reached


def _first_places(reached: NDArray[np.bool_], limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and tokens (pair,) that are marked, row after row; of a token with more than ``limit``, one more than these.

    The limit holds only where it is exceeded on average, which is what needs memory.
    """
    columns = reached.shape[1]
    if np.count_nonzero(reached) > limit * columns:
        for column in np.flatnonzero(np.count_nonzero(reached, axis=0) > limit):
            reached[np.flatnonzero(reached[:, column])[limit + 1 :], column] = False
    return np.divmod(np.flatnonzero(reached), columns)


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
