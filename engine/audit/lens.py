"""Vocabulary pieces of one sample against fresh passes: a stored id is right where its own fresh logit says so.

Noise lets near pieces change places, so ids are not compared with ids. What stands for a stored row of ids are the
logits that the fresh pass gives these very ids, rank by rank, and it is compared with the fresh pass's own row as any
vector is: a piece may stand where another one does whose logit differs by no more than the rule allows. The floor is
how far the logits of the same ids move from one fresh pass to the next. Fresh passes find more pieces than are stored;
an id that is not even among those is no piece that noise could have brought there.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.audit.compare import Deviations, compare_vectors
from engine.audit.stored import StoredSample
from engine.store import PartArray

__all__ = ["LENS_ID", "FreshPieces", "compare_ids", "first_ranks", "read_pieces", "searched_ranks"]

LENS_ID, _LENS_LOGIT = "token/lens_token_id", "token/lens_logit"


class FreshPieces(NamedTuple):
    """Pieces that a fresh pass found, best first: ids (layer, token, rank) int32, logits alike float32."""

    token_id: NDArray[np.int32]
    logit: NDArray[np.float32]


def searched_ranks(topk: int) -> int:
    """Say how many pieces a fresh pass finds where so many are stored.

    So many more that noise, which is far less than the logits differ from one half of the list to the other, brings
    none of the rest among the stored ones.
    """
    return 2 * topk + 8


def read_pieces(arrays: Sequence[PartArray]) -> FreshPieces | None:
    """Read the arrays of the lens out of a fresh part's; they are used up. None where it has none."""
    found = {array.path: array for array in arrays}
    if LENS_ID not in found:
        return None
    ids, logits = (
        np.stack([found[path].slab(layer)[...] for layer in range(found[path].shape[0])])
        for path in (LENS_ID, _LENS_LOGIT)
    )
    return FreshPieces(ids, logits)


def first_ranks(arrays: Sequence[PartArray], pieces: FreshPieces, topk: int) -> tuple[PartArray, ...]:
    """Give a fresh part's arrays with so many pieces as are stored."""
    values = {LENS_ID: pieces.token_id[..., :topk], _LENS_LOGIT: pieces.logit[..., :topk]}
    return tuple(
        replace(array, shape=values[array.path].shape, slab=values[array.path].__getitem__, kept=None)
        if array.path in values
        else array
        for array in arrays
    )


def compare_ids(stored: StoredSample, fresh: FreshPieces, others: Sequence[FreshPieces]) -> Deviations:
    """Compare a sample's stored ids with fresh passes.

    Parameters
    ----------
    stored
        The sample in its part; its ids are (layer, token, rank), and -1 where none are kept.
    fresh
        Of a pass over this sample alone, of the same layers and tokens, and of more ranks.
    others
        Of passes that differ from it by noise alone; of more tokens where a batch holds copies.

    Returns
    -------
    Deviations
        (layer, token).
    """
    layers = []
    for layer, (ids, logits) in enumerate(zip(*fresh, strict=True)):
        held = stored.slab(LENS_ID, layer)
        anew = logits[:, : held.shape[1]].astype(np.float64)
        found = _logits_of(held, ids, logits)
        # No id is held, or one where there is none to hold: NaN for NaN agrees, a number for NaN does not.
        found[(held >= 0) & np.isnan(anew)] = 0.0
        again = [
            _logits_of(ids[:, : held.shape[1]], other.token_id[layer, : len(ids)], other.logit[layer, : len(ids)])
            for other in others
        ]
        layers.append(compare_vectors(found, anew, again))
    return Deviations(*(np.stack(part) for part in zip(*layers, strict=True)))


def _logits_of(ids: NDArray[np.int32], known: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Look up ids (token, rank) among the pieces (token, other rank) of the same token; NaN where one is not there."""
    rows = np.arange(len(ids), dtype=np.int64)[:, None] << 32
    asked, places = (ids + rows).ravel(), (known + rows).ravel()
    order = np.argsort(places)
    at = order[np.searchsorted(places, asked, sorter=order).clip(max=len(places) - 1)]
    found = np.where(places[at] == asked, logits.ravel()[at].astype(np.float64), np.nan)
    return found.reshape(ids.shape)
