"""From images to a store and back: what is stored is what transformers computes for every single sample."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from engine.capture.host_copies import HostCopies
from engine.capture.sink import BackgroundSink
from engine.store import Store, summarise
from engine.vocabulary import ROLES
from tests.engine.capture.conftest import PROMPTS, SIZES, Extract, sequences

BLOCKS = 3
TEXTS = {**PROMPTS, "empty": ""}
PREFIX_ROLES = ("special", "preamble", "image")
DTYPES = ("float32", "bfloat16", "float16")


class Oracle:
    """Hidden states of one sample at a time, by transformers alone; the last layer is taken before the final norm."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.images = images
        self.processor = LlavaProcessor.from_pretrained(folder)
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto").eval()

    def inputs(self, sample_id: str) -> dict[str, torch.Tensor]:
        image_id, prompt_id = sample_id.split("/")
        text = f"{TEXTS[prompt_id]} " if TEXTS[prompt_id] else ""
        image = Image.open(self.images / f"{image_id}.png")
        inputs = self.processor(images=image, text=f"USER: <image>\n{text}ASSISTANT:", return_tensors="pt")
        return {**inputs, "pixel_values": inputs["pixel_values"].to(self.model.dtype)}

    def states(self, sample_id: str) -> np.ndarray:
        """(layer, token, dim) float64, which holds every float16, bfloat16 and float32 exactly."""
        last: list[torch.Tensor] = []
        hook = self.model.model.language_model.norm.register_forward_pre_hook(
            lambda _module, arguments: last.append(arguments[0][0])
        )
        with torch.inference_mode():
            states = self.model(**self.inputs(sample_id), output_hidden_states=True, use_cache=False).hidden_states
        hook.remove()
        return torch.stack([*(layer[0] for layer in states[:-1]), *last]).double().numpy()


def sample_ids(store: Store) -> list[str]:
    return list(store.samples["sample_id"])


def states_of(sequence: xr.Dataset) -> np.ndarray:
    """(layer, token, dim) float64."""
    return sequence["hidden_states"].values.astype(np.float64)


def token_count(store: Store) -> int:
    return sum(part.tokens for part in store.parts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_single_samples_are_stored_to_the_bit(
    extract: Extract, checkpoints: dict[str, Path], pictures: Path, dtype: str
) -> None:
    run = extract("--batch-size", "1", "--share-prefix", "off", "--limit", "3", model=checkpoints[dtype])
    assert run.exit_code == 0, run.output
    oracle = Oracle(checkpoints[dtype], pictures)
    states = run.store.hidden_states
    assert states.dtype == ("float16" if dtype == "float16" else "float32")
    assert states.attrs["captured_dtype"] == dtype
    assert len(sample_ids(run.store)) == 12
    for sample_id, sequence in sequences(run.store).items():
        np.testing.assert_array_equal(states_of(sequence), oracle.states(sample_id))


@pytest.mark.parametrize(("dtype", "distance"), [("float32", 1e-6), ("bfloat16", 5e-2), ("float16", 1e-3)])
def test_batches_with_a_shared_prefix_store_the_same_within_noise(
    extract: Extract, checkpoints: dict[str, Path], pictures: Path, dtype: str, distance: float
) -> None:
    run = extract("--batch-size", "4", model=checkpoints[dtype])
    assert run.exit_code == 0, run.output
    oracle = Oracle(checkpoints[dtype], pictures)
    assert len(sample_ids(run.store)) == len(SIZES) * len(TEXTS)
    for sample_id, sequence in sequences(run.store).items():
        stored, expected = states_of(sequence), oracle.states(sample_id)
        assert stored.shape == expected.shape
        cosine = (stored * expected).sum(-1) / np.linalg.norm(stored, axis=-1) / np.linalg.norm(expected, axis=-1)
        assert cosine.min() >= 1 - distance


def test_tokens_roles_and_patches_lie_beside_the_states(
    extract: Extract, checkpoints: dict[str, Path], pictures: Path
) -> None:
    store = extract("--batch-size", "4", "--samples-per-part", "8").store
    oracle = Oracle(checkpoints["float32"], pictures)
    tokenizer = oracle.processor.tokenizer
    for sample_id, sample in sequences(store).items():
        token_id = oracle.inputs(sample_id)["input_ids"][0].numpy()
        np.testing.assert_array_equal(sample["token_id"], token_id)
        np.testing.assert_array_equal(sample["position"], np.arange(len(token_id)))
        is_image = token_id == oracle.model.config.image_token_id
        roles = np.array([ROLES[code] for code in sample["role"].values])
        np.testing.assert_array_equal(roles == "image", is_image)
        assert roles[0] == "special"
        assert set(roles[1 : np.argmax(is_image)]) == {"preamble"}
        instruction = tokenizer.decode(token_id[roles == "instruction"]).strip()
        assert instruction == TEXTS[sample_id.split("/")[1]]
        assert tokenizer.decode(token_id[roles == "template"]).split() == ["ASSISTANT:"]
        np.testing.assert_array_equal(sample["grid"], np.where(is_image, 0, -1))
        np.testing.assert_array_equal(sample["patch_row"].values[is_image], np.repeat(range(4), 4))
        np.testing.assert_array_equal(sample["patch_col"].values[is_image], np.tile(range(4), 4))
        assert (sample["patch_row"].values[~is_image] == -1).all()


def test_the_sample_table_says_where_each_sample_comes_from(extract: Extract, pictures: Path) -> None:
    store = extract("--batch-size", "4").store
    for row in store.samples.itertuples():
        path = pictures / f"{row.image_id}.png"
        number = int(row.image_id.rsplit("-", 1)[1])
        assert row.sample_id == f"{row.image_id}/{row.prompt_id}"
        assert row.image_uri == path.name
        assert row.image_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (row.width, row.height) == SIZES[number]
        assert row.prompt == TEXTS[row.prompt_id]
        assert row.prompt_kind == ("empty" if row.prompt_id == "empty" else "custom")
        assert list(row.references) == ([f"noise {number}"] if number in (0, 2) else [])
        (grid,) = row.grids
        side = min(row.width, row.height)
        assert (grid["rows"], grid["cols"], grid["thumbnail"]) == (4, 4, False)
        assert (grid["x1"] - grid["x0"], grid["y1"] - grid["y0"]) == pytest.approx((side, side), rel=0.1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pooled_states_are_the_means_of_the_stored_ones(
    extract: Extract, checkpoints: dict[str, Path], pictures: Path, dtype: str
) -> None:
    store = extract("--batch-size", "3", "--samples-per-part", "8", model=checkpoints[dtype]).store
    norm = Oracle(checkpoints[dtype], pictures).model.model.language_model.norm.float()
    unit_mean, mean, normed, count = (
        array.values for array in (store.unit_mean, store.mean, store.normed_unit_mean, store.token_count)
    )
    assert list(sequences(store)) == sample_ids(store)
    for number, sequence in enumerate(sequences(store).values()):
        states, roles = states_of(sequence), sequence["role"].values
        with torch.inference_mode():
            last = norm(torch.from_numpy(states[-1]).float()).double().numpy()
        for role in range(len(ROLES)):
            rows = states[:, roles == role]
            assert count[role, number] == rows.shape[1]
            if not rows.shape[1]:
                assert np.isnan(mean[:, role, number]).all()
                assert np.isnan(unit_mean[:, role, number]).all()
                assert np.isnan(normed[role, number]).all()
                continue
            units = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
            chosen = last[roles == role]
            # A shared prefix is stored from another pass than the one that these means come from: kernel noise.
            noise = {"float32": 1e-4, "bfloat16": 6e-2, "float16": 8e-3}[dtype]
            scale = np.abs(rows).max(axis=(1, 2))[:, None]
            assert (np.abs(mean[:, role, number] - rows.mean(axis=1)) <= noise * scale).all()
            np.testing.assert_allclose(unit_mean[:, role, number], units.mean(axis=1), atol=noise)
            wanted = (chosen / np.linalg.norm(chosen, axis=-1, keepdims=True)).mean(axis=0)
            np.testing.assert_allclose(normed[role, number], wanted, atol=noise)


def test_a_shared_prefix_saves_its_tokens_and_changes_no_value(extract: Extract, tmp_path: Path) -> None:
    shared = extract("--batch-size", "4", out=tmp_path / "shared").store
    apart = extract("--batch-size", "4", "--share-prefix", "off", out=tmp_path / "apart").store
    assert sample_ids(shared) == sample_ids(apart)
    for one, other in zip(sequences(shared).values(), sequences(apart).values(), strict=True):
        np.testing.assert_allclose(one["hidden_states"], other["hidden_states"], rtol=1e-3, atol=1e-3)
        for name in ("token_id", "role", "position", "grid", "patch_row", "patch_col"):
            np.testing.assert_array_equal(one[name], other[name])
    for name in ("unit_mean", "mean", "normed_unit_mean", "token_count"):
        np.testing.assert_allclose(getattr(shared, name), getattr(apart, name), rtol=1e-3, atol=1e-3)
    token_ids = [apart.sample(f"picture-0/{prompt}")["token_id"].values.tolist() for prompt in TEXTS]
    prefix = next(place for place, ids in enumerate(zip(*token_ids, strict=False)) if len(set(ids)) > 1)
    assert prefix >= 18, "BOS, USER: and the image"
    assert token_count(apart) - token_count(shared) == len(SIZES) * (len(TEXTS) - 1) * prefix
    segments = [len(row) for row in shared.samples["segments"]]
    assert set(segments) == {2}
    assert {len(row) for row in apart.samples["segments"]} == {1}


def test_a_sample_is_read_back_as_one_sequence(extract: Extract) -> None:
    store = extract("--batch-size", "4", "--limit", "2", "--samples-per-part", "1").store
    for sample_id, sequence in sequences(store).items():
        xr.testing.assert_equal(store.sample(sample_id).load(), sequence)


def test_one_prompt_has_one_segment(extract: Extract) -> None:
    store = extract("--prompts", "empty").store
    assert {len(row) for row in store.samples["segments"]} == {1}


@pytest.mark.parametrize("roles", [("image",), ("instruction", "template"), ("special", "image")])
def test_only_tokens_of_the_chosen_roles_are_stored(extract: Extract, tmp_path: Path, roles: Sequence[str]) -> None:
    every = extract("--batch-size", "4", "--limit", "2", out=tmp_path / "every").store
    chosen = extract("--batch-size", "4", "--limit", "2", "--roles", ",".join(roles), out=tmp_path / "chosen").store
    assert sample_ids(chosen) == sample_ids(every)
    for whole, part in zip(sequences(every).values(), sequences(chosen).values(), strict=True):
        kept = np.array([ROLES[code] in roles for code in whole["role"].values])
        np.testing.assert_array_equal(part["hidden_states"].values, whole["hidden_states"].values[:, kept])
        np.testing.assert_array_equal(part["position"], np.flatnonzero(kept))
    np.testing.assert_array_equal(chosen.unit_mean, every.unit_mean)


def test_only_chosen_layers_are_stored_under_their_numbers(extract: Extract, tmp_path: Path) -> None:
    every = extract("--limit", "2", out=tmp_path / "every").store
    some = extract("--limit", "2", "--layers", "0,2", out=tmp_path / "some").store
    assert some.layers.tolist() == some.hidden_states["layer"].values.tolist() == [0, 2]
    np.testing.assert_array_equal(some.hidden_states, every.hidden_states.sel(layer=[0, 2]))
    np.testing.assert_array_equal(some.unit_mean, every.unit_mean.sel(layer=[0, 2]))
    assert "sample/normed_unit_mean" not in some.parts[0].manifest["arrays"]


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 7), ("float16", 4), ("bfloat16", 3)])
def test_rounding_stays_within_its_bound_and_says_how_far_it_went(
    extract: Extract, checkpoints: dict[str, Path], tmp_path: Path, dtype: str, bits: int
) -> None:
    options = ("--limit", "2", "--batch-size", "4")
    exact = extract(*options, model=checkpoints[dtype], out=tmp_path / "exact").store.hidden_states
    rounded = extract(
        *options, "--mantissa-bits", str(bits), model=checkpoints[dtype], out=tmp_path / "rounded"
    ).store.hidden_states
    assert rounded.dtype == exact.dtype
    before, after = exact.values.astype(np.float64), rounded.values.astype(np.float64)
    relative = np.abs(after - before)[before != 0] / np.abs(before[before != 0])
    assert 0 < relative.max() <= 2.0 ** -(bits + 1)
    assert rounded.attrs["mantissa_bits"] == bits
    assert rounded.attrs["rounding_max_relative_error"] == pytest.approx(relative.max())
    assert rounded.attrs["rounding_max_absolute_error"] == pytest.approx(np.abs(after - before).max())


def test_either_capture_alone_stores_what_both_together_store(extract: Extract, tmp_path: Path) -> None:
    both = extract("--limit", "2", out=tmp_path / "both").store
    pooled = extract("--limit", "2", "--capture", "pooled", out=tmp_path / "pooled").store
    residual = extract("--limit", "2", "--capture", "residual", out=tmp_path / "residual").store
    np.testing.assert_array_equal(pooled.unit_mean, both.unit_mean)
    np.testing.assert_array_equal(pooled.mean, both.mean)
    np.testing.assert_array_equal(residual.hidden_states, both.hidden_states)
    assert not any(path.endswith("hidden_states") for path in pooled.parts[0].manifest["arrays"])
    assert not any(path.startswith("sample/") for path in residual.parts[0].manifest["arrays"])


@pytest.mark.parametrize("pinned", [0, 2**40])
def test_pinned_blocks_count_whole_in_the_writers_queue(
    extract: Extract, monkeypatch: pytest.MonkeyPatch, pinned: int
) -> None:
    """A part holds the blocks that its rows were brought to, however little of them it fills."""
    asked: list[int] = []
    put = BackgroundSink.put

    def record(sink: BackgroundSink[object], item: object, nbytes: int) -> None:
        asked.append(nbytes)
        put(sink, item, nbytes)

    class Copies(HostCopies):
        def __init__(self) -> None:
            super().__init__()
            self.nbytes = pinned

    monkeypatch.setattr(BackgroundSink, "put", record)
    monkeypatch.setattr("engine.capture.extraction.HostCopies", Copies)
    run = extract("--limit", "2", "--samples-per-part", "1")
    assert run.exit_code == 0, run.output
    states = [summary.raw_bytes for summary in summarise(run.store).arrays if summary.path == "token/hidden_states"]
    assert asked == [pinned, pinned] if pinned else sum(asked) >= sum(states) > 0
