"""Attention in whole stores: key rows of every sample, places on the token axis, shared prefixes, roles and dtypes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from engine.capture import attention_checks
from engine.capture.batch import BatchItem
from engine.models.checkpoint import open_checkpoint
from engine.models.load import load_model
from engine.models.prepare import Preparer
from engine.prompts import Prompt
from engine.store import Store, verify
from engine.vocabulary import ROLE_CODES
from tests.engine.capture.attention_oracle import Eager, eager
from tests.engine.capture.conftest import PROMPTS, Extract

ALL = ("--capture", "residual,attention,attention-mass,attention-output,mlp-output")
QUERIES = ("--queries", "last_text,last_image,instruction:0")


class Stored(NamedTuple):
    """One sample as it lies in its part: rows on the key axis, tokens on the token axis, its row of the table."""

    keys: xr.Dataset
    tokens: xr.Dataset
    positions: list[int]
    segments: list[dict[str, int]]


def stored_samples(store: Store) -> dict[str, Stored]:
    """Cut every sample out of its part by the numbers in its table."""
    found = {}
    for part in store.parts:
        keys, tokens = part.open("key").load(), part.open("token").load()
        for row in part.samples.itertuples():
            own = keys.isel(key=slice(row.key_start, row.key_stop))
            found[row.sample_id] = Stored(own, tokens, list(row.query_positions), list(row.segments))
    return found


def oracle_of(checkpoint: Path, picture: Path, prompt: str) -> tuple[Eager, np.ndarray]:
    """Eager attention and roles of one sample, prepared anew."""
    opened = open_checkpoint(str(checkpoint))
    prepared = Preparer(opened, (Prompt("p", "custom", prompt),), share_prefix=False).prepare(
        Image.open(picture).convert("RGB")
    )
    layout = prepared.layouts[0]
    item = BatchItem("", 0, layout, prepared.pixel_values, prepared.side_texts[0], layout.role >= 0, prefix=0)
    return eager(load_model(opened, dtype="float32", device="cpu"), item), layout.role


@pytest.mark.parametrize("sharing", ["auto", "off"])
def test_a_store_holds_eagers_attention_of_every_sample(
    extract: Extract, checkpoints: dict[str, Path], pictures: Path, sharing: str
) -> None:
    run = extract(*ALL, *QUERIES, "--batch-size", "5", "--samples-per-part", "6", "--share-prefix", sharing)
    assert run.exit_code == 0, run.output
    assert verify(run.path).problems == ()
    store = run.store
    samples = stored_samples(store)
    assert len(samples) == 4 * (len(PROMPTS) + 1)
    for sample_id in ("picture-1/other", "picture-2/short", "picture-2/long"):
        image, prompt = sample_id.split("/")
        oracle, role = oracle_of(checkpoints["float32"], pictures / f"{image}.png", PROMPTS[prompt])
        keys, tokens, positions, segments = samples[sample_id]
        instruction = np.flatnonzero(role == ROLE_CODES["instruction"])
        last = [np.flatnonzero(role != ROLE_CODES["image"])[-1], np.flatnonzero(role == ROLE_CODES["image"])[-1]]
        assert positions == [*last, instruction[0]]
        assert keys.sizes["key"] == len(role)
        assert keys["block"].values.tolist() == [1, 2, 3]
        assert keys["query"].attrs["flag_meanings"] == "last_text last_image instruction:0"
        places = keys["token"].values
        assert places.tolist() == [place for run in segments for place in range(run["start"], run["stop"])]
        own = tokens.isel(token=places)
        np.testing.assert_array_equal(own["role"], role)
        for index in range(3):
            near = {"rtol": 1e-4, "atol": 1e-5}
            attention, transformed = oracle.attention[index].numpy(), oracle.transformed[index].numpy()
            rows = attention[:, positions]
            np.testing.assert_allclose(keys["attention"][index], rows.transpose(1, 0, 2), **near)
            summed = np.linalg.norm(np.einsum("hqk,hkd->qkd", rows, transformed), axis=-1)
            np.testing.assert_allclose(keys["attention_norm"][index], summed, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(own["value_norm"][index], np.linalg.norm(transformed, axis=-1), rtol=1e-3)
            to_image = attention[:, :, role == ROLE_CODES["image"]].sum(axis=2)
            mass = own["attention_mass"].sel(source_role=ROLE_CODES["image"])
            np.testing.assert_allclose(mass[index], to_image, **near)
            for name in ("attention_output", "mlp_output"):
                np.testing.assert_allclose(own[name][index], getattr(oracle, name)[index], rtol=1e-3, atol=1e-3)


def test_a_shared_prefix_is_one_run_of_tokens_and_a_row_of_keys_for_each_sample(extract: Extract) -> None:
    store = extract(*ALL).store
    samples = stored_samples(store)
    one, other = samples["picture-0/short"].keys, samples["picture-0/long"].keys
    shared = np.intersect1d(one["token"], other["token"])
    assert len(shared) >= 18
    prefix = slice(0, len(shared))
    np.testing.assert_array_equal(one["token"][prefix], other["token"][prefix])
    last_image = store.query_code("last_image")
    seen = [keys["attention"].isel(query=last_image, key=prefix) for keys in (one, other)]
    np.testing.assert_allclose(*seen, rtol=1e-4, atol=1e-6)
    last_text = [keys["attention"].isel(query=store.query_code("last_text"), key=prefix) for keys in (one, other)]
    assert float(np.abs(last_text[0].values - last_text[1].values).max()) > 1e-3


def test_keys_whose_tokens_are_not_stored_have_rows_and_no_place(extract: Extract, tmp_path: Path) -> None:
    whole = stored_samples(extract(*ALL, out=tmp_path / "whole").store)
    few = stored_samples(extract(*ALL, "--roles", "image,instruction", out=tmp_path / "few").store)
    for sample_id, sample in few.items():
        assert sample.keys.sizes["key"] == whole[sample_id].keys.sizes["key"]
        np.testing.assert_array_equal(sample.keys["attention"], whole[sample_id].keys["attention"])
        role = whole[sample_id].tokens["role"].values[whole[sample_id].keys["token"].values]
        kept = np.isin(role, [ROLE_CODES["image"], ROLE_CODES["instruction"]])
        places = sample.keys["token"].values
        np.testing.assert_array_equal(places >= 0, kept)
        np.testing.assert_array_equal(sample.tokens["role"].values[places[kept]], role[kept])
        np.testing.assert_array_equal(
            sample.tokens["value_norm"].values[..., places[kept]],
            whole[sample_id].tokens["value_norm"].values[..., whole[sample_id].keys["token"].values[kept]],
        )


def test_queries_that_a_prompt_does_not_have_are_minus_one_and_nan(extract: Extract) -> None:
    store = extract("--capture", "attention", "--queries", "last_text,instruction:0").store
    for sample_id, sample in stored_samples(store).items():
        lacks = sample_id.endswith("/empty")
        assert (sample.positions[1] == -1) == lacks
        for name in ("attention", "attention_norm"):
            values = sample.keys[name]
            assert bool(values.isel(query=1).isnull().all()) == lacks
            assert not values.isel(query=0).isnull().any()
    assert "hidden_states" not in store.parts[0].open("token")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_outputs_are_stored_as_states_are_and_norms_in_float32(
    extract: Extract, checkpoints: dict[str, Path], dtype: str
) -> None:
    run = extract(*ALL, "--batch-size", "3", model=checkpoints[dtype])
    assert run.exit_code == 0, run.output
    tokens = run.store.parts[0].open("token").load()
    for name in ("attention_output", "mlp_output"):
        assert tokens[name].dtype == tokens["hidden_states"].dtype
        assert tokens[name].attrs["captured_dtype"] == dtype
    assert tokens["value_norm"].dtype == np.float32
    # A block adds the outputs of its halves to what enters it; 16 bits round each sum.
    states = tokens["hidden_states"].values.astype(np.float64)
    halves = tokens["attention_output"].values.astype(np.float64) + tokens["mlp_output"].values
    near = {"bfloat16": 3e-2, "float16": 3e-3}[dtype] * float(np.abs(states).max())
    np.testing.assert_allclose(states[:-1] + halves, states[1:], rtol=0, atol=near)


def test_a_part_without_a_usable_sample_has_empty_axes(extract: Extract, tmp_path: Path, pictures: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes((pictures / "picture-0.png").read_bytes())
    (images / "b.png").write_bytes(b"no image")
    run = extract(*ALL, "--samples-per-part", "1", "--skip-bad-samples", images=images)
    assert run.exit_code == 0, run.output
    empty = next(part for part in run.store.parts if part.manifest["bad_samples"])
    assert empty.open("key").sizes["key"] == 0
    assert empty.open("key").sizes["query"] == 2
    assert verify(run.path).problems == ()


def test_attention_changes_no_state(extract: Extract, tmp_path: Path) -> None:
    with_attention = extract(*ALL, "--batch-size", "3", out=tmp_path / "with").store.parts[0].open("token").load()
    without = extract("--capture", "residual", "--batch-size", "3", out=tmp_path / "without").store
    np.testing.assert_array_equal(
        with_attention["hidden_states"].values.view(np.uint32),
        without.parts[0].open("token").load()["hidden_states"].values.view(np.uint32),
    )


def test_a_model_whose_rows_are_not_its_attention_is_refused_before_anything_is_written(
    extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_checks, "_SAME_ROWS", -1.0)
    run = extract("--capture", "attention")
    assert run.exit_code == 1
    assert "recomputed attention rows do not give the output of the model's attention" in run.output
    assert not run.path.exists()
    assert extract("--capture", "residual").exit_code == 0
