"""Sums of unit vectors of one part's samples, from hidden states."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from analyses.part_task import PartTask, open_array
from analyses.token_runs import TokenRuns, plan_runs, runs_within
from analyses.unit_sums import VectorError, unit_sums
from engine.errors import StrataError
from engine.store import Part, stream_chunks

__all__ = ["NORMED_AT_ONCE", "StateSums", "runs_of"]

NORMED_AT_ONCE = 64
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
        self._path = task.array
        self._layers = np.asarray(open_array(part, "token/layer")[...])
        self._runs = runs_of(part, task)
        self._normed = np.zeros((len(self._runs.bounds), part.manifest["arrays"][task.array]["shape"][2]))
        self.counts = self._runs.counts

    def layers(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield each layer's index and sums (set, sample, dim).

        Raises
        ------
        StrataError
            A token is a zero vector or not finite: sample, layer and position are named.
        """
        sums = np.zeros_like(self._normed)
        for chunk in stream_chunks(self._part, self._path):
            (states,) = chunk.values
            self._add(sums, states, chunk.start, f"layer {self._layers[chunk.first]}")
            if chunk.first == len(self._layers) - 1 and self._norm is not None:
                self._add_normed(states, chunk.start)
            if chunk.stop == self._part.tokens:
                yield chunk.first, self._per_sample(sums)
                sums[:] = 0

    def normed(self) -> NDArray[np.float64]:
        """Return the last layer's sums after the final norm; known once `layers` is exhausted."""
        return self._per_sample(self._normed)

    def _per_sample(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([member @ sums for member in self._runs.members])

    def _add(self, sums: NDArray[np.float64], states: NDArray[np.floating], start: int, where: str) -> None:
        """Add states (token, dim) of the tokens from ``start`` on."""
        touching, bounds = runs_within(self._runs.bounds, start, start + len(states))
        try:
            sums[touching] += unit_sums(states, bounds)
        except VectorError as error:
            raise self._refusal(error, start + error.token, where) from None

    def _add_normed(self, states: NDArray[np.floating], start: int) -> None:
        # In pieces, because a normed copy of the whole chunk would be the largest thing in memory for one layer's sake.
        assert self._norm is not None
        where = f"layer {self._layers[-1]} after the final norm"
        for first in range(0, len(states), NORMED_AT_ONCE):
            self._add(self._normed, self._norm(states[first : first + NORMED_AT_ONCE]), start + first, where)

    def _refusal(self, error: VectorError, token: int, where: str) -> StrataError:
        position = int(np.asarray(open_array(self._part, "token/position")[...])[token])
        sample = next(
            row.sample_id
            for row in self._part.samples.itertuples()
            if any(pair["start"] <= token < pair["stop"] for pair in row.segments)
        )
        return StrataError(
            f"{self._part.url}: sample {sample}, {where}, position {position} is {error.reason}, so it has no cosine "
            "with anything; `strata verify` says whether the store is damaged"
        )
