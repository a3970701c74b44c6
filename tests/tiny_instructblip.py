"""Small random InstructBLIP checkpoints in which image states really depend on the image and on the prompt.

Transformers initialises the vision tower with a spread of 1e-10 and the queries with zeros, which would leave nothing
to see; here every weight is random and large, norm weights and biases too.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from tests.tiny_llava import TEXT, build_tokenizer

QUERIES = 6


@dataclass(frozen=True)
class TinyShape:
    """Sizes of a tiny model; grouped-query attention by default.

    ``bos`` is ``</s>`` in the published checkpoints, the same token as EOS.
    """

    blocks: int = 4
    dim: int = 32
    heads: int = 4
    key_value_heads: int = 2
    image_size: int = 16
    patch_size: int = 4
    queries: int = QUERIES
    bos: str = "</s>"


def build_qformer_tokenizer() -> PreTrainedTokenizerFast:
    """A BERT-like tokenizer: lower case, word pieces, [CLS] … [SEP]."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        padding_side="right",
    )


def build_processor(shape: TinyShape = TinyShape()) -> InstructBlipProcessor:
    side = shape.image_size
    return InstructBlipProcessor(
        BlipImageProcessorPil(size={"height": side, "width": side}),
        build_tokenizer(bos=shape.bos),
        build_qformer_tokenizer(),
        num_query_tokens=shape.queries,
    )


def build_config(shape: TinyShape = TinyShape()) -> InstructBlipConfig:
    return InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=shape.image_size,
            patch_size=shape.patch_size,
        ),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=220,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            cross_attention_frequency=2,
        ),
        text_config=LlamaConfig(
            vocab_size=640,
            hidden_size=shape.dim,
            intermediate_size=2 * shape.dim,
            num_hidden_layers=shape.blocks,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            max_position_embeddings=512,
        ),
        num_query_tokens=shape.queries,
        image_token_index=build_tokenizer(bos=shape.bos).convert_tokens_to_ids("<image>"),
    )


def build_model(shape: TinyShape = TinyShape(), *, seed: int = 0) -> InstructBlipForConditionalGeneration:
    """A random model in float32; the unembedding has more rows than the tokenizer has pieces."""
    torch.manual_seed(seed)
    model = InstructBlipForConditionalGeneration(build_config(shape)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.uniform_(0.4, 1.8)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            else:
                parameter.normal_(0.0, 0.3)
    return model


def save_checkpoint(
    folder: Path, shape: TinyShape = TinyShape(), *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write model and processor as a local checkpoint folder and return it."""
    build_model(shape, seed=seed).to(dtype).save_pretrained(folder)
    build_processor(shape).save_pretrained(folder)
    return folder
