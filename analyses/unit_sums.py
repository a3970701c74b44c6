"""Sums of unit vectors over runs of tokens, streamed through a cache-sized scratch block.

The kernel behind contextualization from hidden states: one pass over ``(token, dim)`` states, no copy of them at full
precision. Stored float16 is widened by moving its bits (NumPy's own conversion runs at a third of the speed and would
be slower than decompression); stored float32 is used where it lies. Nothing here calls a threaded BLAS routine, so
any number of threads may run the kernel side by side.

What it promises: widening is exact, subnormal numbers included; norms and sums of one block are float32, sums across
blocks float64; a vector that has no direction (zero) or no value (NaN, infinity) is refused by token number.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.errors import StrataError

__all__ = ["SCRATCH_ELEMENTS", "VectorError", "scratch_bytes", "unit_sums"]

SCRATCH_ELEMENTS = 1 << 17
"""Numbers in the scratch block: 512 KiB as float32, half of a common second-level cache."""

# float16 bits shifted to float32's place carry the exponent bias 15 where float32 expects 127.
_REBIAS = np.float32(2.0**112)
_SIGN_EXPONENT_MANTISSA = np.int32(-0x70000001)  # 0x8fffffff: drops the copies of the sign that the cast put in

# Squared norms outside these bounds may have overflowed, lost digits to underflow, or come from a widened NaN or
# infinity (which reads as 65536 and more); such rows are looked at one by one in float64.
_SMALLEST_SQUARE = np.float32(1e-24)
_LARGEST_SQUARE = {np.dtype(np.float16): np.float32(2.0**32), np.dtype(np.float32): np.float32(1e30)}


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


class _Piece(NamedTuple):
    run: int
    start: int
    stop: int


def scratch_bytes(dim: int) -> int:
    """Bytes of the scratch block for float16 states of width ``dim``."""
    return 4 * dim * _rows(dim)


def unit_sums(states: NDArray[np.floating], runs: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sum the unit vectors of every run of tokens.

    Parameters
    ----------
    states : array (token, dim), float16 or float32, rows contiguous
    runs : array (run, 2) of int
        Start and stop on the token axis, ascending and without overlap; tokens outside every run are not looked at.

    Returns
    -------
    array (run, dim), float64
        ``sums[r] = Σ_{t in run r} states[t] / ‖states[t]‖``; zero for an empty run.

    Raises
    ------
    VectorError
        A token of a run is a zero vector or holds NaN or infinity.
    TypeError
        ``states`` is neither float16 nor float32.
    """
    if states.dtype not in _LARGEST_SQUARE:
        raise TypeError(f"states are {states.dtype}: the kernel reads float16 and float32, which is what stores hold")
    dim = states.shape[1]
    sums = np.zeros((len(runs), dim))
    scratch = np.empty((_rows(dim), dim), np.int32) if states.dtype == np.float16 else None
    for pieces in _blocks(runs, _rows(dim)):
        start, stop = pieces[0].start, pieces[-1].stop
        block = states[start:stop] if scratch is None else _widen(states[start:stop], scratch[: stop - start])
        weights, odd = _inverse_norms(block, _LARGEST_SQUARE[states.dtype])
        # Before the sums, so that NaN and infinity are refused rather than multiplied by weight 0.
        exact = [(start + row, _exact_unit(states[start + row], start + row)) for row in odd.tolist()]
        for run, first, last in pieces:
            here = slice(first - start, last - start)
            sums[run] += np.einsum("t,td->d", weights[here], block[here])
        for token, unit in exact:
            sums[next(piece.run for piece in pieces if piece.start <= token < piece.stop)] += unit
    return sums


def _rows(dim: int) -> int:
    return max(1, SCRATCH_ELEMENTS // max(1, dim))


def _blocks(runs: NDArray[np.integer], rows: int) -> Iterator[list[_Piece]]:
    """Cut runs into blocks of at most ``rows`` neighbouring tokens; short runs that touch share a block."""
    block: list[_Piece] = []
    for run, (first, stop) in enumerate(np.asarray(runs).tolist()):
        start = first
        while start < stop:
            if block and (block[-1].stop != start or start - block[0].start == rows):
                yield block
                block = []
            space = rows - (start - block[0].start if block else 0)
            block.append(_Piece(run, start, min(stop, start + space)))
            start = block[-1].stop
    if block:
        yield block


def _widen(halves: NDArray[np.float16], scratch: NDArray[np.int32]) -> NDArray[np.float32]:
    """Exact float32 values of finite float16 ones, in ``scratch``; NaN and infinity come out as 65536 or more."""
    scratch[...] = halves.view(np.int16)
    np.left_shift(scratch, 13, out=scratch)
    np.bitwise_and(scratch, _SIGN_EXPONENT_MANTISSA, out=scratch)
    block = scratch.view(np.float32)
    return np.multiply(block, _REBIAS, out=block)


def _inverse_norms(block: NDArray[np.float32], largest: np.float32) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """``1/‖row‖`` of a block, and the rows whose norm float32 cannot be trusted with (weight 0 here)."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.vecdot(block, block)
    odd = np.flatnonzero(~((squares > _SMALLEST_SQUARE) & (squares < largest)))
    squares[odd] = np.inf
    return np.float32(1.0) / np.sqrt(squares), odd


def _exact_unit(state: NDArray[np.floating], token: int) -> NDArray[np.float64]:
    exact = state.astype(np.float64)
    if not np.isfinite(exact).all():
        raise VectorError(token, "not finite")
    norm = np.linalg.norm(exact)
    if norm == 0.0:
        raise VectorError(token, "a zero vector")
    return exact / norm
