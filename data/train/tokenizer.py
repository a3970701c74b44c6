"""The demo model's tokenizer: byte-pair pieces in the manner of Llama's.

``▁`` marks the start of a word, what no piece covers falls back to byte pieces ``<0x00>`` … ``<0xFF>``, and every text
gets one ``<s>`` in front. Ids follow Llama and LLaVA: ``<unk>`` 0, ``<s>`` 1, ``</s>`` 2, bytes 3 … 258, then ordinary
pieces, then ``<image>`` and ``<pad>``.
"""

from __future__ import annotations

import json

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from data.train.captions import OPENINGS, RELATIONS
from data.train.scenes import COLOURS, SHAPES, SIZES
from data.train.templates import NORMAL_PROMPTS, QUESTION_PROMPTS
from data.train.words import COMMON_WORDS

__all__ = ["IMAGE_TOKEN", "build_tokenizer", "ordinary_ids"]

IMAGE_TOKEN = "<image>"

_HEAD = ("<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)))
_PIECES = 768
_FREQUENT = 200


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer on the captions' and prompts' words and a list of common English words.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        1029 ids, the same on every run.
    """
    vocabulary, merges = _train_pieces()
    model = BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>", IMAGE_TOKEN, "<pad>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )


def ordinary_ids(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Ids of pieces that are neither special nor bytes: what a noisy prompt is drawn from.

    Returns
    -------
    numpy.ndarray
        (pieces,) int64, ascending.
    """
    special = set(tokenizer.all_special_ids)
    return np.array([i for i in range(len(_HEAD), len(tokenizer)) if i not in special], dtype=np.int64)


def _train_pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    trained = Tokenizer(BPE())
    # Punctuation must not be glued to words, and only here: at use, no merge can join them.
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.Punctuation("isolated")]
    )
    trainer = BpeTrainer(
        vocab_size=_PIECES,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=[chr(code) for code in range(0x21, 0x7F)] + ["▁"],
    )
    trained.train_from_iterator(_corpus(), trainer)
    state = json.loads(trained.to_str())["model"]
    pieces = sorted(state["vocab"], key=state["vocab"].__getitem__)
    vocabulary = {piece: index for index, piece in enumerate((*_HEAD, *pieces))}
    return vocabulary, [(left, right) for left, right in state["merges"]]


def _corpus() -> list[str]:
    frames = (*OPENINGS, *NORMAL_PROMPTS, *QUESTION_PROMPTS, "USER ASSISTANT a which is and it itself")
    phrases = [words for variants in RELATIONS.values() for words in variants]
    frequent = sorted(
        {word.strip(".,?:") for text in (*frames, *phrases, *SIZES, *COLOURS, *SHAPES) for word in text.split()}
    )
    openers = ["ASSISTANT", *sorted({prompt.split()[0] for prompt in (*NORMAL_PROMPTS, *QUESTION_PROMPTS)})]
    # A blank makes a word-start piece. An instruction follows a line break, so its first word needs a bare one too.
    lines = [f" {word}" for word in frequent] * _FREQUENT + openers * _FREQUENT
    return lines + [f" {word}" for word in COMMON_WORDS]
