"""Sums of unit vectors of one part's samples, from hidden states."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from analyses.part_task import PartTask, open_array
from analyses.reads import Read, plan_reads
from analyses.token_runs import TokenRuns, plan_runs, runs_within
from analyses.unit_sums import VectorError, unit_sums
from engine.errors import StrataError
from engine.store import Part

__all__ = ["NORMED_AT_ONCE", "StateSums", "runs_of"]

NORMED_AT_ONCE = 256
"""Tokens that the final norm takes at once; bounds the float32 copy it makes."""


def runs_of(part: Part, task: PartTask) -> TokenRuns:
    """Plan the runs of a part; reads its roles."""
    roles = np.asarray(open_array(part, "token/role")[...])
    segments = [[(pair["start"], pair["stop"]) for pair in own] for own in part.samples["segments"]]
    return plan_runs(roles, segments, task.sets)


class StateSums:
    """Streams a part's hidden states once, first layer to last.

    Attributes
    ----------
    counts : array (set, sample), int64
    """

    def __init__(self, part: Part, task: PartTask) -> None:
        self._part = part
        self._norm = task.norm if task.normed else None
        self._states = open_array(part, task.array)
        self._layers = np.asarray(open_array(part, "token/layer")[...])
        self._runs = runs_of(part, task)
        self._normed = np.zeros((len(self._runs.bounds), self._states.shape[2]))
        self.counts = self._runs.counts

    def layers(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield each layer's index and sums (set, sample, dim).

        Raises
        ------
        StrataError
            A token is a zero vector or not finite: sample, layer and position are named.
        """
        count, tokens, dim = self._states.shape
        sums = np.zeros_like(self._normed)
        for read in plan_reads(count, tokens, dim * self._states.dtype.itemsize, self._states.chunks[1]):
            block = np.asarray(self._states[read.first_layer : read.last_layer, read.start : read.stop])
            for layer, states in enumerate(block, start=read.first_layer):
                self._add(sums, states, read, f"layer {self._layers[layer]}")
                if layer == count - 1 and self._norm is not None:
                    self._add_normed(states, read)
                if read.stop == tokens:
                    yield layer, self._per_sample(sums)
                    sums[:] = 0

    def normed(self) -> NDArray[np.float64]:
        """Return the last layer's sums after the final norm; known once `layers` is exhausted."""
        return self._per_sample(self._normed)

    def _per_sample(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([member @ sums for member in self._runs.members])

    def _add(self, sums: NDArray[np.float64], states: NDArray[np.floating], read: Read, where: str) -> None:
        touching, bounds = runs_within(self._runs.bounds, read.start, read.stop)
        try:
            sums[touching] += unit_sums(states, bounds)
        except VectorError as error:
            raise self._refusal(error, read.start + error.token, where) from None

    def _add_normed(self, states: NDArray[np.floating], read: Read) -> None:
        # In pieces, because a normed copy of the whole read would double the memory for one layer's sake.
        assert self._norm is not None
        for start in range(0, len(states), NORMED_AT_ONCE):
            piece = states[start : start + NORMED_AT_ONCE]
            stretch = Read(read.first_layer, read.last_layer, read.start + start, read.start + start + len(piece))
            where = f"layer {self._layers[-1]} after the final norm"
            self._add(self._normed, self._norm(piece), stretch, where)

    def _refusal(self, error: VectorError, token: int, where: str) -> StrataError:
        position = int(np.asarray(open_array(self._part, "token/position")[...])[token])
        sample = next(
            row.sample_id
            for row in self._part.samples.itertuples()
            if any(pair["start"] <= token < pair["stop"] for pair in row.segments)
        )
        return StrataError(
            f"{self._part.url}: sample {sample}, {where}, position {position} is {error.reason}, so it has no cosine "
            "with anything: run `strata verify --deep` on the store, then extract the sample again"
        )
