"""Sums over the tokens of one part's samples, from hidden states: of unit vectors, or of the states themselves."""

from collections.abc import Iterator
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from analyses.part_task import PartTask, open_array
from analyses.plain_sums import plain_sums
from analyses.token_blocks import VectorError
from analyses.token_runs import TokenRuns, plan_runs, runs_within
from analyses.unit_sums import unit_sums
from engine.errors import StrataError
from engine.store import Part, stream_chunks

__all__ = ["NORMED_AT_ONCE", "StateSums", "runs_of"]

NORMED_AT_ONCE = 64
"""Tokens that the final norm takes at once; bounds the float32 copy it makes."""

_PATH = "token/hidden_states"


def runs_of(part: Part, task: PartTask) -> TokenRuns:
    """Plan the runs of a part; reads its roles."""
    roles = np.asarray(open_array(part, "token/role")[...])
    segments = [[(pair["start"], pair["stop"]) for pair in own] for own in part.samples["segments"]]
    return plan_runs(roles, segments, task.sets)


class StateSums:
    """Streams a part's hidden states once, first layer to last.

    Parameters
    ----------
    part : Part
    task : PartTask
    plain : bool
        Sum the states themselves instead of unit vectors (from the task's origin).

    Attributes
    ----------
    counts : array (set, sample), int64
    """

    def __init__(self, part: Part, task: PartTask, *, plain: bool = False) -> None:
        self._part = part
        self._norm = task.norm if task.normed else None
        self._plain, self._origin = plain, task.origin
        self._layers = np.asarray(open_array(part, "token/layer")[...])
        self._runs = runs_of(part, task)
        self._runs_within = cache(partial(runs_within, self._runs.bounds))  # every layer is cut alike
        self._normed = np.zeros((len(self._runs.bounds), part.manifest["arrays"][_PATH]["shape"][2]))
        self.counts = self._runs.counts

    def layers(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield each layer's index and sums (set, sample, dim).

        Raises
        ------
        StrataError
            A token is a zero vector or not finite: sample, layer and position are named.
        """
        sums = np.zeros_like(self._normed)
        for chunk in stream_chunks(self._part, _PATH):
            (states,) = chunk.values
            origin = None if self._origin is None else self._origin.states[chunk.first]
            self._add(sums, states, chunk.start, origin, f"layer {self._layers[chunk.first]}")
            if chunk.first == len(self._layers) - 1 and self._norm is not None:
                self._add_normed(states, chunk.start)
            if chunk.stop == self._part.tokens:
                yield chunk.first, self._per_sample(sums)
                sums[:] = 0

    def normed(self) -> NDArray[np.float64]:
        """Return the last layer's sums after the final norm; known once `layers` is exhausted."""
        return self._per_sample(self._normed)

    def read_normed(self) -> NDArray[np.float64]:
        """Return what `normed` does, reading the last layer alone."""
        array = open_array(self._part, _PATH)
        for start in range(0, array.shape[1], array.chunks[1]):
            self._add_normed(np.asarray(array[-1, start : start + array.chunks[1]]), start)
        return self.normed()

    def _per_sample(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([member @ sums for member in self._runs.members])

    def _add(
        self,
        sums: NDArray[np.float64],
        states: NDArray[np.floating],
        start: int,
        origin: NDArray[np.float64] | None,
        where: str,
    ) -> None:
        """Add states (token, dim) of the tokens from ``start`` on."""
        touching, bounds = self._runs_within(start, start + len(states))
        try:
            sums[touching] += plain_sums(states, bounds) if self._plain else unit_sums(states, bounds, origin)
        except VectorError as error:
            raise self._refusal(error, start + error.token, where) from None

    def _add_normed(self, states: NDArray[np.floating], start: int) -> None:
        # In pieces, because a normed copy of the whole chunk would be the largest thing in memory for one layer's sake.
        assert self._norm is not None
        where = f"layer {self._layers[-1]} after the final norm"
        origin = None if self._origin is None else self._origin.normed
        for first in range(0, len(states), NORMED_AT_ONCE):
            self._add(self._normed, self._norm(states[first : first + NORMED_AT_ONCE]), start + first, origin, where)

    def _refusal(self, error: VectorError, token: int, where: str) -> StrataError:
        position = int(np.asarray(open_array(self._part, "token/position")[...])[token])
        sample = next(
            row.sample_id
            for row in self._part.samples.itertuples()
            if any(pair["start"] <= token < pair["stop"] for pair in row.segments)
        )
        centred = "" if self._origin is None else " less the layer's mean"
        return StrataError(
            f"{self._part.url}: sample {sample}, {where}, position {position}{centred} is {error.reason}, so it has no "
            "cosine with anything; `strata verify` says whether the store is damaged"
        )
