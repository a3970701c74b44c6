"""Floating point on its way to the disk: widening bfloat16 and rounding mantissas, both with known error.

bfloat16 has no Zarr v3 specification that every reader knows, so it is stored as float32 whose low 16 bits are zero:
exact, and the zeros compress away.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numcodecs.bitround import BitRound

from engine.errors import StrataError

__all__ = [
    "BFLOAT16_BITS",
    "BFLOAT16_NAN",
    "LARGEST_NORM",
    "Rounding",
    "held_dtype",
    "round_mantissa",
    "round_to_dtype",
    "widen_bfloat16",
]


BFLOAT16_BITS = np.dtype(np.uint16)
"""What bfloat16 is held in, which NumPy does not have; nothing else is of this dtype here."""

BFLOAT16_NAN = 0x7FC0
"""Bit pattern that widens to NumPy's NaN of float32."""

LARGEST_NORM = 1.84e19
"""Largest norm of a state: float32 holds the sum of squares up to (1.845e19)², with room for rounding of the sum.

Norms within the models, the final one too, compute that sum in float32, and where it overflows they give zeros.
"""

_VALUES_AT_ONCE = 2**16


def held_dtype(name: str) -> np.dtype:
    """Return what values of a captured dtype are held in: of bfloat16 its bit patterns."""
    return BFLOAT16_BITS if name == "bfloat16" else np.dtype(name)


def widen_bfloat16(raw: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Turn bfloat16 bit patterns into float32, exactly.

    Parameters
    ----------
    raw
        uint16 bit patterns, any shape (a torch tensor's ``.view(torch.uint16).numpy()``).
    out
        float32 array of the same shape to write into; a new one when None.

    Returns
    -------
    np.ndarray
        float32 of ``raw``'s shape; the low 16 bits of every value are zero.

    Raises
    ------
    ValueError
        When ``raw`` is not uint16 or ``out`` is not float32.
    """
    result = np.empty(raw.shape, np.float32) if out is None else out
    if raw.dtype != np.uint16 or result.dtype != np.float32:
        raise ValueError(f"widening takes uint16 bit patterns to float32, not {raw.dtype} to {result.dtype}")
    bits = result.view(np.uint32)
    # Casting within the shift would take twice as long.
    bits[...] = raw
    bits <<= np.uint32(16)
    return result


class Rounding(NamedTuple):
    """Rounded values and the largest errors against the input: absolute, and relative to a nonzero input."""

    values: np.ndarray
    max_absolute_error: float
    max_relative_error: float


def round_mantissa(values: np.ndarray, bits: int) -> Rounding:
    """Keep ``bits`` mantissa bits of each value, rounding to nearest, ties to even.

    Parameters
    ----------
    values
        float16 or float32, any shape; NaN stays NaN.
    bits
        Explicit mantissa bits to keep, at least 1; as many as the dtype has or more changes nothing.

    Returns
    -------
    Rounding
        ``values`` of the same dtype and shape, contiguous.

    Raises
    ------
    StrataError
        When a value near the largest of its dtype rounds to infinity.
    """
    if bits >= np.finfo(values.dtype).nmant:
        return Rounding(np.ascontiguousarray(values), 0.0, 0.0)
    codec, before = BitRound(keepbits=bits), np.ascontiguousarray(values).reshape(-1)
    rounded = np.empty_like(before)
    for piece in _pieces(before.size):
        rounded[piece] = np.asarray(codec.decode(codec.encode(before[piece].copy()))).view(before.dtype)
    if np.isinf(rounded).any():
        raise StrataError(
            f"rounding {values.dtype} states to {bits} mantissa bits overflows to infinity: "
            "keep more bits or leave --mantissa-bits out"
        )
    return _measured(values, rounded.reshape(values.shape))


def round_to_dtype(values: np.ndarray, dtype: str, name: str) -> Rounding:
    """Store values in another floating-point dtype, rounded to nearest.

    Parameters
    ----------
    values
        float16 or float32, any shape; NaN stays NaN.
    dtype
        ``float16`` or ``float32``.
    name
        What to call the array in a message.

    Raises
    ------
    StrataError
        When a value is too large for the dtype.
    """
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values, dtype)
    if np.isinf(rounded).any():
        largest = float(np.fmax.reduce(np.abs(values), axis=None, initial=0.0))
        raise StrataError(f"{name} holds {largest:g}, too large for {dtype}: let its table choose dtype float32")
    return _measured(values, rounded)


def _measured(values: np.ndarray, rounded: np.ndarray) -> Rounding:
    """Compare rounded values with what they were; NaN counts for nothing."""
    largest = np.zeros(2)
    before, after = np.ascontiguousarray(values).reshape(-1), rounded.reshape(-1)
    for piece in _pieces(before.size):
        magnitude = np.abs(before[piece].astype(np.float64))
        difference = np.abs(after[piece].astype(np.float64) - before[piece])
        relative = np.divide(difference, magnitude, out=np.zeros_like(difference), where=magnitude > 0)
        largest = np.fmax(largest, [np.fmax.reduce(each, initial=0.0) for each in (difference, relative)])
    return Rounding(rounded, *map(float, largest))


def _pieces(size: int) -> Iterator[slice]:
    """Cut so many values: whole pieces in float64, or between two steps of rounding, take several times their size."""
    for start in range(0, size, _VALUES_AT_ONCE):
        yield slice(start, start + _VALUES_AT_ONCE)
