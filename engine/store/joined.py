"""One array over the parts of a store, labelled: Dask-backed values, coordinates in memory.

Keys also get what finds them again: ``token``, their place on the token axis of the joined arrays (-1 where the token
is not stored), ``sample``, the row of ``Store.samples``, and ``position`` in that sample's sequence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

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
    coordinates: dict[str, Any] = {
        dim: holding[0].variable(f"{axis}/{dim}") for dim in dims if f"{axis}/{dim}" in holding[0].manifest["arrays"]
    }
    if "head" in dims:
        coordinates["head"] = np.arange(array.shape[dims.index("head")], dtype=np.int32)
    for along in holding[0].coordinates(axis):
        if any(along not in part.manifest["arrays"] for part in holding):  # of an earlier format
            continue
        pieces = [part.variable(along) for part in holding]
        # In memory, unlike the states: selecting by role or position needs the values, and they are few.
        values = np.concatenate(da.compute(*(piece.data for piece in pieces)))
        coordinates[along.split("/")[1]] = xr.Variable((axis,), values, pieces[0].attrs)
    if axis == "key":
        coordinates |= _key_places(parts, holding, coordinates["token"])
    lengths = [part.manifest[_LENGTHS[axis]] for part in holding]
    coordinates["part"] = ((axis,), np.repeat(np.array([part.number for part in holding], np.int32), lengths))
    return xr.DataArray(array, coordinates, dims, name, first.attrs)


def _key_places(parts: Sequence[Part], holding: Sequence[Part], token: xr.Variable) -> dict[str, xr.Variable]:
    """Coordinates of the key axis: tokens counted over all parts, samples' rows, positions."""
    first_token = dict(zip(parts, np.cumsum([0, *(part.tokens for part in parts)])[:-1], strict=True))
    first_row = dict(zip(parts, np.cumsum([0, *(part.manifest["samples"] for part in parts)])[:-1], strict=True))
    offsets = np.repeat([first_token[part] for part in holding], [part.keys for part in holding])
    rows, positions = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for part in holding:
        lengths = (part.samples["key_stop"] - part.samples["key_start"]).to_numpy(np.int64)
        rows.append(np.repeat(np.arange(len(lengths), dtype=np.int32) + np.int32(first_row[part]), lengths))
        positions += [np.arange(length, dtype=np.int32) for length in lengths]
    values = token.values
    places = {
        "token": np.where(values >= 0, values + offsets, -1),
        "sample": np.concatenate(rows),
        "position": np.concatenate(positions),
    }
    attributes: dict[str, dict[str, Any]] = {
        "token": dict(token.attrs),
        "sample": {"long_name": "row of the sample table"},
        "position": {"long_name": "position in the sample's own token sequence"},
    }
    return {name: xr.Variable(("key",), found, attributes[name]) for name, found in places.items()}


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
