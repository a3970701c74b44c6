"""Dask arrays over stored arrays that are opened when the first value is asked for.

A store of ten thousand parts is described by its manifests, so building its arrays touches no part; a task carries an
address, not an open handle, and can be sent to any worker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import EllipsisType

import dask.array as da
import numpy as np
import zarr

from engine.store.location import Location

__all__ = ["StoredArray"]


@lru_cache(maxsize=256)
def _open(location: Location, folder: str, path: str) -> zarr.Array:
    array = location.open_group(folder)[path]
    assert isinstance(array, zarr.Array)
    return array


@dataclass(frozen=True)
class StoredArray:
    """A stored array by its address.

    Attributes
    ----------
    location, folder, path
        The store, the Zarr folder in it, the array in that.
    shape, dtype
        As the manifest states them.
    version
        Text that changes when the bytes do (the manifest's sha256), so that Dask's keys and the cache do too.
    """

    location: Location
    folder: str
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    version: str

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __getitem__(self, selection: tuple[slice, ...] | EllipsisType) -> np.ndarray:
        """Read a selection."""
        return np.asarray(_open(self.location, self.folder, self.path)[selection])

    def dask(self, chunks: Sequence[int]) -> da.Array:
        """Make a Dask array with these chunk lengths, clipped to the array."""
        clipped = tuple(min(step, max(length, 1)) for step, length in zip(chunks, self.shape, strict=True))
        name = "-".join(["strata", self.path.replace("/", "-"), da.core.tokenize(self)])
        return da.from_array(self, chunks=clipped, name=name, lock=False, asarray=False, meta=np.empty((), self.dtype))
