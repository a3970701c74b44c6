"""Contextualization of a store: mean cosines between and within image and text tokens, per sample and layer.

One task per part, on threads or a cluster. Read from pooled states where they are stored, which is a fraction of the
bytes, else from hidden states; both give the same numbers to float32 accuracy and the result says which was read.

Cosines may be adjusted for what all states of a layer share: `analyses.anisotropy` subtracts the mean cosine of
unrelated tokens, `analyses.centring` takes cosines of states less the layer's mean.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.anisotropy import PairSums, add_pair_sums, mean_of_unrelated
from analyses.centring import find_origin
from analyses.contextualization_plan import (
    TEXT_ROLES,
    check_adjustment,
    check_kept,
    check_roles,
    choose_source,
    plan_means,
    plan_tasks,
    plan_workers,
)
from analyses.kept_parts import KeptParts
from analyses.part_cosines import PartCosines
from analyses.part_runs import cosines_of_parts, means_of_parts
from analyses.part_task import PAIRS, Adjustment, PairRow, Source, pair_rows
from analyses.resources import Resources
from engine.store import Store

__all__ = ["SAMPLE_COLUMNS", "TEXT_ROLES", "Baseline", "Contextualization", "analyze_store", "join_parts"]

SAMPLE_COLUMNS = ("prompt_kind", "prompt_id", "sample_id", "image_id", "item_id")


class Baseline(NamedTuple):
    """Mean cosine of unrelated tokens, which adjusted cosines have lost.

    Attributes
    ----------
    layers : array (layer, pair), float64
        Pairs are those of `PAIRS`; NaN where no two samples are unrelated.
    normed : array (pair), float64
        Of the last layer after the final norm; NaN where that was not captured.
    pairs : array (pair), int64
        Number of ordered pairs of samples in the mean.
    """

    layers: NDArray[np.float64]
    normed: NDArray[np.float64]
    pairs: NDArray[np.int64]


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
        Adjusted, where asked for. NaN where a set has no pair, or its baseline has none.
    normed : array (sample, row), float64, or None
        The last layer after the final norm; None where the last layer was not captured.
    counts : array (sample, set), int64
        Image and text tokens.
    text_roles : tuple of str
    source : ``"pooled"`` or ``"hidden_states"``
        What was read.
    adjustment : ``"none"``, ``"anisotropy"`` or ``"mean-centred"``
    baseline : Baseline or None
        With ``"anisotropy"``.
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
    adjustment: Adjustment
    baseline: Baseline | None


def analyze_store(
    store: Store,
    *,
    text_roles: Sequence[str] = TEXT_ROLES,
    self_pairs: bool = False,
    source: str = "auto",
    adjustment: str = "none",
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
    adjustment : ``"none"``, ``"anisotropy"`` or ``"mean-centred"``
    resources : Resources, optional
        One thread and 2 GiB by default. Its progress counts the parts that had to be computed, once for the mean
        states, where they are needed, and once for the cosines.
    kept : KeptParts, optional
        Finished parts of an earlier, broken-off call are taken from there, and new ones put there; a temporary folder
        by default.

    Raises
    ------
    UsageError
        An unknown role, source or adjustment, a source that was not captured, not of these roles, or cannot give the
        adjustment, or too little memory.
    StrataError
        The store has no sample, or a state that has no cosine.
    """
    resources = resources or Resources()
    adjusted = check_adjustment(adjustment)
    chosen = choose_source(store, source, adjusted)
    roles = check_roles(text_roles)
    if chosen == "hidden_states":
        check_kept(store, roles)
    tasks = plan_tasks(store, chosen, roles, self_pairs, adjusted)
    means = plan_means(store, tasks, source) if adjusted == "mean-centred" else []
    resources = plan_workers(store, tasks, means, resources)
    with _folder(kept) as folder:
        if means:
            origin = find_origin(means_of_parts(store.parts, means, resources, folder))
            tasks = [replace(task, origin=origin) for task in tasks]
        joined = join_parts(cosines_of_parts(store.parts, tasks, resources, folder))
    rows = pair_rows(self_pairs)
    normed = joined.normed if tasks[0].normed else None
    baseline = None if joined.pairs is None else _baseline(joined.pairs, len(store.layers), normed is not None)
    if baseline is not None:
        of_row = [PAIRS.index(row.pair) for row in rows]
        joined.cosine[:] -= baseline.layers[:, of_row]
        joined.normed[:] -= baseline.normed[of_row]
    return Contextualization(
        samples=store.samples[list(SAMPLE_COLUMNS)],
        layers=store.layers,
        block_count=store.block_count,
        rows=rows,
        cosine=joined.cosine,
        normed=normed,
        counts=joined.counts,
        text_roles=roles,
        source=chosen,
        adjustment=adjusted,
        baseline=baseline,
    )


@contextmanager
def _folder(kept: KeptParts | None) -> Iterator[KeptParts]:
    if kept is not None:
        yield kept
        return
    with TemporaryDirectory(prefix="strata-") as folder:
        yield KeptParts(Path(folder))


def join_parts(parts: Iterable[PartCosines]) -> PartCosines:
    """Put parts one after the other; what they contribute to the baseline is added up, one part in memory at a time."""
    total: PairSums | None = None
    numbers = []
    for part in parts:
        if total is None:
            total = part.pairs
        elif part.pairs is not None:
            add_pair_sums(total, part.pairs)
        numbers.append(part[:3])
    cosine, normed, counts = (np.concatenate(column) for column in zip(*numbers, strict=True))
    return PartCosines(cosine, normed, counts, total)


def _baseline(sums: PairSums, layers: int, normed: bool) -> Baseline:
    points, pairs = mean_of_unrelated(sums)
    return Baseline(points[:layers], points[-1] if normed else np.full(points.shape[1], np.nan), pairs)
