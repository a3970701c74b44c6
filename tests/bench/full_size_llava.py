"""LLaVA-1.5-7B with its real configuration and random weights, norm weights too, made where it will run."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from engine.models.checkpoint import Checkpoint
from engine.models.families import family_of
from engine.models.load import LoadedModel, find_language_model
from tests.bench.random_llava import BenchModel
from tests.tiny_llava import TinyShape, build_processor

__all__ = ["build_full_size_llava"]

_NAME = "random-llava-1.5-7b"


def build_full_size_llava(device: torch.device, dtype: str, *, blocks: int = 32, dim: int = 4096) -> BenchModel:
    """Build the model on its device; fewer blocks or a smaller width are for trying this out."""
    processor = build_processor(TinyShape(image_size=336, patch_size=14))
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=dim,
            intermediate_size=11008 * dim // 4096,
            num_hidden_layers=blocks,
            num_attention_heads=dim // 128,
            max_position_embeddings=4096,
        ),
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=576,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.4, 1.8)
    checkpoint = Checkpoint(_NAME, _NAME, None, family_of("llava", _NAME), config, processor)
    return BenchModel(checkpoint, LoadedModel(model, find_language_model(model), device, dtype))
