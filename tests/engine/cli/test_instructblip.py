"""InstructBLIP from its images to the phases, its price at real size, and vocabularies too small for noisy prompts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import Result
from transformers import (
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    InstructBlipProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)

from engine.models.checkpoint import open_checkpoint
from engine.models.prepare import Preparer
from engine.prompts import Prompt
from engine.store import open_store, verify
from engine.vocabulary import ROLE_CODES
from tests.engine.cli.conftest import Dataset, write_images
from tests.tiny_instructblip import QUERIES, TinyShape, build_qformer_tokenizer, save_checkpoint
from tests.tiny_llava import build_tokenizer

Strata = Callable[..., Result]
PROMPTS = ("--prompts", "normal:2", "--prompts", "question", "--prompts", "empty")
SIZES = {
    "instructblip-vicuna-7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
    "instructblip-vicuna-13b": {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40},
}


class Extracted(NamedTuple):
    arguments: list[str]
    result: Result
    store: Path


@pytest.fixture(scope="module")
def extracted(strata: Strata, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    folder = tmp_path_factory.mktemp("instructblip")
    images = folder / "images"
    dataset = Dataset(
        save_checkpoint(folder / "tiny-instructblip", TinyShape(blocks=8)), write_images(images, 5), images
    )
    arguments = dataset.arguments(*PROMPTS, "--samples-per-part", 8)
    out = folder / "store"
    result = strata("extract", *arguments, "--out", out, "--batch-size", 3)
    assert result.exit_code == 0, result.output
    return Extracted(arguments, result, out)


def test_a_store_is_complete_and_sound(strata: Strata, extracted: Extracted) -> None:
    assert "20 samples (5 images × 4 prompts) in 3 parts" in extracted.result.stdout
    assert verify(extracted.store, deep=True).problems == ()
    assert strata("verify", extracted.store).exit_code == 0
    store = open_store(extracted.store)
    assert store.complete
    assert store.record["model"]["family"] == "instructblip"
    assert store.record["model"]["class"] == "InstructBlipForConditionalGeneration"
    assert store.record["model"]["image_states_depend_on_prompt"] is True
    assert {len(grids) for grids in store.samples["grids"]} == {0}


def test_nothing_is_shared_where_image_states_depend_on_the_prompt(extracted: Extracted) -> None:
    """--share-prefix is auto, and all samples of an image begin with the same token ids."""
    store = open_store(extracted.store)
    assert store.record["capture"]["share_prefix"] is False
    assert {len(segments) for segments in store.samples["segments"]} == {1}
    states = store.hidden_states.load()
    image = states.role.to_numpy() == ROLE_CODES["image"]
    assert image.sum() == 20 * QUERIES
    for name in ("grid", "patch_row", "patch_col"):
        assert (states[name].to_numpy() == -1).all()
    assert (states.role.to_numpy() == ROLE_CODES["special"]).sum() == 20
    assert not np.isin(states.role.to_numpy(), [ROLE_CODES["preamble"], ROLE_CODES["template"]]).any()
    one, other = (store.sample(f"{store.samples['image_id'].iloc[0]}/{name}") for name in ("normal-1", "empty"))
    first, second = (sample.hidden_states.to_numpy()[:, :QUERIES] for sample in (one, other))
    assert not np.allclose(first, second, rtol=0.1)


def test_pooled_states_are_those_of_the_stored_tokens(extracted: Extracted) -> None:
    for part in open_store(extracted.store).parts:
        tokens, pooled = part.open("token").load(), part.open("sample").load()
        for number, row in enumerate(part.samples.itertuples()):
            (segment,) = row.segments
            own = tokens.isel(token=slice(segment["start"], segment["stop"]))
            for role, count in enumerate(pooled.token_count.to_numpy()[:, number]):
                chosen = own.hidden_states.to_numpy()[:, own.role.to_numpy() == role].astype(np.float64)
                assert chosen.shape[1] == count
                if count:
                    units = chosen / np.sqrt((chosen**2).sum(axis=2, keepdims=True))
                    expected = units.mean(axis=1)
                    np.testing.assert_allclose(pooled.unit_mean.to_numpy()[:, role, number], expected, atol=1e-5)


def test_estimate_predicts_its_samples_and_tokens(strata: Strata, extracted: Extracted) -> None:
    estimate = strata("estimate", *extracted.arguments)
    assert estimate.exit_code == 0, estimate.output
    tokens = open_store(extracted.store).hidden_states.sizes["token"]
    assert f"20 samples: 5 images × 4 prompts, {tokens} stored tokens" in estimate.stdout


def test_analyses_run_and_an_empty_text_set_is_nan(strata: Strata, extracted: Extracted, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name in ("contextualization", "phases"):
        result = strata("analyze", name, extracted.store, "--out", results, "--workers", 1)
        assert result.exit_code == 0, result.output
    table = pd.read_parquet(results / "contextualization.parquet")
    inter = table[(table["pair"] == "image-text") & ~table["normed"]]
    assert inter[inter["prompt_kind"] == "empty"]["cosine"].isna().all()
    shown = inter[inter["prompt_kind"] == "normal"]
    assert shown["cosine"].notna().all()
    store = open_store(extracted.store)
    for row in shown[shown["layer"] == 2].itertuples():
        sample = store.sample(row.sample_id).load()
        states = sample.hidden_states.sel(layer=2).to_numpy().astype(np.float64)
        roles = sample.role.to_numpy()
        units = states / np.sqrt((states**2).sum(axis=1))[:, None]
        image, text = (units[roles == ROLE_CODES[name]] for name in ("image", "instruction"))
        assert row.cosine == pytest.approx((image @ text.T).mean(), abs=1e-5)
    intra = table[(table["pair"] == "image-image") & (table["prompt_kind"] == "empty")]
    assert intra["cosine"].notna().all(), "the image has states without an instruction too"
    with xr.open_zarr(results / "contextualization.zarr") as dataset:
        (counted,) = json.loads(dataset.attrs["stores"])
    assert counted["samples_without_text"] == 5
    phases = pd.read_parquet(results / "phases.parquet")
    cut = set(zip(phases["prompt_kind"], phases["pair"], strict=True))
    assert cut >= {("normal", "image-text"), ("question", "image-text"), ("empty", "image-image")}
    assert ("empty", "image-text") not in cut


def test_models_says_what_was_checked_of_it(strata: Strata) -> None:
    listed = strata("models").stdout
    assert "InstructBLIP with Vicuna" in listed
    assert "not yet against the published Vicuna 7B and 13B checkpoints" in " ".join(listed.split())


def test_batches_and_ranks_leave_the_same_states(strata: Strata, extracted: Extracted, tmp_path: Path) -> None:
    out = tmp_path / "store"
    for rank in (0, 1):
        arguments = ["--out", out, "--batch-size", 1, "--rank", rank, "--world-size", 2]
        assert strata("extract", *extracted.arguments, *arguments).exit_code == 0
    one, other = (open_store(path).hidden_states.to_numpy().astype(np.float64) for path in (out, extracted.store))
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    assert ((one * other).sum(axis=-1) / norms).min() > 1 - 1e-6


def test_a_model_that_is_deaf_to_the_prompt_is_refused(strata: Strata, extracted: Extracted, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    folder = Path(extracted.arguments[extracted.arguments.index("--model") + 1])
    deaf = tmp_path / "deaf"
    deaf.mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            (deaf / path.relative_to(folder)).parent.mkdir(exist_ok=True)
            (deaf / path.relative_to(folder)).write_bytes(path.read_bytes())
    weights = load_file(deaf / "model.safetensors")
    for name in weights:
        if "qformer" in name and name.endswith("attention.output.dense.weight") and "cross" not in name:
            weights[name] = weights[name] * 0
    save_file(weights, deaf / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "store"
    result = strata("extract", *extracted.arguments, "--model", deaf, "--out", out)
    assert result.exit_code == 1
    assert "image states are the same under two different prompts" in result.stderr
    assert not out.exists()


def write_instructblip(folder: Path, size: dict[str, int]) -> Path:
    """Write configuration and processor settings as published around small tokenizers; no weights."""
    tokenizer = build_tokenizer(bos="</s>")
    images = BlipImageProcessorPil(size={"height": 224, "width": 224})
    InstructBlipProcessor(images, tokenizer, build_qformer_tokenizer(), num_query_tokens=32).save_pretrained(folder)
    text = {"model_type": "llama", "vocab_size": 32064, "dtype": "float16", "pad_token_id": 32000, **size}
    config = {
        "architectures": ["InstructBlipForConditionalGeneration"],
        "model_type": "instructblip",
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "video_token_index": 32002,
        "num_query_tokens": 32,
        "qformer_config": {"model_type": "instructblip_qformer", "vocab_size": 30523},
        "text_config": {**text, "bos_token_id": 0, "eos_token_id": 1, "max_sequence_length": 2048},
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_decoder_only_language_model": True,
        "vision_config": {"model_type": "instructblip_vision_model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", list(SIZES))
def test_estimate_prices_a_full_size_model_without_weights(strata: Strata, tmp_path: Path, name: str) -> None:
    folder = write_instructblip(tmp_path / name, SIZES[name])
    checkpoint = open_checkpoint(str(folder))
    vision, queries = checkpoint.config.vision_config, checkpoint.config.qformer_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (1408, 39, 224, 14)
    assert (queries.hidden_size, queries.num_hidden_layers) == (768, 12)
    assert checkpoint.dtype("auto") == "float32", "the published weights are, so 16 bits must be asked for"
    prompts = [Prompt("p", "custom", "What is this?"), Prompt("empty", "empty", "")]
    prepared = Preparer(checkpoint, prompts, share_prefix=False).prepare_nominal()
    assert prepared.pixel_values.shape == (1, 3, 224, 224)
    assert [(layout.role == ROLE_CODES["image"]).sum() for layout in prepared.layouts] == [32, 32]
    assert len(prepared.layouts[1]) == 33
    annotations = write_images(tmp_path / "images", 4)
    source = ["--source", "coco", "--annotations", annotations, "--images", tmp_path / "images"]
    result = strata("estimate", "--model", folder, *source, "--prompts", "empty", "--dtype", "float16")
    assert result.exit_code == 0, result.output
    layers, dim = SIZES[name]["num_hidden_layers"] + 1, SIZES[name]["hidden_size"]
    assert f"layer {layers} × token {4 * 33} × dim {dim:,}" in result.stdout
    assert f"{layers * 4 * 33 * dim * 2 / 2**20:.1f} MiB" in result.stdout


@pytest.mark.parametrize("command", ["estimate", "extract"])
def test_a_vocabulary_too_small_for_noisy_prompts_is_wrong_usage(
    strata: Strata, tmp_path: Path, dataset: Dataset, command: str
) -> None:
    tokenizer = build_tokenizer(pieces=280)
    folder = tmp_path / "few-words"
    LlavaConfig(
        text_config=LlamaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    ).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil(), tokenizer, patch_size=14, vision_feature_select_strategy="default"
    ).save_pretrained(folder)
    out = ["--out", tmp_path / "store"] if command == "extract" else []
    result = strata(command, *dataset._replace(model=folder).arguments("--prompts", "noisy", *out))
    assert result.exit_code == 2, result.output
    assert "ordinary pieces, noisy prompts are drawn from at least 26; leave noisy out of --prompts" in result.stderr
    assert not (tmp_path / "store").exists()
