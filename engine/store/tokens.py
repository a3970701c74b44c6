"""Batches of token states over all parts, in stored order or shuffled, in bounded memory.

Every token whose states are stored comes once per pass: a prefix that several prompts share is stored once and comes
once. Nothing grows with the store but the list of its parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from engine.errors import StrataError, UsageError
from engine.store.choices import kept_roles, layer_indices, role_codes, state_layers
from engine.store.coordinates import read_coordinates
from engine.store.layout import ArrayShape
from engine.store.part import Part
from engine.store.token_plan import PartTokens, PassPlan, Window, mixed_order, plan_pass, stored_order

__all__ = ["TokenBatch", "iterate_tokens"]

_PATH = "token/hidden_states"
_COORDINATES = ("token/role", "token/token_id", "token/position")


class TokenBatch(NamedTuple):
    """States of tokens and what is known of each. The arrays are the caller's: fresh, writable, C-contiguous.

    Attributes
    ----------
    states
        (token, dim), or (token, layer, dim) where several layers were asked for, in their order; float16 or float32,
        as stored.
    role, token_id, position
        (token) int32, as on the token axis; role codes are those of `engine.vocabulary.ROLE_CODES`.
    part, token
        (token) int32: number of the part, place on that part's token axis.
    sample
        (token) int64: row of `Store.samples`, the first sample that the token belongs to. It gives the token's image
        and all that is known of it: ``store.samples["image_id"].to_numpy()[batch.sample]``. A token of a shared prefix
        belongs to further samples of the same image.
    """

    states: np.ndarray
    role: np.ndarray
    token_id: np.ndarray
    position: np.ndarray
    part: np.ndarray
    token: np.ndarray
    sample: np.ndarray


def iterate_tokens(
    parts: Sequence[Part],
    capture: Mapping[str, Any],
    *,
    layer: int | Sequence[int],
    roles: str | Sequence[str] | None,
    batch: int,
    shuffle: int | None,
    memory: int,
    drop_last: bool,
) -> Iterator[TokenBatch]:
    """Check what is asked for and iterate; see `Store.tokens`.

    Parameters
    ----------
    parts
        In the order of `Store.samples`.
    capture
        What they hold, as in ``store.json``.
    layer, roles, batch, shuffle, memory, drop_last
        As in `Store.tokens`.
    """
    if any(_PATH not in part.manifest["arrays"] for part in parts):
        kept = ", ".join(capture.get("tensors", ()))
        raise UsageError(f"{parts[0].url} holds no hidden states but {kept}: extract with --capture residual")
    if batch < 1:
        raise UsageError(f"batch={batch}: at least 1 token is needed")
    layers = layer_indices(state_layers(capture), layer)
    stored_roles = kept_roles(capture, "residual")
    codes = role_codes(stored_roles, stored_roles if roles is None else roles)
    generator = _generator(shuffle)
    shapes = [_numbers(part) for part in parts]
    plan = plan_pass(shapes, layers=len(layers), batch=batch, memory=memory, shuffled=generator is not None)
    reader = _Reader(parts, layers, codes)
    if generator is None:
        batches = _in_order(reader, stored_order(shapes), plan, batch)
    else:
        batches = _shuffled(reader, mixed_order(shapes, plan.open_parts, generator), plan, batch, generator)
    whole = (found for found in batches if len(found.role) == batch or not drop_last)
    return whole if np.ndim(layer) else (found._replace(states=found.states[:, 0]) for found in whole)


def _generator(shuffle: int | None) -> np.random.Generator | None:
    if shuffle is None:
        return None
    if isinstance(shuffle, bool) or not isinstance(shuffle, int | np.integer) or shuffle < 0:
        raise UsageError(f"shuffle={shuffle!r} is no seed: give an integer from 0 on, or None for stored order")
    return np.random.default_rng(int(shuffle))


def _numbers(part: Part) -> PartTokens:
    entry = part.manifest["arrays"][_PATH]
    layout = ArrayShape(_PATH, tuple(entry["dims"]), tuple(entry["shape"]), entry["dtype"])
    _, tokens, dim = layout.shape
    state_bytes = dim * np.dtype(layout.dtype).itemsize
    return PartTokens(tokens, part.manifest["samples"], layout.chunk_plan.inner[1], state_bytes)


def _taken(pool: TokenBatch, rows: slice | np.ndarray) -> TokenBatch:
    return TokenBatch(*(np.array(field[rows]) if isinstance(rows, slice) else field[rows] for field in pool))


def _in_order(reader: "_Reader", order: Iterator[Window], plan: PassPlan, batch: int) -> Iterator[TokenBatch]:
    pool = reader.empty(plan.pool_rows)
    first = held = 0
    for window in order:
        chosen = reader.chosen(window)
        if held + len(chosen) > plan.pool_rows:  # less than a batch is left: to the front with it
            for field in pool:
                field[: held - first] = field[first:held]
            first, held = 0, held - first
        reader.read(window, chosen, pool, held)
        held += len(chosen)
        while held - first >= batch:
            yield _taken(pool, slice(first, first + batch))
            first += batch
    if held > first:
        yield _taken(pool, slice(first, held))


def _shuffled(
    reader: "_Reader", order: Iterator[Window], plan: PassPlan, batch: int, generator: np.random.Generator
) -> Iterator[TokenBatch]:
    pool = reader.empty(plan.pool_rows)
    held = 0
    for window in order:
        chosen = reader.chosen(window)
        while held + len(chosen) > plan.pool_rows:
            yield _drawn(pool, held, batch, generator)
            held -= batch
        reader.read(window, chosen, pool, held)
        held += len(chosen)
    rest = generator.permutation(held)
    for start in range(0, held, batch):
        yield _taken(pool, rest[start : start + batch])


def _drawn(pool: TokenBatch, held: int, count: int, generator: np.random.Generator) -> TokenBatch:
    """Draw ``count`` of the ``held`` rows; rows from the end take their places."""
    rows = generator.choice(held, count, replace=False)
    drawn = _taken(pool, rows)
    left = held - count
    holes = rows[rows < left]
    movable = np.ones(count, bool)
    movable[rows[rows >= left] - left] = False
    moved = left + np.flatnonzero(movable)
    for field in pool:
        field[holes] = field[moved]
    return drawn


class _Reader:
    """Reads windows; what it knows of an open part is forgotten with the part's last window."""

    def __init__(self, parts: Sequence[Part], layers: Sequence[int], codes: Sequence[int] | None) -> None:
        self._parts = parts
        self._first_rows = np.cumsum([0, *(part.manifest["samples"] for part in parts)])
        self._layers = layers
        self._codes = codes
        self._opened: dict[int, _OpenPart] = {}

    def empty(self, rows: int) -> TokenBatch:
        """Make room for tokens; states keep the axis of layers."""
        entry = self._parts[0].manifest["arrays"][_PATH]
        states = np.empty((rows, len(self._layers), entry["shape"][2]), entry["dtype"])
        return TokenBatch(states, *[np.empty(rows, kind) for kind in (*[np.int32] * 5, np.int64)])

    def chosen(self, window: Window) -> np.ndarray:
        """Tokens of the chosen roles, counted from the window's start."""
        if window.part not in self._opened:
            self._opened[window.part] = _OpenPart(self._parts[window.part], int(self._first_rows[window.part]))
        role = self._opened[window.part].role[window.start : window.stop]
        return np.arange(len(role)) if self._codes is None else np.flatnonzero(np.isin(role, self._codes))

    def read(self, window: Window, chosen: np.ndarray, pool: TokenBatch, at: int) -> None:
        """Put the chosen tokens of a window into the pool from row ``at`` on."""
        part = self._opened.pop(window.part) if window.last else self._opened[window.part]
        if not len(chosen):  # then no state is read either
            return
        rows = slice(at, at + len(chosen))
        for place, layer in enumerate(self._layers):
            values = np.asarray(part.states[layer, window.start : window.stop])
            pool.states[rows, place] = values if len(chosen) == len(values) else values[chosen]
        tokens = window.start + chosen
        pool.role[rows] = part.role[tokens]
        pool.token_id[rows] = part.token_id[tokens]
        pool.position[rows] = part.position[tokens]
        pool.part[rows] = part.number
        pool.token[rows] = tokens
        pool.sample[rows] = part.sample[tokens]


class _OpenPart:
    """The token axis of one part in memory, and its states on disk."""

    def __init__(self, part: Part, first_row: int) -> None:
        self.number = part.number
        self.role, self.token_id, self.position = read_coordinates(part, _COORDINATES).values()
        self.states = part.array(_PATH)
        self.sample = _first_samples(part) + first_row


def _first_samples(part: Part) -> np.ndarray:
    """Row in the part's sample table of the first sample that each token belongs to, (token) int64."""
    # Of the table only this column, and not kept: a pass over many parts would keep all captions in memory.
    segments = part.sample_columns("segments")["segments"].combine_chunks()
    runs = segments.flatten()
    owners = pc.list_parent_indices(segments).to_numpy()
    first = np.full(part.tokens, -1, np.int64)
    starts, stops = (runs.field(name).to_numpy()[::-1].tolist() for name in ("start", "stop"))
    for owner, start, stop in zip(owners[::-1].tolist(), starts, stops, strict=True):
        first[start:stop] = owner
    if (first < 0).any():
        raise StrataError(
            f"part {part.name} of {part.url} holds tokens that belong to no sample: `strata verify` says what is "
            "damaged; extract the part again"
        )
    return first
