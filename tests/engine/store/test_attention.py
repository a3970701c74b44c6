"""Attention and block outputs: stored, joined over parts and cut out per sample as the values they were made of."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from engine.errors import StrataError, UsageError
from engine.store import open_store, verify
from tests.engine.store.block_tensors import BLOCK_CAPTURES, CAPTURE_OF, KEY_DIMS, TOKEN_DIMS
from tests.engine.store.builders import TinyStore, tiny_store

QUERIES = ("last_text", "instruction:-1", "target:0")
OPTIONS = {
    "shared prefix": {},
    "whole prefixes": {"shared_prefix": False},
    "some roles": {"roles": ("image", "template")},
    "bfloat16 and a part without samples": {"dtype": "bfloat16", "empty_parts": 1},
    "attention alone": {"residual": False, "pooled": False, "capture": ("attention",)},
}


@pytest.fixture(params=OPTIONS, scope="module")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    options = {"capture": BLOCK_CAPTURES, "queries": QUERIES, "heads": 3} | OPTIONS[str(request.param)]
    return tiny_store(tmp_path_factory.mktemp("store") / "s", **options)


def in_store_dtype(values: np.ndarray, like: xr.DataArray) -> np.ndarray:
    return values.astype(like.dtype)


def test_verifies_and_counts_keys(tiny: TinyStore) -> None:
    assert verify(tiny.path) == ((), ())
    store = open_store(tiny.path)
    lengths = [len(sample.roles) for sample in tiny.samples.values()]
    assert sum(part.keys for part in store.parts) == sum(lengths) == store.attention.sizes["key"]
    spans = zip(store.samples["key_start"], store.samples["key_stop"], strict=True)
    assert [stop - start for start, stop in spans] == lengths


def test_each_sample_gets_its_own_rows(tiny: TinyStore) -> None:
    store = open_store(tiny.path)
    for sample_id, sample in tiny.samples.items():
        sequence = store.sample(sample_id)
        assert sample.blocks is not None
        assert sequence["key"].values.tolist() == list(range(len(sample.roles)))
        assert sequence["query_position"].values.tolist() == list(sample.blocks.query_positions)
        assert sequence["block"].values.tolist() == [1, 2, 3, 4]
        for name in KEY_DIMS:
            np.testing.assert_array_equal(sequence[name], sample.blocks.values[name])
        for name, dims in TOKEN_DIMS.items():
            if CAPTURE_OF[name] in store.record["capture"]["tensors"]:
                of_tokens = sample.blocks.values[name].take(sequence["position"].values, dims.index("token"))
                np.testing.assert_array_equal(sequence[name], in_store_dtype(of_tokens, sequence[name]))


def test_a_key_says_its_token_sample_and_position(tiny: TinyStore) -> None:
    store = open_store(tiny.path)
    attention, value_norm = store.attention, store.value_norm
    assert attention.dims == ("block", "query", "head", "key")
    for row, (sample_id, sample) in enumerate(tiny.samples.items()):
        own = attention.isel(key=attention["sample"].values == row)
        assert sample.blocks is not None
        np.testing.assert_array_equal(own, sample.blocks.values["attention"])
        assert own["position"].values.tolist() == list(range(len(sample.roles)))
        stored = own["token"].values >= 0
        kept = store.record["capture"]["roles"]
        names = ("special", "preamble", "image", "instruction", "template")
        assert stored.tolist() == [kept is None or names[code] in kept for code in sample.roles]
        at_keys = value_norm.isel(token=own["token"].values[stored])
        assert at_keys["position"].values.tolist() == np.flatnonzero(stored).tolist(), sample_id
        np.testing.assert_array_equal(at_keys, sample.blocks.values["value_norm"][:, :, stored])


def test_queries_are_found_by_name(tiny: TinyStore) -> None:
    store = open_store(tiny.path)
    assert store.queries == QUERIES
    assert store.attention["query"].attrs["flag_meanings"].split() == list(QUERIES)
    chosen = store.attention_norm.sel(query=store.query_code("instruction:-1"))
    np.testing.assert_array_equal(chosen, store.attention_norm[:, 1])
    assert np.isnan(store.attention.sel(query=store.query_code("target:0"))).all()
    with pytest.raises(UsageError, match="'last_image' is not stored: stored are last_text, instruction:-1, target:0"):
        store.query_code("last_image")


def test_every_reader_of_zarr_opens_the_groups(tiny: TinyStore) -> None:
    folder = tiny.path / "parts" / "00000000.zarr"
    keys = xr.open_zarr(folder, group="key")
    assert set(keys.data_vars) == set(KEY_DIMS)
    assert set(keys.coords) == {"block", "query", "token"}
    assert {"block", "token_id"} <= set(xr.open_zarr(folder, group="token").coords)


def test_a_store_without_attention_says_what_it_holds(tmp_path: Path) -> None:
    store = open_store(tiny_store(tmp_path / "s").path)
    assert store.queries == ()
    assert "key" not in store.sample("000/normal-1").sizes
    with pytest.raises(StrataError, match=r"holds key/attention: captured was \['residual', 'pooled'\]"):
        _ = store.attention
    with pytest.raises(UsageError, match="stored are none"):
        store.query_code("last_text")
