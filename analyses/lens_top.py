"""The best k vocabulary pieces of every token: exact, in bounded memory, mostly on cheap products.

lens(h) = W_U · norm(h) (nostalgebraist 2020). A full float32 product per layer costs 2 · token · dim · vocab
operations. Here a screen looks at products of int8 codes, a bound decides per token whether it could have missed one
of the best, and only tokens that fail get the float32 product. Either way only what may be among the best is computed
exactly (:mod:`analyses.lens_exact`), so both paths give the same ids and logits to the last bit, on every machine.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.lens_exact import exact_logits, pair_sums
from analyses.lens_float32 import add_vocabulary
from analyses.lens_rounding import norm_bounds
from analyses.lens_screen import screen
from analyses.lens_shortlist import Shortlist
from analyses.lens_unembedding import Unembedding
from engine.errors import StrataError, UsageError

__all__ = ["TOKENS_AT_ONCE", "LensTop", "top_pieces"]

TOKENS_AT_ONCE = 1024
"""Tokens that are worked on at once; more of them are split evenly."""

_LARGEST = 2.0**120  # of a logit; products stay within float32


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
    StrataError
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
    _check_finite(norm, unembedding)
    found = LensTop(
        np.empty((len(states), k), np.int32), np.empty((len(states), k), np.float32), np.empty(len(states), np.bool_)
    )
    blocks = max(1, -(-len(states) // TOKENS_AT_ONCE))
    bounds = np.linspace(0, len(states), blocks + 1).astype(int)
    for tokens in map(slice, bounds[:-1], bounds[1:]):
        block = _top_of_block(np.ascontiguousarray(states[tokens]), norm[tokens], unembedding, k)
        for whole, part in zip(found, block, strict=True):
            whole[tokens] = part
    if unembedding.softcap is not None:
        cap = np.float32(unembedding.softcap)
        np.multiply(cap, np.tanh(found.logit / cap), out=found.logit)
    return found


def _top_of_block(
    states: NDArray[np.float32], norm: NDArray[np.float64], unembedding: Unembedding, k: int
) -> LensTop:
    first_ids = np.flatnonzero(unembedding.allowed)[:k]
    found = LensTop(
        np.tile(first_ids.astype(np.int32), (len(states), 1)),  # what a state of zeros gives: all ids tie at 0
        np.zeros((len(states), k), np.float32),
        ~states.any(axis=1),
    )
    if unembedding.coded is not None:
        chosen = np.flatnonzero(~found.certified)
        shortlist = _shortlist(states[chosen], norm[chosen], unembedding, k)
        decided = screen(shortlist, states[chosen], norm[chosen], unembedding, unembedding.coded)
        found.certified[chosen] = decided
        _fill(found, chosen[decided], shortlist)
    chosen = np.flatnonzero(~found.certified)
    if len(chosen):
        shortlist = _shortlist(states[chosen], norm[chosen], unembedding, k)
        add_vocabulary(shortlist, states[chosen], norm[chosen], unembedding)
        _fill(found, chosen, shortlist)
    return found


def _shortlist(
    states: NDArray[np.float32], norm: NDArray[np.float64], unembedding: Unembedding, k: int
) -> Shortlist:
    weights, coded = unembedding.weights, unembedding.coded
    sums_of = pair_sums if coded is None else coded.products.of_pairs
    wide = states.astype(np.float64)

    def settle(token: NDArray[np.int64], token_id: NDArray[np.int64]) -> NDArray[np.float32]:
        sums = sums_of(weights, wide, token_id, token)
        return exact_logits(weights, states, token, token_id, sums, norm[token] * unembedding.norm[token_id])

    return Shortlist(len(states), k, settle)


def _fill(found: LensTop, tokens: NDArray[np.intp], shortlist: Shortlist) -> None:
    found.token_id[tokens], found.logit[tokens] = shortlist.best()


def _check_finite(norm: NDArray[np.float64], unembedding: Unembedding) -> None:
    wrong = np.flatnonzero(~(norm * unembedding.norm.max() < _LARGEST))
    if len(wrong):
        row = int(wrong[0])
        what = "holds a value that is not finite" if not np.isfinite(norm[row]) else f"has a norm of {norm[row]:.3g}"
        raise StrataError(
            f"state {row} {what}, so its logits exceed float32: the model overflowed there, or the store is damaged; "
            "check it with `strata verify --deep`"
        )
