"""Changing a store and its records with it, as a bug or an attacker would: every hash is true afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from engine.store.consolidate import consolidate
from engine.store.manifest import hash_file, seal_json

__all__ = ["change_array", "change_json", "change_record", "change_table", "reseal"]


def change_record(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest or ``store.json`` in place and seal it again."""
    record = json.loads(path.read_bytes())
    record.pop("sha256")
    change(record)
    path.write_bytes(seal_json(record))


def reseal(store: Path) -> None:
    """List in every record the files that there are, with their true sizes and hashes."""
    for manifest in (store / "parts").glob("*.json"):
        own = [manifest.with_suffix(".parquet"), *sorted(manifest.with_suffix(".zarr").rglob("*"))]
        hashes = {path.relative_to(store / "parts").as_posix(): hash_file(path) for path in own if path.is_file()}
        change_record(manifest, lambda record, hashes=hashes: record.update(files=hashes))  # type: ignore[misc]
    common = [store / "plan.parquet", store / "vocab.parquet", *sorted((store / "model.zarr").rglob("*"))]
    hashes = {path.relative_to(store).as_posix(): hash_file(path) for path in common if path.is_file()}
    change_record(store / "store.json", lambda record: record.update(files=hashes))


def change_array(
    store: Path, path: str, change: Callable[[np.ndarray], object], folder: str = "parts/00000000.zarr"
) -> None:
    """Let ``change`` edit an array's values in place, encode them as they were, and seal the store again."""
    array = zarr.open_array(store / folder / path, mode="r+")
    values = np.asarray(array[...])
    change(values)
    array[...] = values
    reseal(store)


def change_json(store: Path, path: str, change: Callable[[dict[str, Any]], object], *, copy: bool = True) -> None:
    """Let ``change`` edit a ``zarr.json`` of part 0, with the root's copy of it, and seal the store again."""
    root = store / "parts/00000000.zarr"
    node = json.loads((root / path / "zarr.json").read_bytes())
    change(node)
    (root / path / "zarr.json").write_text(json.dumps(node))
    if copy:
        consolidate(root)
    reseal(store)


def change_table(store: Path, name: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Let ``change`` edit the rows of a Parquet table, and seal the store again."""
    table = pq.read_table(store / name)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), store / name, compression="zstd")
    reseal(store)
