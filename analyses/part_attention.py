"""Norm-attention of one part: reads its rows block by block and returns a few numbers per sample, and sums for maps."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.attention_sums import bin_sums, role_sums, row_shares
from analyses.attention_task import ARRAYS, AttentionTask
from analyses.part_keys import PartKeys, read_keys
from analyses.part_task import open_array
from engine.errors import StrataError
from engine.store import Part, open_part, stream_chunks
from engine.vocabulary import ROLES

__all__ = ["MAP_MEASURES", "MapSums", "PartAttention", "part_attention"]

MAP_MEASURES = ("attention_share", "attention_norm", "attention_norm_share")
"""What maps show of each key."""


class MapSums(NamedTuple):
    """Sums over samples of what a key has, per bin.

    Attributes
    ----------
    sums, counts : arrays (measure, group, query, block, bin), float64
        Measures are `MAP_MEASURES`; counts are the number of samples with that bin and that query.
    shape : array of int64
        As of `part_keys.Bins`.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]
    shape: NDArray[np.int64]


class PartAttention(NamedTuple):
    """Attention of one part's samples, summed over heads' mean and over keys.

    Attributes
    ----------
    rest, sinks : arrays (array, sample, query, block, role), float32
        Sums over a role's keys of weights (mean over heads) and of norms: over keys that are no sinks, and over sinks.
        Arrays are those of `attention_task.ARRAYS`. NaN where a sample does not have the query.
    keys : array (sample, role), int64
        How many keys of each role a sample has.
    maps : mapping
        By the names of `part_keys.PartKeys.bins`; empty where the part has no sample.
    """

    rest: NDArray[np.float32]
    sinks: NDArray[np.float32]
    keys: NDArray[np.int64]
    maps: Mapping[str, MapSums]


def part_attention(task: AttentionTask) -> PartAttention:
    """Compute one part.

    Raises
    ------
    StrataError
        A row is not finite, or roles of keys are unknown.
    """
    part = open_part(task.url, task.name)
    blocks, queries, *_ = part.manifest["arrays"]["key/attention"]["shape"]
    samples = int(part.manifest["samples"])
    rest, sinks = (np.full((len(ARRAYS), samples, queries, blocks, len(ROLES)), np.nan, np.float32) for _ in range(2))
    if samples == 0:
        return PartAttention(rest, sinks, np.zeros((0, len(ROLES)), np.int64), {})
    keys = read_keys(part, task)
    maps = {
        name: _empty_map((len(task.groups), queries, blocks, bins.length), bins.shape)
        for name, bins in keys.bins.items()
    }
    has = keys.valid[:, keys.sample]
    for block, rows in enumerate(_rows(part)):
        _refuse_holes(rows, has, part, keys, block)
        counted = np.where(has, rows, 0)
        for sums, chosen in ((rest, ~keys.sink), (sinks, keys.sink)):
            of_roles = role_sums(counted * chosen, keys.sample, keys.role, samples, len(ROLES))
            sums[:, :, :, block] = np.where(keys.valid[..., np.newaxis], of_roles, np.nan).swapaxes(1, 2)
        _add_to_maps(maps, block, np.where(has, rows, np.nan), keys, task)
    of_sample = keys.sample * len(ROLES) + keys.role
    count = np.bincount(of_sample, minlength=samples * len(ROLES)).reshape(samples, len(ROLES))
    return PartAttention(rest, sinks, count, maps)


def _empty_map(shape: tuple[int, ...], of_bins: tuple[int, ...]) -> MapSums:
    sums, counts = (np.zeros((len(MAP_MEASURES), *shape)) for _ in range(2))
    return MapSums(sums, counts, np.array(of_bins, np.int64))


def _rows(part: Part) -> Iterator[NDArray[np.float64]]:
    """Yield weights, averaged over heads, and norms of every block: (array, query, key), overwritten by the next."""
    _, queries, _, keys = part.manifest["arrays"]["key/attention"]["shape"]
    rows = np.empty((len(ARRAYS), queries, keys))
    for _ in zip(*(_fill(part, path, row) for path, row in zip(ARRAYS, rows, strict=True)), strict=True):
        yield rows


def _fill(part: Part, path: str, rows: NDArray[np.float64]) -> Iterator[None]:
    for chunk in stream_chunks(part, path):
        (values,) = chunk.values
        rows[:, chunk.start : chunk.stop] = values.mean(axis=1, dtype=np.float64) if values.ndim > 2 else values
        if chunk.stop == rows.shape[1]:
            yield


def _refuse_holes(rows: NDArray[np.float64], has: NDArray[np.bool_], part: Part, keys: PartKeys, block: int) -> None:
    broken = np.argwhere(has & ~np.isfinite(rows))
    if not len(broken):
        return
    array, query, key = broken[0]
    sample = part.samples.iloc[int(keys.sample[key])]
    number = int(np.asarray(open_array(part, "key/block")[...])[block])
    name = part.manifest["arrays"]["key/query"]["attributes"]["flag_meanings"].split()[query]
    raise StrataError(
        f"{ARRAYS[array]} of sample {sample['sample_id']}, block {number}, query {name} is not finite at key "
        f"{key - sample['key_start']}: `strata verify {part.url}` says whether the part is damaged"
    )


def _add_to_maps(
    maps: Mapping[str, MapSums], block: int, rows: NDArray[np.float64], keys: PartKeys, task: AttentionTask
) -> None:
    if task.without_sinks:
        rows = np.where(keys.sink, np.nan, rows)
    shares = row_shares(np.nan_to_num(rows), keys.sample, len(keys.group))
    shares[np.isnan(rows)] = np.nan
    measures = np.stack([shares[0], rows[1], shares[1]])
    for name, bins in keys.bins.items():
        sums, counts = bin_sums(measures, keys.group[keys.sample], bins.of_key, len(task.groups), bins.length)
        maps[name].sums[:, :, :, block] = sums.swapaxes(1, 2)
        maps[name].counts[:, :, :, block] = counts.swapaxes(1, 2)
