"""How an array of a part is read: pure numbers.

One read is one call to zarr. Small layers are read several at a time, because a call costs milliseconds; a layer larger
than the goal is read in stretches of whole inner chunks, so that memory does not follow the size of a part.
"""

from typing import NamedTuple

__all__ = ["READ_BYTES", "Read", "plan_reads"]

READ_BYTES = 16 * 2**20
"""Decoded bytes that one read aims at: measured fastest, and half as fast again as whole layers of 55 MiB."""


class Read(NamedTuple):
    """Layers ``first_layer`` to ``last_layer`` (exclusive), entries ``start`` to ``stop`` of the part's axis."""

    first_layer: int
    last_layer: int
    start: int
    stop: int


def plan_reads(
    layers: int, length: int, entry_bytes: int, inner: int, *, read_bytes: int = READ_BYTES
) -> tuple[Read, ...]:
    """Cover an array of ``layers`` slabs with reads of about ``read_bytes``.

    Parameters
    ----------
    layers : int
    length : int
        Entries along the part's axis (tokens or samples).
    entry_bytes : int
        Decoded bytes of one entry in one layer.
    inner : int
        Inner chunk's length along the part's axis.
    read_bytes : int

    Returns
    -------
    tuple of Read
        Layer by layer from the first; within a layer ascending. Each lies in whole inner chunks, and holds at most
        ``read_bytes``, or one chunk of one layer where that is more.
    """
    slab = max(1, length * entry_bytes)
    step = max(1, read_bytes // slab)
    rows = length if slab <= read_bytes else inner * max(1, read_bytes // (inner * entry_bytes))
    return tuple(
        Read(layer, min(layers, layer + step), start, min(length, start + rows))
        for layer in range(0, layers, step)
        for start in range(0, length, max(1, rows))
    )
