"""Captured pieces, one per forward pass, laid out as the store wants them, as much at a time as is asked for."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch

from engine.store import BFLOAT16_NAN, Selection, held_dtype

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
) -> Callable[[int], "LaidOut"]:
    """Give leading indices, each once, in the captured dtype, of bfloat16 its bit patterns.

    The pieces of one are freed with what is given for it.

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
    kept = range(len(pieces)) if places is None else places

    order = axes or tuple(range(len(shape)))

    def laid_out(index: int) -> LaidOut:
        if index not in kept:
            return LaidOut([], shape, dtype, order, np.empty(0, np.intp))
        number = kept.index(index)
        own, pieces[number] = pieces[number], []
        return LaidOut(own, shape, dtype, order, rows)

    return laid_out


class LaidOut:
    """One leading index of an array, copied from its pieces when some of it is asked for.

    Parameters
    ----------
    pieces, shape, dtype, axes, rows
        As of `slabs`, of this leading index.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    """

    def __init__(
        self,
        pieces: list[torch.Tensor],
        shape: tuple[int, ...],
        dtype: str,
        axes: tuple[int, ...],
        rows: np.ndarray | None,
    ) -> None:
        self.shape = shape
        self.dtype = held_dtype(dtype)
        self._nothing = _NOTHING.get(dtype, np.nan)
        # Views: neither torch's threads nor its dispatch are wanted where many threads copy.
        self._pieces = [(piece.view(torch.uint16) if dtype == "bfloat16" else piece).numpy() for piece in pieces]
        self._starts = list(accumulate(map(len, self._pieces), initial=0))
        self._axes = axes
        self._rows = rows
        wanted = shape[axes[0]] if rows is None else len(rows)
        if self._starts[-1] != wanted:
            raise ValueError(f"{self._starts[-1]} rows were captured for {wanted} places")

    def __getitem__(self, selection: Selection) -> np.ndarray:
        """Lay out everything, or a run along the part's axis; other axes are whole.

        Parameters
        ----------
        selection
            An ellipsis, or a slice for each axis up to the part's, all but that ``slice(None)``.
        """
        axis = self._axes[0]
        run = slice(None) if selection is ... or len(selection) <= axis else selection[axis]
        start, stop, _ = run.indices(self.shape[axis])
        values = np.empty((*self.shape[:axis], stop - start, *self.shape[axis + 1 :]), self.dtype)
        by_row = values.transpose(self._axes)
        if self._rows is None:
            for place, piece in self._runs(start, stop):
                by_row[place] = piece
            return values
        values.fill(self._nothing)
        first, last = np.searchsorted(self._rows, (start, stop)).tolist()
        places = self._rows[first:last] - start
        for place, piece in self._runs(first, last):
            by_row[places[place]] = piece
        return values

    def _runs(self, start: int, stop: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows ``start:stop`` of the pieces, taken as one, and where each run of them is among these."""
        number, done = bisect_right(self._starts, start) - 1, start
        while done < stop:
            first = self._starts[number]
            piece = self._pieces[number][done - first : stop - first]
            yield slice(done - start, done - start + len(piece)), piece
            number, done = number + 1, done + len(piece)
