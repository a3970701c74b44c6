"""Streaming one array of a part chunk by chunk, in order, through one buffer.

For analyses that look at every value once. zarr assembles each selection from freshly allocated chunks; this decodes
into the same few megabytes again and again, so that memory is what one chunk takes and stays where it is. Bytes, order
and checksums are those of Zarr's ``sharding_indexed`` layout; an array of another layout is refused, never misread.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import zarr

from engine.errors import StrataError
from engine.store.blosc_frame import BLOCK_BYTES
from engine.store.layout import PART_DIMS, PARTS_FOLDER
from engine.store.part import Part
from engine.store.shard_file import ShardFile, most_encoded_bytes

__all__ = ["Chunk", "shard_count", "stream_bytes", "stream_chunks"]

_BLOSC_BLOCKS = 3  # that it shuffles and decompresses through


class Chunk(NamedTuple):
    """A piece of an array.

    Attributes
    ----------
    first
        Where it starts along the leading axis.
    start, stop
        What it covers of the part's axis.
    values
        The array's values there, along all axes; overwritten when the next chunk is asked for.
    """

    first: int
    start: int
    stop: int
    values: np.ndarray


def shard_count(part: Part, path: str) -> int:
    """Count an array's shards along its leading axis, along which alone there can be several."""
    array = _open(part, path)
    return 0 if 0 in array.shape else -(-array.shape[0] // (array.shards or array.shape)[0])


def stream_chunks(part: Part, path: str, only: int | None = None) -> Iterator[Chunk]:
    """Yield all chunks of an array, ascending along the leading axis and then along the part's.

    Parameters
    ----------
    part
        The part.
    path
        Group and name, for example ``token/hidden_states``.
    only
        Number of a shard along the leading axis; all when None.

    Raises
    ------
    StrataError
        A shard is missing or damaged, or the array is laid out in a way that this version does not know.
    """
    array = _open(part, path)
    if 0 in array.shape:
        return
    assert array.shards is not None
    shape, shards, inner = array.shape, array.shards, array.chunks  # zarr makes them anew each time
    axis = next(number for number, dim in enumerate(part.manifest["arrays"][path]["dims"]) if dim in PART_DIMS)
    grid = tuple(long // step for long, step in zip(shards, inner, strict=True))
    decoded = np.empty(inner, array.dtype)
    encoded = np.empty(most_encoded_bytes(decoded.nbytes), np.uint8)
    for shard in np.ndindex(*(-(-long // step) for long, step in zip(shape, shards, strict=True))):
        if only not in (None, shard[0]):
            continue
        name = f"{PARTS_FOLDER}/{part.name}.zarr/{path}/c/{'/'.join(map(str, shard))}"
        corner = [at * long for at, long in zip(shard, shards, strict=True)]
        with part.location.opened(name) as opened:
            file = ShardFile(opened, f"{part.url}/{name}", math.prod(grid))
            for number, inside in enumerate(np.ndindex(*grid)):
                file.decode(number, encoded, decoded)
                place = [at + by * step for at, by, step in zip(corner, inside, inner, strict=True)]
                lengths = [min(step, long - at) for step, long, at in zip(inner, shape, place, strict=True)]
                if min(lengths) > 0:  # zarr rounds shards up to whole chunks
                    values = decoded[tuple(slice(0, length) for length in lengths)]
                    yield Chunk(place[0], place[axis], place[axis] + lengths[axis], values)


def stream_bytes(part: Part, path: str) -> int:
    """Bytes that `stream_chunks` holds at once: one chunk, decoded and encoded, and Blosc's own blocks.

    And as much again as a decoded chunk, because the C library keeps freed blocks of a thread: measured, up to that.
    """
    array = _open(part, path)
    decoded = math.prod(array.chunks) * array.dtype.itemsize
    return 2 * decoded + most_encoded_bytes(decoded) + _BLOSC_BLOCKS * min(BLOCK_BYTES, decoded)


def _open(part: Part, path: str) -> zarr.Array:
    array = part.array(path)
    if array.shards is None:
        raise StrataError(f"{path} of part {part.name} of {part.url} is not sharded, as every array but coordinates is")
    return array
