"""States of some tokens of a part after the final norm, layer after layer, in blocks that fill the kernel."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.final_norm import FinalNorm
from analyses.lens_top import TOKENS_AT_ONCE, StateError
from analyses.part_task import open_array
from engine.errors import StrataError
from engine.store import LARGEST_NORM, Part, stream_bytes, stream_chunks

__all__ = ["STATES_PATH", "StateBlock", "block_states_bytes", "named_states", "normed_states"]

STATES_PATH = "token/hidden_states"

_COPIES = 4  # gathered, normed, its squares, and with a bias added
_FLOAT32 = 4


class StateBlock(NamedTuple):
    """States of neighbouring chosen tokens at one layer.

    Attributes
    ----------
    layer : int
        Place among the layers asked for.
    start, stop : int
        Place among the tokens asked for.
    states : array (token, dim), float32
        After the final norm.
    """

    layer: int
    start: int
    stop: int
    states: NDArray[np.float32]


def normed_states(part: Part, place: NDArray[np.int64], layers: Sequence[int], norm: FinalNorm) -> Iterator[StateBlock]:
    """Yield every layer's states, first layer to last, tokens in order, up to `TOKENS_AT_ONCE` at a time.

    Parameters
    ----------
    part : Part
    place : array (token), int64
        On the part's token axis, ascending.
    layers : sequence of int
        Layer numbers, ascending.
    norm : FinalNorm
        Applied once to each state, at the last layer too: stores keep it before the norm.

    Raises
    ------
    StrataError
        A state is not finite, or too large for the norm: sample, layer, position and value are named.
    """
    stored = np.asarray(open_array(part, "token/layer")[...]).tolist()
    wanted = {stored.index(layer): number for number, layer in enumerate(layers)}
    gathered = np.empty((min(TOKENS_AT_ONCE, len(place)), part.manifest["arrays"][STATES_PATH]["shape"][2]), np.float32)
    filled = done = 0
    for chunk in stream_chunks(part, STATES_PATH):
        if chunk.first not in wanted:
            continue
        first, stop = np.searchsorted(place, (chunk.start, chunk.stop))
        for at in _cut(first, stop, len(gathered)):
            rows = place[at] - chunk.start
            gathered[filled : filled + len(rows)] = chunk.values[0][rows]
            filled += len(rows)
            if filled == len(gathered) or at.stop == len(place):
                states = norm(gathered[:filled])
                _refuse_holes(part, gathered, states, place[done : done + filled], layers[wanted[chunk.first]])
                yield StateBlock(wanted[chunk.first], done, done + filled, states)
                done = 0 if at.stop == len(place) else done + filled
                filled = 0


def block_states_bytes(part: Part, tokens: int) -> int:
    """Bytes that `normed_states` of so many tokens holds at once."""
    dim = int(part.manifest["arrays"][STATES_PATH]["shape"][2])
    return stream_bytes(part, STATES_PATH) + _COPIES * min(TOKENS_AT_ONCE, tokens) * dim * _FLOAT32


def _cut(first: int, stop: int, step: int) -> Iterator[slice]:
    """Cut tokens where a block of ``step`` is full, counted from the first token of all."""
    while first < stop:
        end = min(stop, (first // step + 1) * step)
        yield slice(first, end)
        first = end


def _refuse_holes(
    part: Part, stored: NDArray[np.float32], normed: NDArray[np.float32], place: NDArray[np.int64], layer: int
) -> None:
    broken = np.flatnonzero(~np.isfinite(normed).all(axis=1))
    if not len(broken):
        return
    raise StrataError(
        f"{_name_state(part, int(place[broken[0]]), layer)} {_fault(stored[broken[0]])}, so it has no logits; "
        "`strata verify` says whether the store is damaged"
    )


def _fault(state: NDArray[np.float32]) -> str:
    """Say why a state (dim) has no finite value after the final norm."""
    holes = state[~np.isfinite(state)]
    if len(holes):
        return f"is not finite, it holds {holes[0]}"
    norm = float(np.linalg.norm(state.astype(np.float64)))
    if norm > LARGEST_NORM:
        return f"is too large for the final norm: its norm is {norm:.4g}, float32 takes {LARGEST_NORM:.3g} at most"
    return "is not finite after the final norm"


def _name_state(part: Part, token: int, layer: int) -> str:
    """Say which state stands at a place of the part's token axis: part, sample, layer and position."""
    position = int(np.asarray(open_array(part, "token/position")[...])[token])
    sample = next(
        row.sample_id
        for row in part.samples.itertuples()
        if any(pair["start"] <= token < pair["stop"] for pair in row.segments)
    )
    return f"{part.url}: part {part.name}, sample {sample}, layer {layer}, position {position}"


@contextmanager
def named_states(part: Part, place: NDArray[np.int64], block: StateBlock, layers: Sequence[int]) -> Iterator[None]:
    """Make a kernel's error about a row of a block one about the state that the user can look up.

    Parameters
    ----------
    part, place, layers
        As `normed_states` was given them.
    block : StateBlock

    Raises
    ------
    StrataError
        The kernel raised `StateError`.
    """
    try:
        yield
    except StateError as error:
        state = _name_state(part, int(place[block.start + error.row]), layers[block.layer])
        raise StrataError(
            f"{state} {error.reason}: the model overflowed there, or the store is damaged; check it with "
            "`strata verify`"
        ) from None
