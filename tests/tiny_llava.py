"""Small random LLaVA checkpoints with random norm weights, built through transformers' own classes.

Norm weights of one hide a doubled or missing norm, so every norm weight here is random.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

TEXT = (
    "USER: Briefly describe the content of the image. ASSISTANT: a small red circle to the left of a large blue square",
    "USER: Provide a quick summary of what the image depicts. ASSISTANT: two green triangles above one yellow star",
    "USER: Give a concise explanation of the image content. ASSISTANT: what is the content of the image?",
    "Sum up what is shown in the image briefly. under over beside near big tiny orange purple black white",
)


@dataclass(frozen=True)
class TinyShape:
    """Sizes of a tiny model; grouped-query attention by default."""

    blocks: int = 4
    dim: int = 32
    heads: int = 4
    key_value_heads: int = 2
    image_size: int = 16
    patch_size: int = 4
    vision_dim: int = 16


def build_tokenizer(*, pieces: int = 600, bos: str = "<s>") -> PreTrainedTokenizerFast:
    """A Llama-like tokenizer: ▁ pieces, byte fallback, BOS in front, an image token and padding."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    byte_pieces = [f"<0x{value:02X}>" for value in range(256)]
    fixed = special + byte_pieces
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, limit_alphabet=pieces - len(fixed), special_tokens=fixed, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    state = __import__("json").loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(__import__("json").dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>", unk_token="<unk>", padding_side="left"
    )
    fast.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    fast.add_special_tokens({"pad_token": "<pad>"})
    return fast


def build_processor(shape: TinyShape = TinyShape(), *, patch_size: int | None = None) -> LlavaProcessor:
    size = shape.image_size
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_center_crop=True
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=patch_size or shape.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def build_model(
    shape: TinyShape = TinyShape(), *, seed: int = 0, vocabulary: int = 640
) -> LlavaForConditionalGeneration:
    """A random model in float32; the unembedding has more rows than the tokenizer has pieces, as LLaVA's has."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=shape.vision_dim,
            intermediate_size=2 * shape.vision_dim,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=shape.dim,
            intermediate_size=2 * shape.dim,
            num_hidden_layers=shape.blocks,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            max_position_embeddings=512,
            initializer_range=0.3,
        ),
        image_token_index=build_tokenizer().convert_tokens_to_ids("<image>"),
        image_seq_length=(shape.image_size // shape.patch_size) ** 2,
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.4, 1.8)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    return model


def save_checkpoint(
    folder: Path, shape: TinyShape = TinyShape(), *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write model and processor as a local checkpoint folder and return it."""
    build_model(shape, seed=seed).to(dtype).save_pretrained(folder)
    build_processor(shape).save_pretrained(folder)
    return folder
