"""Opening a stored array: its description is checked, then a reader is built from what was checked.

The codecs are made here and not by what the description names, and Blosc is told beforehand how long a chunk is: a
chunk whose header claims more is refused before a byte is allocated for it.
"""

import math
from typing import Any

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.array import AsyncArray
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding
from zarr.core.dtype import get_data_type_from_native_dtype
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import StorePath

from engine.errors import StrataError
from engine.store.array_metadata import ArrayMetadata, StoredLayout, check_array_metadata
from engine.store.codecs import fill_value, states_sizes
from engine.store.limits import METADATA_BYTES, STORED_DTYPES, most_encoded
from engine.store.location import Location
from engine.store.manifest import parse_json

__all__ = ["open_checked_array", "read_array_metadata"]


class _BoundedBlosc(BloscCodec):
    """Blosc that decodes chunks of the announced length only."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        expected = math.prod(chunk_spec.shape) * np.dtype(chunk_spec.dtype.to_native_dtype()).itemsize
        if not states_sizes(chunk_bytes.as_numpy_array(), expected):
            raise ValueError(f"a chunk does not hold the {expected:,} bytes that its array's shape needs")
        return super()._decode_sync(chunk_bytes, chunk_spec)


class _NamedArray(zarr.Array):
    """An array that says which it is where its bytes are damaged."""

    def __getitem__(self, selection: Any) -> Any:
        """Read a selection, as zarr does."""
        try:
            return super().__getitem__(selection)
        except (ValueError, RuntimeError) as error:  # what zarr's checksums and numcodecs raise
            raise StrataError(
                f"{self.store_path} cannot be read: its bytes are damaged ({error}). strata verify names the file; "
                "strata repair removes the part, and strata extract does it again"
            ) from error


def read_array_metadata(location: Location, folder: str, path: str) -> ArrayMetadata:
    """Read and check the description of one array.

    Parameters
    ----------
    location, folder, path
        The store, the Zarr folder in it, the array in that.

    Raises
    ------
    StrataError
        When it is missing, or not one that this format has.
    """
    name = f"{folder}/{path}/zarr.json"
    origin = f"{location.url}/{name}"
    return check_array_metadata(parse_json(location.read(name, METADATA_BYTES), origin), origin)


def open_checked_array(location: Location, folder: str, path: str, expected: StoredLayout | None) -> zarr.Array:
    """Open one array for reading.

    Parameters
    ----------
    location, folder, path
        The store, the Zarr folder in it, the array in that.
    expected
        What the part's manifest says of it; None for an array of the model's tables, of which no manifest tells.

    Raises
    ------
    StrataError
        When its description is not one that this format has or not what the manifest says, or its files are links,
        missing, or longer than its values can make them.
    """
    found = read_array_metadata(location, folder, path)
    if expected not in (None, found.layout):
        raise StrataError(
            f"{location.url}/{folder}/{path} is {_describe(found.layout)}, its manifest says {_describe(expected)}: "
            "the store is damaged, see strata verify --deep"
        )
    _check_files(location, f"{folder}/{path}", found)
    return _build(location, folder, path, found)


def _describe(layout: StoredLayout) -> str:
    lengths = zip(layout.dims, layout.shape, strict=False)
    return f"{layout.dtype} ({', '.join(f'{dim} {length}' for dim, length in lengths)}) in blocks of {layout.block}"


def _check_files(location: Location, folder: str, found: ArrayMetadata) -> None:
    most = most_encoded(found.layout.block, found.inner, STORED_DTYPES[found.dtype])
    sizes = location.sizes(folder)
    for name, size in sizes.items():
        if size is None or (size > most and name != "zarr.json"):
            what = "is a link or no file" if size is None else f"has {size:,} bytes, {most:,} are the most"
            raise StrataError(
                f"{location.url}/{folder}/{name} {what}: the store is damaged or was made to do harm, see strata verify"
            )
    blocks = [-(-length // step) for length, step in zip(found.shape, found.layout.block, strict=True)]
    for place in np.ndindex(*blocks):
        name = f"c/{'/'.join(map(str, place))}"
        if not sizes.get(name):  # zarr would read it as NaN
            raise StrataError(
                f"{location.url}/{folder}/{name} is not there or empty: the store is damaged. strata verify names "
                "every such file; strata repair removes the part, and strata extract does it again"
            )


def _build(location: Location, folder: str, path: str, found: ArrayMetadata) -> zarr.Array:
    dtype = np.dtype(found.dtype)
    inner: tuple[BytesCodec | BytesBytesCodec, ...] = (
        BytesCodec(endian="little"),
        _BoundedBlosc(typesize=dtype.itemsize, cname="zstd", shuffle="shuffle"),
        Crc32cCodec(),
    )
    sharded = ShardingCodec(
        chunk_shape=found.inner,
        codecs=inner,
        index_codecs=(BytesCodec(endian="little"), Crc32cCodec()),
        index_location="end",
    )
    metadata = ArrayV3Metadata(
        shape=found.shape,
        data_type=get_data_type_from_native_dtype(dtype),
        chunk_grid={"name": "regular", "configuration": {"chunk_shape": found.layout.block}},
        chunk_key_encoding=DefaultChunkKeyEncoding(separator="/"),
        fill_value=fill_value(found.dtype),
        codecs=inner if found.shard is None else (sharded,),
        attributes=found.attributes,
        dimension_names=found.dims,
    )
    return _NamedArray(AsyncArray(metadata, StorePath(location.zarr_store(folder), path)))
