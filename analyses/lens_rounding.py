"""What rounding can do to a sum of products, as bounds that hold for every order of summation.

With unit roundoff u, a computed dot product of n terms lies within γ_n ‖x‖ ‖y‖ of the real one, γ_n = n u / (1 − n u)
(Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd edition, 3.1; Cauchy–Schwarz makes norms of it), with or
without fused multiply-add, however the terms are blocked. Where products underflow, n times the smallest normal number
comes on top, which also covers processors that flush to zero.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOAT32", "FLOAT64", "dot_error", "growth", "just_below", "norm_bounds"]

FLOAT32, FLOAT64 = 2.0**-24, 2.0**-53
"""Unit roundoffs of both formats."""

_TINY = 2.0**-126


def growth(terms: int, unit: float = FLOAT32) -> float:
    """γ_n for ``terms`` roundings of relative size ``unit``, itself rounded up."""
    return 1.001 * terms * unit / (1 - terms * unit)


def dot_error(
    dim: int, a_norm: NDArray[np.float64] | float, b_norm: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """Bound of the distance between a float32 dot product and the real one.

    Parameters
    ----------
    dim : int
        Terms of the sum.
    a_norm, b_norm : arrays that broadcast, float64
        Upper bounds of the norms of both vectors.
    """
    return np.asarray(growth(dim) * a_norm * b_norm + 2 * dim * _TINY)


def norm_bounds(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Upper bounds (row,) of the Euclidean norms of rows (row, dim), hardly above them; ∞ at overflow."""
    dim = rows.shape[-1]
    with np.errstate(over="ignore"):
        squares = np.vecdot(rows, rows).astype(np.float64)
    return np.sqrt((squares + 2 * dim * _TINY) * (1 + 2 * growth(dim)))


def just_below(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what every real number exceeds that rounds to the same float32 as ``values``, or to a larger one."""
    return np.nextafter(values.astype(np.float32), np.float32(-np.inf)).astype(np.float64)
