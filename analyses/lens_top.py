"""The best k vocabulary pieces of every token: exact, in bounded memory, mostly on cheap products.

lens(h) = W_U · norm(h) (nostalgebraist 2020). A full float32 product per layer costs 2 · token · dim · vocab
operations. Here a screen looks at products of int8 codes, a bound decides per token whether it could have missed one
of the best, and only tokens that fail get the float32 product. Either way only what may be among the best is computed
exactly (:mod:`analyses.lens_exact`), so both paths give the same ids and logits to the last bit, on every machine.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.lens_exact import exact_logits, pair_sums
from analyses.lens_float32 import add_vocabulary, float32_bytes
from analyses.lens_rounding import norm_bounds
from analyses.lens_screen import add_screened, screen_bytes
from analyses.lens_shortlist import Shortlist, shortlist_bytes
from analyses.lens_unembedding import Unembedding
from engine.errors import StrataError, UsageError

__all__ = ["TOKENS_AT_ONCE", "LensTop", "StateError", "top_bytes", "top_pieces"]

TOKENS_AT_ONCE = 1024
"""Tokens that are worked on at once; more of them are split evenly."""

_STATE_BYTES = (
    4 + 4 + 8 + 4 + 4 + 1
)  # of one value: as given, chosen, wide, chosen once more, without large ones, coded
_LARGEST = 2.0**120  # of a logit; products stay within float32


class StateError(StrataError):
    """A state without logits.

    Attributes
    ----------
    row : int
        Its place among the states that the kernel was given.
    reason : str
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(
            f"state {row} {reason}: the model overflowed there, or the store is damaged; check it with `strata verify`"
        )
        self.row = row
        self.reason = reason


class LensTop(NamedTuple):
    """The best pieces of tokens, logit descending, of equal logits the smaller id first.

    Attributes
    ----------
    token_id : array (token, k), int32
    logit : array (token, k), float32
        After the softcap, where the model has one.
    certified : array (token,), bool
        Whether the screen decided; False where the token took the float32 product of the whole vocabulary.
    """

    token_id: NDArray[np.int32]
    logit: NDArray[np.float32]
    certified: NDArray[np.bool_]


def top_pieces(states: NDArray[np.float32], unembedding: Unembedding, k: int) -> LensTop:
    """Find the best pieces of every token.

    Parameters
    ----------
    states : array (token, dim), float32
        After the final norm.
    unembedding : Unembedding
    k : int
        At least 1.

    Returns
    -------
    LensTop

    Raises
    ------
    UsageError
        ``k`` is not between 1 and the number of ids that may be chosen, or the states have another width.
    StateError
        A state is not finite, or so large that its logits might not be.
    """
    vocab, dim = unembedding.weights.shape
    allowed = int(unembedding.allowed.sum())
    if not 1 <= k <= allowed:
        raise UsageError(
            f"the best {k} of {allowed} pieces do not exist ({allowed} of {vocab} ids may be chosen): "
            f"ask for 1 to {allowed}"
        )
    if states.ndim != 2 or states.shape[1] != dim:
        raise UsageError(f"states of shape {states.shape} do not fit an unembedding of shape {(vocab, dim)}")
    norm = norm_bounds(states)
    _check_finite(states, norm, unembedding)
    found = LensTop(
        np.empty((len(states), k), np.int32), np.empty((len(states), k), np.float32), np.empty(len(states), np.bool_)
    )
    blocks = max(1, -(-len(states) // TOKENS_AT_ONCE))
    bounds = np.linspace(0, len(states), blocks + 1).astype(int)
    for tokens in map(slice, bounds[:-1], bounds[1:]):
        block = _top_of_block(np.ascontiguousarray(states[tokens]), norm[tokens], unembedding, k)
        for whole, part in zip(found, block, strict=True):
            whole[tokens] = part
    unembedding.cap(found.logit)
    return found


def top_bytes(tokens: int, vocab: int, dim: int, k: int) -> int:
    """Bytes that `top_pieces` needs at most beyond its arguments and its result; tokens cost them a block at a time.

    Parameters
    ----------
    tokens : int
    vocab, dim : int
        Shape of the unembedding.
    k : int
    """
    tokens = min(tokens, TOKENS_AT_ONCE)
    passes = screen_bytes(tokens, vocab, dim, k), float32_bytes(tokens, dim)
    return tokens * dim * _STATE_BYTES + shortlist_bytes(tokens, k) + max(passes)


def _top_of_block(states: NDArray[np.float32], norm: NDArray[np.float64], unembedding: Unembedding, k: int) -> LensTop:
    # What a state of zeros gives, because all ids tie; the others are overwritten.
    first_ids = np.flatnonzero(unembedding.allowed)[:k].astype(np.int32)
    found = LensTop(
        np.tile(first_ids, (len(states), 1)), np.zeros((len(states), k), np.float32), np.ones(len(states), np.bool_)
    )
    left = np.flatnonzero(states.any(axis=1))
    if unembedding.coded is not None:
        left = _find(found, left, states, norm, unembedding, add_candidates=add_screened)
    found.certified[left] = False
    _find(found, left, states, norm, unembedding, add_candidates=add_vocabulary)
    return found


def _find(
    found: LensTop,
    tokens: NDArray[np.intp],
    states: NDArray[np.float32],
    norm: NDArray[np.float64],
    unembedding: Unembedding,
    *,
    add_candidates: Callable[[Shortlist, NDArray[np.float32], NDArray[np.float64], Unembedding], None],
) -> NDArray[np.intp]:
    """Fill in what one pass decides of some tokens, and return those that it does not decide."""
    if not len(tokens):
        return tokens
    if len(tokens) < len(states):  # nearly always all are asked for, and copies cost as much as coding them
        states, norm = states[tokens], norm[tokens]
    shortlist = _shortlist(states, norm, unembedding, found.token_id.shape[1])
    add_candidates(shortlist, states, norm, unembedding)
    decided = np.isfinite(shortlist.floor)
    found.token_id[tokens[decided]], found.logit[tokens[decided]] = shortlist.best()
    return tokens[~decided]


def _shortlist(states: NDArray[np.float32], norm: NDArray[np.float64], unembedding: Unembedding, k: int) -> Shortlist:
    weights, coded = unembedding.weights, unembedding.coded
    sums_of = pair_sums if coded is None else coded.products.of_pairs
    wide = states.astype(np.float64)

    def settle(token: NDArray[np.int64], token_id: NDArray[np.int64]) -> NDArray[np.float32]:
        sums = sums_of(weights, wide, token_id, token)
        norms = norm[token] * unembedding.norm[token_id]
        return exact_logits(weights, states, token, token_id, sums=sums, norms=norms)

    return Shortlist(len(states), k, settle)


def _check_finite(states: NDArray[np.float32], norm: NDArray[np.float64], unembedding: Unembedding) -> None:
    wrong = np.flatnonzero(~(norm * unembedding.norm.max() < _LARGEST))
    if len(wrong):
        row = int(wrong[0])
        reason = "is so large that its logits could exceed float32"
        if not np.isfinite(states[row]).all():
            reason = "holds a value that is not finite, so it has no logits"
        raise StateError(row, reason)
