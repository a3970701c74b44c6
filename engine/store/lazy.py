"""Dask arrays over stored arrays that are opened when the first value is asked for.

A store of ten thousand parts is described by its manifests, so building its arrays touches no part; a task carries an
address, not an open handle, and can be sent to any worker.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import EllipsisType
from typing import Any

import dask.array as da
import numpy as np
import zarr

from engine.store.array_metadata import StoredLayout
from engine.store.box import fill_box, read_box
from engine.store.checked_array import open_checked_array
from engine.store.location import Location

__all__ = ["READ_BYTES", "StoredArray", "plan_reading"]

READ_BYTES = 2**20
"""Of one layer or block that is worth a task of its own."""


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
    expected
        What the array's own description must say; None where no manifest tells.
    origin
        Where a window into the array begins, per dimension; None for the array itself.
    """

    location: Location
    folder: str
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    version: str
    expected: StoredLayout | None = None
    origin: tuple[int, ...] | None = None

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def window(self, axis: int, start: int, stop: int) -> "StoredArray":
        """Narrow to ``start:stop`` along an axis, so that no chunk beside it is decoded (Dask slices after reading)."""
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        return replace(self, shape=shape, origin=(*(0,) * axis, start, *(0,) * (self.ndim - axis - 1)))

    def opened(self) -> zarr.Array:
        """Open the whole array, for a reader who keeps it while it is needed.

        Raises
        ------
        StrataError
            When it is not what the manifest says, or what no strata writes.
        """
        return open_checked_array(self.location, self.folder, self.path, self.expected)

    def __getitem__(self, selection: tuple[Any, ...] | EllipsisType) -> np.ndarray:
        """Read a selection of one index per dimension, or everything.

        Raises
        ------
        StrataError
            When a file is missing or damaged: a hole never reads as a value.
        """
        array = _open(self.location, self.folder, self.path, self.version, self.expected)
        indices = (slice(None),) * self.ndim if isinstance(selection, EllipsisType) else selection
        runs = [_run(index, length) for index, length in zip(indices, self.shape, strict=True)]
        origin = self.origin or (0,) * self.ndim
        if array.shards is not None and self.location.is_local and None not in runs:
            starts = [run.start + start for run, start in zip(runs, origin, strict=True) if run is not None]
            stops = [run.stop + start for run, start in zip(runs, origin, strict=True) if run is not None]
            box = read_box(self.location, f"{self.folder}/{self.path}", array, starts, stops)
            return box[tuple(slice(None) if isinstance(index, slice) else 0 for index in indices)]
        moved = zip(indices, origin, self.shape, strict=True)
        return np.asarray(array[tuple(_move(index, start, length) for index, start, length in moved)])

    def fill(self, starts: Sequence[int], values: np.ndarray) -> None:
        """Read a box into memory that is there already.

        Parameters
        ----------
        starts
            Where it begins, along each axis.
        values
            As large as the box, of the array's dtype; overwritten.

        Raises
        ------
        StrataError
            When a file is missing or damaged.
        """
        array = _open(self.location, self.folder, self.path, self.version, self.expected)
        places = [start + first for start, first in zip(starts, self.origin or (0,) * self.ndim, strict=True)]
        if array.shards is not None and self.location.is_local:
            fill_box(self.location, f"{self.folder}/{self.path}", array, places, values)
        else:
            lengths = zip(places, values.shape, strict=True)
            values[...] = array[tuple(slice(start, start + length) for start, length in lengths)]

    def dask(self, chunks: Sequence[int]) -> da.Array:
        """Make a Dask array with these chunk lengths, clipped to the array."""
        clipped = tuple(min(step, max(length, 1)) for step, length in zip(chunks, self.shape, strict=True))
        # Dask's own token takes longer than all else here.
        token = hashlib.sha256(repr(self).encode()).hexdigest()[:32]
        name = "-".join(["strata", self.path.replace("/", "-"), token])
        return da.from_array(self, clipped, name=name, inline_array=True, meta=np.empty((), self.dtype))


def plan_reading(shape: Sequence[int], itemsize: int, shard: Sequence[int]) -> tuple[int, ...]:
    """Lengths of what one task reads of an array: one file, or one index of it where that is worth a task.

    A file of many layers or blocks holds the chunks of each together, so one of them is read without the others.

    Parameters
    ----------
    shape, shard
        Length of each dimension, of the array and of one data file.
    itemsize
        Bytes per value.
    """
    several = shard[0] > 1 and math.prod(shape[1:]) * itemsize >= READ_BYTES
    return (1, *shard[1:]) if several else tuple(shard)


@lru_cache(maxsize=256)
def _open(location: Location, folder: str, path: str, _version: str, expected: StoredLayout | None) -> zarr.Array:
    """Open an array once per process; the version is only there to tell a rewritten store apart."""
    return open_checked_array(location, folder, path, expected)


def _run(index: Any, length: int) -> range | None:
    """Say what an index selects of so many values, where these follow each other; None where not."""
    if isinstance(index, slice):
        selected = range(*index.indices(length))
        return selected if selected.step == 1 else None
    if isinstance(index, int | np.integer):
        place = range(length)[index]
        return range(place, place + 1)
    return None


def _move(index: Any, start: int, length: int) -> Any:
    """Turn an index into a window, or several, into one of the whole array."""
    if isinstance(index, slice):
        first, last, step = index.indices(length)
        return slice(start + first, start + last, step)
    places = np.asarray(index)
    moved = start + np.arange(length)[places if places.size else places.astype(np.intp)]
    return moved if places.ndim else int(moved)
