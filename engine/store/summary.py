"""What is inside a store, in numbers, from its record and manifests alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.store.layout import PART_DIMS
from engine.store.part import Part
from engine.store.reader import Store

__all__ = ["ArraySummary", "StoreSummary", "summarise"]

_CAPTURED_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "int32": 4}


@dataclass(frozen=True)
class ArraySummary:
    """One array over all parts.

    Attributes
    ----------
    path, dims, shape
        Group and name, dimension names, lengths (summed over parts along the parts' axis).
    kept
        How much of each dimension is kept; ``shape`` where everything is.
    layers, blocks, roles
        Layers, blocks and roles that are kept, where these are fewer than those of the axes; else None.
    dtype, captured_dtype
        As stored, and as the model held it.
    files
        Data and metadata files.
    stored_bytes, raw_bytes
        Bytes on disk, and bytes of the kept values in ``captured_dtype``.
    """

    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    kept: tuple[int, ...]
    layers: tuple[int, ...] | None
    blocks: tuple[int, ...] | None
    roles: tuple[str, ...] | None
    dtype: str
    captured_dtype: str
    files: int
    stored_bytes: int
    raw_bytes: int

    @property
    def ratio(self) -> float:
        """Stored bytes per raw byte; NaN for an empty array."""
        return self.stored_bytes / self.raw_bytes if self.raw_bytes else float("nan")


@dataclass(frozen=True)
class StoreSummary:
    """A store in numbers; ``bad_samples`` are {sample_id, reason}, bytes are those of all listed files."""

    url: str
    record: dict[str, Any]
    planned_parts: int
    committed_parts: int
    planned_samples: int
    samples: int
    tokens: int
    bad_samples: tuple[dict[str, str], ...]
    seconds: float
    stored_bytes: int
    arrays: tuple[ArraySummary, ...]


def summarise(store: Store) -> StoreSummary:
    """Summarise an opened store; reads the plan, and no part.

    Parameters
    ----------
    store
        As from ``open_store``; of several stores the first one's record is given.
    """
    manifests = [part.manifest for part in store.parts]
    paths = dict.fromkeys(path for manifest in manifests for path in manifest["arrays"])
    listed = [entry for manifest in manifests for entry in manifest["files"].values()]
    return StoreSummary(
        url=store.url,
        record=store.record,
        planned_parts=len(store.plan[["store", "part"]].drop_duplicates()),
        committed_parts=len(store.parts),
        planned_samples=len(store.plan),
        samples=sum(manifest["samples"] for manifest in manifests),
        tokens=sum(manifest["tokens"] for manifest in manifests),
        bad_samples=tuple(bad for manifest in manifests for bad in manifest["bad_samples"]),
        seconds=sum(manifest["seconds"] for manifest in manifests),
        stored_bytes=sum(entry["bytes"] for entry in [*listed, *store.record["files"].values()]),
        arrays=tuple(_summarise_array(path, store.parts) for path in paths),
    )


def _summarise_array(path: str, parts: tuple[Part, ...]) -> ArraySummary:
    entries = [part.manifest["arrays"][path] for part in parts if path in part.manifest["arrays"]]
    dims = tuple(entries[0]["dims"])
    shape = _joined(dims, [entry["shape"] for entry in entries])
    kept = _joined(dims, [entry.get("kept", entry["shape"]) for entry in entries])
    dtype, attributes = entries[0]["dtype"], entries[0]["attributes"]
    captured = attributes.get("captured_dtype", dtype)
    fewer = {name: tuple(attributes[name]) if name in attributes else None for name in ("layers", "blocks", "roles")}
    prefixes = [f"{part.name}.zarr/{path}/" for part in parts]
    files = [
        entry
        for part, prefix in zip(parts, prefixes, strict=True)
        for name, entry in part.manifest["files"].items()
        if name.startswith(prefix)
    ]
    return ArraySummary(
        path=path,
        dims=dims,
        shape=shape,
        kept=kept,
        **fewer,
        dtype=dtype,
        captured_dtype=captured,
        files=len(files),
        stored_bytes=sum(entry["bytes"] for entry in files),
        raw_bytes=math.prod(kept) * _CAPTURED_BYTES[captured],
    )


def _joined(dims: tuple[str, ...], shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Lengths of one array over all parts: summed along the parts' axis."""
    return tuple(
        sum(shape[axis] for shape in shapes) if dim in PART_DIMS else shapes[0][axis] for axis, dim in enumerate(dims)
    )
