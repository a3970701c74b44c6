"""Runs of tokens cut into cache-sized blocks, and float16 made float32 by moving its bits.

What the kernels over ``(token, dim)`` states share: NumPy's own conversion of float16 runs at a third of the speed and
would be slower than decompression, so it is widened into a scratch block that stays in the cache.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.errors import StrataError

__all__ = [
    "SCRATCH_ELEMENTS",
    "Piece",
    "VectorError",
    "as_float32",
    "block_rows",
    "cut_blocks",
    "make_scratch",
    "refuse_overflow",
    "refuse_unknown",
    "scratch_bytes",
    "widen",
]

SCRATCH_ELEMENTS = 1 << 20
"""Numbers in the scratch block: 4 MiB as float32. It stays in a last-level cache, and an operation over it takes much
longer than threads need to hand Python to each other in between: with blocks of an eighth two threads are no faster
than one."""

# float16 bits shifted to float32's place carry the exponent bias 15 where float32 expects 127.
_REBIAS = np.float32(2.0**112)
_SIGN_EXPONENT_MANTISSA = np.int32(-0x70000001)  # 0x8fffffff: drops the copies of the sign that the cast put in
_BEYOND_FLOAT16 = np.float32(2.0**16)


class VectorError(StrataError):
    """A state without direction or value.

    Attributes
    ----------
    token : int
        Its place on the token axis that the kernel was given.
    reason : str
        ``"a zero vector"`` or ``"not finite"``.
    """

    def __init__(self, token: int, reason: str) -> None:
        super().__init__(f"the state of token {token} is {reason}, so it has no cosine with anything")
        self.token = token
        self.reason = reason


class Piece(NamedTuple):
    """A run's tokens [start, stop) within one block."""

    run: int
    start: int
    stop: int


def block_rows(dim: int) -> int:
    """Return how many states of width ``dim`` fill the scratch block."""
    return max(1, SCRATCH_ELEMENTS // max(1, dim))


def scratch_bytes(dim: int) -> int:
    """Bytes of the scratch block for states of width ``dim``."""
    return 4 * dim * block_rows(dim)


def make_scratch(dim: int) -> NDArray[np.int32]:
    """Make the block (row, dim) that `widen` fills."""
    return np.empty((block_rows(dim), dim), np.int32)


def cut_blocks(runs: NDArray[np.integer], rows: int) -> Iterator[list[Piece]]:
    """Cut runs into blocks of at most ``rows`` neighbouring tokens; short runs that touch share a block."""
    block: list[Piece] = []
    for run, (first, stop) in enumerate(np.asarray(runs).tolist()):
        start = first
        while start < stop:
            if block and (block[-1].stop != start or start - block[0].start == rows):
                yield block
                block = []
            space = rows - (start - block[0].start if block else 0)
            block.append(Piece(run, start, min(stop, start + space)))
            start = block[-1].stop
    if block:
        yield block


def widen(halves: NDArray[np.float16], scratch: NDArray[np.int32]) -> NDArray[np.float32]:
    """Exact float32 values of finite float16 ones, in ``scratch``; NaN and infinity come out as 65536 or more."""
    scratch[...] = halves.view(np.int16)
    np.left_shift(scratch, 13, out=scratch)
    np.bitwise_and(scratch, _SIGN_EXPONENT_MANTISSA, out=scratch)
    block = scratch.view(np.float32)
    return np.multiply(block, _REBIAS, out=block)


def as_float32(states: NDArray[np.floating]) -> NDArray[np.float32]:
    """Copy states (...) as float32; NaN and infinity stay what they are, unlike in `widen`."""
    if states.dtype != np.float16:
        return states.astype(np.float32)
    block = widen(states, np.empty(states.shape, np.int32))
    finite = block.max(initial=0.0) < _BEYOND_FLOAT16 and block.min(initial=0.0) > -_BEYOND_FLOAT16
    return block if finite else states.astype(np.float32)


def refuse_unknown(states: NDArray[np.floating]) -> None:
    """Raise TypeError where states are neither float16 nor float32."""
    if states.dtype not in (np.float16, np.float32):
        raise TypeError(f"states are {states.dtype}: the kernel reads float16 and float32, which is what stores hold")


def refuse_overflow(block: NDArray[np.float32], start: int) -> None:
    """Raise VectorError where a widened block, whose first token is ``start``, came from NaN or infinity."""
    if block.size and (block.max() >= _BEYOND_FLOAT16 or block.min() <= -_BEYOND_FLOAT16):
        row = int(np.flatnonzero((np.abs(block) >= _BEYOND_FLOAT16).any(axis=1))[0])
        raise VectorError(start + row, "not finite")
