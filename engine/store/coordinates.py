"""Reading coordinates of a part: arrays of one small chunk, of which a store of many parts has tens of thousands.

Opening an array through zarr takes a millisecond or more, whatever its size. Here the part's metadata, which lies
consolidated in one file, is read once, and each coordinate is decoded from its only chunk. What is encoded in another
way is left to zarr, as any reader would have it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numcodecs import blosc

from engine.errors import StrataError
from engine.store.codecs import CHECKSUM_BYTES, checksum
from engine.store.layout import PARTS_FOLDER
from engine.store.manifest import parse_json
from engine.store.part import Part

__all__ = ["read_coordinates"]

_CODECS = ("bytes", "blosc", "crc32c")
_SEPARATOR = {"name": "default", "configuration": {"separator": "/"}}


def read_coordinates(part: Part, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Read coordinates, whole.

    Parameters
    ----------
    part
        The part.
    paths
        Groups and names, such as ``token/role``.

    Returns
    -------
    dict
        By path, in their order: int32 arrays along one dimension.

    Raises
    ------
    StrataError
        A coordinate's file is missing or damaged.
    """
    folder = f"{PARTS_FOLDER}/{part.name}.zarr"
    root = parse_json(part.location.read(f"{folder}/zarr.json"), f"{part.url}/{folder}/zarr.json")
    nodes = (root.get("consolidated_metadata") or {}).get("metadata", {})
    return {path: _read(part, folder, path, nodes.get(path)) for path in paths}


def _read(part: Part, folder: str, path: str, metadata: Mapping[str, Any] | None) -> np.ndarray:
    entry = part.manifest["arrays"][path]
    if 0 in entry["shape"]:
        return np.zeros(entry["shape"], entry["dtype"])
    if metadata is None or not _is_one_chunk(metadata, entry):
        return part.stored(path)[...]
    name = f"{folder}/{path}/c/0"
    content = part.location.read(name)
    encoded, stored = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    dtype = np.dtype(entry["dtype"]).newbyteorder("<")
    # The second 32-bit number of Blosc's header is the decoded size: nothing is allocated for what is not there.
    decoded = int.from_bytes(encoded[4:8], "little")
    if (
        len(encoded) < blosc.MAX_OVERHEAD
        or checksum(encoded) != stored
        or decoded != entry["shape"][0] * dtype.itemsize
    ):
        raise StrataError(f"{part.url}/{name} is damaged: `strata verify` says what else is; extract the part again")
    values = np.empty(entry["shape"], dtype)
    blosc.decompress(encoded, values)
    return values.astype(entry["dtype"], copy=False)


def _is_one_chunk(metadata: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether an array is what the writer makes of a coordinate: one dimension, one chunk, the usual codecs."""
    codecs = metadata.get("codecs", ())
    return (
        len(entry["shape"]) == 1
        and metadata.get("shape") == entry["shape"]
        and metadata.get("data_type") == entry["dtype"]
        and metadata.get("chunk_key_encoding") == _SEPARATOR
        and metadata.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape") == entry["shape"]
        and tuple(codec["name"] for codec in codecs) == _CODECS
        and codecs[0].get("configuration") == {"endian": "little"}
    )
