"""Sums of unit vectors over runs of tokens, streamed through a cache-sized scratch block.

The kernel behind contextualization from hidden states: one pass over ``(token, dim)`` states, no copy of them at full
precision; stored float32 is used where it lies. Nothing here calls a threaded BLAS routine, so any number of threads
may run the kernel side by side.

What it promises: widening is exact, subnormal numbers included; norms and sums of one block are float32, sums across
blocks float64; a vector that has no direction (zero) or no value (NaN, infinity) is refused by token number.
"""

import numpy as np
from numpy.typing import NDArray

from analyses.token_blocks import (
    VectorError,
    block_rows,
    cut_blocks,
    make_scratch,
    refuse_overflow,
    refuse_unknown,
    widen,
)

__all__ = ["unit_sums"]

# Squared norms outside these bounds may have overflowed, lost digits to underflow, or come from a widened NaN or
# infinity (which reads as 65536 and more); such rows are looked at one by one in float64.
_SMALLEST_SQUARE = np.float32(1e-24)
_LARGEST_SQUARE = {np.dtype(np.float16): np.float32(2.0**32), np.dtype(np.float32): np.float32(1e30)}


def unit_sums(
    states: NDArray[np.floating], runs: NDArray[np.integer], origin: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Sum the unit vectors of every run of tokens.

    Parameters
    ----------
    states : array (token, dim), float16 or float32, rows contiguous
    runs : array (run, 2) of int
        Start and stop on the token axis, ascending and without overlap; tokens outside every run are not looked at.
    origin : array (dim), float64, optional
        Where vectors start; 0 where None.

    Returns
    -------
    array (run, dim), float64
        ``sums[r] = Σ_{t in run r} (states[t] − origin) / ‖states[t] − origin‖``; zero for an empty run.

    Raises
    ------
    VectorError
        A token of a run is a zero vector or holds NaN or infinity.
    TypeError
        ``states`` is neither float16 nor float32.
    """
    refuse_unknown(states)
    dim = states.shape[1]
    sums = np.zeros((len(runs), dim))
    scratch = make_scratch(dim) if states.dtype == np.float16 or origin is not None else None
    shift = None if origin is None else origin.astype(np.float32)
    for pieces in cut_blocks(runs, block_rows(dim)):
        start, stop = pieces[0].start, pieces[-1].stop
        block = _block(states[start:stop], scratch, shift, start)
        weights, odd = _inverse_norms(block, _LARGEST_SQUARE[states.dtype])
        # Before the sums, so that NaN and infinity are refused rather than multiplied by weight 0.
        exact = [(start + row, _exact_unit(states[start + row], origin, start + row)) for row in odd.tolist()]
        for run, first, last in pieces:
            here = slice(first - start, last - start)
            sums[run] += np.einsum("t,td->d", weights[here], block[here])
        for token, unit in exact:
            sums[next(piece.run for piece in pieces if piece.start <= token < piece.stop)] += unit
    return sums


def _block(
    states: NDArray[np.floating], scratch: NDArray[np.int32] | None, shift: NDArray[np.float32] | None, start: int
) -> NDArray[np.float32]:
    """Float32 values of one block, less the origin; in the scratch block unless they can be used where they lie."""
    if scratch is None:
        return states
    here = scratch[: len(states)]
    if states.dtype == np.float16:
        states = widen(states, here)
        if shift is not None:
            refuse_overflow(states, start)  # less the origin, a widened infinity might look like a number
    if shift is None:
        return states
    with np.errstate(over="ignore", invalid="ignore"):
        return np.subtract(states, shift, out=here.view(np.float32))


def _inverse_norms(block: NDArray[np.float32], largest: np.float32) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """``1/‖row‖`` of a block, and the rows whose norm float32 cannot be trusted with (weight 0 here)."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.vecdot(block, block)
    odd = np.flatnonzero(~((squares > _SMALLEST_SQUARE) & (squares < largest)))
    squares[odd] = np.inf
    return np.float32(1.0) / np.sqrt(squares), odd


def _exact_unit(state: NDArray[np.floating], origin: NDArray[np.float64] | None, token: int) -> NDArray[np.float64]:
    exact = state.astype(np.float64) - (0.0 if origin is None else origin)
    if not np.isfinite(exact).all():
        raise VectorError(token, "not finite")
    norm = np.linalg.norm(exact)
    if norm == 0.0:
        raise VectorError(token, "a zero vector")
    return exact / norm
