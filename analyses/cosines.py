"""Mean cosine similarity between and within sets of vectors, from means of unit vectors alone.

``s(A, B) = mean over all pairs of cos(a, b) = μ_A · μ_B`` with μ the mean of unit vectors, so no pair matrix is ever
built (Wei, Shi, Inoue, arXiv 2411.00646, equation 1).
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["between", "within"]


def between(
    sum_a: NDArray[np.floating],
    count_a: NDArray[np.integer],
    sum_b: NDArray[np.floating],
    count_b: NDArray[np.integer],
) -> NDArray[np.float64]:
    """Mean cosine over all pairs of one vector from A and one from B.

    Parameters
    ----------
    sum_a, sum_b : array (..., dim)
        Sums of the unit vectors of each set.
    count_a, count_b : array (...) of int
        Their sizes.

    Returns
    -------
    array (...), float64
        In [-1, 1]; NaN where a set is empty.
    """
    pairs = np.asarray(count_a, np.float64) * count_b
    return _ratio(np.einsum("...d,...d->...", sum_a, sum_b, dtype=np.float64), pairs)


def within(sums: NDArray[np.floating], count: NDArray[np.integer], *, self_pairs: bool) -> NDArray[np.float64]:
    """Mean cosine over the pairs inside one set.

    Parameters
    ----------
    sums : array (..., dim)
        Sum of the set's unit vectors.
    count : array (...) of int
        Its size m.
    self_pairs : bool
        Whether a vector is paired with itself: ``‖μ‖²`` with, ``(m‖μ‖² − 1)/(m − 1)`` without.

    Returns
    -------
    array (...), float64
        In [-1, 1]; NaN where the set has no pair: an empty set, and without self-pairs a set of one.
    """
    size = np.asarray(count, np.float64)
    square = np.einsum("...d,...d->...", sums, sums, dtype=np.float64)
    return _ratio(square, size * size) if self_pairs else _ratio(square - size, size * (size - 1.0))


def _ratio(numerator: NDArray[np.float64], pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(numerator, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0)
