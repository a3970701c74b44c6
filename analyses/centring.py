"""Where cosines are measured from when states are mean-centred: the mean state of each layer.

Subtracting it takes out what all states of a layer share. The mean is ½ (mean over samples of the mean image state +
mean over samples of the mean text state), so that neither the number of tokens of a modality nor that of a sample
decides where the origin lies; a sample whose set is empty has no part in that set's mean, and where no sample has
text (or image) tokens, the other modality decides alone. The row after the final norm has the mean of normed states.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.part_task import Origin, PartTask
from analyses.pooled_sums import PooledSums
from analyses.state_sums import StateSums
from engine.store import open_part

__all__ = ["StateMeans", "find_origin", "part_means"]


class StateMeans(NamedTuple):
    """What a part contributes to the mean state; both fields add up over parts.

    Attributes
    ----------
    sums : array (set, point, dim), float64
        Sum over samples of the mean state of a set; points are the layers, then the last after the final norm.
    samples : array (set), int64
        Samples whose set is not empty.
    """

    sums: NDArray[np.float64]
    samples: NDArray[np.int64]


def part_means(task: PartTask) -> StateMeans:
    """Sum the mean states of one part's samples: from pooled means, or from hidden states, as the task says.

    After the final norm they always are of hidden states: the norm of a mean is not the mean of norms.

    Raises
    ------
    StrataError
        A state is not finite: sample and layer are named.
    """
    part = open_part(task.url, task.name)
    layers, *_, dim = part.manifest["arrays"][task.array]["shape"]
    means = StateMeans(np.zeros((len(task.sets), layers + 1, dim)), np.zeros(len(task.sets), np.int64))
    if part.manifest["samples"] == 0:
        return means
    pooled = task.source == "pooled"
    source = PooledSums(part, task, plain=True) if pooled else StateSums(part, task, plain=True)
    for layer, sums in source.layers():
        means.sums[:, layer] = _sum_of_means(sums, source.counts)
    if task.normed:
        states = StateSums(part, task, plain=True) if isinstance(source, PooledSums) else source
        normed = states.read_normed() if pooled else states.normed()
        means.sums[:, layers] = _sum_of_means(normed, states.counts)
    means.samples[:] = (source.counts > 0).sum(axis=1)
    return means


def _sum_of_means(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum over samples of sums (set, sample, dim) divided by counts (set, sample), where those are not 0."""
    weights = np.divide(1.0, counts, out=np.zeros(counts.shape), where=counts > 0)
    return np.einsum("gs,gsd->gd", weights, sums)


def find_origin(parts: Iterable[StateMeans]) -> Origin:
    """Take the mean state of every layer from the contributions of all parts."""
    total: StateMeans | None = None
    for part in parts:
        if total is None:
            total = part
        else:
            np.add(total.sums, part.sums, out=total.sums)
            np.add(total.samples, part.samples, out=total.samples)
    assert total is not None
    weights = np.divide(1.0, total.samples, out=np.zeros(len(total.samples)), where=total.samples > 0)
    means = np.tensordot(weights, total.sums, 1) / max(1, np.count_nonzero(weights))
    return Origin(means[:-1], means[-1])
