"""Stores whose prefixes ran once, against stores without shared prefixes; and models whose prefixes cannot run once."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.capture.grouping import batches_of
from engine.capture.part import SampleSource
from engine.capture.prefix_cache import _Behind, why_no_cache
from engine.capture.prefix_reuse import ONCE
from engine.capture.prefixes import capture_prefixes
from engine.plan import CAPTURES
from engine.store import Store
from tests import tiny_gemma_llava
from tests.engine.capture.conftest import PROMPTS, SIZES, Extract, Run, sequences
from tests.tiny_llava import TinyShape

EVERYTHING = ("--capture", ",".join(CAPTURES), "--queries", "last_text,last_image,preamble:0,instruction:0")
OF_TOKENS = ("hidden_states", "value_norm", "attention_mass", "attention_output", "mlp_output", "lens_logit")
PLACES = ("token_id", "role", "position", "grid", "patch_row", "patch_col")


def prefix_passes(run: Run) -> set[str]:
    return {part.manifest["run"]["prefix_pass"] for part in run.store.parts}


def check_same(one: Store, other: Store, noise: float) -> None:
    """Every array of every sample."""
    assert list(one.samples["sample_id"]) == list(other.samples["sample_id"])
    theirs = sequences(other)
    for sample_id, mine in sequences(one).items():
        for name in PLACES:
            np.testing.assert_array_equal(mine[name], theirs[sample_id][name])
        for name in OF_TOKENS:
            close(mine[name].values, theirs[sample_id][name].values, noise)
    # The key axis has every position of every sample, whatever is shared.
    for name in ("attention", "attention_norm", "unit_mean", "mean", "normed_unit_mean"):
        close(getattr(one, name).values, getattr(other, name).values, noise)
    np.testing.assert_array_equal(one.token_count, other.token_count)


def close(one: np.ndarray, other: np.ndarray, noise: float) -> None:
    np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
    assert np.nanmax(np.abs(one - other)) <= noise * np.nanmax(np.abs(other))


@pytest.fixture
def pictures_one_damaged(pictures: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    (folder / "picture-1.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize(("dtype", "batch_size", "noise"), [("float32", "3", 1e-4), ("float16", "1", 0.05)])
def test_every_array_is_that_of_a_store_without_shared_prefixes(
    extract: Extract,
    checkpoints: dict[str, Path],
    pictures_one_damaged: Path,
    tmp_path: Path,
    dtype: str,
    batch_size: str,
    noise: float,
) -> None:
    model, images = checkpoints[dtype], pictures_one_damaged
    options = (*EVERYTHING, "--batch-size", batch_size, "--skip-bad-samples")
    shared = extract(*options, model=model, images=images, out=tmp_path / "shared")
    apart = extract(*options, "--share-prefix", "off", model=model, images=images, out=tmp_path / "apart")
    assert (shared.exit_code, apart.exit_code) == (0, 0), shared.output + apart.output
    assert prefix_passes(shared) == {ONCE}
    assert prefix_passes(apart) == {"with every prompt"}
    assert len(shared.store.samples) == (len(SIZES) - 1) * (len(PROMPTS) + 1)
    bad = [sample["sample_id"] for part in shared.store.parts for sample in part.manifest["bad_samples"]]
    assert bad == [f"picture-1/{prompt}" for prompt in (*PROMPTS, "empty")]
    check_same(shared.store, apart.store, noise)


def test_one_prompt_runs_in_full(extract: Extract) -> None:
    run = extract("--prompts", "empty", "--limit", "1")
    assert prefix_passes(run) == {"with every prompt"}
    assert "note: the prefix" not in run.output


def test_a_part_says_how_many_of_its_images_ran_in_full(extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(9))

    def not_the_second(*arguments: Any, **keywords: Any) -> object:
        return None if next(calls) == 1 else capture_prefixes(*arguments, **keywords)

    monkeypatch.setattr("engine.capture.extraction.capture_prefixes", not_the_second)
    run = extract(*EVERYTHING, "--limit", "3", "--batch-size", "1")
    assert run.exit_code == 0, run.output
    assert prefix_passes(run) == {
        f"{ONCE}, of 1 of 3 images with every prompt: the image is not all of what its prompts share"
    }


@pytest.mark.parametrize(
    ("step", "what"),
    [("capture_prefixes", "what the prompts of 2 images share of up to"), ("capture_batch", "a batch of 3 samples of")],
)
def test_what_does_not_fit_is_counted_in_its_own_unit(
    extract: Extract, monkeypatch: pytest.MonkeyPatch, step: str, what: str
) -> None:
    def full(*_arguments: object, **_keywords: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(f"engine.capture.extraction.{step}", full)
    run = extract(*EVERYTHING, "--limit", "2", "--batch-size", "3")
    assert run.exit_code == 1
    assert what in run.output


def test_a_sliding_window_forgets_the_prefix(extract: Extract, tmp_path: Path) -> None:
    model = tiny_gemma_llava.save_checkpoint(tmp_path / "m" / "tiny-llava", TinyShape(blocks=3))
    run = extract("--capture", "residual", "--limit", "2", model=model)
    assert run.exit_code == 0, run.output
    (how,) = prefix_passes(run)
    assert how == "with every prompt: its cache has DynamicSlidingWindowLayer, which forgets keys of the prefix"
    assert f"note: the prefix of each image runs {how}" in run.output
    assert {len(row) for row in run.store.samples["segments"]} == {2}, "it is stored once all the same"


def test_a_model_that_gives_other_states_behind_a_prefix_runs_in_full(
    extract: Extract, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    update = _Behind.update

    def reversed_keys(self: _Behind, *arguments: Any, **keywords: Any) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = update(self, *arguments, **keywords)
        return keys.flip(2), values

    apart = extract("--share-prefix", "off", *EVERYTHING, "--limit", "2", out=tmp_path / "apart")
    with monkeypatch.context() as patched:
        patched.setattr(_Behind, "update", reversed_keys)
        run = extract(*EVERYTHING, "--limit", "2", out=tmp_path / "shared")
    assert run.exit_code == 0, run.output
    (how,) = prefix_passes(run)
    assert how.startswith("with every prompt: states of layer 1 are others behind a prefix that was run before")
    check_same(run.store, apart.store, 1e-4)


def test_which_caches_keep_a_whole_prefix() -> None:
    from transformers import Gemma2Config, LlamaConfig, MistralConfig  # noqa: PLC0415

    assert why_no_cache(LlamaConfig()) is None
    assert why_no_cache(MistralConfig(sliding_window=None)) is None
    for config in (Gemma2Config(), MistralConfig(sliding_window=4096)):
        assert "DynamicSlidingWindowLayer" in str(why_no_cache(config))


def test_batches_count_samples_or_whole_images() -> None:
    def sample(image: int, prompt: int) -> SampleSource:
        nothing: Any = None
        return SampleSource(image, nothing, nothing, nothing, prompt, nothing, None)

    samples = [sample(image, prompt) for image in (0, 2, 3) for prompt in range(3)]

    places = [(one.image_number, one.prompt_index) for one in samples]

    def cut(size: int, *, whole_images: bool) -> list[list[tuple[int, int]]]:
        batches = batches_of(iter(samples), size, whole_images=whole_images)
        return [[(one.image_number, one.prompt_index) for one in batch] for batch in batches]

    assert [len(batch) for batch in cut(4, whole_images=False)] == [4, 4, 1]
    assert [len(batch) for batch in cut(2, whole_images=True)] == [6, 3]
    for batches in (cut(4, whole_images=False), cut(2, whole_images=True)):
        assert [place for batch in batches for place in batch] == places
    assert list(batches_of(iter([]), 3, whole_images=True)) == []
