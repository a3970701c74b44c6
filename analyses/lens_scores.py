"""Match of decoded words with the words of captions: precision and recall per layer, in three variants.

With S (layer, id) counting the ids decoded at a layer and M (id, word) the words of each id, S M counts the words of a
layer; every variant is a sum over that product. ``unique`` and ``token`` are those of Wei, Shi and Inoue (arXiv
2411.00646):

- ``unique``: distinct words. correct = decoded words that are reference words.
- ``token``: words with repetition, one per token where a piece is one word. correct counts the tokens that hit.
- ``prefix``: distinct words of the pieces that start a word, and they need only begin a reference word: ``▁gir`` begins
  ``giraffe``. A beginning has at least `SHORTEST_PREFIX` characters or is the whole word.

Each has precision = correct / decoded and recall = recalled / references, where recalled counts the distinct reference
words that were hit. For ``unique`` that is correct itself; of ``token`` it is the recall of ``unique``, since captions
have no tokens to recall; for ``prefix`` one piece may begin several reference words, and several the same. Where a
denominator is 0, so is the ratio.
"""

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from analyses.lens_words import clean, piece_texts
from analyses.stop_words import STOP_WORDS
from engine.errors import StrataError

__all__ = ["SHORTEST_PREFIX", "VARIANTS", "Scores", "VocabularyWords", "reference_words", "score_layers"]

VARIANTS = ("unique", "token", "prefix")

SHORTEST_PREFIX = 3
"""Characters. Beginnings of common English words fit one of 25 unrelated ones by chance in 73 % of cases with one
character, 22 % with two, 4 % with three."""


class Scores(NamedTuple):
    """One variant's counts for one sample, after cleaning.

    Attributes
    ----------
    decoded, correct, recalled : arrays (layer), int64
    references : int
        Distinct words of the captions; 0 where they hold stop words only.
    """

    decoded: NDArray[np.int64]
    correct: NDArray[np.int64]
    recalled: NDArray[np.int64]
    references: int

    @property
    def precision(self) -> NDArray[np.float64]:
        """(layer); 0 where nothing was decoded."""
        return _ratio(self.correct, self.decoded)

    @property
    def recall(self) -> NDArray[np.float64]:
        """(layer); 0 without reference words."""
        return _ratio(self.recalled, np.full_like(self.recalled, self.references))

    @property
    def nothing_decoded(self) -> NDArray[np.bool_]:
        """(layer); where precision is 0 because no word was decoded, to be counted beside its mean."""
        return self.decoded == 0

    @property
    def nothing_referred(self) -> bool:
        """Whether recall is 0 because the captions hold stop words only, to be counted beside its mean."""
        return self.references == 0


class VocabularyWords(NamedTuple):
    """The words of each token id.

    Attributes
    ----------
    place : dict
        Column of each word.
    words : sparse array (id, word), int64
        How often the id's piece holds the word: for most one word once, for special, byte and padding pieces none.
    starts : sparse array (id, word), int64
        The same for pieces that start a word; rows of others are empty.
    """

    place: dict[str, int]
    words: csr_array
    starts: csr_array

    @classmethod
    def from_table(cls, vocabulary: pd.DataFrame) -> Self:
        """Clean a store's vocabulary.

        Parameters
        ----------
        vocabulary : DataFrame (id)
            With the columns piece, kind and word_start of ``vocab.parquet``.
        """
        normal = np.flatnonzero(vocabulary["kind"] == "normal")
        cleaned = [clean(text, STOP_WORDS) for text in piece_texts(list(vocabulary["piece"].iloc[normal]))]
        ids = np.repeat(normal, [len(words) for words in cleaned])
        columns, distinct = pd.factorize(np.array([word for words in cleaned for word in words], object))
        shape = (len(vocabulary), len(distinct))
        start = vocabulary["word_start"].to_numpy(bool)[ids]
        return cls(
            {word: column for column, word in enumerate(distinct)},
            _counts(ids, columns, shape),
            _counts(ids[start], columns[start], shape),
        )


def reference_words(captions: Iterable[str]) -> frozenset[str] | None:
    """Distinct words of all captions of an image together; None where it has no captions."""
    texts = list(captions)
    return frozenset(word for text in texts for word in clean(text, STOP_WORDS)) if texts else None


def score_layers(
    token_ids: NDArray[np.integer], vocabulary: VocabularyWords, references: frozenset[str] | None
) -> dict[str, Scores] | None:
    """Score the pieces decoded from one sample's image tokens.

    Parameters
    ----------
    token_ids : array (layer, token) of int
        The top-ranked id of each image token at each layer.
    vocabulary
        The words of each id.
    references
        What `reference_words` gives.

    Returns
    -------
    dict or None
        Scores by variant; None where the image has no captions.

    Raises
    ------
    StrataError
        If an id lies outside the vocabulary.
    """
    if references is None:
        return None
    decoded = _decoded(token_ids, vocabulary.words.shape[0])
    begun = sorted(references)
    words = decoded @ vocabulary.words
    starts = _present(decoded @ vocabulary.starts)
    distinct = _present(words)
    hit, begins = _hits(vocabulary.place, begun), _beginnings(vocabulary.place, begun)
    recalled = distinct @ hit
    return {
        "unique": Scores(_row_sums(distinct), recalled, recalled, len(references)),
        "token": Scores(_row_sums(words), words @ hit, recalled, len(references)),
        "prefix": Scores(
            _row_sums(starts),
            starts @ (_row_sums(begins) > 0).astype(np.int64),
            _row_sums(_present(starts @ begins)),
            len(references),
        ),
    }


def _decoded(token_ids: NDArray[np.integer], ids: int) -> csr_array:
    """S (layer, id): how often each id stands in each row of token_ids (layer, token)."""
    outside = token_ids[(token_ids < 0) | (token_ids >= ids)]
    if outside.size:
        raise StrataError(f"token id {outside[0]} is none of the {ids} of the vocabulary: see strata verify")
    layers, tokens = token_ids.shape
    rows = np.repeat(np.arange(layers), tokens)
    return _counts(rows, token_ids.ravel(), (layers, ids))


def _hits(place: dict[str, int], references: list[str]) -> NDArray[np.int64]:
    """(word); 1 for reference words."""
    hit = np.zeros(len(place), np.int64)
    hit[[place[word] for word in references if word in place]] = 1
    return hit


def _beginnings(place: dict[str, int], references: list[str]) -> csr_array:
    """(word, reference); 1 where the word begins the reference."""
    pairs = [
        (place[reference[:length]], column)
        for column, reference in enumerate(references)
        for length in range(min(SHORTEST_PREFIX, len(reference)), len(reference) + 1)
        if reference[:length] in place
    ]
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    return _counts(rows, columns, (len(place), len(references)))


def _counts(rows: NDArray[np.integer], columns: NDArray[np.integer], shape: tuple[int, int]) -> csr_array:
    """Sparse array that counts how often each pair of row and column occurs."""
    return csr_array((np.ones(len(rows), np.int64), (rows, columns)), shape=shape)


def _present(counts: csr_array) -> csr_array:
    """1 where something was counted."""
    return counts.astype(bool).astype(np.int64)


def _row_sums(counts: csr_array) -> NDArray[np.int64]:
    return np.asarray(counts.sum(axis=1), np.int64)


def _ratio(numerator: ArrayLike, denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.zeros(denominator.shape), where=denominator > 0)
