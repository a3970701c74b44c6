"""What a store of some roles looks like: tokens of other roles are gone, positions have gaps."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from engine.store import PART_SAMPLES_SCHEMA, Coordinate, PartArray, PartContent
from engine.vocabulary import ROLE_CODES


def keep_roles(content: PartContent, roles: Sequence[str]) -> PartContent:
    """Drop the tokens of all other roles from a part; its keys stay, those of dropped tokens without a token."""
    by_path = {coordinate.path: coordinate for coordinate in content.coordinates}
    kept = np.isin(by_path["token/role"].values, [ROLE_CODES[role] for role in roles])
    before = np.concatenate([[0], np.cumsum(kept)])

    def thin(array: PartArray) -> PartArray:
        if "token" not in array.dims:
            return array
        axis = array.dims.index("token")
        slabs = [np.compress(kept, array.slab(lead)[...], axis - 1) for lead in range(array.shape[0])]
        shape = (*array.shape[:axis], int(kept.sum()), *array.shape[axis + 1 :])
        return replace(array, shape=shape, slab=lambda lead: slabs[lead])

    def narrow(coordinate: Coordinate) -> Coordinate:
        if coordinate.path == "key/token":
            there = kept[coordinate.values]
            return replace(coordinate, values=np.where(there, before[coordinate.values], -1).astype(np.int32))
        return replace(coordinate, values=coordinate.values[kept]) if coordinate.dims == ("token",) else coordinate

    rows = content.samples.to_pylist()
    for row in rows:
        runs = [(int(before[run["start"]]), int(before[run["stop"]])) for run in row["segments"]]
        row["segments"] = [{"start": start, "stop": stop} for start, stop in runs if stop > start]
    return replace(
        content,
        arrays=tuple(thin(array) for array in content.arrays),
        coordinates=tuple(map(narrow, content.coordinates)),
        samples=pa.Table.from_pylist(rows, schema=PART_SAMPLES_SCHEMA),
    )
