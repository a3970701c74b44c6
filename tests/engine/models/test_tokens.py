"""Roles, patches and prefixes against oracles that go character by character and token by token."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StrataError
from engine.models.checkpoint import Checkpoint
from engine.models.families import FAMILIES
from engine.models.tokens import TokenLayout, common_prefix, lay_out_tokens, patch_coordinates, token_roles
from engine.vocabulary import ROLE_CODES, ROLES
from tests.tiny_llava import build_model, build_processor

LLAVA = FAMILIES["llava"]
PROCESSOR = build_processor()
TOKENIZER = PROCESSOR.tokenizer
CHECKPOINT = Checkpoint("tiny", "tiny", None, LLAVA, build_model().config, PROCESSOR)
IMAGE_ID = TOKENIZER.convert_tokens_to_ids("<image>")
SPECIAL = ("<s>", "</s>", "<unk>", "<pad>")
IMAGE_TOKENS = 16


def filled(prompt: str) -> tuple[str, str]:
    """LLaVA-1.5's template, spelled out here once more: text before and after the instruction."""
    image = "<image>" * IMAGE_TOKENS
    return (f"USER: {image}\n", " ASSISTANT:") if prompt else (f"USER: {image}\nASSISTANT:", "")


def token_ids(prompt: str) -> np.ndarray:
    before, after = filled(prompt)
    return np.asarray(TOKENIZER(before + prompt + after)["input_ids"])


def laid_out(prompt: str) -> TokenLayout:
    return lay_out_tokens(CHECKPOINT, prompt, token_ids(prompt), grid_shape=(4, 4), class_tokens=0)


def piece_bytes(token_id: int) -> bytes:
    """The bytes a token stands for: ▁ is a blank, <0x0A> one byte."""
    piece = TOKENIZER.convert_ids_to_tokens(token_id)
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def roles_by_character(prompt: str) -> list[str]:
    """Walk through the text byte by byte with the tokens' own spellings; no offsets are asked for."""
    before, after = filled(prompt)
    # The tokenizer puts one blank in front of the whole text.
    spelled = (" " + before, prompt, after)
    kinds = [kind for text, kind in zip(spelled, "bpa", strict=True) for _ in text.replace("▁", " ").encode()]
    text = "".join(spelled).replace("▁", " ").encode()
    roles, cursor, seen_image = [], 0, False
    ids = token_ids(prompt).tolist()
    for number, token_id in enumerate(ids):
        if number == 0:
            roles.append("special")  # BOS stands for no text
            continue
        spelling = piece_bytes(token_id)
        assert text[cursor : cursor + len(spelling)] == spelling
        own = set(kinds[cursor : cursor + len(spelling)])
        cursor += len(spelling)
        seen_image = seen_image or token_id == IMAGE_ID
        if token_id == IMAGE_ID:
            roles.append("image")
        elif TOKENIZER.convert_ids_to_tokens(token_id) in SPECIAL:
            roles.append("special")
        elif "p" in own:
            roles.append("instruction")
        else:
            roles.append("template" if seen_image else "preamble")
    assert cursor == len(text)
    return roles


WORDS = st.sampled_from(
    ["describe", "the", "image.", " ", "  ", "\n", "USER:", "ASSISTANT:", "</s>", "<unk>", "<pad>", "{prompt}",
     "{image}", "é", "犬", "👩‍👩‍👧", "▁", "\u0301", "?", "\t", "<", "imag"]
)  # fmt: skip
PROMPTS = st.one_of(
    st.just(""), st.text(min_size=1, max_size=12), st.lists(WORDS, min_size=1, max_size=8).map("".join)
).filter(lambda text: not any(token in text for token in ("<image>", "<s>")))


@settings(max_examples=200)
@given(PROMPTS)
def test_roles_are_those_of_the_characters_that_a_token_spells(prompt: str) -> None:
    layout = laid_out(prompt)
    assert [ROLES[code] for code in layout.role] == roles_by_character(prompt)
    assert layout.token_id.tolist() == token_ids(prompt).tolist()
    for values in (layout.token_id, layout.role, layout.grid, layout.patch_row, layout.patch_col):
        assert values.dtype == np.int32
        assert len(values) == len(layout)


@pytest.mark.parametrize("kind", ["normal", "question", "noisy", "empty", "custom"])
def test_every_kind_of_prompt(kind: str) -> None:
    prompt = {
        "normal": "Briefly describe the content of the image.",
        "question": "What is the content of the image?",
        "noisy": "tri small image ▁under 犬 beside yellow.what",
        "empty": "",
        "custom": "image",
    }[kind]
    roles = [ROLES[code] for code in laid_out(prompt).role]
    assert roles == roles_by_character(prompt)
    assert roles[0] == "special"
    assert roles.count("image") == IMAGE_TOKENS
    assert ("instruction" in roles) == (kind != "empty")
    assert roles[-1] == "template"
    assert roles.index("image") > roles.index("preamble")


def test_a_token_on_the_border_of_the_prompt_is_instruction() -> None:
    offsets = np.array([[0, 0], [0, 3], [3, 6], [6, 8], [8, 8], [8, 10]])
    roles = token_roles(
        np.array([1, 5, 5, 5, 5, 5]), offsets, image_token_id=9, special_ids=frozenset({1}), prompt_span=(2, 7)
    )
    # Nothing is before an image where there is none: text before it would be preamble.
    assert [ROLES[code] for code in roles] == ["special", *["instruction"] * 3, "preamble", "preamble"]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=12),
    st.integers(0, 12),
    st.integers(0, 6),
    st.frozensets(st.integers(0, 5), max_size=3),
)
def test_roles_of_any_ids_and_offsets(
    tokens: list[tuple[int, int, int]], start: int, length: int, special: frozenset[int]
) -> None:
    image_id = 3
    roles = token_roles(
        np.array([token_id for token_id, _, _ in tokens]),
        np.array([(first, first + size) for _, first, size in tokens]),
        image_token_id=image_id,
        special_ids=special,
        prompt_span=(start, start + length),
    )
    prompt = set(range(start, start + length))
    seen_image = False
    for role, (token_id, first, size) in zip(roles, tokens, strict=True):
        seen_image = seen_image or token_id == image_id
        if token_id == image_id:
            expected = "image"
        elif token_id in special:
            expected = "special"
        elif prompt & set(range(first, first + size)):
            expected = "instruction"
        else:
            expected = "template" if seen_image else "preamble"
        assert ROLES[role] == expected


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(0, 3), st.integers(0, 3))
def test_patches_follow_row_by_row(rows: int, cols: int, class_tokens: int, before: int, after: int) -> None:
    is_image = np.array([False] * before + [True] * (class_tokens + rows * cols) + [False] * after)
    grid, patch_row, patch_col = patch_coordinates(is_image, rows, cols, class_tokens=class_tokens)
    expected = [(-1, -1, -1)] * (before + class_tokens)
    for row in range(rows):
        for col in range(cols):
            expected.append((0, row, col))
    expected += [(-1, -1, -1)] * after
    assert list(zip(grid, patch_row, patch_col, strict=True)) == expected


def test_patches_of_a_sample() -> None:
    layout = laid_out("What?")
    image = layout.token_id == IMAGE_ID
    assert [(r, c) for r, c in zip(layout.patch_row[image], layout.patch_col[image], strict=True)] == [
        (row, col) for row in range(4) for col in range(4)
    ]
    assert (layout.grid == np.where(image, 0, -1)).all()
    assert (layout.patch_row[~image] == -1).all()


def bare_layout(tokens: Sequence[tuple[int, int]]) -> TokenLayout:
    ids, roles = (np.array([token[i] for token in tokens], dtype=np.int32) for i in (0, 1))
    return TokenLayout(ids, roles, ids, ids, ids)


TOKENS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=5)


@given(TOKENS, st.lists(TOKENS, max_size=4))
def test_a_prefix_is_what_all_samples_begin_with(
    shared: list[tuple[int, int]], tails: list[list[tuple[int, int]]]
) -> None:
    sequences = [shared + tail for tail in tails]
    expected = 0
    if len(sequences) > 1:
        while all(len(sequence) > expected for sequence in sequences) and (
            len({sequence[expected] for sequence in sequences}) == 1
        ):
            expected += 1
    assert common_prefix([bare_layout(sequence) for sequence in sequences]) == expected


def test_prompts_that_begin_alike_share_their_beginning_too() -> None:
    one, other = laid_out("Describe the image."), laid_out("Describe the content.")
    prefix = common_prefix([one, other])
    assert prefix > IMAGE_TOKENS + 3
    assert one.role[prefix - 1] == ROLE_CODES["instruction"]
    assert common_prefix([one]) == 0


def test_a_second_bos_is_refused() -> None:
    prompt = "What is <s> here?"
    with pytest.raises(StrataError, match=r"BOS \(id 1\) stands 2 times"):
        laid_out(prompt)


def test_ids_that_are_not_the_tokenizers_are_refused() -> None:
    token_id = token_ids("What?")
    token_id[-1] += 1
    with pytest.raises(StrataError, match="not its tokenizer's for the same text"):
        lay_out_tokens(CHECKPOINT, "What?", token_id, grid_shape=(4, 4), class_tokens=0)


def test_special_tokens_inside_a_prompt_stay_special() -> None:
    layout = laid_out("one</s>two")
    assert layout.role[layout.token_id == 2].tolist() == [ROLE_CODES["special"]]
    assert ROLES[layout.role[np.flatnonzero(layout.token_id == 2)[0] + 1]] == "instruction"


@given(PROMPTS)
def test_the_template_is_filled_around_the_prompt(prompt: str) -> None:
    text, start = LLAVA.fill(prompt, "<image>")
    before, after = (part.replace("<image>" * IMAGE_TOKENS, "<image>") for part in filled(prompt))
    assert text == before + prompt + after
    assert start == len(before)
