"""Contextualization of a store: mean cosines between and within image and text tokens, per sample and layer.

One task per part, on threads or a cluster. Read from pooled states where they are stored, which is a fraction of the
bytes, else from hidden states; both give the same numbers to float32 accuracy and the result says which was read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.curves import BOOTSTRAPS
from analyses.execution import run_tasks
from analyses.final_norm import FinalNorm
from analyses.kept_parts import KeptParts
from analyses.memory import check_memory, fitting_workers, part_bytes, result_bytes, statistics_bytes
from analyses.part_cosines import PartCosines, part_cosines
from analyses.part_task import PairRow, PartTask, Source, pair_rows
from analyses.resources import Resources
from engine.errors import StrataError, UsageError
from engine.store import Part, Store
from engine.vocabulary import ROLES

__all__ = ["SAMPLE_COLUMNS", "SOURCES", "TEXT_ROLES", "Contextualization", "analyze_store", "choose_source"]

TEXT_ROLES = ("instruction", "template")
"""Text by default: prompt text that can see the image."""

SAMPLE_COLUMNS = ("prompt_kind", "prompt_id", "sample_id", "image_id")

SOURCES = ("auto", "pooled", "hidden_states")
_ARRAYS: dict[Source, str] = {"pooled": "sample/unit_mean", "hidden_states": "token/hidden_states"}


@dataclass(frozen=True)
class Contextualization:
    """Mean cosines of every sample of one store.

    Attributes
    ----------
    samples : DataFrame
        Columns `SAMPLE_COLUMNS`; one row per sample.
    layers : array (layer), int32
    block_count : int
        L, so that depth = layer / L.
    rows : tuple of PairRow
    cosine : array (sample, layer, row), float64
        NaN where a set has no pair.
    normed : array (sample, row), float64, or None
        The last layer after the final norm; None where the last layer was not captured.
    counts : array (sample, set), int64
        Image and text tokens.
    text_roles : tuple of str
    source : ``"pooled"`` or ``"hidden_states"``
        What was read.
    """

    samples: pd.DataFrame
    layers: NDArray[np.int32]
    block_count: int
    rows: tuple[PairRow, ...]
    cosine: NDArray[np.float64]
    normed: NDArray[np.float64] | None
    counts: NDArray[np.int64]
    text_roles: tuple[str, ...]
    source: Source


def analyze_store(
    store: Store,
    *,
    text_roles: Sequence[str] = TEXT_ROLES,
    self_pairs: bool = False,
    source: str = "auto",
    resources: Resources | None = None,
    kept: KeptParts | None = None,
) -> Contextualization:
    """Compute contextualization of one store.

    Parameters
    ----------
    store : Store
    text_roles : sequence of str
        Roles that make up text.
    self_pairs : bool
        Add intra rows in which each token is also paired with itself (the papers' equation taken literally).
    source : ``"auto"``, ``"pooled"`` or ``"hidden_states"``
    resources : Resources, optional
        One thread and 2 GiB by default. Its progress counts the parts that had to be computed.
    kept : KeptParts, optional
        Finished parts of an earlier, broken-off call are taken from there, and new ones put there.

    Raises
    ------
    UsageError
        An unknown role or source, a source that was not captured, or too little memory.
    StrataError
        The store has no sample, or a state that has no cosine.
    """
    resources = resources or Resources()
    chosen = choose_source(store, source)
    roles = _check_roles(text_roles)
    tasks = _plan_tasks(store, chosen, roles, self_pairs)
    resources = _plan_workers(store, tasks, resources)
    parts = _run_or_recall(store, tasks, resources, kept)
    return Contextualization(
        samples=store.samples[list(SAMPLE_COLUMNS)],
        layers=store.layers,
        block_count=store.block_count,
        rows=pair_rows(self_pairs),
        cosine=np.concatenate([part.cosine for part in parts]),
        normed=np.concatenate([part.normed for part in parts]) if tasks[0].normed else None,
        counts=np.concatenate([part.counts for part in parts]),
        text_roles=roles,
        source=chosen,
    )


def _plan_workers(store: Store, tasks: Sequence[PartTask], resources: Resources) -> Resources:
    """Refuse where the heaviest part does not fit; take fewer workers where that is allowed and helps."""
    task = tasks[0]
    heaviest = max(range(len(tasks)), key=lambda number: _weight(store.parts[number], task.source))
    per_worker = part_bytes(store.parts[heaviest], tasks[heaviest])
    samples = sum(part.manifest["samples"] for part in store.parts)
    results = result_bytes(store.parts, len(store.layers), task.self_pairs)
    results += statistics_bytes(samples, len(store.layers), BOOTSTRAPS)
    at_once = 1 if resources.scheduler else min(resources.workers, len(tasks))
    if resources.fewer_workers:
        at_once = max(1, min(at_once, fitting_workers(per_worker, results, resources.memory)))
    check_memory(per_worker, results, at_once, resources.memory)
    return resources._replace(workers=at_once)


def _weight(part: Part, source: Source) -> tuple[int, int]:
    """Rank parts by memory: pooled states follow samples alone, however many tokens a part has."""
    samples = int(part.manifest["samples"])
    return (samples, 0) if source == "pooled" else (part.tokens, samples)


def _run_or_recall(
    store: Store, tasks: list[PartTask], resources: Resources, kept: KeptParts | None
) -> list[PartCosines]:
    """Results of all tasks, in order; only what is not kept is computed."""
    if kept is None:
        return run_tasks(part_cosines, tasks, resources)
    names = [kept.name(part, task) for part, task in zip(store.parts, tasks, strict=True)]
    results = [kept.load(name) for name in names]
    missing = [number for number, result in enumerate(results) if result is None]
    computed = run_tasks(
        _numbered,
        [(number, tasks[number]) for number in missing],
        resources,
        finished=lambda task, result: kept.save(names[task[0]], result),
    )
    for number, result in zip(missing, computed, strict=True):
        results[number] = result
    return [result for result in results if result is not None]


def _numbered(task: tuple[int, PartTask]) -> PartCosines:
    return part_cosines(task[1])


def _check_roles(text_roles: Sequence[str]) -> tuple[str, ...]:
    known = [role for role in ROLES if role != "image"]
    for role in text_roles:
        if role not in known:
            raise UsageError(f"--text-roles: {role!r} is no role of text; choose from {', '.join(known)}")
    if not text_roles:
        raise UsageError(f"--text-roles is empty: choose from {', '.join(known)}")
    return tuple(role for role in known if role in text_roles)


def choose_source(store: Store, source: str) -> Source:
    """Decide what is read: pooled states before hidden states, where both are there and none is asked for.

    Raises
    ------
    UsageError
        The source is unknown or was not captured.
    StrataError
        The store holds no committed sample.
    """
    if source not in SOURCES:
        raise UsageError(f"--source {source}: expected one of {', '.join(SOURCES)}")
    if not any(part.manifest["samples"] for part in store.parts):
        raise StrataError(f"{store.url} holds no committed sample: finish the extraction by running it again")
    there = [name for name, path in _ARRAYS.items() if all(path in part.manifest["arrays"] for part in store.parts)]
    wanted = [name for name in there if source in ("auto", name)]
    if not wanted:
        captured = ", ".join(there) or "neither pooled nor hidden states"
        tensors = {"pooled": "pooled", "hidden_states": "residual"}.get(source, "residual,pooled")
        raise UsageError(
            f"{store.url} holds {captured}, --source asks for {source}: use --source auto, or extract another store "
            f"with --capture {tensors}"
        )
    return wanted[0]


def _plan_tasks(store: Store, source: Source, roles: tuple[str, ...], self_pairs: bool) -> list[PartTask]:
    normed = int(store.layers[-1]) == store.block_count
    norm = _final_norm(store) if normed and source == "hidden_states" else None
    return [PartTask(part.url, part.name, source, roles, self_pairs, normed, norm) for part in store.parts]


def _final_norm(store: Store) -> FinalNorm:
    model = store.model
    kind = model.norm_kind
    if kind not in ("rms", "layer"):
        raise StrataError(f"{store.url} has the final norm {kind!r}; this strata knows rms and layer: upgrade strata")
    bias = model.final_norm_bias
    return FinalNorm(
        kind="rms" if kind == "rms" else "layer",
        weight=model.final_norm_weight.astype(np.float32),
        bias=None if bias is None else bias.astype(np.float32),
        eps=model.norm_eps,
        weight_offset=model.norm_weight_offset,
    )
