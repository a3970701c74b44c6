"""Pooled states against the hidden states stored beside them: their means, made again from what is on disk.

Pooling takes captured states and sums them in float32; stored states may be rounded. So a mean is wrong where it is
further from that of the stored states than both can explain:

- a stored value is off by ``r = e / (1 − e)`` of itself at most, with e the largest relative error of its rounding
  (0 for float16, float32 and bfloat16 states in their usual dtype): r of the mean size of the values for ``mean``, and
  ``2 r / (1 − r)`` of that of the unit vectors' values for ``unit_mean``; ``--mantissa-bits`` widens only this;
- a float32 sum of n terms, of vectors whose length is one of d terms, is off by ``(n + d) 2⁻²³`` of that mean size;
- the mean itself may have been rounded, by no more than its array says;
- a prefix that several samples share is stored as the first of them had it. The others may have run it again, with
  another batch around it: their means may differ by what two runs of one model may (`_NOISE`, of the mean length).

Only roles whose tokens are all stored are compared (``--roles``), and only layers that both keep.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from engine.errors import StrataError
from engine.store.deep_axes import Axes
from engine.store.inventory import Problem
from engine.store.layout import PARTS_FOLDER
from engine.store.part import Part
from engine.store.stream import Chunk
from engine.vocabulary import ROLES

__all__ = ["STATES", "PooledCheck", "PooledRuns", "find_pooled_runs"]

STATES = "token/hidden_states"
_MEANS = {"sample/unit_mean": "mean of unit vectors", "sample/mean": "mean"}
_NOISE = {"float32": 5e-3, "float16": 5e-2, "bfloat16": 5e-2}
"""How far a state of a second run may be from the first's, of its length; extraction runs a prefix once within this."""


class PooledRuns(NamedTuple):
    """Which runs of the token axis are averaged for which sample and role.

    Attributes
    ----------
    starts
        (run,) where runs of one role, that belong to the same samples, start.
    of_sample
        Per sample ``(role, runs, tokens, foreign)``: index along the role axis, numbers of the runs, how many tokens
        these have, whether another sample's pass made any of them.
    """

    starts: np.ndarray
    of_sample: list[list[tuple[int, np.ndarray, int, bool]]]


def find_pooled_runs(part: Part, axes: Axes) -> PooledRuns | None:
    """Find what can be compared; None where the part has not both states and their means."""
    entries, codes = part.manifest["arrays"], axes.coordinates.get("sample/role")
    if STATES not in entries or not set(_MEANS) & set(entries) or axes.counts is None or codes is None:
        return None
    role = axes.coordinates["token/role"]
    kept = entries[STATES]["attributes"].get("roles", ROLES)
    ends = {run[end] for segments in axes.samples["segments"] for run in segments for end in ("start", "stop")}
    piece = np.searchsorted(np.array(sorted(ends), np.int64), np.arange(len(role)), side="right")
    starts = np.flatnonzero((np.diff(role, prepend=-2) != 0) | (np.diff(piece, prepend=-2) != 0))
    lengths = np.diff(starts, append=len(role))
    run_of_token = np.repeat(np.arange(len(starts)), lengths)
    place = {int(code): index for index, code in enumerate(codes) if 0 <= code < len(ROLES) and ROLES[code] in kept}
    of_sample: list[list[tuple[int, np.ndarray, int, bool]]] = []
    for sample in range(len(axes.samples)):
        runs = np.unique(run_of_token[axes.places(sample)])
        foreign = axes.token_sample[starts[runs]] != sample
        means = []
        for code in np.unique(role[starts[runs]]):
            chosen = role[starts[runs]] == code
            tokens, index = int(lengths[runs[chosen]].sum()), place.get(int(code))
            if index is not None and tokens == axes.counts[index, sample]:
                means.append((index, runs[chosen], tokens, bool(foreign[chosen].any())))
        of_sample.append(means)
    return PooledRuns(starts, of_sample)


class _Sums(NamedTuple):
    """Per run the (run, dim) float64 sums of unit vectors or of states, of their sizes, and the (run,) lengths'."""

    plain: np.ndarray
    size: np.ndarray
    length: np.ndarray


class PooledCheck:
    """Compares means while hidden states pass by; holds the sums of one layer's runs, and one window of samples.

    Parameters
    ----------
    part, axes, runs
        The part, its axes, what is averaged.
    """

    def __init__(self, part: Part, axes: Axes, runs: PooledRuns) -> None:
        self._part = part
        self._axes = axes
        self._runs = runs
        self._layer: int | None = None
        self._sums: dict[str, _Sums] = {}

    def add(self, chunk: Chunk) -> Iterator[Problem]:
        """Add a chunk (1, token, dim); yield what is wrong with the means of a layer that has ended."""
        if chunk.first != self._layer:
            yield from self.finish()
            count, dim = len(self._runs.starts), chunk.values.shape[-1]
            self._layer = chunk.first
            self._sums = {
                path: _Sums(np.zeros((count, dim)), np.zeros((count, dim)), np.zeros(count))
                for path in _MEANS
                if path in self._part.manifest["arrays"]
            }
        states = chunk.values[0].astype(np.float64)
        lengths = np.linalg.norm(states, axis=1)
        first = int(np.searchsorted(self._runs.starts, chunk.start, side="right")) - 1
        inside = self._runs.starts[(self._runs.starts > chunk.start) & (self._runs.starts < chunk.stop)] - chunk.start
        starts, own = np.concatenate([[0], inside]), slice(first, first + len(inside) + 1)
        for path, sums in self._sums.items():
            unit = path == "sample/unit_mean"
            with np.errstate(divide="ignore", invalid="ignore"):  # a state that is 0 or NaN is a problem of its own
                values = states / lengths[:, np.newaxis] if unit else states
                sums.plain[own] += np.add.reduceat(values, starts, axis=0)
                sums.size[own] += np.add.reduceat(np.abs(values), starts, axis=0)
            sums.length[own] += np.add.reduceat(np.ones_like(lengths) if unit else lengths, starts)

    def finish(self) -> Iterator[Problem]:
        """Yield what is wrong with the means of the layer that was added last."""
        if self._layer is None:
            return
        number = self._axes.coordinates["token/layer"][self._layer]
        found = np.flatnonzero(self._axes.coordinates["sample/layer"] == number)
        for path, sums in self._sums.items():
            if len(found):
                yield from self._compare(path, sums, int(found[0]), int(number))
        self._layer, self._sums = None, {}

    def _compare(self, path: str, sums: _Sums, index: int, layer: int) -> Iterator[Problem]:
        """Compare one layer's means, window by window of samples; one problem for all that are wrong."""
        try:
            array = self._part.array(path)
            step = int(array.chunks[2])
            wrong = [
                place
                for start in range(0, len(self._runs.of_sample), step)
                for place in self._wrong(path, sums, np.asarray(array[index, :, start : start + step]), start)
            ]
        except StrataError:
            return  # that it cannot be read is said of itself
        if wrong:
            shard = index // self._part.manifest["arrays"][path]["shard"][0]
            more = f", and {len(wrong) - 1} more there" if len(wrong) > 1 else ""
            yield Problem(
                f"{PARTS_FOLDER}/{self._part.name}.zarr/{path}/c/{shard}/0/0/0",
                f"{path} layer {layer} is not the {_MEANS[path]} of the hidden states beside it: {wrong[0]}{more}",
            )

    def _wrong(self, path: str, sums: _Sums, stored: np.ndarray, start: int) -> Iterator[str]:
        """Name the means (role, sample, dim) of samples from ``start`` on that the states do not give."""
        entries = self._part.manifest["arrays"]
        share = _rounding(entries[STATES], unit=path == "sample/unit_mean")
        own_error = float(entries[path]["attributes"].get("rounding_max_absolute_error", 0.0))
        noise = _NOISE[entries[STATES]["attributes"].get("captured_dtype", "float32")]
        smallest = float(np.finfo(entries[STATES]["dtype"]).tiny)
        for column in range(stored.shape[1]):
            for role, runs, tokens, foreign in self._runs.of_sample[start + column]:
                mean, size = (part[runs].sum(axis=0) / tokens for part in (sums.plain, sums.size))
                length = float(sums.length[runs].sum()) / tokens
                if not np.isfinite(size).all():
                    continue
                error = (share + (tokens + stored.shape[2]) * 2.0**-23) * (size + smallest) + own_error
                beyond = np.maximum(np.abs(stored[role, column] - mean) - error, 0.0)
                if np.linalg.norm(beyond) > (noise * length if foreign else 0.0):
                    dim = int(beyond.argmax())
                    name = ROLES[self._axes.coordinates["sample/role"][role]]
                    yield (
                        f"sample {self._axes.name(start + column)}, role {name}, dim {dim} is "
                        f"{stored[role, column, dim]:.6g}, not {mean[dim]:.6g}"
                    )


def _rounding(entry: dict[str, Any], *, unit: bool) -> float:
    """How much of its own size a mean may be off because the states were rounded for storing."""
    error = float(entry["attributes"].get("rounding_max_relative_error", 0.0))
    if not error:
        return 0.0
    # What was measured may be 1, of a value below the smallest number of float16, which says nothing of the others.
    bits = [np.finfo(entry["dtype"]).nmant, entry["attributes"].get("mantissa_bits", np.inf)]
    error = min(error, float(np.prod([1 + 2.0 ** -(each + 1) for each in bits])) - 1)
    share = error / (1 - error)
    return 2 * share / (1 - share) if unit else share
