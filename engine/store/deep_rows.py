"""Rows of attention: each sums to 1 over its sample's keys, and to each role what ``attention_mass`` says."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engine.errors import StrataError
from engine.store.deep_axes import Axes
from engine.store.inventory import Problem
from engine.store.layout import PARTS_FOLDER
from engine.store.part import Part
from engine.store.stream import Chunk
from engine.vocabulary import ROLE_CODES, ROLES

__all__ = ["MASS", "ROWS", "RowSums", "sum_error"]

ROWS, MASS = "key/attention", "token/attention_mass"
_SUM_ERROR = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 4e-2}
"""How far a softmax row's sum may be from 1, by the dtype that its weights were held in."""


def sum_error(part: Part, path: str) -> float:
    """How far a sum over an array's last axis may be off: by its arithmetic, and by what was rounded for storing."""
    entry = part.manifest["arrays"][path]
    rounding = float(entry["attributes"].get("rounding_max_absolute_error", 0.0)) * entry["shape"][-1]
    return _SUM_ERROR[entry["attributes"].get("captured_dtype", "float32")] + rounding


class RowSums:
    """Sums of attention rows to the keys of each role, added up chunk by chunk; holds those of one block.

    Parameters
    ----------
    part, axes
        The part and its axes.
    file
        The shard that is read.
    """

    def __init__(self, part: Part, axes: Axes, file: str) -> None:
        self._part = part
        self._axes = axes
        self._file = file
        self._block: int | None = None
        self._totals = np.zeros(0)
        roles = axes.coordinates.get("key/role")  # formats before 0.4 have none
        self._told = roles is not None and MASS in part.manifest["arrays"]
        self._roles = roles if roles is not None and self._told else np.zeros(part.keys, np.int32)

    def add(self, chunk: Chunk) -> Iterator[Problem]:
        """Add a chunk (1, query, head, key); yield what is wrong with a block that has ended."""
        rows = chunk.values[0]
        if chunk.first != self._block:
            yield from self.finish()
            self._block = chunk.first
            self._totals = np.zeros((*rows.shape[:2], len(self._axes.samples), len(ROLES)))
        owner, role = (each[chunk.start : chunk.stop] for each in (self._axes.key_sample, self._roles))
        starts = np.flatnonzero((np.diff(owner, prepend=-2) != 0) | (np.diff(role, prepend=-2) != 0))
        added = np.add.reduceat(rows, starts, axis=-1, dtype=np.float64)
        owned = (owner[starts] >= 0) & (role[starts] >= 0) & (role[starts] < len(ROLES))
        place = np.ravel_multi_index((owner[starts][owned], role[starts][owned]), self._totals.shape[2:])
        flat = self._totals.reshape(*rows.shape[:2], -1)
        for run, column in enumerate(place):  # a role may have several runs of one sample's keys
            flat[..., column] += added[..., owned][..., run]

    def finish(self) -> Iterator[Problem]:
        """Yield what is wrong with the block that was added last."""
        if self._block is None:
            return
        number = int(self._axes.coordinates["key/block"][self._block])
        totals = self._totals.sum(axis=-1)
        wrong = np.argwhere(np.abs(totals - 1) > sum_error(self._part, ROWS))  # a query that a sample lacks is NaN
        if len(wrong):
            query, head, sample = (int(at) for at in wrong[0])
            yield Problem(
                self._file,
                f"{ROWS} block {number} has a row that sums to {totals[query, head, sample]:.4f}: sample "
                f"{self._axes.name(sample)}, query {query}, head {head}, and {len(wrong) - 1} more there",
            )
        elif self._told:
            yield from self._compare(number)
        self._block = None

    def _compare(self, number: int) -> Iterator[Problem]:
        """Compare the sums of one block with the masses that are stored of the same positions."""
        entry = self._part.manifest["arrays"][MASS]
        found = np.flatnonzero(self._axes.coordinates["token/block"] == number)
        if not len(found) or number not in entry["attributes"].get("blocks", [number]):
            return
        index, error = int(found[0]), sum_error(self._part, MASS) + sum_error(self._part, ROWS)
        try:
            for (token, sample, query), off in self._differences(index, entry):
                if (off > error).any():
                    yield Problem(
                        f"{PARTS_FOLDER}/{self._part.name}.zarr/{MASS}/c/{index // entry['shard'][0]}/0/0/0",
                        f"{MASS} block {number} is not the sum of the row of {ROWS} beside it: sample "
                        f"{self._axes.name(sample)}, token {token}, query {query}, head {int(off.argmax())}, off by "
                        f"{off.max():.4f}",
                    )
                    return
        except StrataError:
            return  # that it cannot be read is said of itself

    def _differences(self, index: int, entry: dict[str, Any]) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
        """Yield each place with how far masses are off, (head,), holding one chunk's tokens at a time."""
        array = self._part.array(MASS)
        codes, step = self._axes.coordinates["token/source_role"], int(array.chunks[2])
        places = self._places(entry["attributes"].get("roles", ROLES))
        for start in sorted({token // step * step for token, _, _ in places}):
            window = np.asarray(array[index, :, start : start + step])
            for token, sample, query in places:
                if start <= token < start + step:
                    totals = self._totals[query, :, sample][:, codes]
                    yield (token, sample, query), np.abs(window[:, token - start] - totals).max(axis=1)

    def _places(self, roles: Sequence[str]) -> list[tuple[int, int, int]]:
        """Find stored tokens of which there is a row and a mass of the same pass: (token, sample, query)."""
        axes, kept = self._axes, [ROLE_CODES[name] for name in roles if name in ROLE_CODES]
        places = []
        for sample, (start, positions) in enumerate(
            zip(axes.samples["key_start"], axes.samples["query_positions"], strict=True)
        ):
            for query, position in enumerate([] if positions is None else positions):
                key = int(start) + int(position)
                token = int(axes.coordinates["key/token"][key]) if position >= 0 and key < self._part.keys else -1
                # A shared prefix's mass is that of its first sample's pass.
                own = 0 <= token < self._part.tokens and axes.token_sample[token] == sample
                if own and axes.coordinates["token/role"][token] in kept:
                    places.append((token, sample, query))
        return places
