"""The one codec pipeline of every array: little-endian bytes, Blosc with zstd, a CRC-32C.

The block size is stated because Blosc's own choice is smaller and loses much of the gain on 16-bit states.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from engine.store.blosc_frame import BLOCK_BYTES, HEADER_BYTES, encode_frame
from engine.store.dtypes import BFLOAT16_BITS, BFLOAT16_NAN
from engine.store.layout import ChunkPlan

__all__ = ["CHECKSUM_BYTES", "checksum", "create_array", "encode_chunk", "fill_value", "states_sizes"]

LEVEL = 1
CHECKSUM_BYTES = 4

_SIZES_AT = (4, 12)  # in Blosc's header: bytes of the values, bytes of the chunk


def fill_value(dtype: str) -> float | int:
    """Return what an unwritten value reads as, NaN (float) or -1 (integer); no count, code or state equals it."""
    return -1 if np.dtype(dtype).kind == "i" else float("nan")


def create_array(
    group: zarr.Group, name: str, *, plan: ChunkPlan, dtype: str, dims: Sequence[str], attributes: Mapping[str, Any]
) -> zarr.Array:
    """Create an array that never skips a chunk, so that a hole is always a missing file.

    Parameters
    ----------
    group, name
        Where the array is created.
    plan
        Shape, inner chunk and shard.
    dtype
        Stored dtype: ``float16``, ``float32`` or ``int32``.
    dims
        Names of the dimensions.
    attributes
        JSON values.
    """
    blosc = BloscCodec(
        cname="zstd", clevel=LEVEL, shuffle="shuffle", typesize=np.dtype(dtype).itemsize, blocksize=BLOCK_BYTES
    )
    return group.create_array(
        name,
        shape=plan.shape,
        dtype=dtype,
        chunks=plan.inner,
        shards=plan.shard,
        filters=None,
        compressors=[blosc, Crc32cCodec()],
        fill_value=fill_value(dtype),
        dimension_names=list(dims),
        attributes=dict(attributes),
        config={"write_empty_chunks": True},
    )


def encode_chunk(piece: np.ndarray, inner: tuple[int, ...], dtype: str) -> np.ndarray:
    """Compress one inner chunk so that what ``create_array`` declares decodes it, all but the checksum.

    Parameters
    ----------
    piece
        Values in the stored dtype, or bit patterns of bfloat16 (uint16) that are stored as float32; shorter than
        ``inner`` where the array ends.
    inner
        Lengths of the chunk; what lies beyond the piece is fill value.
    dtype
        Stored dtype.

    Returns
    -------
    np.ndarray
        (byte,) uint8.
    """
    if piece.shape != inner:
        padded = np.full(inner, BFLOAT16_NAN if piece.dtype == BFLOAT16_BITS else fill_value(dtype), piece.dtype)
        padded[tuple(slice(0, length) for length in piece.shape)] = piece
        piece = padded
    return encode_frame(np.ascontiguousarray(piece), np.dtype(dtype).itemsize)


def checksum(encoded: bytes | np.ndarray) -> bytes:
    """Return the CRC-32C as the four little-endian bytes that Zarr's ``crc32c`` codec appends."""
    return int(google_crc32c.value(encoded)).to_bytes(CHECKSUM_BYTES, "little")


def states_sizes(encoded: bytes | np.ndarray, decoded: int) -> bool:
    """Whether the header of a Blosc chunk states its own length, and ``decoded`` bytes as that of its values.

    Blosc believes its header, not the length of its buffer: it would write where no values are to go, and read, or
    crash, wherever the header leads.

    Parameters
    ----------
    encoded
        The chunk without its checksum.
    decoded
        Bytes of its values.
    """
    if len(encoded) < HEADER_BYTES:
        return False
    stated = [int.from_bytes(bytes(encoded[start : start + 4]), "little") for start in _SIZES_AT]
    return stated == [decoded, len(encoded)]
