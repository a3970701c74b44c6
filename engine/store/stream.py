"""Streaming one array of a part chunk by chunk, in order, through one buffer.

For analyses that look at every value once. zarr assembles each selection from freshly allocated chunks; this decodes
into the same few megabytes again and again, so that memory is what one chunk takes and stays where it is. The bytes,
their order and every checksum are those of Zarr's ``sharding_indexed`` layout; arrays of another layout are refused.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import zarr
from numcodecs import blosc
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ShardingCodecIndexLocation

from engine.errors import StrataError
from engine.store.codecs import CHECKSUM_BYTES, checksum
from engine.store.layout import PART_DIMS, PARTS_FOLDER
from engine.store.part import Part

__all__ = ["FETCH_BYTES", "Chunk", "stream_bytes", "stream_chunks"]

FETCH_BYTES = 8 * 2**20
"""Compressed bytes fetched at once where several chunks fit; an object store then answers few requests."""

_INDEX_ENTRY = 16
_MISSING = 2**64 - 1


class Chunk(NamedTuple):
    """A piece of an array.

    Attributes
    ----------
    index
        Where it starts along the leading axis.
    start, stop
        What it covers of the part's axis.
    values
        The array's values there, all its axes; overwritten when the next chunk is asked for.
    """

    index: int
    start: int
    stop: int
    values: np.ndarray


def stream_chunks(part: Part, path: str) -> Iterator[Chunk]:
    """Yield all chunks of an array, ascending in the leading axis and then along the part's axis.

    Parameters
    ----------
    part
        The part.
    path
        Group and name, for example ``token/hidden_states``.

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
    buffer = np.empty(array.chunks, array.dtype)
    for shard in np.ndindex(*(-(-long // step) for long, step in zip(array.shape, array.shards, strict=True))):
        file = f"{PARTS_FOLDER}/{part.name}.zarr/{path}/c/{'/'.join(map(str, shard))}"
        for number, encoded in _encoded_chunks(part, file, int(np.prod(grid))):
            place = [
                (outer * count + inner) * step
                for outer, count, inner, step in zip(
                    shard, grid, np.unravel_index(number, grid), array.chunks, strict=True
                )
            ]
            lengths = [min(step, long - at) for step, long, at in zip(array.chunks, array.shape, place, strict=True)]
            if min(lengths) <= 0:  # zarr rounds shards up to whole chunks
                continue
            _decode(encoded, buffer, part, file)
            values = buffer[tuple(slice(0, length) for length in lengths)]
            yield Chunk(int(place[0]), int(place[axis]), int(place[axis]) + lengths[axis], values)


def stream_bytes(part: Part, path: str) -> int:
    """Bytes that `stream_chunks` holds at once: one decoded chunk and what is fetched."""
    array = _open(part, path)
    decoded = int(np.prod(array.chunks)) * array.dtype.itemsize
    return decoded + max(FETCH_BYTES, decoded + blosc.MAX_OVERHEAD + CHECKSUM_BYTES)


def _open(part: Part, path: str) -> zarr.Array:
    group, name = path.split("/")
    array = part.group(group)[name]
    assert isinstance(array, zarr.Array)
    codec = array.metadata.codecs[0]  # type: ignore[union-attr]
    known = (
        isinstance(codec, ShardingCodec)
        and codec.index_location is ShardingCodecIndexLocation.end
        and [type(inner) for inner in codec.codecs] == [BytesCodec, BloscCodec, Crc32cCodec]
        and [type(inner) for inner in codec.index_codecs] == [BytesCodec, Crc32cCodec]
    )
    if not known:
        raise StrataError(
            f"{path} of part {part.name} of {part.url} is encoded in a way that this strata does not know: upgrade "
            "strata, or read it with zarr"
        )
    return array


def _encoded_chunks(part: Part, file: str, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Number and encoded bytes of every chunk of a shard, in C order."""
    index_bytes = _INDEX_ENTRY * count + CHECKSUM_BYTES
    index = _checked(_fetch(part, file, -index_bytes, None), part, file).view("<u8").reshape(count, 2)
    if (index == _MISSING).any():
        raise _damaged(part, file, "lacks a chunk")
    offsets, ends = index[:, 0].tolist(), index.sum(axis=1).tolist()
    number = 0
    while number < count:
        stop = number + 1
        while stop < count and offsets[stop] == ends[stop - 1] and ends[stop] - offsets[number] <= FETCH_BYTES:
            stop += 1
        content = _fetch(part, file, offsets[number], ends[stop - 1])
        for here in range(number, stop):
            encoded = content[offsets[here] - offsets[number] : ends[here] - offsets[number]]
            yield here, _checked(encoded, part, file)
        number = stop


def _fetch(part: Part, file: str, start: int, stop: int | None) -> np.ndarray:
    return np.frombuffer(part.location.read_range(file, start, stop), np.uint8)


def _checked(encoded: np.ndarray, part: Part, file: str) -> np.ndarray:
    """Bytes without the checksum that follows them."""
    content, stored = encoded[:-CHECKSUM_BYTES], encoded[-CHECKSUM_BYTES:]
    if checksum(content) != stored.tobytes():
        raise _damaged(part, file, "has a wrong checksum")
    return content


def _decode(encoded: np.ndarray, buffer: np.ndarray, part: Part, file: str) -> None:
    # Blosc's header gives the decoded size as its second 32-bit number.
    if int(encoded[4:8].view("<u4")[0]) != buffer.nbytes:
        raise _damaged(part, file, "has a chunk of another size")
    blosc.decompress(encoded, buffer)


def _damaged(part: Part, file: str, what: str) -> StrataError:
    return StrataError(
        f"{part.url}/{file} {what}: run `strata verify` on the store, then remove the part's manifest and extract again"
    )
