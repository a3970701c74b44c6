import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.prompts import read_prompts

ROOT = Path(__file__).parents[3]
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwz", "aeiou"
WORDS = [c + v + d for c in CONSONANTS for v in VOWELS for d in "nrs"]


@dataclass
class WordVocabulary:
    """SentencePiece in small: special pieces, padding, bytes, white space, words with and without a leading blank."""

    words: Sequence[str] = field(default_factory=lambda: [("▁" if i % 3 else "") + w for i, w in enumerate(WORDS)])

    def pieces(self) -> list[tuple[int, str, str]]:
        fixed = [("<unk>", "special"), ("<s>", "special"), ("<image>", "special"), ("<pad0>", "padding")]
        fixed += [("▁", "normal"), ("▁▁", "normal"), *((f"<0x{byte:02X}>", "byte") for byte in range(256))]
        words = [(word, "normal") for word in self.words]
        return [(number, piece, kind) for number, (piece, kind) in enumerate(fixed + words)][::-1]

    def decode(self, ids: Sequence[int]) -> str:
        names = {number: piece for number, piece, _ in self.pieces()}
        return "".join(names[number] for number in ids).replace("▁", " ")


def texts(count: int, vocabulary: WordVocabulary | None = None, seed: int = 0) -> list[str]:
    prompts = read_prompts([f"noisy:{count}"], family="llava", vocabulary=vocabulary or WordVocabulary(), seed=seed)
    assert [prompt.prompt_id for prompt in prompts] == [f"noisy-{number}" for number in range(1, count + 1)]
    assert {prompt.kind for prompt in prompts} == {"noisy"}
    return [prompt.text for prompt in prompts]


def split(text: str) -> list[str]:
    """Take a drawn text apart again: every word of the vocabulary has three letters."""
    letters = text.replace(" ", "")
    return [letters[start : start + 3] for start in range(0, len(letters), 3)]


def test_eleven_to_thirteen_different_ordinary_pieces() -> None:
    drawn = [split(text) for text in texts(60)]
    assert {len(words) for words in drawn} == {11, 12, 13}
    assert all(set(words) <= set(WORDS) and len(set(words)) == len(words) for words in drawn)
    # A uniform draw of 720 words leaves out a word of 285 with probability 0.08.
    assert len({word for words in drawn for word in words}) > 0.8 * len(WORDS)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(-3, 2**40))
def test_fewer_are_a_prefix_of_more(a: int, b: int, seed: int) -> None:
    short = WordVocabulary(WORDS[:60])
    low, high = sorted((a, b))
    assert texts(low, short, seed) == texts(high, short, seed)[:low]


def test_seed_and_vocabulary_change_the_strings() -> None:
    base = texts(5)
    assert len(set(base)) == 5
    assert not set(base) & set(texts(5, seed=1))
    assert not set(base) & set(texts(5, WordVocabulary(WORDS[:100])))


def test_draw_is_the_documented_hash() -> None:
    vocabulary = WordVocabulary()
    ids = sorted(number for number, piece, kind in vocabulary.pieces() if kind == "normal" and piece.strip("▁"))

    def value(step: int) -> int:
        return int(hashlib.sha256(f"4/noisy/1/0/{step}".encode()).hexdigest(), 16)

    drawn: list[int] = []
    step = 1
    while len(drawn) < 11 + value(0) % 3:
        if (number := ids[value(step) % len(ids)]) not in drawn:
            drawn.append(number)
        step += 1
    assert texts(1, seed=4) == [vocabulary.decode(drawn).strip()]


def test_same_in_another_process() -> None:
    code = "import json; from tests.engine.prompts.test_noisy import texts; print(json.dumps(texts(3, seed=11)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(result.stdout) == texts(3, seed=11)


def test_default_is_five() -> None:
    prompts = read_prompts(["noisy"], family="any", vocabulary=WordVocabulary(), seed=0)
    assert [prompt.text for prompt in prompts] == texts(5)


@pytest.mark.parametrize("bad", ["x\ny", "x\x00", "�", "<image>", "\u200b"])
def test_unusable_texts_are_drawn_again(bad: str) -> None:
    words = [f"▁{word}" for word in WORDS[:40]] + [bad] * 8
    for text in texts(20, WordVocabulary(words)):
        assert bad not in text
        assert text.isprintable()
        assert 11 <= len(split(text)) <= 13


def test_bound_on_ordinary_pieces() -> None:
    with pytest.raises(UsageError, match=r"25 ordinary pieces.*at least 26"):
        texts(1, WordVocabulary(WORDS[:25]))
    assert texts(1, WordVocabulary(WORDS[:26]))


def test_vocabulary_without_any_usable_text() -> None:
    with pytest.raises(UsageError, match="noisy-1"):
        texts(1, WordVocabulary(["\n" + word for word in WORDS]))


def test_no_vocabulary() -> None:
    with pytest.raises(UsageError, match="no tokenizer"):
        read_prompts(["noisy:2"], family="llava", vocabulary=None, seed=0)
