"""strata extract: the run, the resume, and everything a user can get wrong."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import Result
from PIL import Image

from engine.models.families import FAMILIES
from engine.store import open_store, verify
from tests.engine.cli.conftest import Dataset

Strata = Callable[..., Result]


def extract(strata: Strata, dataset: Dataset, out: Path, *more: object) -> Result:
    return strata("extract", *dataset.arguments("--out", out, "--batch-size", 3, "--samples-per-part", 4, *more))


def test_a_store_with_two_prompts_is_complete_and_sound(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    result = extract(strata, dataset, out, "--prompts", "normal:1", "--prompts", "empty")
    assert result.exit_code == 0, result.output
    assert "10 samples (5 images × 2 prompts) in 3 parts, 0 of them finished" in result.stdout
    assert "part 2 committed (3 of 3)" in result.stdout
    assert verify(out).problems == ()
    store = open_store(out)
    assert store.complete
    assert sorted(store.samples["prompt_id"].unique()) == ["empty", "normal-1"]
    assert store.samples["references"].iloc[0][0].startswith("a small thing")
    assert store.hidden_states.dims == ("layer", "token", "dim")
    assert store.record["model"]["id"] == "tiny-llava"
    assert str(tmp_path) not in (out / "store.json").read_text(), "no path of this machine belongs in a store"


def test_the_same_command_again_resumes(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert extract(strata, dataset, out).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "parts").glob("*.json")}
    removed = out / "parts" / "00000001.json"
    removed.unlink()
    result = extract(strata, dataset, out)
    assert result.exit_code == 0
    assert "1 of them finished" in result.stdout
    after = {path: path.stat().st_mtime_ns for path in (out / "parts").glob("*.json")}
    assert {path for path in after if after[path] != before[path]} == {removed}
    again = extract(strata, dataset, out)
    assert again.exit_code == 0
    assert "nothing to do" in again.stdout


def test_another_plan_is_refused_and_each_setting_named(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert extract(strata, dataset, out).exit_code == 0
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = extract(strata, dataset, out, "--layers", "0:3", "--seed", 1, "--dtype", "bfloat16")
    assert result.exit_code == 2
    for setting in ("capture.layers: stored 0..4, asked 0..2", "seed: stored 0, asked 1", "model.dtype"):
        assert setting in result.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept


def test_batch_size_and_ranks_do_not_change_the_plan(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    for rank in (0, 1):
        result = extract(strata, dataset, out, "--batch-size", 1 + rank, "--rank", rank, "--world-size", 2)
        assert result.exit_code == 0, result.output
        assert f"rank {rank} of 2 (--rank): parts {rank}" in result.stdout
    assert open_store(out).complete
    assert verify(out).problems == ()


def test_a_python_process_of_its_own_runs_the_installed_script(dataset: Dataset, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("strata")
    out = tmp_path / "store"
    done = subprocess.run(
        [script, "extract", *dataset.arguments("--out", out, "--limit", 2)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 samples in 1 part written" in done.stdout
    refused = subprocess.run([script, "inspect", tmp_path / "none"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("strata: ")
    assert "Traceback" not in refused.stderr


def test_a_toml_file_holds_options_and_the_command_line_wins(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('prompts = ["question", "empty"]\nlimit = 2\nsamples-per-part = 100\ncapture = "pooled"\n')
    out = tmp_path / "store"
    result = strata("extract", "--config", config, *dataset.arguments("--out", out, "--limit", 3))
    assert result.exit_code == 0, result.output
    store = open_store(out)
    assert len(store.samples) == 6
    assert store.record["capture"]["tensors"] == ["pooled"]
    config.write_text("limmit = 2\n")
    wrong = strata("extract", "--config", config, *dataset.arguments("--out", out))
    assert wrong.exit_code == 2
    assert "'limmit', which is no option" in wrong.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "0,9"], "layer 9 does not exist; this model has 4 blocks"),
        (["--roles", "picture"], "'picture' is unknown; choose from special, preamble, image"),
        (["--roles", "generated"], "no prompt of this run has a token of such a role"),
        (["--capture", "nose"], "'nose' is unknown; choose from residual, pooled, attention"),
        (["--capture", "pooled", "--roles", "image"], "pooled states alone, which cover all"),
        (["--queries", "last_text"], "--queries 'last_text' chooses rows of attention, but --capture leaves it out"),
        (["--capture", "attention", "--queries", "first"], "query 'first' is unknown: write last_text, last_image"),
        (["--capture", "attention", "--queries", "last_text,last_text"], "stands 2 times"),
        (["--capture", "attention", "--queries", ","], "no query is named"),
        (["--prompts", "fancy"], "fancy"),
        (["--limit", "6"], "--limit 6 asks for more images than the source has (5)"),
        (["--part-bytes", "many"], "is no size; write for example 512MiB"),
        (["--part-bytes", "1GiB"], "give one of them"),
        (["--device", "cuda:7"], "--device 'cuda:7' is not usable here"),
        (["--rank", "1"], "--world-size is missing"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    strata: Strata, dataset: Dataset, tmp_path: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "store"
    result = extract(strata, dataset, out, *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not out.exists()


def test_unreadable_images_are_named_and_the_others_stored(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    files = sorted(dataset.images.iterdir())
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:200])
    files[2].unlink()
    result = extract(strata, dataset, out)
    assert result.exit_code == 1
    assert "3 samples could not be stored" in result.stderr
    for number, reason in enumerate(("empty file", "", "no such file")):
        assert f"  {number}/normal-1: image {files[number].name}: {reason}" in result.stderr
    store = open_store(out)
    assert sorted(store.samples["image_id"]) == ["3", "4"]
    assert store.complete
    assert verify(out).problems == ()
    reasons = [bad for part in store.parts for bad in part.manifest["bad_samples"]]
    assert sorted(bad["sample_id"] for bad in reasons) == ["0/normal-1", "1/normal-1", "2/normal-1"]
    shutil.rmtree(out)
    assert extract(strata, dataset, out, "--skip-bad-samples").exit_code == 0
    forgotten = extract(strata, dataset, out)
    assert forgotten.exit_code == 1, "a run that resumes must not forget what is missing"
    assert f"strata repair --retry-bad {out}" in forgotten.stderr
    listed = strata("inspect", out, "--bad")
    assert "bad: 0/normal-1: image" in listed.stdout


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "RGBA"])
def test_other_kinds_of_image_are_converted(strata: Strata, dataset: Dataset, tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 255, (20, 26, 3), dtype=np.uint8)
    Image.fromarray(colours).convert(mode).save(folder / "one.tiff")
    arguments = ["--model", dataset.model, "--source", "folder", "--images", folder, "--out", tmp_path / "store"]
    result = strata("extract", *arguments)
    assert result.exit_code == 0, result.output
    row = open_store(tmp_path / "store").samples.iloc[0]
    assert (row["image_id"], row["width"], row["height"]) == ("one", 26, 20)


def test_states_that_overflow_are_named_by_sample_layer_and_position(
    strata: Strata, dataset: Dataset, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    model = tmp_path / "overflowing"
    shutil.copytree(dataset.model, model)
    weights = load_file(model / "model.safetensors")
    name = next(key for key in weights if key.endswith("layers.2.mlp.down_proj.weight") and "language" in key)
    weights[name] = weights[name] * float("inf")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    result = extract(strata, dataset._replace(model=model), tmp_path / "store")
    assert result.exit_code == 1
    assert "layer 3, position 0 holds NaN or Inf" in result.stderr


def test_a_newer_format_is_refused(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert extract(strata, dataset, out).exit_code == 0
    record = json.loads((out / "store.json").read_text())
    record["format_version"] = "7.0"
    (out / "store.json").write_text(json.dumps(record))
    for command in (["inspect", out], ["verify", out], ["extract", *dataset.arguments("--out", out)]):
        result = strata(*command)
        assert result.exit_code == 1
        assert "format 7.0" in result.stderr
        assert "upgrade strata" in result.stderr


def test_xarray_alone_reads_what_extract_wrote(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert extract(strata, dataset, out).exit_code == 0
    tokens = xr.open_mfdataset(
        f"{out}/parts/*.zarr",
        engine="zarr",
        group="token",
        combine="nested",
        concat_dim="token",
        chunks={"layer": 1, "token": -1},
    )
    states = open_store(out).hidden_states
    np.testing.assert_array_equal(tokens.hidden_states, states)
    np.testing.assert_array_equal(tokens.role, states.role)


def test_what_the_family_table_says_of_prompts_is_checked_with_a_single_prompt_too(
    strata: Strata, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "llava", replace(FAMILIES["llava"], image_states_depend_on_prompt=True))
    result = extract(strata, dataset, tmp_path / "s", "--prompts", "normal:1")
    assert result.exit_code == 1
    assert "image states are the same under two different prompts" in result.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("step", "what", "advice"),
    [
        ("engine.capture.extraction.capture_batch", "a batch of 3 samples of up to", "smaller --batch-size"),
        ("engine.cli.extract.check_image_rows", "a check of the model on the first image does not", "16-bit --dtype"),
    ],
)
def test_running_out_of_accelerator_memory_says_what_to_change(
    strata: Strata, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, what: str, advice: str
) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, too_large)
    result = extract(strata, dataset, tmp_path / "store")
    assert result.exit_code == 1
    assert what in result.stderr
    assert advice in result.stderr


def test_lists_in_a_toml_file_mean_what_the_command_line_says(strata: Strata, dataset: Dataset, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('layers = [0, "2:4"]\nprompts = "empty"\ncapture = ["residual"]\n')
    out = tmp_path / "store"
    result = strata("extract", "--config", config, *dataset.arguments("--out", out))
    assert result.exit_code == 0, result.output
    assert open_store(out).layers.tolist() == [0, 2, 3]
    config.write_text("[capture]\nlayers = 1\n")
    wrong = strata("extract", "--config", config, *dataset.arguments("--out", out))
    assert wrong.exit_code == 2
    assert "has a table [capture]" in wrong.stderr
