"""What every key of a part is: whose, of which role, whether a sink, and which bins of the maps it falls into."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.attention_task import AttentionTask
from analyses.key_places import SEGMENTS, find_sinks, key_places
from analyses.part_task import open_array
from analyses.prompt_groups import PromptGroup, prompt_groups
from engine.errors import StrataError
from engine.store import KEY_COORDINATES, Part

__all__ = ["PLACES", "Bins", "PartKeys", "query_names", "read_keys", "read_places", "whole_image_grid"]

PLACES = "places"
"""Name of the bins of `key_places`; grids are called ``24x24``."""


class Bins(NamedTuple):
    """The bin of every key.

    Attributes
    ----------
    of_key : array (key), int64
        -1 for none.
    length : int
        Number of bins.
    shape : tuple of int
        Of `PLACES`, the length of each segment, one behind the other; of a grid, rows and columns.
    """

    of_key: NDArray[np.int64]
    length: int
    shape: tuple[int, ...]


class PartKeys(NamedTuple):
    """The keys of a part.

    Attributes
    ----------
    sample, role : arrays (key), int64
        Row of the part's sample table; role code.
    sink : array (key), bool
    valid : array (query, sample), bool
        Whether the sample has the query.
    group : array (sample), int64
        Number of its prompt group.
    bins : mapping
        By name: `PLACES` and one per shape of grid.
    """

    sample: NDArray[np.int64]
    role: NDArray[np.int64]
    sink: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    group: NDArray[np.int64]
    bins: Mapping[str, Bins]


def read_keys(part: Part, task: AttentionTask) -> PartKeys:
    """Read what the keys of a part are.

    Raises
    ------
    StrataError
        A store before format 0.4 left tokens out, so that the roles of their keys are unknown.
    """
    places = read_places(part)
    role = places["role"]
    samples = part.samples
    starts, stops = (samples[name].to_numpy(np.int64) for name in ("key_start", "key_stop"))
    owner = np.full(len(role), -1)
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        owner[start:stop] = row
    runs = [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]
    sink = np.concatenate([np.zeros(0, bool), *(find_sinks(role[run]) for run in runs)])
    valid = np.stack(samples["query_positions"].to_list()).T >= 0
    return PartKeys(
        sample=owner,
        role=role,
        sink=sink,
        valid=valid,
        group=_groups(part, task.groups),
        bins={PLACES: _place_bins(role, runs), **_grid_bins(part, places, runs)},
    )


def query_names(part: Part) -> tuple[str, ...]:
    """Names of the queries of a part's rows, in their order."""
    return tuple(part.manifest["arrays"]["key/query"]["attributes"]["flag_meanings"].split())


def read_places(part: Part) -> dict[str, NDArray[np.int64]]:
    """Read the `KEY_COORDINATES` of a part's keys by name, each (key) int64.

    Raises
    ------
    StrataError
        As `read_keys`.
    """
    if "key/role" not in part.manifest["arrays"]:
        return _read_places_before_0_4(part)
    return {name: np.asarray(open_array(part, f"key/{name}")[...], np.int64) for name in KEY_COORDINATES}


def _read_places_before_0_4(part: Part) -> dict[str, NDArray[np.int64]]:
    """Look the coordinates up on the token axis: formats before 0.4 say there alone what a key is."""
    token = np.asarray(open_array(part, "key/token")[...], np.int64)
    unknown = int((token < 0).sum())
    if unknown:
        raise StrataError(
            f"part {part.name} of {part.url} does not say the role of {unknown} of its {len(token)} keys: their tokens "
            "were left out by --roles, and attention goes to them too; extract the store again, from format 0.4 on the "
            "role of every key is kept"
        )
    return {name: np.asarray(open_array(part, f"token/{name}")[...], np.int64)[token] for name in KEY_COORDINATES}


def _groups(part: Part, groups: Sequence[PromptGroup]) -> NDArray[np.int64]:
    numbers = np.zeros(len(part.samples), np.int64)
    for group, chosen in prompt_groups(part.samples):
        numbers[chosen] = groups.index(group)
    return numbers


def _place_bins(role: NDArray[np.int64], runs: Sequence[slice]) -> Bins:
    placed = [key_places(role[run]) for run in runs]
    segment = np.concatenate([np.zeros(0, np.int64), *(own.segment for own in placed)])
    index = np.concatenate([np.zeros(0, np.int64), *(own.offset for own in placed)])
    lengths = [int(np.max(index[segment == number] + 1, initial=0)) for number in range(len(SEGMENTS) - 1)]
    lengths.append(int(np.max(-index[segment == len(lengths)], initial=0)))
    ends = np.cumsum(lengths)
    return Bins(index + np.array([0, *ends[:2], ends[3]])[segment], int(ends[-1]), tuple(lengths))


def _grid_bins(part: Part, places: Mapping[str, NDArray[np.int64]], runs: Sequence[slice]) -> dict[str, Bins]:
    """Bin patches of the grid that shows a sample's whole image; samples of equal grids share bins."""
    grid, row, col = (places[name] for name in ("grid", "patch_row", "patch_col"))
    bins: dict[str, Bins] = {}
    for run, grids in zip(runs, part.samples["grids"], strict=True):
        chosen = whole_image_grid(grids)
        if chosen is None:
            continue
        rows, cols = (int(grids[chosen][name]) for name in ("rows", "cols"))
        own = bins.setdefault(f"{rows}x{cols}", Bins(np.full(len(grid), -1), rows * cols, (rows, cols)))
        own.of_key[run] = np.where(grid[run] == chosen, row[run] * cols + col[run], -1)
    return bins


def whole_image_grid(grids: Sequence[Mapping[str, Any]]) -> int | None:
    """Choose the grid that shows all of the image: the only one, or the only thumbnail beside tiles; None without."""
    if len(grids) == 1:
        return 0
    thumbnails = [number for number, grid in enumerate(grids) if grid["thumbnail"]]
    return thumbnails[0] if len(thumbnails) == 1 else None
