"""From products of int8 codes to bounds of logits.

With w = s p + r for a row of the vocabulary, and h = h° + t q + e for a state, where h° holds the few dimensions that
are much larger than the others,

    w · h  =  s t (p · q)  +  w · h°  +  (r · t q  +  w · e),      |r · t q + w · e|  ≤  ‖r‖ ‖t q‖ + ‖w‖ ‖e‖.

So a logit can reach a floor f only where p · q ≥ (f − w · h° − ‖r‖ ‖t q‖ − ‖w‖ ‖e‖) / (s t): for all pairs of rows and
tokens a matrix of low rank, one thin product in float32. Its rounding is part of the allowance.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.lens_codes import Codes, encode
from analyses.lens_rounding import growth

__all__ = ["LARGE_DIMENSIONS", "Bounds", "bound_products", "bounds_bytes"]

LARGE_DIMENSIONS = 16
"""Dimensions that may stay in float32; massive activations occupy fewer (Sun et al. 2024, arXiv 2402.17762)."""

_LARGE = 1.1  # times the largest value of the others; less does not pay for a dimension of its own

_PRODUCTS_OF_ONE_THREAD = 2**19
"""Larger matrix products wake the threads of OpenBLAS, which then spin for a while in the way of the int8 product."""

_PAIRS_AT_ONCE = 2**13  # whose factors are widened to float64

_ROOM = 2.0**100  # thresholds stay below it, far from the overflow of float32
_LEAST = 2.0**-20  # of a code's step: covers what underflows in a threshold


def bounds_bytes(tokens: int, vocab: int) -> int:
    """Bytes of the factors of thresholds, of the columns they are made of, and of factors of pairs."""
    rank = LARGE_DIMENSIONS + 3
    factors = 4 * rank * (vocab + 2 * tokens) + 2 * 4 * LARGE_DIMENSIONS * vocab + 24 * vocab
    return factors + 2 * (4 + 8) * rank * _PAIRS_AT_ONCE


class Bounds(NamedTuple):
    """Of all coded rows and the tokens of a block.

    Attributes
    ----------
    left : array (row, rank), float32
    right : array (token, rank - 1), float32
        Factors of the thresholds; the last column of ``left`` belongs to the floor.
    scale : array (token,), float64
        t.
    per_norm, per_residual : arrays (token,), float64
        The allowance is ``per_norm`` ‖w‖ + ``per_residual`` ‖r‖.
    slack : float
        Relative rounding of a threshold.
    rows : Codes
    """

    left: NDArray[np.float32]
    right: NDArray[np.float32]
    scale: NDArray[np.float64]
    per_norm: NDArray[np.float64]
    per_residual: NDArray[np.float64]
    slack: float
    rows: Codes

    def with_floor(self, floor: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the tokens' factors (rank, token) of the thresholds of a floor (token,)."""
        with np.errstate(all="ignore"):
            of_floor = floor * (1 - self.slack * np.sign(floor)) / self.scale
            return np.vstack([self.right.T, of_floor.astype(np.float32)])

    def thresholds(self, rows: slice, factors: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write what the products (row, token) of these rows must reach; out of reach for tokens whose floor is +∞.

        Parameters
        ----------
        rows : slice
        factors : array (rank, token), float32
            As `with_floor` returns them.
        out : array (row, token), float32
        """
        left = self.left[rows]
        step = max(1, _PRODUCTS_OF_ONE_THREAD // factors.size)
        with np.errstate(all="ignore"):
            for start in range(0, len(left), step):
                np.matmul(left[start : start + step], factors, out=out[start : start + step])

    def hold(self, floor: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tokens (token,) with a finite floor and thresholds far from the overflow of float32."""
        with np.errstate(all="ignore"):
            factors = np.abs(self.with_floor(floor).astype(np.float64))
            return np.abs(self.left).max(axis=0, initial=0.0) @ factors < _ROOM

    def of_pairs(
        self, row: NDArray[np.int64], token: NDArray[np.int64], product: NDArray[np.int32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Upper bounds of the logits of pairs with these products, and how far below them the logits are expected.

        Parameters
        ----------
        row, token : arrays (pair,), int64
        product : array (pair,), int32

        Returns
        -------
        upper, allowance : arrays (pair,), float64
        """
        upper = np.empty(len(row))
        for start in range(0, len(row), _PAIRS_AT_ONCE):
            pairs = slice(start, start + _PAIRS_AT_ONCE)
            of_row, of_token = self.left[row[pairs]].astype(np.float64), self.right[token[pairs]].astype(np.float64)
            upper[pairs] = product[pairs] - np.vecdot(of_row[:, :-1], of_token)
        upper *= self.rows.scale[row] * self.scale[token]
        return upper, self.per_norm[token] * self.rows.norm[row] + self.per_residual[token] * self.rows.residual[row]


def bound_products(
    states: NDArray[np.float32],
    norm: NDArray[np.float64],
    weights: NDArray[np.floating],
    token_id: NDArray[np.int64],
    rows: Codes,
) -> tuple[NDArray[np.int8], Bounds]:
    """Code the states of a block and bound their products with coded rows.

    Parameters
    ----------
    states : array (token, dim), float32
    norm : array (token,), float64
        Upper bounds of their norms.
    weights : array (vocab, dim), float16 or float32
    token_id : array (row,), int64
        The coded rows' places in ``weights``.
    rows : Codes

    Returns
    -------
    code : array (token, dim), int8
    bounds : Bounds
    """
    large = _large_dimensions(states)
    small = states.copy()
    small[:, large] = 0
    codes = encode(small, np.arange(len(small)))
    coded_norm = codes.norm + codes.residual
    # Rounding of a threshold is relative to its terms: |floor|, |w · h°| ≤ ‖w‖ ‖h‖, and the allowance itself.
    slack = 4 * growth(len(large) + 16)
    scale = codes.scale.astype(np.float64)
    per_norm = codes.residual * (1 + slack) + slack * norm + _LEAST * scale
    per_residual = coded_norm * (1 + slack)
    left = np.empty((len(token_id), len(large) + 3), np.float32)
    left[:, : len(large)] = weights[:, large][token_id]
    left[:, len(large) :] = np.stack([rows.norm, rows.residual, np.ones(len(token_id))], axis=1)
    left /= rows.scale[:, np.newaxis]
    right = -np.column_stack([states[:, large], per_norm, per_residual]) / scale[:, np.newaxis]
    return codes.code, Bounds(left, right.astype(np.float32), scale, per_norm, per_residual, slack, rows)


def _large_dimensions(states: NDArray[np.float32]) -> NDArray[np.intp]:
    largest = np.maximum(states.max(axis=0), -states.min(axis=0))
    count = min(LARGE_DIMENSIONS, len(largest) - 1)
    order = np.argpartition(largest, -count - 1)[-count - 1 :]
    return np.sort(order[largest[order] > _LARGE * largest[order].min()])
