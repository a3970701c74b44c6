"""What a store of some roles looks like: tokens of other roles are gone, positions have gaps."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from engine.store import PART_SAMPLES_SCHEMA, PartArray, PartContent
from engine.vocabulary import ROLE_CODES


def keep_roles(content: PartContent, roles: Sequence[str]) -> PartContent:
    """Drop the tokens of all other roles from a part."""
    by_path = {coordinate.path: coordinate for coordinate in content.coordinates}
    kept = np.isin(by_path["token/role"].values, [ROLE_CODES[role] for role in roles])
    before = np.concatenate([[0], np.cumsum(kept)])

    def thin(array: PartArray) -> PartArray:
        if array.path != "token/hidden_states":
            return array
        layers, _, dim = array.shape
        states = [np.array(array.slab(layer))[kept] for layer in range(layers)]
        return replace(array, shape=(layers, int(kept.sum()), dim), slab=lambda layer: states[layer])

    rows = content.samples.to_pylist()
    for row in rows:
        runs = [(int(before[run["start"]]), int(before[run["stop"]])) for run in row["segments"]]
        row["segments"] = [{"start": start, "stop": stop} for start, stop in runs if stop > start]
    return replace(
        content,
        arrays=tuple(thin(array) for array in content.arrays),
        coordinates=tuple(
            replace(coordinate, values=coordinate.values[kept]) if coordinate.dims == ("token",) else coordinate
            for coordinate in content.coordinates
        ),
        samples=pa.Table.from_pylist(rows, schema=PART_SAMPLES_SCHEMA),
    )
