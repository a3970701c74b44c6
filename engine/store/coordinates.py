"""Reading coordinates of a part: arrays of one small chunk, of which a store of many parts has tens of thousands.

Opening an array through zarr takes a millisecond or more, whatever its size. Here the part's metadata, which lies
consolidated in one file, is read once, and each coordinate is decoded from its only chunk. What is cut in another way
is left to zarr. Both go by the same checks: nothing is allocated because a file says so.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numcodecs import blosc

from engine.errors import StrataError
from engine.store.array_metadata import StoredLayout, check_array_metadata
from engine.store.codecs import CHECKSUM_BYTES, checksum, states_sizes
from engine.store.layout import PARTS_FOLDER
from engine.store.limits import RECORD_BYTES, STORED_DTYPES, most_encoded
from engine.store.manifest import parse_json
from engine.store.part import Part

__all__ = ["read_coordinates"]


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
        A coordinate's file is missing or damaged, or not what the manifest says.
    """
    folder = f"{PARTS_FOLDER}/{part.name}.zarr"
    root = parse_json(part.location.read(f"{folder}/zarr.json", RECORD_BYTES), f"{part.url}/{folder}/zarr.json")
    consolidated = root.get("consolidated_metadata")
    nodes = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    nodes = nodes if isinstance(nodes, dict) else {}
    return {path: _read(part, folder, path, nodes.get(path)) for path in paths}


def _read(part: Part, folder: str, path: str, node: object) -> np.ndarray:
    expected = StoredLayout.of(part.manifest["arrays"][path])
    if 0 in expected.shape:
        return np.zeros(expected.shape, expected.dtype)
    if not isinstance(node, Mapping) or not _is_one_chunk(node, expected, f"{part.url}/{folder}/{path}"):
        return part.stored(path)[...]
    name = f"{folder}/{path}/c/0"
    itemsize = STORED_DTYPES[expected.dtype]
    content = part.location.read(name, most_encoded(expected.shape, expected.block, itemsize))
    encoded, stored = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if checksum(encoded) != stored or not states_sizes(encoded, math.prod(expected.shape) * itemsize):
        raise StrataError(f"{part.url}/{name} is damaged: `strata verify` says what else is; extract the part again")
    values = np.empty(expected.shape, np.dtype(expected.dtype).newbyteorder("<"))
    blosc.decompress(encoded, values)
    return values.astype(expected.dtype, copy=False)


def _is_one_chunk(node: Mapping[str, Any], expected: StoredLayout, origin: str) -> bool:
    """Whether an array is what the manifest says, with one dimension and one chunk, as the writer makes coordinates."""
    found = check_array_metadata(node, origin)
    return found.layout == expected and len(found.shape) == 1 and found.shard is None and found.inner == found.shape
