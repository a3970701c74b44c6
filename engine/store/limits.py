"""How much a reader lets a store ask of it, before it has looked at any of its values.

Whoever hands a store on may have made it to do harm. So nothing is allocated because a file says so: each number is
first compared with the bytes that are there, or with the bounds below, which no store that strata writes comes near.
"""

import math
import sys
from collections.abc import Sequence
from typing import TypeGuard

__all__ = [
    "CHUNK_BYTES",
    "COORDINATE_BYTES",
    "MAX_EXPANSION",
    "METADATA_BYTES",
    "RECORD_BYTES",
    "STORED_DTYPES",
    "TABLE_BYTES",
    "TABLE_EXPANSION",
    "is_finite",
    "is_shape",
    "most_encoded",
]

STORED_DTYPES = {"float16": 2, "float32": 4, "int32": 4}
"""Dtypes that arrays may have, and their bytes per value."""

RECORD_BYTES = 8 * 2**20
"""Of ``store.json`` or a manifest. Parsed JSON takes up to 25 times its text."""

METADATA_BYTES = 2**20
"""Of one node's ``zarr.json``; the root's, which repeats all, is read by other readers only."""

CHUNK_BYTES = 64 * 2**20
"""Of one decoded inner chunk, which writers make of 4 MiB."""

COORDINATE_BYTES = 256 * 2**20
"""Of a coordinate, which is one chunk of any length."""

MAX_EXPANSION = 2**15
"""Decoded per stored bytes of an array. Blosc and zstd get 17,600 out of a single repeated value."""

TABLE_BYTES, TABLE_EXPANSION = 64 * 2**20, 100
"""Of a decoded Parquet table: so many bytes, and so many more for each byte of the file."""

_MOST_LENGTH = 2**40
_MOST_BYTES = 2**60
_OVERHEAD = 64  # per chunk: Blosc's header, checksum, entry of the shard's index
_DIMS = 8


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a finite number that float64 has room for: integers may be longer."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_shape(value: object) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of lengths that an array can have at all."""
    return (
        isinstance(value, list)
        and len(value) <= _DIMS
        and set(map(type, value)) <= {int}
        and 0 <= min(value, default=0) <= max(value, default=0) <= _MOST_LENGTH
        and math.prod(value) <= _MOST_BYTES
    )


def most_encoded(lengths: Sequence[int], inner: Sequence[int], itemsize: int) -> int:
    """Bytes that a data file of a block of values can take at most: incompressible, each chunk with what goes with it.

    Parameters
    ----------
    lengths, inner
        Of the block that the file holds, and of its inner chunks.
    itemsize
        Bytes per value.
    """
    chunks = math.prod(-(-length // step) for length, step in zip(lengths, inner, strict=True))
    return chunks * (math.prod(inner) * itemsize + _OVERHEAD) + _OVERHEAD
