"""Sums of states over runs of tokens: the kernel behind a layer's mean state, streamed as `analyses.unit_sums` is."""

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

__all__ = ["plain_sums"]


def plain_sums(states: NDArray[np.floating], runs: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sum the states of every run of tokens.

    Parameters
    ----------
    states : array (token, dim), float16 or float32, rows contiguous
    runs : array (run, 2) of int
        Start and stop on the token axis, ascending and without overlap; tokens outside every run are not looked at.

    Returns
    -------
    array (run, dim), float64
        Sums within a block are float32, across blocks float64; zero for an empty run.

    Raises
    ------
    VectorError
        A token of a run holds NaN or infinity.
    TypeError
        ``states`` is neither float16 nor float32.
    """
    refuse_unknown(states)
    dim = states.shape[1]
    sums = np.zeros((len(runs), dim))
    scratch = make_scratch(dim) if states.dtype == np.float16 else None
    for pieces in cut_blocks(runs, block_rows(dim)):
        start, stop = pieces[0].start, pieces[-1].stop
        block = states[start:stop]
        if scratch is not None:
            block = widen(block, scratch[: stop - start])
            refuse_overflow(block, start)
        for run, first, last in pieces:
            sums[run] += _sum(block[first - start : last - start], first)
    return sums


def _sum(block: NDArray[np.float32], start: int) -> NDArray[np.floating]:
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.einsum("td->d", block)
    if np.isfinite(total).all():
        return total
    broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if broken.size:
        raise VectorError(start + int(broken[0]), "not finite")
    return block.sum(axis=0, dtype=np.float64)  # large values, whose sum float32 cannot hold
