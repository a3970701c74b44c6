"""Stores of every format version ever released open, verify and read as the values they were made of."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.store import open_store, verify
from engine.store.layout import FORMAT_VERSION
from engine.vocabulary import ROLE_CODES, ROLES
from tests.golden.before_1 import THUMBNAIL, block_values_before, lens_values_before
from tests.golden.values import (
    BLOCKS,
    FEWER,
    KEPT_BLOCKS,
    KEPT_ROLES,
    LAYERS,
    LENS_LAYERS,
    LENS_ROLES,
    NORM_BIAS,
    QUERIES,
    QUERY_POSITIONS,
    SEGMENTS,
    TOKEN_ROLES,
    attention,
    block_values,
    lens_values,
    only_kept,
    pooled_values,
    state,
    unembedding,
)

ITEMS = {"0.1": "a", "0.2": "7", "0.3": "7", "0.4": "7", "1.0": "7"}
"""Format versions, and the item of the one image: 0.1 had no items, so each image was its own."""

BEFORE_BLOCKS = {"0.1", "0.2"}
"""Format versions that knew of nothing of blocks."""

BEFORE_CHOICES = {"0.1", "0.2", "0.3"}
"""Format versions whose arrays all kept the same tokens, whose keys said no role, and that had no thumbnails."""

BEFORE_1 = {"0.1", "0.2", "0.3", "0.4"}
"""Format versions whose golden store has no bias of the norm, one kind of means, and some values that are made up."""


@pytest.fixture(params=ITEMS)
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(__file__).parent / str(request.param)


def test_every_version_has_a_store() -> None:
    assert {path.name for path in Path(__file__).parent.iterdir() if path.name[0].isdigit()} == set(ITEMS)
    assert FORMAT_VERSION in ITEMS


def test_verifies(folder: Path) -> None:
    assert verify(folder) == ((), ())


def test_states(folder: Path) -> None:
    store = open_store(folder)
    assert json.loads((folder / "store.json").read_bytes())["format_version"] == folder.name
    assert store.layers.tolist() == list(LAYERS)
    states = store.hidden_states.values
    expected = [[[state(layer, token, c) for c in range(4)] for token in range(8)] for layer in LAYERS]
    np.testing.assert_array_equal(states, expected)
    assert [ROLE_CODES[role] for role in TOKEN_ROLES] == store.hidden_states.role.values.tolist()
    assert store.hidden_states.attrs["captured_dtype"] == "bfloat16"


@pytest.mark.parametrize("sample_id", SEGMENTS)
def test_samples(folder: Path, sample_id: str) -> None:
    store = open_store(folder)
    sequence = store.sample(sample_id)
    tokens = [token for start, stop in SEGMENTS[sample_id] for token in range(start, stop)]
    assert sequence.position.values.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(
        sequence.hidden_states[2], [[state(LAYERS[2], token, c) for c in range(4)] for token in tokens]
    )
    row = store.samples.set_index("sample_id").loc[sample_id]
    assert (row["width"], row["prompt"], row["references"].tolist()) == (20, "What is this?", ["a red circle"])
    assert row["item_id"] == ITEMS[folder.name]


def test_pooled_states(folder: Path) -> None:
    store = open_store(folder)
    image = ROLE_CODES["image"]
    mean_of_image_tokens = [(state(layer, 2, 1) + state(layer, 3, 1)) / 2 for layer in LAYERS]
    assert store.mean.sel(role=image).values[:, 0, 1].tolist() == mean_of_image_tokens
    assert store.token_count.sel(role=image).values.tolist() == [2, 2]
    assert np.isnan(store.mean.sel(role=ROLE_CODES["target"])).all()
    if folder.name not in BEFORE_1:
        for path, values in pooled_values().items():
            np.testing.assert_allclose(getattr(store, path.split("/")[1]), values, rtol=1e-6)


def test_model_and_plan(folder: Path) -> None:
    store = open_store(folder)
    assert store.complete
    assert [bad["reason"] for bad in store.parts[1].manifest["bad_samples"]] == ["zero bytes"] * 2
    assert store.model.unembedding is not None
    np.testing.assert_array_equal(store.model.unembedding, unembedding())
    assert store.model.final_norm_weight.tolist() == [1, 2, 3, 4]
    before = folder.name in BEFORE_1
    assert (store.model.norm_kind, store.model.norm_weight_offset) == (("rms", 0) if before else ("layer", 0.5))
    assert store.model.logit_softcap == (None if before else 30)
    np.testing.assert_array_equal(store.model.final_norm_bias, None if before else NORM_BIAS)
    assert store.model.vocabulary["kind"].tolist()[-1] == "padding"


def test_arrays_of_blocks(folder: Path) -> None:
    store = open_store(folder)
    if folder.name in BEFORE_BLOCKS:
        assert store.queries == ()
        assert store.parts[0].keys == 0
        assert store.samples["key_start"].isna().all()
        return
    assert store.queries == QUERIES
    held = block_values_before() if folder.name in BEFORE_1 else block_values()
    for path, values in held.items():
        stored = getattr(store, path.split("/")[1])
        fewer = path == FEWER and folder.name not in BEFORE_CHOICES
        np.testing.assert_array_equal(stored, only_kept(values) if fewer else values)
        assert stored.attrs.get("roles") == (list(KEPT_ROLES) if fewer else None)
        assert stored.attrs.get("blocks") == (list(KEPT_BLOCKS) if fewer else None)
        assert stored["block"].values.tolist() == list(BLOCKS)
    assert store.attention["token"].values.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 6, 7]
    assert store.attention_mass["source_role"].attrs["flag_meanings"].split()[2] == "image"


def test_keys_and_thumbnails(folder: Path) -> None:
    store = open_store(folder)
    sequence = store.sample("a/question-1")
    if folder.name in BEFORE_CHOICES:
        assert store.thumbnail("a") is None
        assert "key_role" not in sequence
        assert store.kept_roles("attention-mass") == ROLES
        return
    thumbnail = store.thumbnail("a")
    assert thumbnail is not None
    if folder.name in BEFORE_1:
        assert thumbnail == THUMBNAIL
    else:
        with Image.open(io.BytesIO(thumbnail)) as image:
            assert (image.format, image.size) == ("JPEG", (20, 10))
    assert store.kept_roles("attention-mass") == KEPT_ROLES
    np.testing.assert_array_equal(sequence["key_role"], sequence["role"])
    assert store.attention["role"].attrs["flag_meanings"].split()[2] == "image"
    np.testing.assert_array_equal(sequence["key_patch_col"], sequence["patch_col"])


def test_pieces_of_the_lens(folder: Path) -> None:
    store = open_store(folder)
    if folder.name in BEFORE_CHOICES:
        assert not any(path.startswith("token/lens") for path in store.parts[0].manifest["arrays"])
        return
    assert store.kept_roles("lens") == LENS_ROLES
    held = lens_values_before() if folder.name in BEFORE_1 else lens_values()
    for path, values in held.items():
        stored = getattr(store, path.split("/")[1])
        np.testing.assert_allclose(stored, values, rtol=1e-6)
        assert stored.attrs["layers"] == list(LENS_LAYERS)
        assert stored["layer"].values.tolist() == list(LAYERS)


@pytest.mark.parametrize(("number", "sample_id"), list(enumerate(SEGMENTS)))
def test_rows_of_a_sample(folder: Path, number: int, sample_id: str) -> None:
    sequence = open_store(folder).sample(sample_id)
    if folder.name in BEFORE_BLOCKS:
        assert "attention" not in sequence
        return
    assert sequence["query_position"].values.tolist() == list(QUERY_POSITIONS)
    expected = [
        [[[attention(block, query, head, number, p) for p in range(6)] for head in (0, 1)] for query in range(3)]
        for block in BLOCKS
    ]
    np.testing.assert_array_equal(sequence["attention"], expected)
    np.testing.assert_array_equal(sequence["attention"][:, :2].sum("key"), np.ones((len(BLOCKS), 2, 2)))
    tokens = [token for start, stop in SEGMENTS[sample_id] for token in range(start, stop)]
    assert sequence["value_norm"].values[1, 1].tolist() == [BLOCKS[1] + 0.5 + token / 8 for token in tokens]
