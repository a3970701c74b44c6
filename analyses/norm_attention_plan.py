"""Planning norm-attention of a store: one task per part, and how many workers its memory allows."""

import numpy as np

from analyses.attention_task import ARRAYS, AttentionTask
from analyses.curves import BOOTSTRAPS
from analyses.key_places import SEGMENTS
from analyses.memory import check_memory, fitting_workers
from analyses.part_attention import MAP_MEASURES
from analyses.prompt_groups import prompt_groups
from analyses.resampling import block_bytes
from analyses.resources import Resources
from engine.errors import StrataError, UsageError
from engine.store import Part, Store, stream_bytes
from engine.vocabulary import ROLES

__all__ = ["attention_bytes", "plan_tasks", "plan_workers", "results_bytes"]

_ROW_COPIES = 10  # both rows, counted, shared, weighted, and what is summed of each
_KEY_COPIES = 10  # of whose they are, roles, bins of places and grids, and what these are made of
_ALL_MEASURES = 6
_RESULT_COPIES = 4  # of parts, joined, of roles that occur, and of all stores in the dataset
_CURVE_COPIES = 4
_INT64, _FLOAT64, _FLOAT32 = 8, 8, 4


def plan_tasks(store: Store, without_sinks: bool) -> list[AttentionTask]:
    """Make one task per part.

    Raises
    ------
    UsageError
        Attention was not captured.
    StrataError
        The store holds no committed sample.
    """
    if not any(part.manifest["samples"] for part in store.parts):
        raise StrataError(f"{store.url} holds no committed sample: finish the extraction by running it again")
    missing = [path for path in ARRAYS if any(path not in part.manifest["arrays"] for part in store.parts)]
    if missing:
        captured = ", ".join(store.record["capture"].get("tensors", ())) or "nothing that this strata knows"
        raise UsageError(
            f"{store.url} holds no {' and no '.join(missing)}, it captured {captured}: extract another store with "
            "--capture attention"
        )
    groups = tuple(group for group, _ in prompt_groups(store.samples))
    return [AttentionTask(part.url, part.name, groups, without_sinks) for part in store.parts]


def plan_workers(store: Store, tasks: list[AttentionTask], resources: Resources) -> Resources:
    """Refuse where the heaviest part does not fit; take fewer workers where that is allowed and helps."""
    longest = _longest(store)
    groups = len(tasks[0].groups)
    heaviest = max(store.parts, key=lambda part: (_keys(part), part.manifest["samples"]))
    per_worker = attention_bytes(heaviest, groups, longest)
    results = results_bytes(store, groups, longest)
    at_once = 1 if resources.scheduler else min(resources.workers, len(tasks))
    if resources.fewer_workers:
        at_once = max(1, min(at_once, fitting_workers(per_worker, results, resources.memory)))
    check_memory(per_worker, results, at_once, resources.memory)
    return resources._replace(workers=at_once)


def attention_bytes(part: Part, groups: int, longest: int) -> int:
    """Bytes that one worker needs for one part, beyond the process itself.

    Parameters
    ----------
    part : Part
    groups : int
        Prompt groups of the store.
    longest : int
        Keys of the longest sample.
    """
    blocks, queries, *_ = part.manifest["arrays"]["key/attention"]["shape"]
    keys = _keys(part)
    needed = sum(stream_bytes(part, path) for path in ARRAYS)
    needed += keys * (_ROW_COPIES * len(ARRAYS) * queries * _FLOAT64 + _KEY_COPIES * _INT64)
    needed += part.tokens * 4 * _INT64
    needed += 2 * len(ARRAYS) * part.manifest["samples"] * queries * blocks * len(ROLES) * _FLOAT32
    return needed + _map_bytes(groups, queries, blocks, longest)


def results_bytes(store: Store, groups: int, longest: int) -> int:
    """Bytes of what is found of all samples, of the maps, and of bands over images."""
    blocks, queries, *_ = store.parts[0].manifest["arrays"]["key/attention"]["shape"]
    samples = sum(int(part.manifest["samples"]) for part in store.parts)
    per_sample = queries * blocks * len(ROLES)
    values = samples * per_sample * (len(ARRAYS) * 2 + _ALL_MEASURES) * _FLOAT32 * _RESULT_COPIES
    curves = _CURVE_COPIES * _ALL_MEASURES * blocks * len(ROLES) * (samples + BOOTSTRAPS) * _FLOAT64
    return values + curves + block_bytes(samples, BOOTSTRAPS) + 4 * _map_bytes(groups, queries, blocks, longest)


def _map_bytes(groups: int, queries: int, blocks: int, longest: int) -> int:
    """Bytes of sums and counts of places, of which no segment is longer than the longest sample, and of one grid."""
    return 2 * len(MAP_MEASURES) * groups * queries * blocks * (len(SEGMENTS) + 1) * longest * _FLOAT64


def _keys(part: Part) -> int:
    return int(part.manifest["arrays"]["key/attention"]["shape"][-1])


def _longest(store: Store) -> int:
    return int(np.max(store.samples["key_stop"].to_numpy(np.int64) - store.samples["key_start"].to_numpy(np.int64)))
