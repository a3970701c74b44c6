"""A second reader of stores, written from FORMAT.md alone: no strata, no Zarr library.

It takes files, JSON, Parquet, SHA-256, CRC-32C and Blosc, and puts Zarr's chunks together by hand: what this module
cannot read of a store, FORMAT.md does not say.
"""

import hashlib
import json
import math
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
from numcodecs import blosc

ENTRY_BYTES, CHECKSUM_BYTES = 16, 4


class PlainArray(NamedTuple):
    """An array: names of its dimensions, values, attributes."""

    dims: tuple[str, ...]
    values: np.ndarray
    attributes: dict[str, Any]


class PlainStore:
    """A store whose every listed byte is as it was written.

    Parameters
    ----------
    folder
        The store.

    Attributes
    ----------
    record
        ``store.json``.
    manifests
        By name of the part.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = read_record(folder / "store.json")
        self.manifests = {path.stem: read_record(path) for path in sorted((folder / "parts").glob("*.json"))}
        check_files(folder, self.record["files"])
        for manifest in self.manifests.values():
            if manifest["plan_sha256"] != self.record["plan_sha256"]:
                raise ValueError("a part of another plan")
            check_files(folder / "parts", manifest["files"])

    def table(self, name: str) -> list[dict[str, Any]]:
        """Rows of a Parquet table."""
        rows: list[dict[str, Any]] = pq.ParquetFile(self.folder / name).read().to_pylist()
        return rows

    def samples(self, part: str) -> list[dict[str, Any]]:
        """Sample table of a part."""
        return self.table(f"parts/{part}.parquet")

    def model(self) -> tuple[dict[str, Any], dict[str, PlainArray]]:
        """Attributes and arrays of ``model.zarr``."""
        folder = self.folder / "model.zarr"
        names = [path.parent.name for path in folder.glob("*/zarr.json")]
        return json.loads((folder / "zarr.json").read_bytes())["attributes"], {n: read_array(folder / n) for n in names}

    def array(self, part: str, path: str) -> PlainArray:
        """One array of a part, as group and name; it must be what the manifest says."""
        array = read_array(self.folder / "parts" / f"{part}.zarr" / path)
        entry = self.manifests[part]["arrays"][path]
        found = (list(array.dims), list(array.values.shape), array.values.dtype.name, array.attributes)
        if found != (entry["dims"], entry["shape"], entry["dtype"], entry["attributes"]):
            raise ValueError(f"{path} is not what its manifest says")
        return array

    def coordinates(self, part: str, group: str) -> dict[str, PlainArray]:
        """Coordinates of a group, as it names them."""
        node = json.loads((self.folder / "parts" / f"{part}.zarr" / group / "zarr.json").read_bytes())
        return {name: self.array(part, f"{group}/{name}") for name in node["attributes"]["coordinates"].split(" ")}


def read_record(path: Path) -> dict[str, Any]:
    """Read ``store.json`` or a manifest whose own checksum is right, and whose major version is known."""
    content = path.read_bytes()
    record: dict[str, Any] = json.loads(content)
    seal = f',\n  "sha256": "{record["sha256"]}"'.encode()
    if not content.endswith(seal + b"\n}\n"):
        raise ValueError(f"{path.name} does not end in its checksum")
    if hashlib.sha256(content.removesuffix(seal + b"\n}\n") + b"\n}\n").hexdigest() != record["sha256"]:
        raise ValueError(f"{path.name} has another checksum")
    if int(record["format_version"].split(".")[0]) > 1:
        raise ValueError(f"{path.name} is of a later format")
    return record


def plan_sha256(record: dict[str, Any]) -> str:
    """Make the identity of the plan again."""
    fields = ("model", "source", "prompts", "capture", "limit", "seed", "images_per_part")
    chosen = {name: record[name] for name in fields}
    text = json.dumps(chosen, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return hashlib.sha256(text.encode()).hexdigest()


def check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Compare files with their size and hash."""
    for name, entry in files.items():
        content = (folder / name).read_bytes()
        if (len(content), hashlib.sha256(content).hexdigest()) != (entry["bytes"], entry["sha256"]):
            raise ValueError(f"{name} is not as it was written")


def read_array(folder: Path) -> PlainArray:
    """Read a whole Zarr v3 array."""
    node = json.loads((folder / "zarr.json").read_bytes())
    shape, step = node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(node["data_type"]).newbyteorder("<")
    values = np.full(shape, np.nan if node["fill_value"] == "NaN" else node["fill_value"], dtype)
    (first, *_) = node["codecs"]
    for place in product(*(range(-(-length // by)) for length, by in zip(shape, step, strict=True))):
        content = folder.joinpath("c", *map(str, place)).read_bytes()
        corner = [at * by for at, by in zip(place, step, strict=True)]
        if first["name"] == "sharding_indexed":
            for inner, chunk in shard_chunks(content, step, first["configuration"]["chunk_shape"]):
                at = [start + offset for start, offset in zip(corner, inner, strict=True)]
                put(values, at, first["configuration"]["chunk_shape"], chunk)
        else:
            put(values, corner, step, content)
    return PlainArray(tuple(node["dimension_names"]), values.astype(node["data_type"]), node["attributes"])


def shard_chunks(content: bytes, shard: list[int], chunk: list[int]) -> list[tuple[list[int], bytes]]:
    """Cut a shard by the index at its end into (corner within the shard, encoded chunk), in C order."""
    grid = [length // step for length, step in zip(shard, chunk, strict=True)]
    size = math.prod(grid) * ENTRY_BYTES + CHECKSUM_BYTES
    index = np.frombuffer(without_checksum(content[-size:]), "<u8").reshape(-1, 2).tolist()
    places = product(*map(range, grid))
    corners = ([at * step for at, step in zip(place, chunk, strict=True)] for place in places)
    return [(corner, content[start : start + length]) for corner, (start, length) in zip(corners, index, strict=True)]


def put(values: np.ndarray, corner: list[int], chunk: list[int], encoded: bytes) -> None:
    """Decode a chunk and put what of it lies within the array into its place."""
    decoded = np.frombuffer(blosc.decompress(without_checksum(encoded)), values.dtype).reshape(chunk)
    room = [min(step, length - at) for at, step, length in zip(corner, chunk, values.shape, strict=True)]
    if min(room) > 0:
        target = tuple(slice(at, at + length) for at, length in zip(corner, room, strict=True))
        values[target] = decoded[tuple(map(slice, room))]


def without_checksum(content: bytes) -> bytes:
    """Take the CRC-32C (Castagnoli) off the end, which must be that of what comes before it."""
    body, stated = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if int(google_crc32c.value(body)).to_bytes(CHECKSUM_BYTES, "little") != stated:
        raise ValueError("a chunk has another checksum")
    return body
