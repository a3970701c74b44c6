"""From text to words: one cleaning for the pieces of a vocabulary and for captions.

Two words match when they are the same string after `clean`, so both sides must go through it and nothing else may
touch them. What a piece is as text depends on how its vocabulary writes bytes and blanks: `piece_texts`.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence

__all__ = ["clean", "piece_texts"]

_SENTENCEPIECE_BLANK = "▁"
_BYTE_LEVEL_BLANK = "Ġ"

_VARIATION_SELECTORS = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
_EDGES = re.compile(r"^'+|(?:'s|')+$")
_IDEOGRAPH = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def clean(text: str, stop_words: Collection[str]) -> tuple[str, ...]:
    """Words of a text, in order, with repetition.

    - Case and compatibility forms are folded (compatibility caseless matching, D146 of the Unicode standard):
      ``Straße`` and ``STRASSE``, ``ﬁre`` and ``Fire``, fullwidth and plain letters are the same. Accents stay: ``café``
      is not ``cafe``.
    - A word is a run of letters, digits and combining marks with at least one letter or digit. Whatever else is
      punctuation: dropped at the edges, and a separator inside, so ``t-shirt`` is two words, as pieces never span a
      hyphen. Text of punctuation alone has no words. Invisible characters (soft hyphen, joiners) are taken out.
    - An apostrophe inside a word belongs to it (``o'clock``, ``don't``: stop lists have it so), however it is typed.
      At the edges it is a quotation mark; a possessive ``'s`` is dropped, so ``dog's`` is ``dog``.
    - An ideograph (Han) is a word of its own, as Chinese writes no blanks (the convention of BERT's tokenizer). Runs of
      kana, Hangul or Thai stay whole.
    - Neither digits nor single characters are left out: ``2`` and ``狗`` say something. Single Latin letters that are
      mostly fragments (``s``, ``t``, …) stand in the stop list.

    Parameters
    ----------
    text
        A caption, or a piece as `piece_texts` gives it.
    stop_words
        Words to leave out, folded as above.
    """
    separated = _IDEOGRAPH.sub(r" \1 ", _fold(text).translate(_FOLDED))
    words = (_EDGES.sub("", word) for word in separated.split())
    return tuple(word for word in words if any(map(str.isalnum, word)) and word not in stop_words)


def piece_texts(pieces: Sequence[str]) -> list[str]:
    """Text of each piece of a vocabulary, a blank where the piece begins a word.

    Byte-level vocabularies (GPT-2) write each byte of UTF-8 as a character of a fixed alphabet, ``Ġ`` for a blank and
    ``cafÃ©`` for ``café``; SentencePiece writes text, and ``▁`` for a blank. The more frequent of the two markers tells
    which it is, since either may also be a letter of the other's text. Bytes that are half a character become U+FFFD,
    which is punctuation for `clean`.

    Parameters
    ----------
    pieces
        Normal pieces, as they stand in ``vocab.parquet``: without special and byte pieces.
    """
    byte_level, sentencepiece = (
        sum(piece.startswith(marker) for piece in pieces) for marker in (_BYTE_LEVEL_BLANK, _SENTENCEPIECE_BLANK)
    )
    if byte_level > sentencepiece:
        return [_decode_bytes(piece) for piece in pieces]
    return [piece.replace(_SENTENCEPIECE_BLANK, " ") for piece in pieces]


class _Typed(dict[int, str]):
    """Translation of what was typed: one kind of apostrophe, nothing invisible, blanks for symbols."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        self[code] = "" if category == "Cf" else " " if category.startswith("S") else character
        return self[code]


class _Folded(dict[int, str]):
    """Translation of folded text: blanks for what belongs to no word."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        self[code] = character if category[0] in "LN" or category in ("Mn", "Mc") else " "
        return self[code]


_APOSTROPHES = dict.fromkeys(map(ord, "'‘’‛ʼ´`"), "'")
_TYPED = _Typed(_APOSTROPHES | dict.fromkeys(_VARIATION_SELECTORS, ""))
_FOLDED = _Folded(_APOSTROPHES)  # again, because folding makes one of ŉ


def _fold(text: str) -> str:
    # Symbols go before folding, which makes letters of some (™ becomes TM), and composed, lest their accents stay.
    typed = unicodedata.normalize("NFC", text).translate(_TYPED)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", typed).casefold())
    return unicodedata.normalize("NFKC", folded.casefold())


def _byte_alphabet() -> dict[str, int]:
    """Byte of each character of GPT-2's alphabet (Radford et al. 2019, ``bytes_to_unicode`` of their encoder).

    Bytes that print in Latin-1 stand for themselves, the others for the characters from U+0100 on.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _decode_bytes(piece: str) -> str:
    """Text of a byte-level piece; a piece that was added as text (``<|tool|>``, ``日本``) stays as it is."""
    if not all(character in _BYTE_OF for character in piece):
        return piece
    return bytes(_BYTE_OF[character] for character in piece).decode("utf-8", errors="replace")
