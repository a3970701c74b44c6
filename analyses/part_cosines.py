"""Contextualization of one part: reads it layer by layer and returns a few numbers per sample."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.cosines import between, within
from analyses.part_task import PairRow, PartTask, pair_rows
from analyses.pooled_sums import PooledSums
from analyses.state_sums import StateSums
from engine.store import open_part

__all__ = ["PartCosines", "part_cosines"]


class PartCosines(NamedTuple):
    """Mean cosines of one part's samples, NaN where a set has no pair.

    Attributes
    ----------
    cosine : array (sample, layer, row), float64
        Rows are those of `pair_rows`.
    normed : array (sample, row), float64
        The last layer after the final norm; NaN when it was not asked for.
    counts : array (sample, set), int64
        Image and text tokens of each sample.
    """

    cosine: NDArray[np.float64]
    normed: NDArray[np.float64]
    counts: NDArray[np.int64]


def part_cosines(task: PartTask) -> PartCosines:
    """Compute one part.

    Raises
    ------
    StrataError
        A state is not finite or a zero vector: sample and layer are named.
    """
    part = open_part(task.url, task.name)
    rows = pair_rows(task.self_pairs)
    samples, layers = part.manifest["samples"], part.manifest["arrays"][task.array]["shape"][0]
    cosine = np.full((samples, layers, len(rows)), np.nan)
    normed = np.full((samples, len(rows)), np.nan)
    if samples == 0:
        return PartCosines(cosine, normed, np.zeros((0, len(task.sets)), np.int64))
    source = PooledSums(part, task) if task.source == "pooled" else StateSums(part, task)
    for layer, sums in source.layers():
        cosine[:, layer] = _cosines(sums, source.counts, rows)
    if task.normed:
        normed[:] = _cosines(source.normed(), source.counts, rows)
    return PartCosines(cosine, normed, source.counts.T)


def _cosines(sums: NDArray[np.float64], counts: NDArray[np.int64], rows: tuple[PairRow, ...]) -> NDArray[np.float64]:
    """Cosines (sample, row) from sums (set, sample, dim) and counts (set, sample)."""
    sets = {"image": 0, "text": 1}
    columns = []
    for pair, self_pairs in rows:
        a, b = (sets[name] for name in pair.split("-"))
        columns.append(
            within(sums[a], counts[a], self_pairs=self_pairs)
            if a == b
            else between(sums[a], counts[a], sums[b], counts[b])
        )
    return np.stack(columns, axis=1)
