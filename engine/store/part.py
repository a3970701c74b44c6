"""One committed part, opened for reading."""

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import xarray as xr
import zarr

from engine.errors import StrataError
from engine.store.array_metadata import StoredLayout
from engine.store.layout import PARTS_FOLDER
from engine.store.lazy import StoredArray, plan_reading
from engine.store.limits import RECORD_BYTES
from engine.store.location import Location
from engine.store.manifest import has_true_sha256, parse_json
from engine.store.manifest_check import check_manifest
from engine.store.schemas import PART_SAMPLES_SCHEMA, THUMBNAIL_SAMPLES_SCHEMA
from engine.store.tables import StoredTable, open_table
from engine.store.versions import refuse_newer

__all__ = ["Part", "open_part", "parse_manifest"]


class Part:
    """A part: its manifest at once, everything else when asked.

    Parameters
    ----------
    location
        The store that holds it.
    name
        Eight digits.
    manifest
        The part's manifest.
    """

    def __init__(self, location: Location, name: str, manifest: dict[str, Any]) -> None:
        self.location = location
        self.name = name
        self.manifest = manifest

    def __repr__(self) -> str:
        return f"<Part {self.name} of {self.location.url}: {self.manifest['samples']} samples, {self.tokens} tokens>"

    @property
    def url(self) -> str:
        """Address of the store that holds the part."""
        return self.location.url

    @property
    def number(self) -> int:
        """The part's number in the plan."""
        return int(self.manifest["part"])

    @property
    def tokens(self) -> int:
        """Length of the part's token axis."""
        return int(self.manifest["tokens"])

    @property
    def keys(self) -> int:
        """Length of the part's key axis; 0 where no attention is kept."""
        return int(self.manifest.get("keys", 0))

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per sample, columns of ``PART_SAMPLES_SCHEMA``; segments count on this part's token axis."""
        return self.sample_table().to_pandas()

    def sample_table(self) -> pa.Table:
        """Read `samples` in Arrow's form, which is joined and converted faster; it is not kept."""
        with self.table() as table:
            # Images would stay in memory with the table, and are read when asked for.
            samples = table.read([name for name in table.columns if name != "thumbnail"])
        if "item_id" not in samples.column_names:  # format 0.1
            samples = samples.add_column(2, "item_id", samples["image_id"])
        for column in ("key_start", "key_stop", "query_positions"):
            if column not in samples.column_names:  # formats 0.1 and 0.2
                field = PART_SAMPLES_SCHEMA.field(column)
                samples = samples.append_column(field, pa.nulls(len(samples), field.type))
        return samples

    def sample_columns(self, *names: str) -> pa.Table:
        """Read some columns of `samples` and nothing else; not kept either."""
        with self.table() as table:
            return table.read(names)

    def thumbnail(self, image_id: str) -> bytes | None:
        """Read the JPEG of an image; None where the part has none."""
        with self.table() as table:
            if "thumbnail" not in table.columns:
                return None
            read = table.read(["image_id", "thumbnail"])
        found = read.filter(pc.equal(read["image_id"], image_id))["thumbnail"].drop_null()
        return bytes(found[0].as_py()) if len(found) else None

    def table(self) -> AbstractContextManager[StoredTable]:
        """Open the part's sample table, to read some of its columns."""
        rows = self.manifest["samples"]
        return open_table(self.location, f"{PARTS_FOLDER}/{self.name}.parquet", THUMBNAIL_SAMPLES_SCHEMA, rows=rows)

    def array(self, path: str) -> zarr.Array:
        """Open one array for reading, by group and name: ``token/hidden_states``.

        Raises
        ------
        StrataError
            When the part has no such array, or it is not what the manifest says.
        """
        return self.stored(path).opened()

    def open(self, axis: str, run: slice | None = None) -> xr.Dataset:
        """Open one axis as a Dataset, Dask-backed with one Dask chunk per shard, or layer or block of 1 MiB or more.

        Parameters
        ----------
        axis
            ``token``, ``key`` or ``sample``.
        run
            Positions ``start:stop`` of the axis; the whole axis when None. Only the chunks that hold them are read.
        """
        names = {path: path.split("/")[1] for path in self.manifest["arrays"] if path.startswith(f"{axis}/")}
        variables = {path: self.variable(path, axis, run) for path in names}
        return xr.Dataset(
            data_vars={names[path]: variables[path] for path in names if not self._is_coordinate(path)},
            coords={names[path]: variables[path] for path in names if self._is_coordinate(path)},
        )

    def coordinates(self, axis: str) -> list[str]:
        """Paths of the coordinates that run along an axis (``token``, ``key`` or ``sample``)."""
        arrays = self.manifest["arrays"]
        return [path for path in arrays if self._is_coordinate(path) and arrays[path]["dims"] == [axis]]

    def variable(self, path: str, axis: str = "", run: slice | None = None) -> xr.Variable:
        """One array, or its ``run`` along ``axis``; a dimension's own coordinate is read, all else stays lazy."""
        entry = self.manifest["arrays"][path]
        array = self.stored(path)
        if run is not None and axis in entry["dims"]:
            array = array.window(entry["dims"].index(axis), run.start, run.stop)
        lazy = path.split("/")[1] not in entry["dims"]
        steps = plan_reading(entry["shape"], array.dtype.itemsize, entry["shard"])
        return xr.Variable(entry["dims"], array.dask(steps) if lazy else array[...], entry["attributes"])

    def stored(self, path: str) -> StoredArray:
        """One array by its address, shape and dtype, without opening it."""
        entry = self.manifest["arrays"].get(path)
        if entry is None:
            raise StrataError(f"part {self.name} of {self.url} holds no {path}: its manifest lists none")
        return StoredArray(
            location=self.location,
            folder=f"{PARTS_FOLDER}/{self.name}.zarr",
            path=path,
            shape=tuple(entry["shape"]),
            dtype=np.dtype(entry["dtype"]),
            version=self.manifest["sha256"],
            expected=StoredLayout.of(entry),
        )

    def _is_coordinate(self, path: str) -> bool:
        return bool(self.manifest["arrays"][path]["coordinate"])


def parse_manifest(content: bytes, origin: str, plan_sha256: str | None = None) -> dict[str, Any]:
    """Read a manifest.

    Parameters
    ----------
    content, origin
        The file's bytes, and what to call it in a message.
    plan_sha256
        The plan that it must belong to, where that is known.

    Raises
    ------
    StrataError
        When it is damaged, was edited, has a newer major format, or is of another plan.
    """
    advice = "strata verify says what else is wrong, strata repair removes it, and strata extract does this part again"
    if not content or not has_true_sha256(content):
        raise StrataError(f"the manifest {origin} is damaged or was edited: {advice}")
    manifest = parse_json(content, origin)
    refuse_newer(manifest.get("format_version"), f"the manifest {origin}")
    wrong = check_manifest(manifest)
    if wrong is not None:
        raise StrataError(f"the manifest {origin} {wrong}: {advice}")
    if plan_sha256 not in (None, manifest["plan_sha256"]):
        raise StrataError(f"the manifest {origin} belongs to another plan than store.json: {advice}")
    return manifest


def open_part(url: str, name: str) -> Part:
    """Open one part by the store's address and the part's name, without looking at the others.

    Raises
    ------
    StrataError
        When the part is not committed.
    """
    location = Location.of(url)
    path = f"{PARTS_FOLDER}/{name}.json"
    return Part(location, name, parse_manifest(location.read(path, RECORD_BYTES), f"{url}/{path}"))
