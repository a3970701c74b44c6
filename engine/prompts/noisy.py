"""Noisy prompts: strings of random vocabulary, the same for every image.

Each is 11 to 13 different ordinary pieces of the model's own vocabulary, decoded once; the model later sees whatever
tokens that text has. The draw is sha256 of seed and place, nothing else, so that it is the same on every machine and
the first five of ten are the five.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

from engine.errors import UsageError
from engine.prompts.prompt import Prompt

__all__ = ["MIN_PIECES", "VocabularyView", "noisy_prompts"]

LENGTHS = (11, 12, 13)
"""Numbers of pieces, equally likely (thesis, appendix A.2)."""

MIN_PIECES = 2 * max(LENGTHS)
"""Fewest ordinary pieces of a vocabulary that strings are drawn from: with fewer they would be much alike."""

ATTEMPTS = 100
"""Draws per string before the vocabulary is given up; byte-level pieces spoil some of them, others hardly any."""


class VocabularyView(Protocol):
    """What a draw needs of a tokenizer."""

    def pieces(self) -> Sequence[tuple[int, str, str]]:
        """Return (token id, piece, kind) of each entry; kind is ``normal``, ``special``, ``byte`` or ``padding``."""

    def decode(self, ids: Sequence[int]) -> str:
        """Turn token ids into text."""


def noisy_prompts(count: int, *, vocabulary: VocabularyView, seed: int) -> tuple[Prompt, ...]:
    """Draw ``count`` different strings; a larger count only adds to them.

    A drawn text is taken if it is printable on one line, holds no replacement character (half a letter of a byte-level
    vocabulary) and no special token's spelling, and has not been drawn before.

    Parameters
    ----------
    count
        How many.
    vocabulary
        The model's own.
    seed
        Another seed, other strings.

    Raises
    ------
    UsageError
        If the vocabulary has fewer than `MIN_PIECES` ordinary pieces, or pieces that decode to no such text.
    """
    pieces = sorted(vocabulary.pieces())
    # Pieces of nothing but white space (U+2581 of SentencePiece, U+0120 of byte-level BPE) add no word to a string.
    ordinary = [token_id for token_id, piece, kind in pieces if kind == "normal" and piece.strip(" \t\r\n▁Ġ")]
    special = [piece for _, piece, kind in pieces if kind == "special" and piece]
    if len(ordinary) < MIN_PIECES:
        raise UsageError(
            f"the model's vocabulary has {len(ordinary)} ordinary pieces, noisy prompts are drawn from at least "
            f"{MIN_PIECES}; leave noisy out of --prompts, or give strings of your own as a JSON file {{id: text}}"
        )
    texts: list[str] = []
    for number in range(1, count + 1):
        for attempt in range(ATTEMPTS):
            text = vocabulary.decode(_draw(ordinary, f"{seed}/noisy/{number}/{attempt}")).strip()
            readable = text.isprintable() and "�" not in text
            if text and readable and text not in texts and not any(piece in text for piece in special):
                texts.append(text)
                break
        else:
            raise UsageError(
                f"{ATTEMPTS} draws from the model's vocabulary gave no text for noisy-{number} that is printable and "
                "new; ask for fewer in --prompts, or give strings of your own as a JSON file {id: text}"
            )
    return tuple(Prompt(f"noisy-{number}", "noisy", text) for number, text in enumerate(texts, start=1))


def _draw(ids: Sequence[int], key: str) -> list[int]:
    """Draw one string's ids without repetition: sha256 of key and step, as a number, picks the place in ``ids``."""

    def number(step: int) -> int:
        return int.from_bytes(hashlib.sha256(f"{key}/{step}".encode()).digest())

    length = LENGTHS[number(0) % len(LENGTHS)]
    drawn: dict[int, None] = {}
    step = 0
    while len(drawn) < length:
        step += 1
        drawn[ids[number(step) % len(ids)]] = None
    return list(drawn)
