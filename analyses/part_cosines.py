"""Contextualization of one part: reads it layer by layer and returns a few numbers per sample."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.anisotropy import PairSums, PairSumsOfPart, empty_pair_sums
from analyses.cosines import between, within
from analyses.part_task import PairRow, PartTask, pair_rows, sets_of
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
    pairs : PairSums or None
        What the part contributes to the anisotropy baseline, where the task names prompts.
    """

    cosine: NDArray[np.float64]
    normed: NDArray[np.float64]
    counts: NDArray[np.int64]
    pairs: PairSums | None


def part_cosines(task: PartTask) -> PartCosines:
    """Compute one part.

    Raises
    ------
    StrataError
        A state is not finite or a zero vector: sample and layer are named.
    """
    part = open_part(task.url, task.name)
    rows = pair_rows(task.self_pairs)
    layers, *_, dim = part.manifest["arrays"][task.array]["shape"]
    samples, points = part.manifest["samples"], layers + task.normed
    cosine = np.full((samples, points, len(rows)), np.nan)
    if samples == 0:
        pairs = empty_pair_sums(len(task.prompts), points, dim) if task.prompts else None
        return _result(cosine, np.zeros((len(task.sets), 0), np.int64), layers, pairs)
    source = PooledSums(part, task) if task.source == "pooled" else StateSums(part, task)
    unrelated = PairSumsOfPart(part.samples, task.prompts, source.counts, points, dim) if task.prompts else None

    def add(point: int, sums: NDArray[np.float64]) -> None:
        cosine[:, point] = _cosines(sums, source.counts, rows)
        if unrelated is not None:
            unrelated.add(point, sums)

    for layer, sums in source.layers():
        add(layer, sums)
    if task.normed:
        add(layers, source.normed())
    return _result(cosine, source.counts, layers, None if unrelated is None else unrelated.sums)


def _result(cosine: NDArray[np.float64], counts: NDArray[np.int64], layers: int, pairs: PairSums | None) -> PartCosines:
    samples, points, rows = cosine.shape
    normed = cosine[:, layers] if points > layers else np.full((samples, rows), np.nan)
    return PartCosines(cosine[:, :layers], normed, counts.T, pairs)


def _cosines(sums: NDArray[np.float64], counts: NDArray[np.int64], rows: tuple[PairRow, ...]) -> NDArray[np.float64]:
    """Cosines (sample, row) from sums (set, sample, dim) and counts (set, sample)."""
    columns = []
    for pair, self_pairs in rows:
        a, b = sets_of(pair)
        columns.append(
            within(sums[a], counts[a], self_pairs=self_pairs)
            if a == b
            else between(sums[a], counts[a], sums[b], counts[b])
        )
    return np.stack(columns, axis=1)
