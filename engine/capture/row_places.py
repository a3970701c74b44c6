"""Where the rows of a batch's samples were computed: in its own forward pass, or before it with a shared prefix.

The rows of a batch are the positions of all its samples, one sample after the other. Those of a prefix are there once,
however many samples share it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from engine.capture.batch import Run
from engine.capture.rows import OnDevices

__all__ = ["Computed", "Picking", "RowPlaces"]


class Computed(NamedTuple):
    """Values of the rows of the own pass, (row, …), and of the prefixes before it; None where there are none."""

    own: torch.Tensor
    prefix: torch.Tensor | None


class RowPlaces:
    """Places of a batch's rows.

    Parameters
    ----------
    runs
        What the own pass ran, per sample.
    prefixes
        What was run before it, one after the other; none where each sample was run in full.
    prefix_of
        Per sample the number of its prefix.

    Attributes
    ----------
    in_prefix
        (row,) bool: computed with a prefix.
    place
        (row,) int64: the row's number in the pass that computed it.
    sample
        (row,) int64: its sample.
    """

    def __init__(self, runs: Sequence[Run], prefixes: Sequence[Run] = (), prefix_of: Sequence[int] = ()) -> None:
        starts = np.cumsum([0, *(prefix.length for prefix in prefixes)])
        own_start = np.cumsum([0, *(run.length for run in runs)])
        pieces = []
        for number, run in enumerate(runs):
            if run.start:
                pieces.append(starts[prefix_of[number]] + np.arange(run.start))
            pieces.append(own_start[number] + np.arange(run.length))
        self.place = np.concatenate(pieces).astype(np.int64)
        self.in_prefix = np.concatenate([np.arange(run.stop) < run.start for run in runs])
        self.sample = np.repeat(np.arange(len(runs)), [run.stop for run in runs])

    def gather(self, own: torch.Tensor, prefix: torch.Tensor | None) -> torch.Tensor:
        """Take values of computed rows for all rows of the batch, on the host: rows are the last axis."""
        if prefix is None:
            return own
        place = torch.from_numpy(np.where(self.in_prefix, self.place, self.place + prefix.shape[-1]))
        return torch.cat([prefix, own], dim=-1)[..., place]


class Picking:
    """Picks rows of a batch out of what was computed.

    Parameters
    ----------
    places
        Where they are.
    chosen
        (row,) bool of the batch.
    own_held, prefix_held
        (row,) bool of either pass: the rows that it still holds; all where None.
    """

    def __init__(
        self,
        places: RowPlaces,
        chosen: np.ndarray,
        *,
        own_held: np.ndarray | None = None,
        prefix_held: np.ndarray | None = None,
    ) -> None:
        of_prefix = places.in_prefix[chosen]
        place = places.place[chosen]
        own, prefix = _among_held(place[~of_prefix], own_held), _among_held(place[of_prefix], prefix_held)
        self._ascending = bool((np.diff(own) == 1).all()) and (not len(own) or own[0] == 0)
        self._own, self._prefix = (OnDevices(torch.from_numpy(found)) for found in (own, prefix))
        self._to_own, self._to_prefix = (
            OnDevices(torch.from_numpy(np.flatnonzero(found))) for found in (~of_prefix, of_prefix)
        )
        self._counts = (len(own), len(prefix))

    def rows(self, computed: Computed) -> torch.Tensor:
        """Return the picked rows in the order of the batch; no copy where they are all that the own pass holds."""
        own, prefix = computed
        device, (of_own, of_prefix) = own.device, self._counts
        if not of_prefix:
            everything = self._ascending and of_own == len(own)
            return own if everything else own.index_select(0, self._own.at(device))
        assert prefix is not None, "rows of a prefix were computed with it"
        picked = own.new_empty(of_own + of_prefix, *own.shape[1:])
        picked[self._to_own.at(device)] = own.index_select(0, self._own.at(device))
        picked[self._to_prefix.at(device)] = prefix.index_select(0, self._prefix.at(device))
        return picked


def _among_held(place: np.ndarray, held: np.ndarray | None) -> np.ndarray:
    return place if held is None else np.cumsum(held)[place] - 1
