"""The demo model's shape, and its processor: LLaVA's architecture, three orders of magnitude smaller."""

from __future__ import annotations

from typing import NamedTuple

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from data.train.tokenizer import IMAGE_TOKEN

__all__ = ["DEMO", "Size", "build_model", "build_processor"]


class Size(NamedTuple):
    """What may be chosen about the architecture."""

    image: int
    """Side of the square that the vision tower sees, pixels."""
    patch: int
    vision_width: int
    vision_layers: int
    """One more than is used: LLaVA reads the last but one."""
    vision_heads: int
    width: int
    blocks: int
    heads: int
    key_value_heads: int
    intermediate: int


DEMO = Size(
    image=64,
    patch=8,
    vision_width=128,
    vision_layers=5,
    vision_heads=4,
    width=128,
    blocks=10,
    heads=4,
    key_value_heads=2,
    intermediate=352,
)


def build_model(size: Size, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Make a LLaVA with fresh weights from the current torch seed.

    The embedding table is rounded up to a multiple of 64 rows, as LLaVA-1.5's is; ids past the tokenizer's are never
    used.
    """
    image_tokens = (size.image // size.patch) ** 2
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=3 * size.vision_width,
        projection_dim=size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=size.image,
        patch_size=size.patch,
        hidden_act="gelu",
        # Widths this small need wider weights than CLIP's own scale for a signal to pass.
        initializer_factor=3.0,
    )
    text = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=size.width,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=512,
        initializer_range=0.05,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.vocab[IMAGE_TOKEN],
        image_seq_length=image_tokens,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def build_processor(size: Size, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Make the processor that turns an image and a filled template into the model's input."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size.image}, crop_size={"height": size.image, "width": size.image}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=size.patch,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )
