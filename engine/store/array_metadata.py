"""What an array's ``zarr.json`` may say.

Names in it are compared, never looked up: no codec, data type or plug-in is found, imported or built because a store
names it.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.errors import StrataError
from engine.store.limits import CHUNK_BYTES, COORDINATE_BYTES, STORED_DTYPES, is_shape

__all__ = ["ArrayMetadata", "StoredLayout", "check_array_metadata", "check_group_metadata"]

_CHUNK_KEYS = {"name": "default", "configuration": {"separator": "/"}}
_INNER, _INDEX, _SHARDED = ("bytes", "blosc", "crc32c"), ("bytes", "crc32c"), "sharding_indexed"


class StoredLayout(NamedTuple):
    """What manifest and ``zarr.json`` both say of an array: lengths, dtype, dimensions, what one data file holds."""

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    block: tuple[int, ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "StoredLayout":
        """Take it from a manifest's entry."""
        return cls(tuple(entry["shape"]), entry["dtype"], tuple(entry["dims"]), tuple(entry["shard"]))


class ArrayMetadata(NamedTuple):
    """An array as its ``zarr.json`` describes it.

    Attributes
    ----------
    shape, dtype, dims
        Lengths, ``float16``, ``float32`` or ``int32``, names of the dimensions.
    inner, shard
        Lengths of an inner chunk and of a shard; ``shard`` is None where the array is not sharded.
    attributes
        JSON values.
    """

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    inner: tuple[int, ...]
    shard: tuple[int, ...] | None
    attributes: dict[str, Any]

    @property
    def layout(self) -> StoredLayout:
        """What a manifest says of it too; a data file holds a shard, or a chunk where the array is not sharded."""
        return StoredLayout(self.shape, self.dtype, self.dims, self.shard or self.inner)


def check_group_metadata(node: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return a group's attributes.

    Raises
    ------
    StrataError
        When the node is no Zarr v3 group.
    """
    attributes = node.get("attributes", {})
    if node.get("zarr_format") != 3 or node.get("node_type") != "group" or not isinstance(attributes, dict):
        raise StrataError(f"{origin} describes no Zarr v3 group: the store is damaged, see strata verify")
    return attributes


def check_array_metadata(node: Mapping[str, Any], origin: str) -> ArrayMetadata:
    """Take an array's description, where it is one that this format has.

    Parameters
    ----------
    node
        Content of a ``zarr.json``.
    origin
        What to call the file in a message.

    Raises
    ------
    StrataError
        When it has another dtype, codec, layout or fill value, or chunks that are too large for any reader.
    """
    try:
        found = _take(node)
    except _RefusalError as refusal:
        raise StrataError(
            f"{origin} {refusal}: no strata writes such an array. It is damaged or was made to do harm "
            "(strata verify), or is of a later format (upgrade strata)"
        ) from None
    return found


class _RefusalError(Exception):
    """What is wrong with a description."""


def _take(node: Mapping[str, Any]) -> ArrayMetadata:
    shape, dtype, dims = node.get("shape"), node.get("data_type"), node.get("dimension_names")
    if node.get("zarr_format") != 3 or node.get("node_type") != "array":
        raise _RefusalError("describes no Zarr v3 array")
    if not isinstance(dtype, str) or dtype not in STORED_DTYPES:
        raise _RefusalError(f"has the data type {_short(dtype)}, not one of {', '.join(STORED_DTYPES)}")
    if not is_shape(shape) or not isinstance(shape, list):
        raise _RefusalError(f"has the shape {_short(shape)}")
    if not isinstance(dims, list) or len(dims) != len(shape) or not all(isinstance(dim, str) for dim in dims):
        raise _RefusalError(f"names its dimensions {_short(dims)}")
    if node.get("fill_value") != (-1 if dtype == "int32" else "NaN"):
        raise _RefusalError(f"has the fill value {_short(node.get('fill_value'))}")
    if node.get("chunk_key_encoding") != _CHUNK_KEYS or node.get("storage_transformers", []) != []:
        raise _RefusalError("has chunks under other names")
    attributes = node.get("attributes", {})
    if not isinstance(attributes, dict):
        raise _RefusalError("has attributes that are no object")
    outer = _chunk_shape(node.get("chunk_grid"), "regular", len(shape))
    inner, shard = _chunks(node.get("codecs"), outer)
    limit = COORDINATE_BYTES if len(shape) == 1 and shard is None else CHUNK_BYTES
    if math.prod(inner) * STORED_DTYPES[dtype] > limit:
        raise _RefusalError(f"has chunks of {_short(inner)}, more than {limit:,} bytes each")
    return ArrayMetadata(tuple(shape), dtype, tuple(dims), inner, shard, attributes)


def _chunks(codecs: object, outer: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Lengths of inner chunk and shard."""
    if _names(codecs) == _INNER:
        return outer, None
    if _names(codecs) != (_SHARDED,):
        raise _RefusalError(f"has the codecs {_short(_names(codecs))}")
    assert isinstance(codecs, list)
    inner = _chunk_shape(codecs[0], _SHARDED, len(outer))
    settings = codecs[0]["configuration"]
    names = _names(settings.get("codecs")), _names(settings.get("index_codecs"))
    if names != (_INNER, _INDEX) or settings.get("index_location") != "end":
        raise _RefusalError(f"has shards with the codecs {_short(names)}")
    if any(long % step for long, step in zip(outer, inner, strict=True)):
        raise _RefusalError(f"has shards of {_short(outer)}, which are no whole chunks of {_short(inner)}")
    return inner, outer


def _names(codecs: object) -> tuple[object, ...] | None:
    """Names of the codecs of a pipeline, whose bytes are little-endian; None where it is no pipeline."""
    if not isinstance(codecs, list) or not all(isinstance(codec, dict) for codec in codecs):
        return None
    for codec in codecs:
        if codec.get("name") == "bytes" and codec.get("configuration") != {"endian": "little"}:
            return None
    return tuple(codec.get("name") for codec in codecs)


def _chunk_shape(value: object, name: str, dims: int) -> tuple[int, ...]:
    settings = value.get("configuration") if isinstance(value, dict) and value.get("name") == name else None
    shape = settings.get("chunk_shape") if isinstance(settings, dict) else None
    if not is_shape(shape) or not isinstance(shape, list) or len(shape) != dims or 0 in shape:
        raise _RefusalError(f"has chunks of {_short(shape)}")
    return tuple(shape)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
