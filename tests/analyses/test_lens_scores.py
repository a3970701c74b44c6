from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.decoders import ByteLevel

from analyses.curves import band, image_curves
from analyses.lens_scores import VARIANTS, Scores, VocabularyWords, reference_words, score_layers
from analyses.lens_words import clean
from analyses.stop_words import STOP_WORDS
from engine.errors import StrataError
from tests.analyses.vocabularies import both_vocabularies
from tests.tiny_llava import TEXT

PIECES = (
    ("<s>", "special"),
    ("<0x41>", "byte"),
    ("▁dog", "normal"),
    ("dog", "normal"),
    ("▁Dog", "normal"),
    ("▁gir", "normal"),
    ("▁gi", "normal"),
    ("affe", "normal"),
    ("▁the", "normal"),
    (",", "normal"),
    ("▁tv", "normal"),
    ("▁giraffe", "normal"),
    ("▁red-car", "normal"),
    ("▁2", "normal"),
    ("草地", "normal"),
    ("", "padding"),
)
S, BYTE, DOG, DOG_INSIDE, DOG_CAPITAL, GIR, GI, AFFE, THE, COMMA, TV, GIRAFFE, RED_CAR, TWO, GRASS, PADDING = range(16)
CAPTIONS = ("Two giraffes and a giraffe.", "A dog watches tv on 2 red carpets")
REFERENCES = frozenset({"two", "giraffes", "giraffe", "dog", "watches", "tv", "2", "red", "carpets"})


class Oracle(NamedTuple):
    precision: float
    recall: float
    decoded: int
    correct: int
    recalled: int


def table(pieces: tuple[tuple[str, str], ...] = PIECES) -> pd.DataFrame:
    frame = pd.DataFrame(pieces, columns=["piece", "kind"])
    return frame.assign(token_id=np.arange(len(frame)), word_start=frame["piece"].str.startswith(("▁", "Ġ")))


def scores_of(*ids: int, captions: tuple[str, ...] = CAPTIONS) -> dict[str, Scores]:
    scores = score_layers(np.array([ids], np.int32), VocabularyWords.from_table(table()), reference_words(captions))
    assert scores is not None
    return scores


def counts(scores: Scores) -> tuple[int, int, int, int]:
    return int(scores.decoded[0]), int(scores.correct[0]), int(scores.recalled[0]), scores.references


def brute_force(words: list[list[str]], starts: list[bool], references: frozenset[str]) -> dict[str, Oracle]:
    """Scores of one layer from the words of each of its tokens, by sets and loops."""

    def begins(word: str, reference: str) -> bool:
        return word == reference or (reference.startswith(word) and len(word) >= 3)

    def oracle(decoded: int, correct: int, recalled: int) -> Oracle:
        precision = correct / decoded if decoded else 0.0
        return Oracle(precision, recalled / len(references) if references else 0.0, decoded, correct, recalled)

    tokens = [word for each in words for word in each]
    types = set(tokens)
    first = {word for each, start in zip(words, starts, strict=True) if start for word in each}
    begun = {reference for reference in references if any(begins(word, reference) for word in first)}
    beginning = {word for word in first if any(begins(word, reference) for reference in references)}
    found = len(types & references)
    return {
        "unique": oracle(len(types), found, found),
        "token": oracle(len(tokens), sum(word in references for word in tokens), found),
        "prefix": oracle(len(first), len(beginning), len(begun)),
    }


def test_reference_words_are_those_of_all_captions_together() -> None:
    assert reference_words(CAPTIONS) == REFERENCES
    assert reference_words(iter(["the and of", "!"])) == frozenset()
    assert reference_words([]) is None


def test_words_of_pieces() -> None:
    vocabulary = VocabularyWords.from_table(table())
    words = {
        token_id: {word: int(vocabulary.words[token_id, column]) for word, column in vocabulary.place.items()}
        for token_id in range(len(PIECES))
    }
    found = {token_id: {word for word, count in each.items() if count} for token_id, each in words.items()}
    assert {token_id: each for token_id, each in found.items() if each} == {
        DOG: {"dog"}, DOG_INSIDE: {"dog"}, DOG_CAPITAL: {"dog"}, GIR: {"gir"}, GI: {"gi"}, AFFE: {"affe"}, TV: {"tv"},
        GIRAFFE: {"giraffe"}, RED_CAR: {"red", "car"}, TWO: {"2"}, GRASS: {"草", "地"},
    }  # fmt: skip


def test_unique_counts_a_word_once_however_its_pieces_are_written() -> None:
    scores = scores_of(DOG, DOG, DOG_INSIDE, DOG_CAPITAL, AFFE, THE, COMMA, S, BYTE, PADDING)
    assert counts(scores["unique"]) == (2, 1, 1, 9)
    assert scores["unique"].precision == pytest.approx([1 / 2])
    assert scores["unique"].recall == pytest.approx([1 / 9])


def test_token_counts_every_token_that_is_a_word() -> None:
    scores = scores_of(DOG, DOG, DOG_INSIDE, DOG_CAPITAL, AFFE, THE, COMMA, S, BYTE, PADDING)
    assert counts(scores["token"]) == (5, 4, 1, 9)
    assert scores["token"].precision == pytest.approx([4 / 5])
    assert scores["token"].recall == pytest.approx([1 / 9])


def test_one_beginning_may_recall_several_words_and_several_the_same() -> None:
    assert counts(scores_of(GIR)["prefix"]) == (1, 1, 2, 9)
    assert counts(scores_of(GIR, GIRAFFE)["prefix"]) == (2, 2, 2, 9)


def test_a_beginning_is_long_enough_or_the_whole_word_and_starts_a_word() -> None:
    assert counts(scores_of(GI)["prefix"]) == (1, 0, 0, 9)
    assert counts(scores_of(TV, TWO)["prefix"]) == (2, 2, 2, 9)
    assert counts(scores_of(DOG_INSIDE, AFFE)["prefix"]) == (0, 0, 0, 9)


def test_the_last_word_of_a_piece_may_be_a_beginning() -> None:
    assert counts(scores_of(RED_CAR)["prefix"]) == (2, 2, 2, 9)
    assert counts(scores_of(RED_CAR)["unique"]) == (2, 1, 1, 9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_captions_of_stop_words_alone_recall_nothing_and_say_so(variant: str) -> None:
    scores = scores_of(DOG, GIR, captions=("there it is", "?"))[variant]
    assert (scores.precision[0], scores.recall[0], scores.references) == (0.0, 0.0, 0)
    assert scores.nothing_referred
    assert not scores.nothing_decoded[0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ids", [(), (THE, COMMA, S)], ids=["no image token", "no word"])
def test_without_decoded_words_precision_is_0_and_says_so(variant: str, ids: tuple[int, ...]) -> None:
    scores = scores_of(*ids)[variant]
    assert counts(scores) == (0, 0, 0, 9)
    assert (scores.precision[0], scores.recall[0]) == (0.0, 0.0)
    assert scores.nothing_decoded[0]
    assert not scores.nothing_referred


def test_an_image_without_captions_has_no_scores() -> None:
    assert score_layers(np.array([[DOG]]), VocabularyWords.from_table(table()), reference_words([])) is None


def test_a_vocabulary_without_words_scores_nothing() -> None:
    vocabulary = VocabularyWords.from_table(table((("<s>", "special"), (",", "normal"))))
    scores = score_layers(np.array([[0, 1], [1, 1]]), vocabulary, REFERENCES)
    assert scores is not None
    assert all(scores[variant].decoded.tolist() == [0, 0] for variant in VARIANTS)


@pytest.mark.parametrize("token_id", [-1, len(PIECES)])
def test_an_id_outside_the_vocabulary_is_refused(token_id: int) -> None:
    with pytest.raises(StrataError, match=f"token id {token_id} is none of the {len(PIECES)} of the vocabulary"):
        score_layers(np.array([[DOG, token_id]]), VocabularyWords.from_table(table()), REFERENCES)


VOCABULARIES = both_vocabularies()
CLEANED = {marker: VocabularyWords.from_table(vocabulary) for marker, vocabulary in VOCABULARIES.items()}


def words_by_hand(piece: str, kind: str, marker: str) -> list[str]:
    """Words of a piece, bytes decoded with the alphabet of the tokenizers library."""
    if kind != "normal":
        return []
    if marker == "▁":
        return list(clean(piece.replace("▁", " "), STOP_WORDS))
    return list(clean(ByteLevel().decode([piece]), STOP_WORDS))


@pytest.mark.parametrize("marker", VOCABULARIES)
@given(data=st.data())
def test_scores_equal_sets_and_loops(marker: str, data: st.DataObject) -> None:
    vocabulary = VOCABULARIES[marker]
    layers, tokens = data.draw(st.tuples(st.integers(1, 3), st.integers(0, 40)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    token_ids = np.random.default_rng(seed).integers(0, len(vocabulary), (layers, tokens))
    captions = data.draw(st.lists(st.sampled_from([*TEXT, "red circl", "grün 草地", "of the", "Naïve giraffe's"])))
    references = reference_words(captions)
    scores = score_layers(token_ids, CLEANED[marker], references)
    assert (scores is None) == (not captions)
    for layer in range(layers if scores else 0):
        rows = vocabulary.iloc[token_ids[layer]]
        words = [words_by_hand(piece, kind, marker) for piece, kind in zip(rows["piece"], rows["kind"], strict=True)]
        for variant, expected in brute_force(words, list(rows["word_start"]), references).items():
            got = scores[variant]
            values = (got.precision, got.recall, got.decoded, got.correct, got.recalled)
            assert Oracle(*(each[layer] for each in values)) == pytest.approx(expected)
            assert got.references == len(references)


@pytest.mark.parametrize("marker", VOCABULARIES)
def test_the_random_pieces_hit_words_in_every_variant(marker: str) -> None:
    """Else the comparison above would compare zeros."""
    every = np.arange(len(VOCABULARIES[marker]))[np.newaxis]
    scores = score_layers(every, CLEANED[marker], reference_words(TEXT))
    assert scores is not None
    assert all(scores[variant].correct[0] > 10 for variant in VARIANTS)
    assert scores["prefix"].decoded[0] < scores["unique"].decoded[0]
    assert scores["token"].decoded[0] > scores["unique"].decoded[0]


def test_curves_over_samples_take_scores_as_they_are() -> None:
    """Mean, spread and interval are those of every curve; images without captions have none."""
    rng = np.random.default_rng(5)
    vocabulary = VocabularyWords.from_table(table())
    token_ids = rng.integers(0, len(PIECES), (12, 4, 9))
    scores = [score_layers(each, vocabulary, REFERENCES if place % 4 else None) for place, each in enumerate(token_ids)]
    precision = np.stack([np.full(4, np.nan) if each is None else each["unique"].precision for each in scores])
    samples = pd.DataFrame({"image_id": [str(place) for place in range(12)], "item_id": ["x"] * 6 + ["y"] * 6})
    curves = image_curves(samples, precision)
    summary = band(curves.curves, curves.items)
    kept = precision[[place for place in range(12) if place % 4]]
    np.testing.assert_allclose(summary.mean, kept.mean(axis=0))
    np.testing.assert_allclose(summary.std, kept.std(axis=0, ddof=1))
    assert (summary.images, summary.items) == (9, 2)
    assert (summary.low <= summary.mean).all()
    assert (summary.mean <= summary.high).all()
