"""Pooled states against the hidden states stored beside them: their means, made again from what is on disk.

Pooling takes captured states and sums them in float32; stored states may be rounded. So a mean is wrong where it is
further from that of the stored states than all of these together can explain:

- a stored value is off by ``r = e / (1 − e)`` of itself at most, with e the largest relative error of its rounding
  (0 for float16, float32 and bfloat16 states in their usual dtype; ``--mantissa-bits`` widens only this), which moves
  a mean of states by r of the mean size of the values, and one of directions as :mod:`engine.store.deep_norm` says;
- a float32 sum of n terms is off by ``n 2⁻²³`` of that mean size;
- the mean itself may have been rounded, by no more than its array says;
- a prefix that several samples share is stored as the first of them had it. Where it did not run once per image, the
  others ran it again, with another batch around it: of these tokens' share, their means may differ by what two runs of
  one model may (`_TWO_RUNS`, of the mean length). No dtype gives a bound for that, because every block of the model
  makes more of it; it is how far apart the check at the beginning of a run lets two runs be.

Only roles whose tokens are all stored are compared (``--roles``), and only layers that both keep.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np

from engine.errors import StrataError
from engine.store.deep_axes import Axes
from engine.store.deep_norm import FinalNorm, find_directions
from engine.store.deep_runs import PooledRuns
from engine.store.inventory import Problem
from engine.store.layout import PARTS_FOLDER
from engine.store.part import Part
from engine.store.stream import Chunk
from engine.vocabulary import ROLES

__all__ = ["STATES", "PooledCheck"]

STATES = "token/hidden_states"
_UNIT, _PLAIN, _NORMED = "sample/unit_mean", "sample/mean", "sample/normed_unit_mean"
_MEANS = {
    _UNIT: "mean of unit vectors of the hidden states",
    _PLAIN: "mean of the hidden states",
    _NORMED: "mean of unit vectors, after the final norm, of the hidden states",
}
_TWO_RUNS = {"float32": 5e-3, "float16": 5e-2, "bfloat16": 5e-2}
"""How far a mean of states of a second run may be from the first's, of its length. Two runs may have a mean cosine of
1 − c, c being 1e-5 in float32 and 1e-3 in 16 bits, or extraction stops: on average √(2 c) of a state's length."""

_VALUES_AT_ONCE = 2**16


class _Sums(NamedTuple):
    """Sums over each run, float64.

    Attributes
    ----------
    plain, size, error
        (run, dim): of what is averaged, of its size, and of how far it may be off.
    length
        (run,): of the lengths of what is averaged.
    """

    plain: np.ndarray
    size: np.ndarray
    error: np.ndarray
    length: np.ndarray

    @classmethod
    def of(cls, runs: int, dim: int) -> Self:
        """Make sums of nothing."""
        return cls(np.zeros((runs, dim)), np.zeros((runs, dim)), np.zeros((runs, dim)), np.zeros(runs))


class PooledCheck:
    """Compares means while hidden states pass by; holds the sums of one layer's runs, and one window of samples.

    Parameters
    ----------
    part, axes, runs
        The part, its axes, what is averaged.
    norm
        The model's final norm, where it is known: without it nothing is said of ``normed_unit_mean``.
    """

    def __init__(self, part: Part, axes: Axes, runs: PooledRuns, norm: FinalNorm | None) -> None:
        self._part = part
        self._axes = axes
        self._runs = runs
        self._norm = norm
        entry = part.manifest["arrays"][STATES]
        self._dim = entry["shape"][-1]
        self._relative = _rounding(entry)
        self._smallest = float(np.finfo(entry["dtype"]).tiny)
        self._two_runs = _TWO_RUNS[entry["attributes"].get("captured_dtype", "float32")]
        self._layer: int | None = None
        self._sums: dict[str, _Sums] = {}

    def add(self, chunk: Chunk) -> Iterator[Problem]:
        """Add a chunk (1, token, dim); yield what is wrong with the means of a layer that has ended."""
        states = chunk.values[0]
        if chunk.first != self._layer:
            yield from self.finish()
            shape = (len(self._runs.starts), states.shape[1])
            self._layer = chunk.first
            self._sums = {path: _Sums.of(*shape) for path in self._compared()}
        step = max(1, _VALUES_AT_ONCE // max(states.shape[1], 1))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # such a state is a problem of its own
            for first in range(0, len(states), step):
                self._add(states[first : first + step].astype(np.float64), chunk.start + first)

    def _compared(self) -> list[str]:
        """Means of this layer that there are; another width than the states' is a problem of its own."""
        entries, norm = self._part.manifest["arrays"], self._norm
        normed = norm is not None and (norm.layer, len(norm.weight)) == (self._number, self._dim)
        there = [path for path in _MEANS if path in entries and (path != _NORMED or normed)]
        return [path for path in there if entries[path]["shape"][-1:] == [self._dim]]

    @property
    def _number(self) -> int:
        assert self._layer is not None
        return int(self._axes.coordinates["token/layer"][self._layer])

    def _add(self, states: np.ndarray, start: int) -> None:
        """Add states (token, dim) of tokens from ``start`` on."""
        first = int(np.searchsorted(self._runs.starts, start, side="right")) - 1
        inside = self._runs.starts[(self._runs.starts > start) & (self._runs.starts < start + len(states))] - start
        starts, own = np.concatenate([[0], inside]), slice(first, first + len(inside) + 1)
        for path, sums in self._sums.items():
            values, error = self._terms(path, states)
            sums.plain[own] += np.add.reduceat(values, starts, axis=0)
            sums.size[own] += np.add.reduceat(np.abs(values), starts, axis=0)
            sums.error[own] += np.add.reduceat(error, starts, axis=0)
            sums.length[own] += np.add.reduceat(np.linalg.norm(values, axis=1), starts)

    def _terms(self, path: str, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give what is averaged, and how far it may be off: (token, dim) both."""
        if path == _PLAIN:
            return states, self._relative * (np.abs(states) + self._smallest)
        if path == _UNIT:
            return find_directions(states, self._relative, self._smallest)
        assert self._norm is not None, "its means are compared where it is known"
        return self._norm.directions(states, self._relative, self._smallest)

    def finish(self) -> Iterator[Problem]:
        """Yield what is wrong with the means of the layer that was added last."""
        if self._layer is None:
            return
        found = np.flatnonzero(self._axes.coordinates["sample/layer"] == self._number)
        for path, sums in self._sums.items():
            if len(found):
                yield from self._compare(path, sums, int(found[0]))
        self._layer, self._sums = None, {}

    def _compare(self, path: str, sums: _Sums, index: int) -> Iterator[Problem]:
        """Compare one layer's means, window by window of samples; one problem for all that are wrong."""
        entry = self._part.manifest["arrays"][path]
        along, lead = entry["dims"].index("sample"), () if path == _NORMED else (index,)
        try:
            array = self._part.array(path)
            step = int(array.chunks[along])
            wrong = [
                place
                for start in range(0, len(self._runs.of_sample), step)
                for place in self._wrong(entry, sums, np.asarray(array[*lead, :, start : start + step]), start)
            ]
        except StrataError:
            return  # that it cannot be read is said of itself
        if wrong:
            shard = index // entry["shard"][0] if lead else 0
            more = f", and {len(wrong) - 1} more there" if len(wrong) > 1 else ""
            yield Problem(
                f"{PARTS_FOLDER}/{self._part.name}.zarr/{path}/c/{shard}" + "/0" * (len(entry["dims"]) - 1),
                f"{path} layer {self._number} is not the {_MEANS[path]} beside it: {wrong[0]}{more}",
            )

    def _wrong(self, entry: dict[str, Any], sums: _Sums, stored: np.ndarray, start: int) -> Iterator[str]:
        """Name the means (role, sample, dim) of samples from ``start`` on that the states do not give."""
        own_error = float(entry["attributes"].get("rounding_max_absolute_error", 0.0))
        for column in range(stored.shape[1]):
            for role, runs, again, tokens in self._runs.of_sample[start + column]:
                moved, size = (part[runs].sum(axis=0) / tokens for part in (sums.error, sums.size))
                error = moved + tokens * 2.0**-23 * size + own_error
                if not np.isfinite(error).all():
                    continue  # of a value that is a problem of its own, or was rounded until it says nothing
                mean = sums.plain[runs].sum(axis=0) / tokens
                beyond = np.maximum(np.abs(stored[role, column] - mean) - error, 0.0)
                if np.linalg.norm(beyond) > self._two_runs * float(sums.length[again].sum()) / tokens:
                    dim = int(beyond.argmax())
                    name = ROLES[self._axes.coordinates["sample/role"][role]]
                    yield (
                        f"sample {self._axes.name(start + column)}, role {name}, dim {dim} is "
                        f"{stored[role, column, dim]:.6g}, not {mean[dim]:.6g}"
                    )


def _rounding(entry: dict[str, Any]) -> float:
    """How much of its own size a captured value may be off from the stored one."""
    error = float(entry["attributes"].get("rounding_max_relative_error", 0.0))
    if not error:
        return 0.0
    # What was measured may be 1, of a value below the smallest number of float16, which says nothing of the others.
    bits = [np.finfo(entry["dtype"]).nmant, entry["attributes"].get("mantissa_bits", np.inf)]
    error = min(error, float(np.prod([1 + 2.0 ** -(each + 1) for each in bits])) - 1)
    return error / (1 - error)
