"""What LogitLens needs of a store's model, prepared once per process for all parts and threads."""

import functools
import threading
from typing import NamedTuple

import numpy as np
from dask.array.core import slices_from_chunks
from numpy.typing import NDArray

from analyses.final_norm import FinalNorm, read_final_norm
from analyses.lens_scores import VocabularyWords
from analyses.lens_unembedding import Unembedding
from engine.store import Store, open_store

__all__ = ["LensModel", "allowed_ids", "forget_model", "lens_model"]

_PREPARING = threading.Lock()


class LensModel(NamedTuple):
    """Final norm, unembedding and words of one model.

    Attributes
    ----------
    norm : FinalNorm
    unembedding : Unembedding or None
        None where pieces are read and not computed.
    words : VocabularyWords
    """

    norm: FinalNorm
    unembedding: Unembedding | None
    words: VocabularyWords


def lens_model(url: str, model_sha256: str, *, unembedding: bool) -> LensModel:
    """Prepare a store's model, or return it as it was prepared before.

    Threads that ask at the same time wait for one preparation: each would need as much memory. One model is held, the
    one that was asked for last; `forget_model` gives its memory back.

    Parameters
    ----------
    url : str
        Of the store.
    model_sha256 : str
        Tells the contents of one address apart.
    unembedding : bool
        Whether logits are to be computed.

    Raises
    ------
    StrataError
        A weight is not finite.
    """
    with _PREPARING:
        return _prepare(url, model_sha256, unembedding)


def forget_model() -> None:
    """Drop the model that is held."""
    _prepare.cache_clear()


def allowed_ids(store: Store) -> NDArray[np.bool_]:
    """Ids (vocab) that may be decoded: no special and byte pieces, none beyond the tokenizer's."""
    return (store.model.vocabulary["kind"] == "normal").to_numpy(bool)


@functools.lru_cache(maxsize=1)
def _prepare(url: str, _model_sha256: str, unembedding: bool) -> LensModel:
    store = open_store(url)
    return LensModel(
        read_final_norm(store),
        _read_unembedding(store) if unembedding else None,
        VocabularyWords.from_table(store.model.vocabulary),
    )


def _read_unembedding(store: Store) -> Unembedding:
    stored = store.model.unembedding
    assert stored is not None  # the plan refuses a store without
    weights = np.empty(stored.shape, stored.dtype)
    for rows in slices_from_chunks(stored.chunks):  # one after the other, so that the matrix is in memory once
        weights[rows] = stored[rows].compute(scheduler="synchronous")
    return Unembedding.prepare(weights, allowed_ids(store), softcap=store.model.logit_softcap)
