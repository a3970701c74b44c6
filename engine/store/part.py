"""One committed part, opened for reading."""

from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr

from engine.store.layout import PARTS_FOLDER
from engine.store.lazy import StoredArray
from engine.store.location import Location
from engine.store.manifest import parse_json

__all__ = ["Part", "open_part"]


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

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per sample, columns of ``PART_SAMPLES_SCHEMA``; segments count on this part's token axis."""
        return pd.read_parquet(BytesIO(self.location.read(f"{PARTS_FOLDER}/{self.name}.parquet")))

    def group(self, axis: str) -> zarr.Group:
        """Open the Zarr group of one axis (``token`` or ``sample``) for reading."""
        return self.location.open_group(f"{PARTS_FOLDER}/{self.name}.zarr", axis)

    def open(self, axis: str) -> xr.Dataset:
        """Open one axis as a Dataset, Dask-backed with one Dask chunk per shard."""
        paths = [path for path in self.manifest["arrays"] if path.startswith(f"{axis}/")]
        return xr.Dataset(
            data_vars={path.split("/")[1]: self.variable(path) for path in paths if not self._is_coordinate(path)},
            coords={path.split("/")[1]: self.variable(path) for path in paths if self._is_coordinate(path)},
        )

    def coordinates(self, axis: str) -> list[str]:
        """Paths of the coordinates that run along an axis (``token`` or ``sample``)."""
        arrays = self.manifest["arrays"]
        return [path for path in arrays if self._is_coordinate(path) and arrays[path]["dims"] == [axis]]

    def variable(self, path: str) -> xr.Variable:
        """One array as an xarray Variable; a dimension's own coordinate is read, everything else stays lazy."""
        entry = self.manifest["arrays"][path]
        array = self.stored(path)
        lazy = path.split("/")[1] not in entry["dims"]
        return xr.Variable(entry["dims"], array.dask(entry["shard"]) if lazy else array[...], entry["attributes"])

    def stored(self, path: str) -> StoredArray:
        """One array by its address, shape and dtype, without opening it."""
        entry = self.manifest["arrays"][path]
        return StoredArray(
            location=self.location,
            folder=f"{PARTS_FOLDER}/{self.name}.zarr",
            path=path,
            shape=tuple(entry["shape"]),
            dtype=np.dtype(entry["dtype"]),
            version=self.manifest["sha256"],
        )

    def _is_coordinate(self, path: str) -> bool:
        return bool(self.manifest["arrays"][path]["coordinate"])


def open_part(url: str, name: str) -> Part:
    """Open one part by the store's address and the part's name, without looking at the others.

    Raises
    ------
    StrataError
        When the part is not committed.
    """
    location = Location.of(url)
    path = f"{PARTS_FOLDER}/{name}.json"
    return Part(location, name, parse_json(location.read(path), f"{url}/{path}"))
