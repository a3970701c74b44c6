"""LLaVA-1.5 at its real size, as far as it goes without weights: tokens, patches and the price of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from transformers import CLIPImageProcessorPil, LlamaConfig, LlavaConfig, LlavaProcessor

from engine.models.checkpoint import open_checkpoint
from engine.models.prepare import Preparer
from engine.prompts import Prompt
from tests.engine.cli.conftest import write_images
from tests.tiny_llava import build_tokenizer

SIZES = {
    "llava-1.5-7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llava-1.5-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}


def write_configuration(folder: Path, size: dict[str, int]) -> Path:
    """Write the published configuration and processor settings around a small tokenizer; no weights."""
    tokenizer = build_tokenizer()
    config = LlavaConfig(
        text_config=LlamaConfig(vocab_size=32064, **size),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        architectures=["LlavaForConditionalGeneration"],
        dtype="float16",
    )
    config.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", list(SIZES))
def test_estimate_prices_a_full_size_model_without_weights(
    strata: Callable[..., Result], tmp_path: Path, name: str
) -> None:
    folder = write_configuration(tmp_path / name, SIZES[name])
    annotations = write_images(tmp_path / "images", 4)
    arguments = ["--model", folder, "--source", "coco", "--annotations", annotations, "--images", tmp_path / "images"]
    result = strata("estimate", *arguments, "--prompts", "normal", "--prompts", "empty")
    assert result.exit_code == 0, result.output
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.dtype("auto") == "float16"
    preparer = Preparer(checkpoint, [Prompt("p", "custom", "What is this?")], share_prefix=True)
    layout = preparer.prepare_nominal().layouts[0]
    patches = layout.grid >= 0
    assert patches.sum() == 576
    assert (layout.patch_row[patches][[0, 24, 575]].tolist(), layout.patch_col[patches][[0, 23, 575]].tolist()) == (
        [0, 1, 23],
        [0, 23, 23],
    )
    tokens = int(result.stdout.split(" stored tokens")[0].split()[-1].replace(",", ""))
    layers, dim = SIZES[name]["num_hidden_layers"] + 1, SIZES[name]["hidden_size"]
    assert f"layer {layers} × token {tokens:,} × dim {dim:,}" in result.stdout
    assert f"{layers * tokens * dim * 2 / 2**20:.1f} MiB" in result.stdout
    assert f"vocab 32,064 × dim {dim:,}" in result.stdout


def test_states_that_wait_for_the_lens_are_counted(strata: Callable[..., Result], tmp_path: Path) -> None:
    folder = write_configuration(tmp_path / "llava", SIZES["llava-1.5-7b"])
    annotations = write_images(tmp_path / "images", 1)
    arguments = ["--model", folder, "--source", "coco", "--annotations", annotations, "--images", tmp_path / "images"]
    pages = [
        strata("estimate", *arguments, "--capture", capture, "--batch-size", size).stdout
        for capture in ("lens", "residual,lens")
        for size in (100, 200)
    ]
    memory = [float(page.split("up to ")[-1].split(" GiB")[0]) for page in pages]
    sequence = int(pages[0].split("the longest sequence has ")[1].split(")")[0])
    pieces, states = 33 * 10 * 8, 33 * 4096 * 2
    for less, more in (memory[:2], memory[2:]):
        assert more - less == pytest.approx(1.5 * 100 * sequence * (pieces + states) / 2**30, rel=0.01)
    share = float(pages[0].split(" % of it lens")[0].rsplit(maxsplit=1)[-1])
    assert 50 < share < 65


def test_host_memory_is_that_of_the_captured_dtype_whatever_is_stored(
    strata: Callable[..., Result], tmp_path: Path
) -> None:
    folder = write_configuration(tmp_path / "llava", SIZES["llava-1.5-7b"])
    annotations = write_images(tmp_path / "images", 4)
    arguments = ["--model", folder, "--source", "coco", "--annotations", annotations, "--images", tmp_path / "images"]
    choices = (("float16",), ("bfloat16",), ("bfloat16", "--mantissa-bits", "4"))
    pages = [strata("estimate", *arguments, "--capture", "residual", "--dtype", *choice).stdout for choice in choices]
    half, brain, rounded = (float(page.split("up to ")[-1].split(" GiB")[0]) for page in pages)
    assert half == brain == rounded
