"""Norm-attention of a store: where the kept queries look, block by block, by weight and by the norm of what they get.

A key gives a query the vector Σ_h α^h f^h; its norm says more than the weight α, because sinks have large weights on
small values (Kobayashi et al. 2020, "Attention is not only a weight"). One task per part, on threads or a cluster.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.attention_maps import AttentionMaps, join_maps
from analyses.attention_task import AttentionTask
from analyses.contextualization import SAMPLE_COLUMNS
from analyses.kept_parts import KeptParts
from analyses.kept_runs import Arrays, PartWork, run_parts
from analyses.norm_attention_plan import plan_tasks, plan_workers
from analyses.part_attention import MapSums, PartAttention, part_attention
from analyses.part_keys import query_names
from analyses.resources import Resources
from engine.store import Store
from engine.vocabulary import ROLES

__all__ = ["MEASURES", "NormAttention", "analyze_store"]

MEASURES: Mapping[str, str] = {
    "attention": "attention weight on keys of the role, mean over heads",
    "attention_norm": "sum of the norms of what keys of the role give",
    "attention_share": "attention weight on keys of the role, of that on all keys counted",
    "attention_norm_share": "sum of norms over keys of the role, of that over all keys counted",
    "sink_share": "attention weight on position 0 and BOS where they are of the role, of that on all keys",
    "sink_norm_share": "norms of what position 0 and BOS give where they are of the role, of those of all keys",
}
"""What is said of every sample, query, block and role; sums over roles are sums over keys."""


@dataclass(frozen=True)
class NormAttention:
    """Attention of every sample of one store.

    Attributes
    ----------
    samples : DataFrame
        Columns `contextualization.SAMPLE_COLUMNS`; one row per sample.
    queries : tuple of str
    blocks : array (block), int32
    block_count : int
        L, so that depth = block / L.
    roles : tuple of str
        Those that a key of any sample has.
    values : mapping
        By `MEASURES`: arrays (sample, query, block, role), float32; NaN where a sample does not have the query, and
        shares where nothing is left to be shared.
    keys : array (sample, role), int64
    maps : AttentionMaps
    without_sinks : bool
        Whether sinks count only in ``sink_share`` and ``sink_norm_share``.
    """

    samples: pd.DataFrame
    queries: tuple[str, ...]
    blocks: NDArray[np.int32]
    block_count: int
    roles: tuple[str, ...]
    values: Mapping[str, NDArray[np.float32]]
    keys: NDArray[np.int64]
    maps: AttentionMaps
    without_sinks: bool


def analyze_store(store: Store, *, without_sinks: bool, resources: Resources, kept: KeptParts) -> NormAttention:
    """Compute norm-attention of one store.

    Parameters
    ----------
    store : Store
    without_sinks : bool
        Leave position 0 and BOS out, and share among the other keys.
    resources : Resources
    kept : KeptParts
        Finished parts of an earlier, broken-off call are taken from there, and new ones put there.

    Raises
    ------
    UsageError
        Attention was not captured, or too little memory.
    StrataError
        The store has no sample, roles of keys are unknown, or a row is not finite.
    """
    tasks = plan_tasks(store, without_sinks)
    resources = plan_workers(store, tasks, resources)
    work: PartWork[AttentionTask, PartAttention] = PartWork("attention", part_attention, _to_arrays, _from_arrays)
    rest, sinks, keys, maps = [], [], [], []
    for part in run_parts(work, store.parts, tasks, resources, kept):
        rest.append(part.rest)
        sinks.append(part.sinks)
        keys.append(part.keys)
        maps.append(part.maps)
    count = np.concatenate(keys)
    present = np.flatnonzero(count.any(axis=0))
    return NormAttention(
        samples=store.samples[list(SAMPLE_COLUMNS)],
        queries=query_names(store.parts[0]),
        blocks=store.parts[0].variable("key/block").to_numpy(),
        block_count=store.block_count,
        roles=tuple(ROLES[code] for code in present),
        values=_measure(np.concatenate(rest, 1)[..., present], np.concatenate(sinks, 1)[..., present], without_sinks),
        keys=count[:, present],
        maps=join_maps(tasks[0].groups, maps),
        without_sinks=without_sinks,
    )


def _measure(
    rest: NDArray[np.float32], sinks: NDArray[np.float32], without_sinks: bool
) -> dict[str, NDArray[np.float32]]:
    """Make `MEASURES` of sums without and over sinks, (array, sample, query, block, role)."""
    everything = rest + sinks
    counted = rest if without_sinks else everything
    shares, of_sinks = _share(counted, counted), _share(sinks, everything)
    return dict(zip(MEASURES, (*counted, *shares, *of_sinks), strict=True))


def _share(values: NDArray[np.float32], of: NDArray[np.float32]) -> NDArray[np.float32]:
    totals = of.sum(axis=-1, keepdims=True)
    return np.divide(values, totals, out=np.full_like(values, np.nan), where=totals > 0)


def _to_arrays(result: PartAttention) -> Arrays:
    maps = {f"{name} {field}": array for name, own in result.maps.items() for field, array in own._asdict().items()}
    return {"rest": result.rest, "sinks": result.sinks, "keys": result.keys, **maps}


def _from_arrays(arrays: Arrays) -> PartAttention:
    names = dict.fromkeys(key.split()[0] for key in arrays if " " in key)
    maps = {name: MapSums(**{field: arrays[f"{name} {field}"] for field in MapSums._fields}) for name in names}
    return PartAttention(arrays["rest"], arrays["sinks"], arrays["keys"], maps)
