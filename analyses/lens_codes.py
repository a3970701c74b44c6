"""Rows of a matrix as int8 codes, with a bound of what the codes leave out.

A row x becomes s·q with whole numbers |q| ≤ 127. Nothing is assumed about x − s·q: its norm is measured.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.lens_rounding import FLOAT32, norm_bounds

__all__ = ["LARGEST_CODE", "Codes", "encode"]

LARGEST_CODE = 127
_ROWS_AT_ONCE = 16  # with their copies, what a core's own cache holds
_SMALLEST_SCALE = np.float32(2.0**-50)  # quotients by it stay within float32; what it leaves out is measured as well


class Codes(NamedTuple):
    """Coded rows.

    Attributes
    ----------
    code : array (row, dim), int8
    scale : array (row,), float32
        Greater than 0.
    norm, residual : arrays (row,), float64
        Upper bounds of ‖x‖ and ‖x − scale · code‖.
    """

    code: NDArray[np.int8]
    scale: NDArray[np.float32]
    norm: NDArray[np.float64]
    residual: NDArray[np.float64]


def encode(rows: NDArray[np.floating], chosen: NDArray[np.int64]) -> Codes:
    """Code the chosen ones of rows (row, dim), finite float16 or float32; its largest value sets a row's scale."""
    count, dim = len(chosen), rows.shape[1]
    codes = Codes(np.empty((count, dim), np.int8), np.empty(count, np.float32), np.empty(count), np.empty(count))
    for start in range(0, count, _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        part = _encode_block(rows[chosen[block]].astype(np.float32, copy=False))
        codes.code[block], codes.scale[block], codes.norm[block], codes.residual[block] = part
    return codes


def _encode_block(rows: NDArray[np.float32]) -> Codes:
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    scale = np.maximum(largest / np.float32(LARGEST_CODE), _SMALLEST_SCALE)
    rounded = np.rint(rows / scale[:, np.newaxis])
    code = rounded.astype(np.int8)
    rounded *= scale[:, np.newaxis]
    np.subtract(rows, rounded, out=rounded)
    norm = norm_bounds(rows)
    # Two roundings made this difference, each relative to a number that is at most 1.01 times the row's own.
    return Codes(code, scale, norm, norm_bounds(rounded) + 4 * FLOAT32 * norm)
