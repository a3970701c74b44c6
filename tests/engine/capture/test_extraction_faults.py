"""Extraction when something is wrong with an image, a sample or the run itself: the rest is stored, nothing is lost."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import LlavaProcessor

from engine.cli.main import main
from engine.models.checkpoint import open_checkpoint
from engine.store import Store, committed_parts, open_store, verify
from engine.vocabulary import ROLE_CODES
from tests.engine.capture.conftest import PROMPTS, SIZES, Extract, sequences
from tests.faults import Faults, Kind, Step, faulty_files

POOLED = {"unit_mean": 2, "mean": 2, "normed_unit_mean": 1, "token_count": 1}  # the sample axis of each
PROMPT_IDS = (*PROMPTS, "empty")
SMALL = ("--batch-size", "4", "--samples-per-part", "1", "--capture", "residual")


@pytest.fixture(scope="module")
def whole(extract_to: Extract, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What is stored when nothing is wrong."""
    run = extract_to(tmp_path_factory.mktemp("whole") / "store", "--batch-size", "1", "--samples-per-part", "1")
    assert run.exit_code == 0, run.output
    return run.store


@pytest.fixture
def own_pictures(pictures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "pictures"))


def bad_samples(store: Store) -> dict[str, str]:
    return {bad["sample_id"]: bad["reason"] for part in store.parts for bad in part.manifest["bad_samples"]}


def assert_same_samples(one: Store, other: Store, *, noise: float = 0.0) -> None:
    """Every sample of ``one`` has the same sequence and the same pooled states in ``other``."""
    there = sequences(other)
    for sample_id, sequence in sequences(one).items():
        xr.testing.assert_allclose(sequence, there[sample_id], rtol=noise, atol=noise)
    places = [list(other.samples["sample_id"]).index(sample_id) for sample_id in one.samples["sample_id"]]
    for name, axis in POOLED.items():
        same = getattr(other, name).values.take(places, axis=axis)
        np.testing.assert_allclose(getattr(one, name).values, same, rtol=noise, atol=noise)


@pytest.mark.parametrize("damage", ["zero bytes", "truncated", "gone", "no image"])
def test_an_unreadable_image_is_recorded_and_the_others_are_stored(
    extract: Extract, whole: Store, own_pictures: Path, damage: str
) -> None:
    order = list(dict.fromkeys(whole.samples["image_id"]))
    hurt = order[1]
    path = own_pictures / f"{hurt}.png"
    path.write_bytes({"truncated": path.read_bytes()[:100], "no image": b"not an image"}.get(damage, b""))
    if damage == "gone":
        path.unlink()
        path.symlink_to(own_pictures / "nowhere.png")  # the folder lists it, nobody can open it
    run = extract("--batch-size", "1", images=own_pictures)
    assert run.exit_code == 1
    assert "--skip-bad-samples" in run.output
    bad = bad_samples(run.store)
    assert list(bad) == [f"{hurt}/{prompt}" for prompt in PROMPT_IDS]
    assert all(reason.startswith(f"image {hurt}.png: ") for reason in bad.values())
    assert str(own_pictures) not in "".join(bad.values()), "no path of this machine"
    assert list(dict.fromkeys(run.store.samples["image_id"])) == [order[0], *order[2:]]
    assert_same_samples(run.store, whole)


def test_a_part_may_hold_no_sample_at_all(extract: Extract, whole: Store, own_pictures: Path) -> None:
    hurt = whole.samples["image_id"].iloc[len(PROMPT_IDS)]
    (own_pictures / f"{hurt}.png").write_bytes(b"")
    run = extract("--batch-size", "1", "--samples-per-part", "1", "--skip-bad-samples", images=own_pictures)
    assert run.exit_code == 0, run.output
    assert [part.manifest["samples"] for part in run.store.parts] == [4, 0, 4, 4]
    assert run.store.parts[1].tokens == 0
    assert run.store.complete
    assert run.store.hidden_states.shape[1] == sum(part.tokens for part in run.store.parts)
    assert_same_samples(run.store, whole)
    verified = CliRunner().invoke(main, ["verify", str(run.path)])
    assert verified.exit_code == 0, verified.output


def test_no_readable_image_at_all_is_an_error(extract: Extract, own_pictures: Path) -> None:
    for path in own_pictures.glob("*.png"):
        path.write_bytes(b"")
    run = extract("--batch-size", "1", images=own_pictures)
    assert run.exit_code == 1
    assert f"none of the {len(SIZES)} images can be read" in run.output
    assert not run.path.exists()


@pytest.fixture
def spoiled(checkpoints: dict[str, Path], tmp_path: Path) -> tuple[Path, int]:
    """A checkpoint with a NaN in the embedding of a token that only the prompt "long" has, and its position there."""
    folder = Path(shutil.copytree(checkpoints["float16"], tmp_path / "spoiled" / "tiny-llava"))
    tokenizer = LlavaProcessor.from_pretrained(folder).tokenizer

    def sequence(prompt: str) -> list[int]:
        return tokenizer(f"USER: {'<image>' * 16}\n{prompt} ASSISTANT:")["input_ids"]

    long = sequence(PROMPTS["long"])
    elsewhere = {token for name in PROMPT_IDS if name != "long" for token in sequence(PROMPTS.get(name, ""))}
    position, token = next((place, token) for place, token in enumerate(long) if token not in elsewhere)
    weights = load_file(folder / "model.safetensors")
    next(values for name, values in weights.items() if name.endswith("embed_tokens.weight"))[token, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, position


@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_the_first_usable_sample_of_an_image_brings_prefix_and_thumbnail(
    extract: Extract, spoiled: tuple[Path, int], tmp_path: Path, batch_size: str
) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps({name: PROMPTS[name] for name in ("long", "short", "other")}))
    (tmp_path / "run.toml").write_text("[residual]\nroles = 'image'\n[attention]\nroles = 'instruction'\n")
    options = ("--thumbnails", "--capture", "residual,attention", "--config", str(tmp_path / "run.toml"))
    prompts = ("--prompts", str(tmp_path / "prompts.json"), "--batch-size", batch_size, "--skip-bad-samples")
    run = extract(*options, *prompts, model=spoiled[0])
    assert run.exit_code == 0, run.output
    assert {name.split("/")[1] for name in bad_samples(run.store)} == {"long"}
    with_thumbnail = pq.read_table(run.path / "parts" / "00000000.parquet").to_pandas().dropna(subset="thumbnail")
    assert with_thumbnail["sample_id"].tolist() == [f"{image}/short" for image in run.store.samples["image_id"][::2]]
    for sequence in sequences(run.store).values():
        image = sequence["role"].values == ROLE_CODES["image"]
        assert image.sum() == 16
        assert np.isfinite(sequence["hidden_states"].values[:, image]).all()
        assert np.isnan(sequence["hidden_states"].values[:, ~image]).all()
        assert np.isfinite(sequence["value_norm"].values[..., ~image]).all()


@pytest.mark.parametrize("batch_size", ["1", "4"])
@pytest.mark.parametrize("order", [PROMPT_IDS[:3], ("long", "short")])
def test_a_sample_that_is_not_finite_is_named_and_the_others_are_stored(
    extract: Extract,
    checkpoints: dict[str, Path],
    spoiled: tuple[Path, int],
    tmp_path: Path,
    order: tuple[str, ...],
    batch_size: str,
) -> None:
    """The first prompt of an image is captured with the shared prefix, so it matters which one is spoiled."""
    folder, position = spoiled
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({name: PROMPTS[name] for name in order}))
    options = ("--prompts", str(prompts), "--batch-size", batch_size)
    run = extract(*options, model=folder)
    healthy = extract(*options, model=checkpoints["float16"], out=tmp_path / "healthy").store
    assert run.exit_code == 1
    bad = bad_samples(run.store)
    assert sorted(bad) == [f"picture-{number}/long" for number in range(len(SIZES))]
    assert set(bad.values()) == {f"layer 0, position {position} holds NaN or Inf; try --dtype bfloat16 or float32"}
    assert f"picture-0/long: layer 0, position {position}" in run.output
    assert len(run.store.samples) == len(healthy.samples) - len(SIZES)
    assert np.isfinite(run.store.hidden_states.values).all()
    # A prefix that comes with another sample comes from another pass: float16's kernel noise.
    assert_same_samples(run.store, healthy, noise=0.05)


def test_ranks_fill_one_store_with_what_one_process_writes(extract: Extract, whole: Store) -> None:
    options = ("--batch-size", "1", "--samples-per-part", "1")
    first = extract(*options, "--rank", "0", "--world-size", "2")
    assert "rank 0 of 2 (--rank): parts 0, 2" in first.output
    assert {part.number for part in first.store.parts} == {0, 2}
    assert not first.store.complete
    second = extract(*options, "--rank", "1", "--world-size", "2")
    assert {part.number for part in second.store.parts} == {0, 1, 2, 3}
    assert second.store.complete
    for name in ("hidden_states", *POOLED):
        np.testing.assert_array_equal(getattr(second.store, name), getattr(whole, name))
    assert second.store.samples.drop(columns="store").equals(whole.samples.drop(columns="store"))
    assert second.store.record == whole.record


def array_bytes(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.suffix != ".json" and path.name not in ("plan.parquet", "vocab.parquet")
    }


def test_the_same_command_redoes_exactly_the_part_that_is_not_committed(extract: Extract) -> None:
    options = ("--batch-size", "3", "--samples-per-part", "1")
    run = extract(*options)
    before = array_bytes(run.path)
    untouched = {path: os.stat(path) for path in run.path.rglob("*") if "00000001" not in path.as_posix()}
    (run.path / "parts" / "00000001.json").unlink()
    assert len(open_store(run.path).parts) == 3, "a part without a manifest is not there"
    again = extract(*options)
    assert again.exit_code == 0, again.output
    assert "4 parts, 3 of them finished" in again.output
    assert "part 1 committed (1 of 1)" in again.output
    assert array_bytes(run.path) == before
    assert {part.number for part in again.store.parts} == {0, 1, 2, 3}
    for path, old in untouched.items():
        if path.is_file():
            assert (path.stat().st_ino, path.stat().st_mtime_ns) == (old.st_ino, old.st_mtime_ns)
    nothing = extract(*options)
    assert nothing.exit_code == 0
    assert "nothing to do" in nothing.output


@pytest.fixture(scope="module")
def healthy(extract_to: Extract, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Step], dict[str, bytes]]:
    """The steps of writing a store of four parts, and its arrays and tables."""
    with faulty_files(Faults(None)) as files:
        run = extract_to(tmp_path_factory.mktemp("healthy") / "store", *SMALL)
    assert run.exit_code == 0, run.output
    return files.steps, array_bytes(run.path)


@pytest.mark.parametrize(
    ("kind", "step", "path"),
    [
        ("full", "write", "vocab.parquet"),
        ("error", "fsync", ""),
        ("full", "write", "00000001.zarr/token/hidden_states/c/0"),
        ("error", "rename", "parts/00000003.json"),
    ],
)
def test_a_file_that_fails_ends_the_run_and_the_same_command_goes_on(
    extract: Extract, healthy: tuple[list[Step], dict[str, bytes]], kind: Kind, step: str, path: str
) -> None:
    steps, whole = healthy
    found = [number for number, taken in enumerate(steps) if taken.kind == step and path in taken.path]
    with faulty_files(Faults(found[len(found) // 2], kind)):
        run = extract(*SMALL)
    assert run.exit_code == 1
    assert "could not be written to" in run.output
    assert " bytes and " in run.output
    assert " are free; " in run.output
    done = committed_parts(run.path)
    assert sorted(done) == list(range(len(done)))
    assert path != "parts/00000003.json" or len(done) == 3
    kept = array_bytes(run.path)
    for number in done:
        own = {name for name in whole if name.startswith(f"parts/{number:08d}.")}
        assert own
        assert {name: kept[name] for name in own} == {name: whole[name] for name in own}
    again = extract(*SMALL)
    assert again.exit_code == 0, again.output
    assert array_bytes(run.path) == whole
    assert verify(run.path) == ((), ())


def test_batch_size_is_no_setting_of_the_plan(extract: Extract) -> None:
    assert extract("--batch-size", "1").exit_code == 0
    again = extract("--batch-size", "4")
    assert again.exit_code == 0
    assert "nothing to do" in again.output


@pytest.mark.parametrize("share", ["auto", "off"])
def test_a_prompt_that_reaches_the_image_stops_a_run(
    extract: Extract, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, share: str
) -> None:
    """A model of another attention than its family's: found before a part is written, and never described wrongly."""
    from transformers.models.llama.modeling_llama import LlamaAttention  # noqa: PLC0415

    original = LlamaAttention.__init__

    def full_attention(self: LlamaAttention, *arguments: object, **keywords: object) -> None:
        original(self, *arguments, **keywords)
        self.is_causal = False

    monkeypatch.setattr(LlamaAttention, "__init__", full_attention)
    run = extract("--batch-size", "1", "--share-prefix", share)
    assert run.exit_code != 0
    assert "image states change with the prompt" in run.output
    assert not run.path.exists()
    assert open_checkpoint(str(checkpoints["float32"])).family.image_states_depend_on_prompt is False
