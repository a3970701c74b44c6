"""One array over the parts of a store, labelled: Dask-backed values, coordinates in memory.

Keys also get what finds them again: ``token``, their place on the token axis of the joined arrays (-1 where the token
is not stored), ``sample``, the row of ``Store.samples``, and ``position`` in that sample's sequence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from engine.store.coordinates import read_coordinates
from engine.store.each_part import read_each_part
from engine.store.layout import KEY_COORDINATES
from engine.store.part import Part

__all__ = ["join_parts", "key_coordinates", "on_blocks", "open_keys"]

_LENGTHS = {"token": "tokens", "key": "keys", "sample": "samples"}


def join_parts(parts: Sequence[Part], axis: str, name: str) -> xr.DataArray | None:
    """Join an array along its parts' axis.

    Parameters
    ----------
    parts
        All committed parts, in order.
    axis, name
        Group (``token``, ``key`` or ``sample``) and name of the array.

    Returns
    -------
    xr.DataArray or None
        One Dask chunk per shard, or per layer or block of 1 MiB or more; None where no part has the array.
    """
    path = f"{axis}/{name}"
    holding = [part for part in parts if path in part.manifest["arrays"]]
    if not holding:
        return None
    first = holding[0].variable(path)
    dims = [str(dim) for dim in first.dims]
    array = da.concatenate([part.variable(path).data for part in holding], axis=dims.index(axis))
    arrays = holding[0].manifest["arrays"]
    own = {f"{axis}/{dim}": dim for dim in dims if f"{axis}/{dim}" in arrays}
    coordinates: dict[str, Any] = {
        own[path]: xr.Variable((own[path],), values, arrays[path]["attributes"])
        for path, values in read_coordinates(holding[0], list(own)).items()
    }
    if "head" in dims:
        coordinates["head"] = np.arange(array.shape[dims.index("head")], dtype=np.int32)
    coordinates |= _along(holding, axis)
    if axis == "key":
        coordinates |= _key_places(parts, holding, coordinates["token"])
    lengths = [part.manifest[_LENGTHS[axis]] for part in holding]
    coordinates["part"] = ((axis,), np.repeat(np.array([part.number for part in holding], np.int32), lengths))
    return xr.DataArray(array, coordinates, dims, name, first.attrs)


def _along(parts: Sequence[Part], axis: str) -> dict[str, xr.Variable]:
    """Coordinates along the parts' axis, in memory, unlike the states: selecting needs their values, which are few."""
    entries = [part.manifest["arrays"] for part in parts]
    # Parts of an earlier format may lack one.
    paths = [path for path in parts[0].coordinates(axis) if all(path in own for own in entries)]
    read = read_each_part(lambda part: read_coordinates(part, paths), parts)
    joined = {path: np.concatenate([own[path] for own in read]) for path in paths}
    return {
        path.split("/")[1]: xr.Variable((axis,), values, entries[0][path]["attributes"])
        for path, values in joined.items()
    }


def _key_places(parts: Sequence[Part], holding: Sequence[Part], token: xr.Variable) -> dict[str, xr.Variable]:
    """Coordinates of the key axis: tokens counted over all parts, samples' rows, positions."""
    first_token = dict(zip(parts, np.cumsum([0, *(part.tokens for part in parts)])[:-1], strict=True))
    first_row = dict(zip(parts, np.cumsum([0, *(part.manifest["samples"] for part in parts)])[:-1], strict=True))
    offsets = np.repeat([first_token[part] for part in holding], [part.keys for part in holding])
    lengths = read_each_part(_keys_of_samples, holding)
    rows = [
        np.arange(len(own), dtype=np.int32) + np.int32(first_row[part])
        for own, part in zip(lengths, holding, strict=True)
    ]
    of_samples = np.concatenate(lengths)
    starts = np.cumsum(of_samples) - of_samples
    values = token.values
    places = {
        "token": np.where(values >= 0, values + offsets, -1),
        "sample": np.repeat(np.concatenate(rows), of_samples),
        "position": np.arange(len(values), dtype=np.int32) - np.repeat(starts, of_samples).astype(np.int32),
    }
    attributes: dict[str, dict[str, Any]] = {
        "token": dict(token.attrs),
        "sample": {"long_name": "row of the sample table"},
        "position": {"long_name": "position in the sample's own token sequence"},
    }
    return {name: xr.Variable(("key",), found, attributes[name]) for name, found in places.items()}


def _keys_of_samples(part: Part) -> np.ndarray:
    """Keys of each sample of a part, (sample) int64."""
    runs = part.sample_columns("key_start", "key_stop")
    return (runs["key_stop"].to_numpy() - runs["key_start"].to_numpy()).astype(np.int64)


def open_keys(part: Part, row: Mapping[str, Any]) -> xr.Dataset:
    """One sample's rows of attention; keys are its positions, which say more than places on the part's token axis.

    What else is said of keys is called ``key_role``, …, beside the ``role`` of tokens.
    """
    keys = part.open("key", slice(int(row["key_start"]), int(row["key_stop"]))).drop_vars("token")
    names = {name: f"key_{name}" for name in KEY_COORDINATES if name in keys.coords}
    return keys.rename_vars(names).assign_coords(key_coordinates(row))


def on_blocks(keys: xr.Dataset, block: xr.DataArray) -> xr.Dataset:
    """Lay arrays of keys, which have blocks of their own, on those of tokens: NaN in the others, and they say so."""
    own = keys["block"].to_numpy()
    if np.array_equal(own, block):
        return keys
    laid = keys.reindex(block=block.to_numpy())
    for array in laid.data_vars.values():
        array.attrs["blocks"] = own.tolist()
    return laid


def key_coordinates(row: Mapping[str, Any]) -> dict[str, tuple[str, np.ndarray]]:
    """Coordinates of one sample's keys and queries: positions in its sequence, from its row of the sample table."""
    return {
        "key": ("key", np.arange(int(row["key_stop"]) - int(row["key_start"]), dtype=np.int32)),
        "query_position": ("query", np.asarray(row["query_positions"], np.int32)),
    }
