"""Reading a box of a sharded array from this machine's disk, each chunk decoded to where its values belong.

zarr hands every chunk through memory of its own and one thread of all readers; for a layer of many parts, which is what
most questions ask for, that takes twice as long. From other machines zarr reads, which asks for many chunks at once.
"""

import math
from collections.abc import Sequence
from itertools import groupby, product
from typing import NamedTuple

import numpy as np
import zarr

from engine.store.location import Location
from engine.store.shard_file import ShardFile, most_encoded_bytes

__all__ = ["Piece", "fill_box", "plan_pieces", "read_box"]


class Piece(NamedTuple):
    """What a box has of one chunk.

    Attributes
    ----------
    shard : tuple of int
        Place of the file among the files, along each axis.
    number : int
        Of the chunk in its file.
    source, target : tuple of slice
        Where the values are in the chunk, and in the box.
    """

    shard: tuple[int, ...]
    number: int
    source: tuple[slice, ...]
    target: tuple[slice, ...]


def plan_pieces(starts: Sequence[int], stops: Sequence[int], chunks: Sequence[int], grid: Sequence[int]) -> list[Piece]:
    """Tell which chunks a box needs, file after file.

    Parameters
    ----------
    starts, stops
        Of the box, along each axis of the array.
    chunks
        Lengths of a chunk.
    grid
        Number of chunks in a file, along each axis.
    """
    pieces = []
    ranges = [range(start // step, -(-stop // step)) for start, stop, step in zip(starts, stops, chunks, strict=True)]
    for place in product(*ranges):
        corner = [at * step for at, step in zip(place, chunks, strict=True)]
        first = [max(start, at) for start, at in zip(starts, corner, strict=True)]
        last = [min(stop, at + step) for stop, at, step in zip(stops, corner, chunks, strict=True)]
        pieces.append(
            Piece(
                tuple(at // count for at, count in zip(place, grid, strict=True)),
                int(np.ravel_multi_index([at % count for at, count in zip(place, grid, strict=True)], grid)),
                tuple(slice(low - at, high - at) for low, high, at in zip(first, last, corner, strict=True)),
                tuple(slice(low - at, high - at) for low, high, at in zip(first, last, starts, strict=True)),
            )
        )
    return sorted(pieces, key=lambda piece: (piece.shard, piece.number))


def read_box(
    location: Location, folder: str, array: zarr.Array, starts: Sequence[int], stops: Sequence[int]
) -> np.ndarray:
    """Read ``array[starts[0]:stops[0], starts[1]:stops[1], …]``.

    Parameters
    ----------
    location, folder
        The store, and the array's folder in it.
    array
        The array, opened and checked, and sharded.
    starts, stops
        Along each axis, inside the array.

    Returns
    -------
    np.ndarray
        Of the array's dtype; where the array ends within a chunk, without what was read behind it, which stays in
        memory as long.

    Raises
    ------
    StrataError
        When a file is missing or damaged. A hole never reads as a value.
    """
    if any(start >= stop for start, stop in zip(starts, stops, strict=True)):
        return np.empty([max(0, stop - start) for start, stop in zip(starts, stops, strict=True)], array.dtype)
    # Where the array ends within a chunk, that chunk is decoded whole: there is room for it behind the box.
    ends = [
        -(-stop // step) * step if stop == length else stop
        for stop, length, step in zip(stops, array.shape, array.chunks, strict=True)
    ]
    values = np.empty([end - start for start, end in zip(starts, ends, strict=True)], array.dtype)
    fill_box(location, folder, array, starts, values)
    return values[tuple(slice(stop - start) for start, stop in zip(starts, stops, strict=True))]


def fill_box(location: Location, folder: str, array: zarr.Array, starts: Sequence[int], values: np.ndarray) -> None:
    """Read the box that begins at ``starts`` and is as large as ``values`` into these.

    Parameters
    ----------
    location, folder, array, starts
        As of `read_box`.
    values
        Of the array's dtype; overwritten. They may reach beyond the array to the end of its last chunk.

    Raises
    ------
    StrataError
        When a file is missing or damaged. A hole never reads as a value.
    """
    assert array.shards is not None
    grid = tuple(long // step for long, step in zip(array.shards, array.chunks, strict=True))
    stops = [start + length for start, length in zip(starts, values.shape, strict=True)]
    chunk = np.empty(array.chunks, array.dtype)
    encoded = np.empty(most_encoded_bytes(chunk.nbytes), np.uint8)
    for shard, pieces in groupby(plan_pieces(starts, stops, array.chunks, grid), key=lambda piece: piece.shard):
        name = f"{folder}/c/{'/'.join(map(str, shard))}"
        with location.opened(name) as opened:
            file = ShardFile(opened, f"{location.url}/{name}", math.prod(grid))
            for piece in pieces:
                target = values[piece.target]
                if target.shape == array.chunks and target.flags.c_contiguous:
                    file.decode(piece.number, encoded, target)
                else:
                    file.decode(piece.number, encoded, chunk)
                    target[...] = chunk[piece.source]
