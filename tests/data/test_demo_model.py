"""The shipped model folder: opens through the Auto classes and captions as well as its score file says."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from data.train.demo import demo_scenes
from data.train.evaluate import captions_of, score_captions
from data.train.model import DEMO, build_model, build_processor
from data.train.pipeline import STAGES, TEST_SCENES, TEST_SEED, save
from data.train.scenes import scenes
from data.train.templates import NORMAL_PROMPTS, QUESTION_PROMPTS, fill
from data.train.tokenizer import build_tokenizer
from data.train.train import DEMO_RUN

DATA = Path(__file__).resolve().parents[2] / "data" / "demo"
MODEL = DATA / "model"
SCORE = json.loads((MODEL / "score.json").read_text(encoding="utf-8"))
IMAGES = [DATA / "images" / f"COCO_demo2014_{image_id:012d}.png" for image_id in range(1, 25)]


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True).eval()


def test_the_folder_holds_safetensors_of_the_promised_size_and_nothing_pickled() -> None:
    names = {path.name for path in MODEL.iterdir()}
    weights = {path for path in MODEL.iterdir() if path.suffix == ".safetensors"}
    assert 0 < sum(path.stat().st_size for path in weights) <= 12_000_000
    assert all(path.suffix in {".json", ".safetensors"} for path in MODEL.iterdir()), names
    assert not any("auto_map" in path.read_text(encoding="utf-8") for path in MODEL.glob("*.json"))


def test_the_architecture_is_llavas(model: LlavaForConditionalGeneration) -> None:
    config = AutoConfig.from_pretrained(MODEL)
    assert type(model) is LlavaForConditionalGeneration
    assert (config.model_type, config.vision_config.model_type) == ("llava", "clip_vision_model")
    assert config.text_config.model_type == "llama"
    assert 8 <= config.text_config.num_hidden_layers <= 16
    assert config.text_config.num_key_value_heads < config.text_config.num_attention_heads
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    norms = [block.input_layernorm.weight for block in model.model.language_model.layers]
    assert all(norm.std() > 0 for norm in norms)


@pytest.mark.parametrize("prompt", ["", *NORMAL_PROMPTS, *QUESTION_PROMPTS])
def test_a_pair_has_64_image_tokens_and_one_bos(prompt: str) -> None:
    processor = AutoProcessor.from_pretrained(MODEL)
    with Image.open(IMAGES[0]) as image:
        batch = processor(images=image, text=fill(prompt), return_tensors="pt")
    assert (batch["input_ids"] == processor.image_token_id).sum() == 64
    assert (batch["input_ids"] == processor.tokenizer.bos_token_id).sum() == 1
    assert batch["pixel_values"].shape == (1, 3, DEMO.image, DEMO.image)


def test_the_score_file_tells_what_was_measured_and_how_it_was_made() -> None:
    assert SCORE["scenes"] == TEST_SCENES == 500
    assert SCORE["scenes_seed"] == TEST_SEED
    stages = SCORE["training"]["stages"]
    assert {name: stage["steps"] for name, stage in stages.items()} == {
        name: getattr(DEMO_RUN, name).steps for name in STAGES
    }
    assert {"torch", "transformers", "tokenizers"} <= set(SCORE["training"]["versions"])
    assert 0 <= SCORE["objects_and_relations"] <= SCORE["objects"] <= 1
    assert SCORE["by_prompt"][NORMAL_PROMPTS[0]]["objects"] == SCORE["objects"]


def test_the_score_reaches_what_is_claimed() -> None:
    claimed = 0.95
    assert SCORE["objects"] >= claimed
    for scores in (SCORE["by_prompt"], SCORE["by_dtype"]):
        for name, value in scores.items():
            assert value["objects"] >= claimed - 0.02, name


def test_greedy_captions_of_shipped_scenes_are_as_good_as_the_score(model: LlavaForConditionalGeneration) -> None:
    images = [Image.open(path).convert("RGB") for path in IMAGES]
    texts = captions_of(model, AutoProcessor.from_pretrained(MODEL), images, NORMAL_PROMPTS[0])
    measured = score_captions(demo_scenes()[: len(images)], texts)
    assert measured.objects >= SCORE["objects"] - 0.15


def test_the_scorer_counts_only_exact_captions() -> None:
    chosen = [scene for scene in islice(scenes(8), 40) if len(scene.objects) == 2][:4]
    right = [
        f"a {' '.join(a.kind)} to the left of a {' '.join(b.kind)}." for a, b in (scene.objects for scene in chosen)
    ]
    swapped = [
        f"a {' '.join(b.kind)} to the left of a {' '.join(a.kind)}." for a, b in (scene.objects for scene in chosen)
    ]
    assert score_captions(chosen, right).objects == 1
    assert score_captions(chosen, swapped) == (1, 0)
    assert score_captions(chosen, [text.rstrip(".") for text in right]) == (0, 0)
    assert score_captions(chosen, [f"a {' '.join(scene.objects[0].kind)}." for scene in chosen]).objects == 0


def test_saving_keeps_the_weights_to_half_precision(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    size = DEMO._replace(vision_width=16, vision_layers=2, vision_heads=2, width=16, blocks=2, heads=2, intermediate=16)
    torch.manual_seed(0)
    made = build_model(size, tokenizer)
    save(made, build_processor(size, tokenizer), tmp_path)
    read = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    for name, weight in made.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(read.state_dict()[name], weight.half().float())
