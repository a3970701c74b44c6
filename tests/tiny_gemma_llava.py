"""Small random LLaVA checkpoints whose language model is Gemma 2: attention with a softcap, every second block sliding.

transformers runs it under eager attention, because SDPA knows no softcap.
"""

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, Gemma2Config, LlavaConfig, LlavaForConditionalGeneration

from tests.tiny_llava import TinyShape, build_processor, build_tokenizer

__all__ = ["save_checkpoint"]


def build_model(shape: TinyShape, *, seed: int = 0, softcap: float = 5.0) -> LlavaForConditionalGeneration:
    """A random model in float32; norm weights are random, and Gemma adds 1 to them."""
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
        text_config=Gemma2Config(
            vocab_size=640,
            hidden_size=shape.dim,
            intermediate_size=2 * shape.dim,
            num_hidden_layers=shape.blocks,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            head_dim=shape.dim // shape.heads,
            query_pre_attn_scalar=shape.dim // shape.heads,
            max_position_embeddings=512,
            initializer_range=0.3,
            attn_logit_softcapping=softcap,
            sliding_window=12,
        ),
        image_token_index=build_tokenizer().convert_tokens_to_ids("<image>"),
        image_seq_length=(shape.image_size // shape.patch_size) ** 2,
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(-0.6, 0.8)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    return model


def save_checkpoint(
    folder: Path,
    shape: TinyShape,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    softcap: float = 5.0,
) -> Path:
    """Write model and processor as a local checkpoint folder and return it."""
    build_model(shape, seed=seed, softcap=softcap).to(dtype).save_pretrained(folder)
    build_processor(shape).save_pretrained(folder)
    return folder
