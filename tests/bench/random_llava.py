"""A random LLaVA in memory, large enough to be slow; images for it, and extractions of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from engine.capture import Extraction
from engine.capture.batch import collate, whole_runs
from engine.capture.extraction import extract_parts
from engine.capture.lens import Lens
from engine.capture.part import SampleSource, batch_item
from engine.capture.prefix_reuse import ONCE
from engine.capture.queries import DEFAULT_QUERIES
from engine.models.checkpoint import Checkpoint
from engine.models.families import family_of
from engine.models.load import LoadedModel, find_language_model
from engine.models.prepare import Preparer
from engine.models.tables import model_tables
from engine.plan import CaptureChoice, make_plan
from engine.prompts import Prompt
from engine.sources import ImageFolder, ImageRecord, load_image
from engine.store import create_store
from tests.tiny_llava import TinyShape, build_processor

__all__ = [
    "PROMPTS",
    "BenchModel",
    "Silence",
    "build_llava",
    "collated_batches",
    "count_positions",
    "extract_all",
    "plan_extraction",
    "write_images",
]

IMAGE_SIZE, PATCH_SIZE = 140, 14
LENS_TOPK = 10
PROMPTS = (
    "Briefly describe the content of the image.",
    "Provide a quick summary of what the image depicts.",
    "Give a concise explanation of the image content.",
    "Sum up what is shown in the image briefly.",
    "What is the content of the image?",
)


class Silence:
    """Progress that nobody watches."""

    def batch_done(self, samples: int, state_bytes: int) -> None:
        """Ignore it."""

    def waited(self, what: str, seconds: float) -> None:
        """Ignore it."""

    def part_done(self, manifest: Mapping[str, object]) -> None:
        """Ignore it."""


@dataclass(frozen=True)
class BenchModel:
    """A model in memory and what extraction wants to know of its checkpoint."""

    checkpoint: Checkpoint
    loaded: LoadedModel


def build_llava(*, dim: int, blocks: int, dtype: str, image_size: int = IMAGE_SIZE) -> BenchModel:
    """Build a LLaVA with random weights, norm weights too, of 100 image tokens unless told otherwise."""
    torch.manual_seed(0)
    processor = build_processor(TinyShape(image_size=image_size, patch_size=PATCH_SIZE))
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=image_size,
            patch_size=PATCH_SIZE,
        ),
        text_config=LlamaConfig(
            vocab_size=640,
            hidden_size=dim,
            intermediate_size=11 * dim // 4,
            num_hidden_layers=blocks,
            num_attention_heads=dim // 64,
            num_key_value_heads=dim // 64,
        ),
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(image_size // PATCH_SIZE) ** 2,
    )
    model = LlavaForConditionalGeneration(config).eval().to(getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.4, 1.8)
    checkpoint = Checkpoint("random-llava", "random-llava", None, family_of("llava", "random-llava"), config, processor)
    return BenchModel(checkpoint, LoadedModel(model, find_language_model(model), torch.device("cpu"), dtype))


def write_images(folder: Path, count: int) -> tuple[ImageRecord, ...]:
    """Write PNG files of smooth random colours, larger than the model wants them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
    return tuple(ImageRecord(f"{number:03d}", f"{number:03d}.png", ("a picture",)) for number in range(count))


def plan_extraction(
    model: BenchModel,
    store: Path,
    root: Path,
    images: Sequence[ImageRecord],
    *,
    prompts: int,
    images_per_part: int,
    batch_size: int,
    tensors: tuple[str, ...] = ("residual", "pooled"),
    first_layer: int = 0,
) -> Extraction:
    """Plan an extraction of all layers from the first on, prefix shared, and create its store."""
    checkpoint = model.checkpoint
    asked = [Prompt(f"normal-{number + 1}", "normal", text) for number, text in enumerate(PROMPTS[:prompts])]
    layers = tuple(range(first_layer, checkpoint.block_count + 1))
    plan = make_plan(
        model={
            "id": checkpoint.model_id,
            "revision": None,
            "dtype": model.loaded.dtype,
            "blocks": checkpoint.block_count,
            "dim": checkpoint.dim,
        },
        source={"kind": "folder"},
        images=images,
        prompts=asked,
        capture=CaptureChoice(
            tensors,
            layers,
            None,
            True,
            None,
            False,
            queries=DEFAULT_QUERIES if "attention" in tensors else (),
            blocks=tuple(range(1, checkpoint.block_count + 1)) if "attention" in tensors else (),
            lens_topk=LENS_TOPK if "lens" in tensors else None,
        ),
        limit=None,
        seed=0,
        images_per_part=images_per_part,
    )
    tables = model_tables(checkpoint, model.loaded, unembedding=False)
    create_store(store, record=plan.record, plan=plan.table(), **tables._asdict())
    preparer = Preparer(checkpoint, asked, share_prefix=True)
    prefix_pass = ONCE if prompts > 1 else Extraction.prefix_pass
    return Extraction(
        store,
        plan,
        ImageFolder(root),
        checkpoint,
        model.loaded,
        preparer,
        batch_size,
        lens=Lens.of(checkpoint, model.loaded, LENS_TOPK) if "lens" in tensors else None,
        prefix_pass=prefix_pass,
    )


def extract_all(extraction: Extraction) -> None:
    """Extract every part of a plan."""
    extract_parts(extraction, extraction.plan.parts, Silence())


def count_positions(extraction: Extraction) -> int:
    """Positions of the language model in all samples, each in full."""
    images = (load_image(record, extraction.images) for record in extraction.plan.images)
    return sum(len(layout) for image in images for layout in extraction.preparer.prepare(image.pixels).layouts)


def collated_batches(extraction: Extraction) -> list[dict[str, torch.Tensor]]:
    """Inputs of the forward passes of an extraction of one prompt, on the model's device."""
    sources = [
        SampleSource(number, record, image, prepared, 0, extraction.plan.prompts[0], None)
        for number, record in enumerate(extraction.plan.images)
        for image in [load_image(record, extraction.images)]
        for prepared in [extraction.preparer.prepare(image.pixels)]
    ]
    items = [batch_item(source, None) for source in sources]
    groups = [items[start : start + extraction.batch_size] for start in range(0, len(items), extraction.batch_size)]
    device, dtype = extraction.loaded.device, extraction.loaded.model.dtype
    return [
        {name: value.to(device, dtype if value.is_floating_point() else value.dtype) for name, value in batch.items()}
        for batch in (collate(whole_runs(group), pad_id=extraction.checkpoint.pad_id) for group in groups)
    ]
