"""Captured pieces, one per forward pass, laid out slab by slab as the store wants them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from engine.store import BFLOAT16_NAN, held_dtype

__all__ = ["STORED_DTYPES", "slabs"]

STORED_DTYPES = {"float16": "float16", "bfloat16": "float32", "float32": "float32", "int32": "int32"}
"""On disk a bfloat16 state is the float32 of the same value, which every reader in every language understands."""

_NOTHING = {"bfloat16": BFLOAT16_NAN, "int32": -1}


def slabs(
    pieces: list[list[torch.Tensor]],
    shape: tuple[int, ...],
    dtype: str,
    axes: tuple[int, ...] | None = None,
    *,
    places: Sequence[int] | None = None,
    rows: np.ndarray | None = None,
) -> Callable[[int], np.ndarray]:
    """Give one leading index after the other in the captured dtype, of bfloat16 its bit patterns.

    The pieces are freed once they are laid out.

    Parameters
    ----------
    pieces
        Per kept leading index the pieces that follow each other along the part's axis, their first one.
    shape
        Of a slab.
    dtype
        Captured dtype, a key of :data:`STORED_DTYPES`.
    axes
        The slab's axes in the order of the pieces'; the same order where None.
    places
        The kept leading indices, ascending; all where None. The slab of any other is NaN, or -1 of integers.
    rows
        (row,) places along the part's axis that the pieces are for, ascending; all where None. Others are NaN or -1.
    """
    # One is compressed while the other is filled.
    buffers = np.empty((2, *shape), dtype=held_dtype(dtype))
    kept = range(len(pieces)) if places is None else places

    def laid_out(index: int) -> np.ndarray:
        slab = buffers[index % 2]
        by_row = slab if axes is None else slab.transpose(axes)
        if places is not None or rows is not None:
            slab.fill(_NOTHING.get(dtype, np.nan))
        if index not in kept:
            return slab
        number, row = kept.index(index), 0
        for captured in pieces[number]:
            # Not torch.cat: on this thread torch would start a second team of threads, which fights the model's team
            # for the cores.
            run = slice(row, row + len(captured))
            held = captured.view(torch.uint16) if dtype == "bfloat16" else captured
            by_row[run if rows is None else rows[run]] = held.numpy()
            row += len(captured)
        pieces[number] = []
        return slab

    return laid_out
