"""Vocabularies of both kinds that language models use, SentencePiece's and byte-level ones, as stores keep them."""

import pandas as pd
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.models.vocabulary import TokenizerVocabulary
from tests.tiny_llava import TEXT, build_tokenizer

FOREIGN = ("un café près du château", "草地上的狗", "GIRAFFE's naïve façade — x² “quoted”")


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A GPT-2-like tokenizer: byte-level pieces with Ġ, so some are half a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator((TEXT + FOREIGN) * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def stored_vocabulary(tokenizer: PreTrainedTokenizerFast, rows: int = 640) -> pd.DataFrame:
    """``vocab.parquet`` of a model whose unembedding has more rows than the tokenizer has pieces."""
    return TokenizerVocabulary(tokenizer).table(rows).to_pandas()


def both_vocabularies() -> dict[str, pd.DataFrame]:
    """The vocabularies by what begins a word in them."""
    return {"▁": stored_vocabulary(build_tokenizer()), "Ġ": stored_vocabulary(byte_level_tokenizer())}
