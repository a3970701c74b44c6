"""In which order token states are read, and how much of memory they may take: pure numbers, no disk.

A window is what one read must decode: the tokens of one inner chunk, of every chosen layer. In a shuffled pass, parts
are opened in random order, several at a time; windows of the open parts follow one another at random; and their tokens
go into a pool from which batches are drawn at random. So a batch mixes as many windows as the pool holds, from up to
as many parts as are open.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from engine.errors import UsageError

__all__ = ["PartTokens", "PassPlan", "Window", "mixed_order", "plan_pass", "stored_order"]

MOST_OPEN_PARTS = 64

_ROW_BYTES = 36  # role, token_id, position, part, token (int32), sample (int64), and drawing (int64) of one token
_OPEN_TOKEN_BYTES = 32  # of a token of an open part: role, token_id, position, sample, and scratch
_OPEN_PART_BYTES = 2**17  # metadata of its arrays
_OPEN_SAMPLE_BYTES = 512  # segments, while they are read
_OPEN_SHARE = 8  # open parts take at most this fraction of the memory, where more than one is open
_COPIES_OF_BATCH = 3  # the caller's, the one being drawn, rows that take the place of drawn ones
_COPIES_OF_CHUNK = 5  # as read, decoded, in zarr's result, of the chosen roles, of the layer before


class PartTokens(NamedTuple):
    """One part's states by numbers: tokens, samples, tokens of one window, bytes of a token's state in one layer."""

    tokens: int
    samples: int
    step: int
    state_bytes: int


class Window(NamedTuple):
    """Tokens [start, stop) of the part of this index; ``last``: no further window of this part follows."""

    part: int
    start: int
    stop: int
    last: bool


class PassPlan(NamedTuple):
    """What a pass holds: rows (tokens) of its pool, parts open at once."""

    pool_rows: int
    open_parts: int


def plan_pass(parts: Sequence[PartTokens], *, layers: int, batch: int, memory: int, shuffled: bool) -> PassPlan:
    """Divide memory between open parts, reading, batches and the pool.

    Parameters
    ----------
    parts
        All of them; those without tokens take nothing.
    layers, batch
        Layers of a state; tokens of a batch.
    memory
        Bytes, beyond what the process holds already.
    shuffled
        Whether the pool is as large as memory allows; else it is as small as possible.

    Raises
    ------
    UsageError
        A window and a batch do not fit; the message says what is needed.
    """
    parts = [part for part in parts if part.tokens]
    if not parts:
        return PassPlan(0, 0)
    row = layers * max(part.state_bytes for part in parts) + _ROW_BYTES
    longest = max(min(part.step, part.tokens) for part in parts)
    chunk = max(part.step * part.state_bytes for part in parts)
    one_part = max(
        part.tokens * _OPEN_TOKEN_BYTES + part.samples * _OPEN_SAMPLE_BYTES + _OPEN_PART_BYTES for part in parts
    )
    total = sum(part.tokens for part in parts)
    least = batch + longest  # with less than a batch in the pool, any window still fits
    fixed = _COPIES_OF_CHUNK * chunk + _COPIES_OF_BATCH * min(batch, total) * row
    needed = fixed + one_part + min(least, total) * row
    if needed > memory:
        raise UsageError(
            f"memory={memory} is too small: {layers} layer{'s' * (layers > 1)} of {longest} tokens, which are read at "
            f"once, and batches of {batch} need {needed} bytes ({-(-needed // 2**20)} MiB); raise memory, or ask for "
            "fewer layers or a smaller batch"
        )
    if not shuffled:
        return PassPlan(min(least, total), 1)
    open_parts = max(1, min(MOST_OPEN_PARTS, len(parts), memory // _OPEN_SHARE // one_part))
    rows = (memory - fixed - open_parts * one_part) // row
    if rows < least:  # a small pool needs what further open parts would take
        open_parts, rows = 1, (memory - fixed - one_part) // row
    return PassPlan(min(rows, total), open_parts)


def stored_order(parts: Sequence[PartTokens]) -> Iterator[Window]:
    """Yield all windows as they lie in the store."""
    for index, part in enumerate(parts):
        for start in range(0, part.tokens, part.step):
            stop = min(start + part.step, part.tokens)
            yield Window(index, start, stop, stop == part.tokens)


def mixed_order(parts: Sequence[PartTokens], open_parts: int, generator: np.random.Generator) -> Iterator[Window]:
    """Yield all windows, each once, at random from up to ``open_parts`` parts, which are opened in random order."""
    waiting = [int(index) for index in generator.permutation(len(parts)) if parts[index].tokens]
    opened: list[tuple[int, list[int]]] = []
    while waiting or opened:
        while waiting and len(opened) < open_parts:
            index = waiting.pop()
            count = math.ceil(parts[index].tokens / parts[index].step)
            opened.append((index, generator.permutation(count).tolist()))
        # A part is chosen by what is left of it, so that no long one is left alone at the end.
        left = np.cumsum([len(windows) for _, windows in opened])
        place = int(np.searchsorted(left, generator.integers(left[-1]), side="right"))
        index, windows = opened[place]
        start = windows.pop() * parts[index].step
        yield Window(index, start, min(start + parts[index].step, parts[index].tokens), not windows)
        if not windows:
            del opened[place]
