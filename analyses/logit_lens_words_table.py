"""The words themselves: the best pieces of every image token and layer as one tidy table, part after part.

What several samples of an image share is decoded once and stands once, under the first of these samples.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from analyses.contextualization_table import STORE_COLUMNS
from analyses.identity import StoreIdentity
from analyses.lens_tokens import find_tokens, first_owners
from analyses.part_lens import Pieces
from analyses.part_task import open_array
from engine.errors import UsageError
from engine.store import Part

__all__ = ["WORDS", "WORDS_SCHEMA", "check_words", "to_word_tables"]

WORDS: Mapping[str, int | None] = {"all": None, "top1": 1, "none": 0}
"""Ranks that the table may hold; None is all, and of 0 there is no table."""

_ROWS_AT_ONCE = 2**17  # whole samples up to so many: small row groups cost a reader more than their rows

_NAME = pa.dictionary(pa.int32(), pa.string())

WORDS_SCHEMA = pa.schema(
    [
        *((name, _NAME) for name, _ in STORE_COLUMNS),
        ("sample_id", _NAME),
        ("layer", pa.int32()),
        ("position", pa.int32()),
        ("rank", pa.int32()),
        ("token_id", pa.int32()),
        ("piece", _NAME),
        ("logit", pa.float32()),
    ]
)
"""Names and pieces are dictionary-encoded, in memory too: this is the one table with a row per token, layer and rank.

``rank`` counts from 1; ``position`` is that in the sample's own sequence, as in the store."""


class _Own(NamedTuple):
    """Samples of a part that are tidied together, and the image tokens that stand under each."""

    samples: list[int]
    tokens: list[NDArray[np.intp]]


def check_words(words: str) -> None:
    """Raise UsageError where this is no choice of `WORDS`."""
    if words not in WORDS:
        raise UsageError(f"--words {words}: choose from {', '.join(WORDS)}")


def to_word_tables(
    identity: StoreIdentity,
    vocabulary: pd.DataFrame,
    layers: NDArray[np.int32],
    parts: Iterable[tuple[Part, Pieces]],
    words: str = "all",
) -> Iterator[pa.Table]:
    """Yield the table of one store in pieces: per sample layer after layer, token after token, best piece first.

    Parameters
    ----------
    identity : StoreIdentity
    vocabulary : DataFrame (id)
        Of the store; gives the pieces as they stand there.
    layers : array (layer), int32
    parts : iterable of (Part, Pieces)
        Of `logit_lens.stored_pieces`.
    words : str
        Of `WORDS`.
    """
    texts = list(vocabulary["piece"])
    for part, found in parts:
        ranks = slice(WORDS[words])
        pieces = found._replace(token_id=found.token_id[:, :, ranks], logit=found.logit[:, :, ranks])
        tokens = find_tokens(part.samples, np.asarray(open_array(part, "token/role")[...]))
        position = np.asarray(open_array(part, "token/position")[...])[tokens.place]
        owner = first_owners(tokens)
        rows = np.bincount(owner, minlength=len(part.samples)) * len(layers) * pieces.token_id.shape[2]
        for samples in _batches(rows):
            own = _Own(samples, [np.flatnonzero(owner == sample) for sample in samples])
            columns = {
                **_of_store(identity, int(rows[samples].sum())),
                **_of_samples(part.samples.iloc[samples], rows[samples]),
                **_of_pieces(own, layers, position, pieces, texts),
            }
            yield pa.table({name: columns[name] for name in WORDS_SCHEMA.names}, schema=WORDS_SCHEMA)


def _batches(rows: NDArray[np.int64]) -> Iterator[list[int]]:
    """Yield samples that have rows, in order, so many that their rows reach what is written at once."""
    batch: list[int] = []
    for sample in np.flatnonzero(rows).tolist():
        batch.append(sample)
        if rows[batch].sum() >= _ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _of_store(identity: StoreIdentity, rows: int) -> dict[str, pa.Array]:
    return {name: _named([getattr(identity, name)], np.zeros(rows)) for name in ("store", "model", "source")}


def _of_samples(samples: pd.DataFrame, rows: NDArray[np.int64]) -> dict[str, pa.Array]:
    row = np.repeat(np.arange(len(rows)), rows)
    return {name: _named(samples[name], row) for name in ("prompt_kind", "prompt_id", "sample_id")}


def _named(names: Iterable[str], rows: NDArray[np.number]) -> pa.DictionaryArray:
    """Take the name of each row by its place; names may repeat, but pandas wants each category once."""
    encoded = pa.array(list(names), pa.string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices.to_numpy()[rows.astype(np.int32)], encoded.dictionary)


def _of_pieces(
    own: _Own, layers: NDArray[np.int32], position: NDArray[np.int32], pieces: Pieces, texts: list[str]
) -> dict[str, pa.Array | NDArray[Any]]:
    """Lay (layer, token, rank) of each sample's own tokens flat, sample after sample."""
    ranks = np.arange(1, pieces.token_id.shape[2] + 1, dtype=np.int32)

    def flat(axis: int, entries: Iterable[NDArray[np.int32]]) -> NDArray[np.int32]:
        others = [other for other in range(3) if other != axis]
        shapes = [(len(layers), len(tokens), len(ranks)) for tokens in own.tokens]
        pairs = zip(entries, shapes, strict=True)
        return np.concatenate([np.broadcast_to(np.expand_dims(one, others), shape).ravel() for one, shape in pairs])

    token_id, logit = (np.concatenate([array[:, one].ravel() for one in own.tokens]) for array in pieces[:2])
    return {
        "layer": flat(0, [layers] * len(own.samples)),
        "position": flat(1, [position[tokens] for tokens in own.tokens]),
        "rank": flat(2, [ranks] * len(own.samples)),
        "token_id": token_id,
        "piece": _named(texts, token_id),
        "logit": logit,
    }
