"""The demo tokenizer: Llama's manners, and the same pieces on every run."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data.train.captions import CAPTIONS, RELATIONS, caption
from data.train.examples import noisy_prompt
from data.train.scenes import COLOURS, SHAPES, SIZES, scenes
from data.train.templates import NORMAL_PROMPTS, QUESTION_PROMPTS, closed, fill
from data.train.tokenizer import IMAGE_TOKEN, build_tokenizer, ordinary_ids

MODEL = Path(__file__).resolve().parents[2] / "data" / "demo" / "model"
TOKENIZER = build_tokenizer()


def pieces(text: str) -> list[str]:
    return TOKENIZER.convert_ids_to_tokens(TOKENIZER(text)["input_ids"])


def test_the_shipped_tokenizer_is_the_one_that_the_script_makes() -> None:
    shipped = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    made = json.loads(TOKENIZER.backend_tokenizer.to_str())
    for part in ("model", "pre_tokenizer", "decoder", "post_processor", "added_tokens"):
        assert shipped[part] == made[part]


def test_ids_follow_llama() -> None:
    assert TOKENIZER.convert_ids_to_tokens([0, 1, 2, 3, 258]) == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    assert len(ordinary_ids(TOKENIZER)) >= 600
    assert not set(TOKENIZER.all_special_ids) & set(ordinary_ids(TOKENIZER).tolist())
    assert TOKENIZER.all_special_ids.count(TOKENIZER.convert_tokens_to_ids(IMAGE_TOKEN)) == 1


def test_a_template_is_cut_as_llava_cuts_it() -> None:
    text = closed(fill("What is the content of the image?"), "a small red circle.")
    assert pieces(text)[:7] == ["<s>", "▁USER", ":", "▁", "<image>", "<0x0A>", "What"]
    assert pieces(text)[-8:] == ["▁ASSISTANT", ":", "▁a", "▁small", "▁red", "▁circle", ".", "</s>"]
    assert pieces(fill(""))[-3:] == ["<0x0A>", "ASSISTANT", ":"]


@pytest.mark.parametrize(
    "word",
    sorted(
        {
            word.strip(".?")
            for text in (*SIZES, *COLOURS, *SHAPES, *sum(RELATIONS.values(), ()), *NORMAL_PROMPTS, *QUESTION_PROMPTS)
            for word in text.split()
        }
    ),
)
def test_frequent_words_are_single_pieces(word: str) -> None:
    assert pieces(word) == ["<s>", f"▁{word}"]


def test_captions_come_back_from_their_ids() -> None:
    for scene in islice(scenes(5), 20):
        for style in range(CAPTIONS):
            text = caption(scene, style)
            assert TOKENIZER.decode(TOKENIZER(text)["input_ids"], skip_special_tokens=True) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=30))
@settings(max_examples=150)
def test_any_text_comes_back_through_byte_pieces(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    special = {piece for piece in TOKENIZER.all_special_tokens if piece in text}
    assert ids.count(TOKENIZER.unk_token_id) == text.count("<unk>")
    if not special and not text.startswith(" "):
        assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_an_unknown_letter_falls_back_to_its_utf8_bytes() -> None:
    assert pieces("é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]


def test_noisy_prompts_are_drawn_from_ordinary_pieces_and_differ() -> None:
    rng = np.random.default_rng(0)
    prompts = [noisy_prompt(rng, TOKENIZER) for _ in range(20)]
    assert len(set(prompts)) == 20
    assert not any(token in prompt for prompt in prompts for token in TOKENIZER.all_special_tokens)


def test_auto_tokenizer_opens_the_shipped_folder() -> None:
    shipped = AutoTokenizer.from_pretrained(MODEL)
    text = closed(fill(NORMAL_PROMPTS[0]), "a small red circle.")
    assert shipped(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert shipped.pad_token == "<pad>"
