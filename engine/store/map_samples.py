"""A function of the user's own over every sample: one Dask task per part, samples in memory one at a time.

A task holds one window (the tokens or keys of one image, or of one chunk where that is longer) of the chosen arrays,
one sample copied out of it, and what the function makes.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import dask
import numpy as np
import pandas as pd
import xarray as xr

from engine.errors import StrataError, UsageError
from engine.store.joined import key_coordinates
from engine.store.layout import KEY_COORDINATES, ArrayShape
from engine.store.part import Part, open_part
from engine.store.sample_windows import SampleWindow, plan_windows
from engine.vocabulary import ROLE_CODES, ROLES

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
        Names of data arrays of the token and key axes.
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
    known = _paths(parts[0]) if parts else {}
    for name in arrays:
        if name not in known:
            raise UsageError(
                f"the store holds no array {name!r} of tokens or keys: arrays may name "
                f"{', '.join(known) or 'none here'}; with arrays=() the function gets coordinates alone"
            )


def _paths(part: Part) -> dict[str, str]:
    """Name the data arrays of the token and key axes; value: path."""
    entries = part.manifest["arrays"].items()
    paths = [path for path, entry in entries if not entry["coordinate"] and _axis(path) in ("token", "key")]
    return {path.split("/")[1]: path for path in paths}


def _axis(path: str) -> str:
    return path.split("/", maxsplit=1)[0]


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
        paths = _paths(part)
        self._paths = {name: paths[name] for name in task.arrays}
        self._has_keys = any(_axis(path) == "key" for path in self._paths.values())
        self._roles = self._kept_roles()
        self._blocks = self._kept_blocks()
        self._coordinates = self._read_coordinates()

    def results(self) -> list[dict[str, Any]]:
        images = [row["image_id"] for row in self._rows]
        results: list[dict[str, Any]] = [{}] * len(images)
        for window in plan_windows(images, self._segments, _chunk_tokens(self._part, self._paths.values())):
            for row, result in zip(window.rows, self._of_window(window), strict=True):
                results[row] = result
        return results

    def _of_window(self, window: SampleWindow) -> list[dict[str, Any]]:
        """Read a window and call the function; the window is gone before the next one is read."""
        spans = {"token": slice(window.start, window.stop), "key": self._key_span(window.rows)}
        arrays = {
            name: _read(self._part, path, spans[_axis(path)], self._leading(path)) for name, path in self._paths.items()
        }
        results = []
        for row in window.rows:
            runs = {"token": [slice(*pair) for pair in self._segments[row]], "key": [self._key_span((row,))]}
            inside = {axis: [_moved(run, spans[axis].start) for run in found] for axis, found in runs.items()}
            sample = xr.Dataset(
                {name: _assembled(variable, inside) for name, variable in arrays.items()},
                {name: _assembled(variable, runs) for name, variable in self._coordinates.items()},
                sample_attributes(self._rows[row]),
            )
            if self._has_keys:
                sample = sample.assign_coords(key_coordinates(self._rows[row]))
            if self._roles is not None:
                sample = sample.isel(token=np.isin(sample["role"], self._roles))
            results.append(_call(self._task.function, sample))
        return results

    def _key_span(self, rows: Sequence[int]) -> slice:
        """From the first to the last key of some samples; empty where no array of keys is read."""
        if not self._has_keys:
            return slice(0, 0)
        chosen = [self._rows[row] for row in rows]
        return slice(min(int(row["key_start"]) for row in chosen), max(int(row["key_stop"]) for row in chosen))

    def _kept_roles(self) -> list[int] | None:
        """Codes of the roles of whose tokens any of the arrays holds values; None where of all."""
        entries = self._part.manifest["arrays"]
        said = [entries[path]["attributes"].get("roles") for path in self._paths.values() if _axis(path) == "token"]
        if not said or None in said:
            return None
        return [ROLE_CODES[name] for name in ROLES if any(name in roles for roles in said)]

    def _kept_blocks(self) -> np.ndarray:
        """Blocks of which any of the arrays holds values, ascending int32."""
        entries = self._part.manifest["arrays"]
        paths = [path for path in self._paths.values() if entries[path]["dims"][0] == "block"]
        said = [entries[path]["attributes"].get("blocks", self._blocks_of(path)) for path in paths]
        return np.unique(np.concatenate([np.zeros(0, np.int32), *said])).astype(np.int32)

    def _blocks_of(self, path: str) -> np.ndarray:
        """Blocks of the axis of an array."""
        return self._part.variable(f"{_axis(path)}/block").to_numpy()

    def _leading(self, path: str) -> Sequence[int | None]:
        """Places along an array's leading axis to read, layers or blocks; None for a block that its axis lacks."""
        if self._part.manifest["arrays"][path]["dims"][0] != "block":
            return self._task.layers
        places = {int(block): place for place, block in enumerate(self._blocks_of(path))}
        return [places.get(int(block)) for block in self._blocks]

    def _read_coordinates(self) -> dict[str, xr.Variable]:
        """Coordinates of the token axis, whole, and of the other dimensions that the chosen arrays have."""
        entries = self._part.manifest["arrays"]
        dims = {f"{_axis(path)}/{dim}" for path in self._paths.values() for dim in entries[path]["dims"]}
        named = {path: path.split("/")[1] for path in [*self._part.coordinates("token"), *dims - {"key/token"}]}
        if self._has_keys:
            named |= {f"key/{name}": f"key_{name}" for name in KEY_COORDINATES}
        read = {
            path: (name, self._part.variable(path).compute(scheduler="sync"))
            for path, name in named.items()
            if path in entries
        }
        return {name: self._narrowed(path, variable) for path, (name, variable) in read.items()}

    def _narrowed(self, path: str, variable: xr.Variable) -> xr.Variable:
        """Cut a coordinate to the layers and blocks that the function gets."""
        if path == "token/layer":
            return variable[list(self._task.layers)]
        return xr.Variable(("block",), self._blocks, variable.attrs) if path.endswith("/block") else variable


def _chunk_tokens(part: Part, paths: Iterable[str]) -> int:
    """Tokens of the shortest chunk among some arrays; of the whole part without any. Keys count as tokens' share."""
    lengths = [part.tokens]
    for path in paths:
        entry = part.manifest["arrays"][path]
        layout = ArrayShape(path, tuple(entry["dims"]), tuple(entry["shape"]), entry["dtype"])
        inner = layout.chunk_plan.inner[layout.dims.index(_axis(path))]
        lengths.append(inner if _axis(path) == "token" else inner * part.tokens // max(part.keys, 1))
    return min(lengths)


def _moved(run: slice, start: int) -> slice:
    return slice(run.start - start, run.stop - start)


def _read(part: Part, path: str, span: slice, leading: Sequence[int | None]) -> xr.Variable:
    """One array's window in memory, at places of its leading axis (NaN where there is none).

    Layer by layer, or block by block, so that no more than one is decoded beside the result.
    """
    entry = part.manifest["arrays"][path]
    dims, attributes = entry["dims"], dict(entry["attributes"])
    stored = part.stored(path).window(dims.index(_axis(path)), span.start, span.stop)
    values = np.empty((len(leading), *stored.shape[1:]), stored.dtype)
    for place, index in enumerate(leading):
        values[place] = np.nan if index is None else stored[(index, *[slice(None)] * (stored.ndim - 1))]
    if None in leading:
        attributes["blocks"] = part.variable(f"{_axis(path)}/block").to_numpy().tolist()
    return xr.Variable(dims, values, attributes)


def _assembled(variable: xr.Variable, runs: Mapping[str, Sequence[slice]]) -> xr.Variable:
    """Copy the runs of the token or key axis one after the other: the function may do with them what it likes."""
    along = next((dim for dim in runs if dim in variable.dims), None)
    if along is None:
        return variable.copy()
    axis = variable.dims.index(along)
    pieces = [variable.values[(slice(None),) * axis + (run,)] for run in runs[along] or [slice(0, 0)]]
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
