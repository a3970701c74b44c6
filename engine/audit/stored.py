"""One sample as it lies in a part: its own positions of every array, in order."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from engine.store import Part

__all__ = ["StoredSample"]


class StoredSample:
    """Reads what a part holds of one sample, one leading index at a time.

    Parameters
    ----------
    part
        The part.
    row
        Number of the sample in the part's table.
    """

    def __init__(self, part: Part, row: int) -> None:
        self._part = part
        self.values: Mapping[str, Any] = part.samples.iloc[row].to_dict()
        self._runs = {
            "token": [(int(run["start"]), int(run["stop"])) for run in self.values["segments"]],
            "sample": [(row, row + 1)],
        }
        if not pd.isna(self.values.get("key_start")):  # absent before format 0.3
            self._runs["key"] = [(int(self.values["key_start"]), int(self.values["key_stop"]))]

    @property
    def format_version(self) -> tuple[int, ...]:
        """Major and minor version of the part's format."""
        return tuple(map(int, str(self._part.manifest["format_version"]).split(".")))

    @property
    def arrays(self) -> Mapping[str, Mapping[str, Any]]:
        """The manifest's entry of every array of the part, by path."""
        entries: Mapping[str, Mapping[str, Any]] = self._part.manifest["arrays"]
        return entries

    @property
    def places(self) -> np.ndarray:
        """(token,) int64: where the sample's stored tokens lie on the part's token axis."""
        return np.concatenate([np.arange(*run) for run in [(0, 0), *self._runs["token"]]])

    def slab(self, path: str, index: int) -> np.ndarray:
        """Read a data array at one leading index, as stored; the part's axis holds the sample alone."""
        dims = self.arrays[path]["dims"]
        axis = dims.index(path.split("/", maxsplit=1)[0])
        others = (slice(None),) * (len(dims) - 1)
        return self._joined(path, axis, (index, *others))

    def coordinate(self, path: str) -> np.ndarray:
        """Read an array of one dimension: along the part's axis the sample's own entries, else all."""
        (dim,) = self.arrays[path]["dims"]
        if dim != path.split("/", maxsplit=1)[0]:
            return self._part.stored(path)[...]
        return self._joined(path, 0, (slice(None),))

    def _joined(self, path: str, axis: int, selection: tuple[Any, ...]) -> np.ndarray:
        array = self._part.stored(path)
        runs = self._runs[path.split("/", maxsplit=1)[0]] or [(0, 0)]
        pieces = [array.window(axis, start, stop)[selection] for start, stop in runs]
        return np.concatenate(pieces, axis=axis - 1 if axis else 0)
