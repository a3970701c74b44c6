"""Maps of attention over positions and over patches: means over the samples of a prompt group, from sums of parts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.key_places import SEGMENTS
from analyses.part_attention import MapSums
from analyses.part_keys import PLACES
from analyses.prompt_groups import PromptGroup

__all__ = ["AttentionMaps", "GridMap", "PlaceMap", "join_maps"]


class PlaceMap(NamedTuple):
    """Means per place of `analyses.key_places`.

    Attributes
    ----------
    mean : array (measure, group, query, block, place), float64
        NaN where no sample has the place. Measures are those of `part_attention.MAP_MEASURES`.
    samples : array (group, query, place), int64
        Most samples that any block's mean is of.
    segment, offset : arrays (place), int64
        What the place is.
    """

    mean: NDArray[np.float64]
    samples: NDArray[np.int64]
    segment: NDArray[np.int64]
    offset: NDArray[np.int64]


class GridMap(NamedTuple):
    """Means per patch of the store's commonest grid.

    Attributes
    ----------
    mean : array (measure, group, query, block, row, col), float64
        NaN where no sample has the patch.
    samples : array (group, query), int64
        Most samples that any patch's mean is of.
    """

    mean: NDArray[np.float64]
    samples: NDArray[np.int64]


class AttentionMaps(NamedTuple):
    """Maps of a store: of each of its prompt groups; ``grid`` is None where no image has a grid."""

    groups: tuple[PromptGroup, ...]
    places: PlaceMap
    grid: GridMap | None


def join_maps(groups: tuple[PromptGroup, ...], parts: Iterable[Mapping[str, MapSums]]) -> AttentionMaps:
    """Add up the sums of parts and divide by their counts.

    Samples with another grid than the commonest (of equals, the first) are in no grid map: patches of grids of
    different shape do not lie on each other.
    """
    total: dict[str, MapSums] = {}
    for maps in parts:
        for name, own in maps.items():
            total[name] = own if name not in total else _add(total[name], own, places=name == PLACES)
    places = total.pop(PLACES)
    grids = sorted(total.values(), key=lambda own: -own.counts[0, :, :, 0].max(axis=-1).sum())
    return AttentionMaps(groups, _place_map(places), _grid_map(grids[0]) if grids else None)


def _add(left: MapSums, right: MapSums, *, places: bool) -> MapSums:
    shape = np.maximum(left.shape, right.shape)
    if places:
        left, right = (_widen(own, shape) for own in (left, right))
    return MapSums(left.sums + right.sums, left.counts + right.counts, shape)


def _widen(own: MapSums, lengths: NDArray[np.int64]) -> MapSums:
    """Lay maps of places on segments of other lengths: all begin where they began, the last ends where it ended."""
    starts, own_starts = (np.cumsum(shape) - shape for shape in (lengths, own.shape))
    starts[-1] += lengths[-1] - own.shape[-1]
    at = np.concatenate([np.arange(length) + start for length, start in zip(own.shape, starts, strict=True)])
    assert own_starts[-1] + own.shape[-1] == len(at)
    arrays = []
    for array in own[:2]:
        wide = np.zeros((*array.shape[:-1], int(lengths.sum())))
        wide[..., at] = array
        arrays.append(wide)
    return MapSums(arrays[0], arrays[1], lengths)


def _mean(own: MapSums) -> NDArray[np.float64]:
    return np.divide(own.sums, own.counts, out=np.full_like(own.sums, np.nan), where=own.counts > 0)


def _place_map(own: MapSums) -> PlaceMap:
    segment = np.repeat(np.arange(len(SEGMENTS)), own.shape)
    ranges: Sequence[NDArray[np.int64]] = [np.arange(length) for length in own.shape]
    index = np.concatenate([*ranges[:-1], ranges[-1] - len(ranges[-1])])
    return PlaceMap(_mean(own), own.counts.max(axis=(0, 3)).astype(np.int64), segment, index)


def _grid_map(own: MapSums) -> GridMap:
    mean = _mean(own)
    samples = own.counts.max(axis=(0, 3, 4), initial=0).astype(np.int64)
    return GridMap(mean.reshape(*mean.shape[:-1], *own.shape), samples)
