"""A function of the user's own over every sample: one Dask task per part, samples in memory one at a time.

A task holds one window (the tokens of one image, or of one chunk where that is longer) of the chosen arrays and layers,
one sample copied out of it, and what the function makes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import dask
import numpy as np
import pandas as pd
import xarray as xr

from engine.errors import StrataError, UsageError
from engine.store.layout import ArrayShape
from engine.store.part import Part, open_part
from engine.store.sample_windows import SampleWindow, plan_windows

__all__ = ["SampleFunction", "map_samples", "sample_attributes"]

SampleFunction = Callable[[xr.Dataset], Any]

_KEYS = ("store", "sample_id", "image_id", "prompt_id", "prompt_kind")
_ATTRIBUTES = ("sample_id", "image_id", "item_id", "prompt_id", "prompt_kind", "prompt")


class _Task(NamedTuple):
    """What to do in which part: travels to any worker."""

    url: str
    name: str
    function: SampleFunction
    sample_ids: tuple[str, ...]
    arrays: tuple[str, ...]
    layers: tuple[int, ...]


def map_samples(
    parts: Sequence[Part],
    samples: pd.DataFrame,
    function: SampleFunction,
    *,
    arrays: tuple[str, ...],
    layers: tuple[int, ...],
) -> pd.DataFrame:
    """Call ``function`` on samples; see `Store.map_samples`.

    Parameters
    ----------
    parts
        All that ``samples`` lie in.
    samples
        Rows of `Store.samples`.
    function
        Of one sample.
    arrays
        Names of data arrays of the token axis.
    layers
        Indices along the axis of layers.
    """
    _check_arrays(parts, arrays)
    if not {*_KEYS, "part"} <= set(samples):
        raise UsageError(f"samples lacks columns: give rows of Store.samples, which has {', '.join(_KEYS)} and part")
    names = {(part.url, part.number): part.name for part in parts}
    places = samples.groupby(["store", "part"], sort=False).indices
    for url, number in places:
        if (url, number) not in names:
            raise UsageError(f"samples name part {number} of {url}, which is not open here: give rows of Store.samples")
    tasks = [
        _Task(url, names[url, number], function, tuple(samples["sample_id"].iloc[rows]), arrays, layers)
        for (url, number), rows in places.items()
    ]
    calls = [dask.delayed(functools.partial(_map_part, task), pure=False, traverse=False)() for task in tasks]
    found: list[dict[str, Any]] = [{}] * len(samples)
    for rows, results in zip(places.values(), dask.compute(*calls), strict=True):
        for row, result in zip(rows, results, strict=True):
            found[row] = result
    return pd.concat([samples[list(_KEYS)], pd.DataFrame(found, index=samples.index)], axis=1)


def sample_attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    """Say of a row of the sample table what stands in a sample's attributes."""
    return {key: row[key] for key in _ATTRIBUTES} | {"references": list(row["references"])}


def _check_arrays(parts: Sequence[Part], arrays: Sequence[str]) -> None:
    entries = parts[0].manifest["arrays"] if parts else {}
    known = [path.split("/")[1] for path, entry in entries.items() if path[:6] == "token/" and not entry["coordinate"]]
    for name in arrays:
        if name not in known:
            raise UsageError(
                f"the store holds no array {name!r} of tokens: arrays may name {', '.join(known) or 'none here'}; with "
                "arrays=() the function gets coordinates alone"
            )


def _map_part(task: _Task) -> list[dict[str, Any]]:
    """One result per sample of the task, in order."""
    return _PartSamples(task).results()


class _PartSamples:
    """The samples of one task, window by window."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self._part = part = open_part(task.url, task.name)
        table = part.samples.set_index("sample_id", drop=False)
        for name in task.sample_ids:
            if name not in table.index:
                raise UsageError(f"part {task.name} of {task.url} holds no sample {name!r}: give rows of Store.samples")
        self._rows = table.loc[list(task.sample_ids)].to_dict("records")
        self._segments = [[(run["start"], run["stop"]) for run in row["segments"]] for row in self._rows]
        self._coordinates = self._read_coordinates()

    def results(self) -> list[dict[str, Any]]:
        images = [row["image_id"] for row in self._rows]
        results: list[dict[str, Any]] = [{}] * len(images)
        for window in plan_windows(images, self._segments, _chunk_tokens(self._part, self._task.arrays)):
            for row, result in zip(window.rows, self._of_window(window), strict=True):
                results[row] = result
        return results

    def _of_window(self, window: SampleWindow) -> list[dict[str, Any]]:
        """Read a window and call the function; the window is gone before the next one is read."""
        arrays = {name: _read(self._part, f"token/{name}", window, self._task.layers) for name in self._task.arrays}
        results = []
        for row in window.rows:
            runs = [slice(*pair) for pair in self._segments[row]]
            inside = [slice(run.start - window.start, run.stop - window.start) for run in runs]
            sample = xr.Dataset(
                {name: _assembled(variable, inside) for name, variable in arrays.items()},
                {name: _assembled(variable, runs) for name, variable in self._coordinates.items()},
                sample_attributes(self._rows[row]),
            )
            results.append(_call(self._task.function, sample))
        return results

    def _read_coordinates(self) -> dict[str, xr.Variable]:
        """Coordinates of the token axis, whole, and of the other dimensions that the chosen arrays have."""
        entries = self._part.manifest["arrays"]
        dims = {dim for name in self._task.arrays for dim in entries[f"token/{name}"]["dims"]}
        others = [f"token/{dim}" for dim in dims if f"token/{dim}" in entries]
        read = {
            path: self._part.variable(path).compute(scheduler="sync")
            for path in [*self._part.coordinates("token"), *others]
        }
        layers = list(self._task.layers)
        return {
            path.split("/")[1]: variable[layers] if path == "token/layer" else variable
            for path, variable in read.items()
        }


def _chunk_tokens(part: Part, arrays: Sequence[str]) -> int:
    """Tokens of the shortest chunk among some arrays; of the whole part without any."""
    lengths = [part.tokens]
    for name in arrays:
        entry = part.manifest["arrays"][f"token/{name}"]
        layout = ArrayShape(f"token/{name}", tuple(entry["dims"]), tuple(entry["shape"]), entry["dtype"])
        lengths.append(layout.chunk_plan.inner[layout.dims.index("token")])
    return min(lengths)


def _read(part: Part, path: str, window: SampleWindow, layers: Sequence[int]) -> xr.Variable:
    """One array's window in memory; layer by layer, so that no more than a layer is decoded beside the result."""
    entry = part.manifest["arrays"][path]
    dims = entry["dims"]
    stored = part.stored(path).window(dims.index("token"), window.start, window.stop)
    if dims[0] != "layer":
        return xr.Variable(dims, stored[...], entry["attributes"])
    values = np.empty((len(layers), *stored.shape[1:]), stored.dtype)
    for place, layer in enumerate(layers):
        values[place] = stored[(layer, *[slice(None)] * (stored.ndim - 1))]
    return xr.Variable(dims, values, entry["attributes"])


def _assembled(variable: xr.Variable, runs: Sequence[slice]) -> xr.Variable:
    """Copy the runs of the token axis one after the other: the function may do with them what it likes."""
    if "token" not in variable.dims:
        return variable.copy()
    axis = variable.dims.index("token")
    pieces = [variable.values[(slice(None),) * axis + (run,)] for run in runs or [slice(0, 0)]]
    return xr.Variable(variable.dims, np.concatenate(pieces, axis), variable.attrs)


def _call(function: SampleFunction, sample: xr.Dataset) -> dict[str, Any]:
    name = sample.attrs["sample_id"]
    try:
        found = function(sample)
        columns = dict(found) if isinstance(found, Mapping) else {"value": found}
        tidy = {str(column): _tidy(value) for column, value in columns.items()}
    except Exception as error:
        raise StrataError(f"the function failed on sample {name!r} ({type(error).__name__}: {error})") from error
    taken = [column for column in tidy if column in _KEYS]
    if taken:
        raise UsageError(
            f"the function gives {taken[0]!r} for sample {name!r}, which every row has: choose another name"
        )
    return tidy


def _tidy(value: Any) -> Any:
    """Make a Python scalar of what has no dimension, and a copy of an array: a view would keep its sample alive."""
    if not hasattr(value, "__array__"):
        return value
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else array.copy()
