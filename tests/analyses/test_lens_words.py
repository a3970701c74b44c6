import unicodedata
from collections.abc import Callable
from importlib.metadata import version

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from analyses.lens_words import clean, piece_texts
from analyses.stop_words import STOP_WORDS, STOP_WORDS_NAME
from engine.models.vocabulary import TokenizerVocabulary
from tests.analyses.vocabularies import byte_level_tokenizer
from tests.tiny_llava import build_tokenizer

CASES = {
    "case": ("A Dog and a DOG", ("dog", "dog")),
    "sharp s": ("Straße STRASSE", ("strasse", "strasse")),
    "ligature and fullwidth": ("ﬁre ｄｏｇ", ("fire", "dog")),
    "accents stay, composed": ("café cafe\u0301", ("café", "café")),
    "final sigma": ("ΣΟΦΟΣ σοφος", ("σοφοσ", "σοφοσ")),
    "punctuation": ("dog, (cat)... «bird»! cow?", ("dog", "cat", "bird", "cow")),
    "underscore and slash": ("red_hat black/white", ("red", "hat", "black", "white")),
    "hyphen": ("black-haired", ("black", "haired")),
    "other hyphens and dashes": (
        "ice\u2010cream ice\u2011cream dog\u2014cat",
        ("ice", "cream", "ice", "cream", "dog", "cat"),
    ),
    "soft hyphen and joiners": ("ele\u00adphant zeb\u200dra\ufeff", ("elephant", "zebra")),
    "digits": ("2 dogs, 10 cats", ("2", "dogs", "10", "cats")),
    "numbers of several parts": ("10,000 at 3.5", ("10", "000", "3", "5")),
    "digits in a word": ("737s 4x4", ("737s", "4x4")),
    "superscript": ("m²", ("m2",)),
    "Arabic digits stay": ("٣", ("٣",)),
    "apostrophe inside": ("o'clock rock'n'roll", ("o'clock", "rock'n'roll")),
    "typographic apostrophes": ("o’clock oʼclock o´clock o`clock o＇clock", ("o'clock",) * 5),
    "possessive": ("dog's dog’s dogs' James's", ("dog", "dog", "dogs", "james")),
    "quotation": ("'stop' ‘dogs’ 'dog's'", ("stop", "dogs", "dog")),
    "negation is a stop word": ("don't don’t DON'T", ()),
    "fragments of a negation": ("'t", ()),
    "possessive piece": ("'s", ()),
    "ideographs": ("草地dog上", ("草", "地", "dog", "上")),
    "ideograph beyond the basic plane": ("\U00020000\U00020001", ("\U00020000", "\U00020001")),
    "compatibility ideograph": ("\uf900", ("\u8c48",)),
    "kana and hangul stay whole": ("ねこ ﾈｺ 고양이", ("ねこ", "ネコ", "고양이")),
    "vowel signs": ("कुत्ता", ("कुत्ता",)),
    "mark alone": ("\u0301", ()),
    "punctuation alone": ("...", ()),
    "apostrophe alone": ("'", ()),
    "blank": (" \t\n", ()),
    "nothing": ("", ()),
    "emoji and keycap": ("❤\ufe0f 1\ufe0f\u20e3 🐶", ("1",)),
    "accents of no letter": ("\u1fdd0 \u1ffe\u03000", ("0", "0")),
    "apostrophe in a letter": ("ŉ", ("n",)),
    "trademark": ("Lego™", ("lego",)),
    "currency and mathematics": ("$5 + x=3", ("5", "x", "3")),
    "replacement character": ("dog\ufffd", ("dog",)),
    "stop words": ("There is a man on the left", ("man", "left")),
    "content words that longer lists drop": ("small room face front two", ("small", "room", "face", "front", "two")),
    "marker of SentencePiece": ("▁dog", ("dog",)),
}


@pytest.mark.parametrize(("text", "words"), CASES.values(), ids=CASES)
def test_cleaning(text: str, words: tuple[str, ...]) -> None:
    assert clean(text, STOP_WORDS) == words


def test_without_stop_words_every_word_stays() -> None:
    assert clean("The dog, and don't!", ()) == ("the", "dog", "and", "don't")


@pytest.mark.parametrize("word", sorted(STOP_WORDS))
def test_every_stop_word_is_recognised_however_it_is_written(word: str) -> None:
    for written in (word, word.upper(), word.replace("'", "’"), f"▁{word},"):
        assert clean(written, STOP_WORDS) == ()


@given(st.text())
def test_words_are_clean_and_hold_neither_blanks_nor_punctuation(text: str) -> None:
    words = clean(text, STOP_WORDS)
    assert clean(" ".join(words), STOP_WORDS) == words
    for word in words:
        kinds = {unicodedata.category(character)[0] for character in word if character != "'"}
        assert kinds <= set("LMN")
        assert kinds & set("LN")
        assert word not in STOP_WORDS


@given(st.text(), st.text())
def test_what_a_blank_separates_is_cleaned_alone(first: str, second: str) -> None:
    assert clean(f"{first} {second}", STOP_WORDS) == clean(first, STOP_WORDS) + clean(second, STOP_WORDS)


@given(st.text(st.characters(codec="utf-8")))
def test_composition_does_not_matter(text: str) -> None:
    assert clean(unicodedata.normalize("NFD", text), STOP_WORDS) == clean(text, STOP_WORDS)


def test_the_name_of_the_list_says_whose_it_is_and_which_version() -> None:
    assert "NLTK" in STOP_WORDS_NAME
    assert STOP_WORDS_NAME.endswith(f"bm25s {version('bm25s')}")


def test_sentencepiece_marker_is_a_blank_and_its_letters_are_letters() -> None:
    assert piece_texts(["▁dog", "dog", "▁", "▁▁▁", "Ġ", "é"]) == [" dog", "dog", " ", "   ", "Ġ", "é"]


def test_byte_level_pieces_become_the_text_that_their_bytes_are() -> None:
    pieces = ["Ġdog", "dog", "Ġ", "ĠcafÃ©", "çĭĹ", "ĊĊ", "<|tool|>", "日本", "âĸģ"]
    assert piece_texts(pieces) == [" dog", "dog", " ", " café", "狗", "\n\n", "<|tool|>", "日本", "▁"]


def test_half_a_character_is_no_word() -> None:
    texts = piece_texts(["Ġdog", "ĠdogÃ", "çĭ", "©"])
    assert [clean(text, STOP_WORDS) for text in texts] == [("dog",), ("dog",), (), ()]


def test_pieces_without_a_marker_are_text() -> None:
    assert piece_texts(["dog", "é"]) == ["dog", "é"]


@pytest.mark.parametrize("build", [build_tokenizer, byte_level_tokenizer])
def test_pieces_read_as_the_tokenizer_decodes_them(build: Callable[[], PreTrainedTokenizerFast]) -> None:
    """An id before a plain one decodes to its own text, because a decoder strips a blank only at the very front."""
    tokenizer = build()
    normal = [
        (token_id, piece) for token_id, piece, kind in TokenizerVocabulary(tokenizer).pieces() if kind == "normal"
    ]
    anchor = next(token_id for token_id, piece in normal if piece == "x")
    decoded = [tokenizer.decode([anchor, token_id]).removeprefix("x") for token_id, _ in normal]
    assert piece_texts([piece for _, piece in normal]) == decoded
    assert len(normal) > 200
