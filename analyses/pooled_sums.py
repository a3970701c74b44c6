"""Sums over the tokens of one part's samples, from pooled states: means of them times their number."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from analyses.part_task import PartTask, open_array
from engine.errors import StrataError
from engine.store import Part, stream_chunks
from engine.vocabulary import ROLES

__all__ = ["PooledSums"]


class PooledSums:
    """Streams a part's pooled states once, first layer to last; the same face as `StateSums`.

    Parameters
    ----------
    part : Part
    task : PartTask
    plain : bool
        Sum the states themselves instead of unit vectors.

    Attributes
    ----------
    counts : array (set, sample), int64
    """

    def __init__(self, part: Part, task: PartTask, *, plain: bool = False) -> None:
        self._part, self._sets = part, task.sets
        self._path = "sample/mean" if plain else "sample/unit_mean"
        self._layers = np.asarray(open_array(part, "sample/layer")[...])
        self._role_counts = np.asarray(open_array(part, "sample/token_count")[...], np.int64)
        self.counts = np.stack([self._role_counts[list(codes)].sum(axis=0) for codes in task.sets])

    def layers(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield each layer's index and sums (set, sample, dim).

        Raises
        ------
        StrataError
            A mean over at least one token is not finite: sample, layer and roles are named.
        """
        sums = self._no_sums()
        for chunk in stream_chunks(self._part, self._path):
            which = slice(chunk.start, chunk.stop)
            sums[:, which] = self._sums(chunk.values[0], which, f"layer {self._layers[chunk.first]}")
            if chunk.stop == sums.shape[1]:
                yield chunk.first, sums

    def normed(self) -> NDArray[np.float64]:
        """Return the last layer's sums of unit vectors after the final norm."""
        sums = self._no_sums()
        for chunk in stream_chunks(self._part, "sample/normed_unit_mean"):
            which = slice(chunk.start, chunk.stop)
            sums[:, which] = self._sums(chunk.values, which, f"layer {self._layers[-1]} after the final norm")
        return sums

    def _no_sums(self) -> NDArray[np.float64]:
        *_, samples, dim = self._part.manifest["arrays"][self._path]["shape"]
        return np.zeros((len(self._sets), samples, dim))

    def _sums(self, means: NDArray[np.float32], which: slice, where: str) -> NDArray[np.float64]:
        """Make sums (set, sample, dim) from means (role, sample, dim) of the samples ``which``."""
        counts = self._role_counts[:, which]
        sums = np.zeros((len(self._sets), *means.shape[1:]))
        for group, codes in enumerate(self._sets):
            for code in codes:
                there = counts[code] > 0  # a role without tokens has no mean (NaN) and adds nothing
                sums[group, there] += means[code, there] * counts[code, there, np.newaxis]
        broken = np.argwhere(~np.isfinite(sums).all(axis=2))
        if broken.size:
            group, sample = broken[0]
            sample_id = self._part.samples["sample_id"].iloc[which.start + int(sample)]
            roles = ", ".join(ROLES[code] for code in self._sets[group])
            raise StrataError(
                f"{self._part.url}: sample {sample_id}, {where}: the pooled states of {roles} are not finite; "
                "`strata verify` says whether the store is damaged"
            )
        return sums
