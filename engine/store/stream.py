"""Streaming one array of a part chunk by chunk, in order, through one buffer.

For analyses that look at every value once. zarr assembles each selection from freshly allocated chunks; this decodes
into the same few megabytes again and again, so that memory is what one chunk takes and stays where it is. Bytes, order
and checksums are those of Zarr's ``sharding_indexed`` layout; an array of another layout is refused, never misread.
"""

import math
from collections.abc import Iterator
from io import BufferedIOBase
from typing import NamedTuple

import numpy as np
import zarr
from numcodecs import blosc

from engine.errors import StrataError
from engine.store.blosc_frame import BLOCK_BYTES
from engine.store.codecs import CHECKSUM_BYTES, checksum, states_sizes
from engine.store.layout import PART_DIMS, PARTS_FOLDER
from engine.store.part import Part

__all__ = ["Chunk", "shard_count", "stream_bytes", "stream_chunks"]

_BLOSC_BLOCKS = 3  # that it shuffles and decompresses through
_ENTRY_BYTES = 16  # of a shard's index: offset and length of one chunk


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
    axis = next(number for number, dim in enumerate(part.manifest["arrays"][path]["dims"]) if dim in PART_DIMS)
    grid = tuple(long // step for long, step in zip(array.shards, array.chunks, strict=True))
    decoded = np.empty(array.chunks, array.dtype)
    encoded = np.empty(_most_encoded(decoded.nbytes), np.uint8)
    for shard in np.ndindex(*(-(-long // step) for long, step in zip(array.shape, array.shards, strict=True))):
        if only not in (None, shard[0]):
            continue
        file = _Shard(part, f"{part.name}.zarr/{path}/c/{'/'.join(map(str, shard))}", math.prod(grid))
        corner = [at * long for at, long in zip(shard, array.shards, strict=True)]
        for number in file.decode_each(encoded, decoded):
            inside = np.unravel_index(number, grid)
            place = [at + int(by) * step for at, by, step in zip(corner, inside, array.chunks, strict=True)]
            lengths = [min(step, long - at) for step, long, at in zip(array.chunks, array.shape, place, strict=True)]
            if min(lengths) > 0:  # zarr rounds shards up to whole chunks
                values = decoded[tuple(slice(0, length) for length in lengths)]
                yield Chunk(place[0], place[axis], place[axis] + lengths[axis], values)


def stream_bytes(part: Part, path: str) -> int:
    """Bytes that `stream_chunks` holds at once: one chunk, decoded and encoded, and Blosc's own blocks.

    And as much again as a decoded chunk, because the C library keeps freed blocks of a thread: measured, up to that.
    """
    array = _open(part, path)
    decoded = math.prod(array.chunks) * array.dtype.itemsize
    return 2 * decoded + _most_encoded(decoded) + _BLOSC_BLOCKS * min(BLOCK_BYTES, decoded)


def _most_encoded(decoded: int) -> int:
    return decoded + blosc.MAX_OVERHEAD + CHECKSUM_BYTES


def _open(part: Part, path: str) -> zarr.Array:
    array = part.array(path)
    if array.shards is None:
        raise StrataError(f"{path} of part {part.name} of {part.url} is not sharded, as every array but coordinates is")
    return array


class _Shard:
    """One file of so many chunks, each followed by its checksum, and the index at its end."""

    def __init__(self, part: Part, name: str, count: int) -> None:
        self._part = part
        self._name = name
        self._count = count
        self._bytes = int(part.manifest["files"].get(name, {"bytes": 0})["bytes"])

    def decode_each(self, encoded: np.ndarray, decoded: np.ndarray) -> Iterator[int]:
        """Read one chunk after the other into ``encoded``, decode it into ``decoded`` and yield its number."""
        with self._part.location.opened(f"{PARTS_FOLDER}/{self._name}") as file:
            for number, (start, length) in enumerate(self._index(file)):
                if length > len(encoded):
                    raise self._damaged("has a chunk of another size")
                self._decode(self._read(file, start, encoded[:length]), decoded)
                yield number

    def _index(self, file: BufferedIOBase) -> list[list[int]]:
        """Where each chunk starts in the file, and its length."""
        end = self._bytes - self._count * _ENTRY_BYTES - CHECKSUM_BYTES
        if end < 0:
            raise self._damaged("is not listed with its size in the manifest")
        index = self._read(file, end, np.empty(self._bytes - end, np.uint8)).view("<u8").reshape(self._count, 2)
        if (index > end).any() or (index.sum(axis=1) > end).any():
            raise self._damaged("lacks a chunk")
        entries: list[list[int]] = index.tolist()
        return entries

    def _read(self, file: BufferedIOBase, start: int, into: np.ndarray) -> np.ndarray:
        """Fill ``into`` from ``start`` on; return it without the checksum at its end, which must be right."""
        file.seek(start)
        if file.readinto(into.data) != len(into):
            raise self._damaged("is cut short")
        into.flags.writeable = False  # the checksum is only taken of what cannot change
        content, stored = into[:-CHECKSUM_BYTES], into[-CHECKSUM_BYTES:]
        if checksum(content) != stored.tobytes():
            raise self._damaged("has a wrong checksum")
        return content

    def _decode(self, content: np.ndarray, decoded: np.ndarray) -> None:
        if not states_sizes(content, decoded.nbytes):
            raise self._damaged("has a chunk of another size")
        blosc.decompress(content, decoded)

    def _damaged(self, what: str) -> StrataError:
        return StrataError(
            f"{self._part.url}/{PARTS_FOLDER}/{self._name} {what}: `strata verify` says what is damaged; extract the "
            "part again"
        )
