"""The ids that may still be among the best k of each token, while blocks of the vocabulary pass by.

Every entry carries an interval that holds its real logit. The k-th largest lower end of a token is its floor: at least
k ids lie above it, so whatever ends below cannot be among the best. The floor lies one float32 step lower than that,
because logits that differ by less become equal when rounded, and then the smaller id wins.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from analyses.lens_exact import rank_pieces
from analyses.lens_rounding import just_below

__all__ = ["LISTING_BYTES", "Shortlist", "entry_limit", "shortlist_bytes"]

LISTING_BYTES = 128
"""Of one pair while it is listed: token, id and interval, as they come and joined, sorted, and compared."""

_CROWDED = 4
"""Times a token's share of a full list; a token with more is looked at alone, lest it widens the rows of all."""

Settle = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]


def entry_limit(tokens: int, k: int) -> int:
    """Entries beyond which ties are settled at once instead of being carried along."""
    return tokens * (4 * k + 64)


def shortlist_bytes(tokens: int, k: int) -> int:
    """Bytes of a list that is full while as many entries are added."""
    return 2 * entry_limit(tokens, k) * LISTING_BYTES


class Shortlist:
    """Candidates of all tokens of a block.

    Parameters
    ----------
    tokens, k : int
    settle : callable (token, token_id) -> logit
        Gives exact logits of pairs, equal ids together.

    Attributes
    ----------
    floor : array (token,), float64
        What a logit must reach; −∞ until k ids of the token are known.
    token, token_id : arrays (entry,), int64
    """

    def __init__(self, tokens: int, k: int, settle: Settle) -> None:
        self.k, self._settle, self._limit = k, settle, entry_limit(tokens, k)
        self.floor = np.full(tokens, -np.inf)
        self.token = np.empty(0, np.int64)
        self.token_id = np.empty(0, np.int64)
        self._lower = np.empty(0)
        self._upper = np.empty(0)

    def add(
        self,
        token: NDArray[np.int64],
        token_id: NDArray[np.int64],
        value: NDArray[np.floating],
        error: NDArray[np.float64],
    ) -> None:
        """Add ids that are not in the list, with computed logits and bounds of their error, and raise the floor."""
        self.token = np.concatenate([self.token, token])
        self.token_id = np.concatenate([self.token_id, token_id])
        self._lower = np.concatenate([self._lower, value - error])
        self._upper = np.concatenate([self._upper, value + error])
        self._tighten(token)
        if len(self.token) > self._limit:
            self._keep(self._rank_exactly())

    def best(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return ids and exact logits (token, k) of the best, for the tokens that have k entries or more."""
        self._keep(self._rank_exactly())
        shape = (-1, self.k)
        return self.token_id.reshape(shape), self._lower.astype(np.float32).reshape(shape)

    def drop(self, tokens: NDArray[np.bool_]) -> None:
        """Forget the entries of tokens (token,) that are marked; nothing reaches their floor any more."""
        self.floor[tokens] = np.inf
        self._keep(np.flatnonzero(~tokens[self.token]))

    def _tighten(self, tokens: NDArray[np.int64]) -> None:
        """Raise the floor of these tokens, and drop what has fallen below it."""
        touched = np.zeros(len(self.floor), np.bool_)
        touched[tokens] = True
        entries = np.flatnonzero(touched[self.token])
        kth = self._kth_lower(self.token[entries], self._lower[entries])
        np.maximum(self.floor, just_below(kth), out=self.floor)
        self._keep(np.flatnonzero(self._upper >= self.floor[self.token]))

    def _kth_lower(self, token: NDArray[np.int64], lower: NDArray[np.float64]) -> NDArray[np.float64]:
        """K-th largest lower end (token,) of every token; −∞ of one with fewer."""
        order = np.argsort(token.astype(np.uint16), kind="stable")  # radix sort: tokens of a block are few
        token, lower = token[order], lower[order]
        counts = np.bincount(token, minlength=len(self.floor))
        start = np.cumsum(counts) - counts
        place = np.arange(len(order)) - start[token]
        crowded = counts > _CROWDED * entry_limit(1, self.k)
        alike = ~crowded[token]
        rows = np.full((len(self.floor), max(self.k, counts[~crowded].max(initial=0))), -np.inf)
        rows[token[alike], place[alike]] = lower[alike]
        kth = np.partition(rows, rows.shape[1] - self.k, axis=1)[:, rows.shape[1] - self.k]
        for one in np.flatnonzero(crowded):
            own = lower[start[one] : start[one] + counts[one]]
            kth[one] = np.partition(own, len(own) - self.k)[len(own) - self.k]
        return kth

    def _rank_exactly(self) -> NDArray[np.int64]:
        """Give every entry its exact logit and return the places of the best k of each token."""
        self._keep(np.argsort(self.token_id, kind="stable"))
        exact = self._settle(self.token, self.token_id)
        self._lower = self._upper = exact.astype(np.float64)
        return rank_pieces(self.token, self.token_id, exact, self.k)

    def _keep(self, places: NDArray[np.int64]) -> None:
        self.token, self.token_id = self.token[places], self.token_id[places]
        self._lower, self._upper = self._lower[places], self._upper[places]
