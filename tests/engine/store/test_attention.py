"""Attention and block outputs: stored, joined over parts and cut out per sample as the values they were made of."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

from engine.errors import StrataError, UsageError
from engine.store import in_dtypes, open_store, verify, write_part
from engine.store.manifest import seal_json
from tests.engine.store.block_tensors import BLOCK_CAPTURES, CAPTURE_OF, KEY_DIMS, TOKEN_DIMS
from tests.engine.store.builders import TinyStore, tiny_part, tiny_store

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


def test_a_function_over_samples_gets_what_sample_gives(tiny: TinyStore) -> None:
    store = open_store(tiny.path)
    names = [name for name in CAPTURE_OF if CAPTURE_OF[name] in store.record["capture"]["tensors"]]
    seen: dict[str, xr.Dataset] = {}

    def look(sample: xr.Dataset) -> float:
        seen[sample.attrs["sample_id"]] = sample
        return float(sample["attention"].sel(query=0).sum())

    with dask.config.set(scheduler="sync"):
        table = store.map_samples(look, arrays=names)
    np.testing.assert_allclose(table["value"], 4 * 3, rtol=1e-6)
    others = ["hidden_states", "layer"]
    for sample_id in tiny.samples:
        xr.testing.assert_equal(seen[sample_id], store.sample(sample_id).drop_vars(others, errors="ignore").compute())


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
    assert set(keys.coords) == {"block", "query", "token", "role", "grid", "patch_row", "patch_col"}
    assert {"block", "token_id"} <= set(xr.open_zarr(folder, group="token").coords)


def test_a_store_without_attention_says_what_it_holds(tmp_path: Path) -> None:
    store = open_store(tiny_store(tmp_path / "s").path)
    assert store.queries == ()
    assert "key" not in store.sample("000/normal-1").sizes
    with pytest.raises(StrataError, match=r"holds key/attention: captured was \['residual', 'pooled'\]"):
        _ = store.attention
    with pytest.raises(UsageError, match="stored are none"):
        store.query_code("last_text")


@pytest.mark.parametrize("mantissa_bits", [None, 4])
def test_tensors_in_other_dtypes_say_how_far_they_are_off(tmp_path: Path, mantissa_bits: int | None) -> None:
    tiny = tiny_store(tmp_path / "s", parts=1, written=[], dtype="float32", capture=BLOCK_CAPTURES)
    samples = list(tiny.samples.values())
    content = tiny_part(
        0,
        samples,
        layers=tiny.layers,
        dim=16,
        dtype="float32",
        capture=BLOCK_CAPTURES,
        like=samples[0].blocks,
        mantissa_bits=mantissa_bits,
    )
    chosen = in_dtypes(content, {"residual": "float16", "attention": "float16", "attention-mass": "float32"})
    write_part(tiny.path, chosen, plan_sha256=str(tiny.record["plan_sha256"]))
    store = open_store(tiny.path)
    exact = {array.path: np.stack([array.slab(i)[...] for i in range(array.shape[0])]) for array in content.arrays}
    for name in ("hidden_states", "attention", "attention_norm", "value_norm"):
        stored = getattr(store, name)
        captured = exact[f"{'key' if name in KEY_DIMS else 'token'}/{name}"]
        assert (stored.dtype, stored.attrs["captured_dtype"]) == (np.float16, "float32")
        error = np.nanmax(np.abs(stored.values.astype(np.float64) - captured))
        assert 0 < error <= stored.attrs["rounding_max_absolute_error"] <= 1.1 * error
        assert ("mantissa_bits" in stored.attrs) == (name == "hidden_states" and mantissa_bits is not None)
    assert "rounding_max_absolute_error" not in store.attention_mass.attrs
    np.testing.assert_array_equal(store.attention_mass, exact["token/attention_mass"])


def test_arrays_that_disagree_on_keys_are_refused(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "s", parts=1, written=[], capture=BLOCK_CAPTURES)
    samples = list(tiny.samples.values())
    content = tiny_part(0, samples, layers=tiny.layers, dim=16, capture=BLOCK_CAPTURES, like=samples[0].blocks)
    keys = next(entry for entry in content.coordinates if entry.path == "key/token")
    short = replace(keys, values=keys.values[1:])
    others = tuple(short if entry is keys else entry for entry in content.coordinates)
    with pytest.raises(ValueError, match=r"disagree on .* keys"):
        write_part(tiny.path, replace(content, coordinates=others), plan_sha256=str(tiny.record["plan_sha256"]))


def test_a_store_of_before_attention_opens_together_with_a_later_one_that_has_none(tmp_path: Path) -> None:
    golden = Path(__file__).parents[2] / "golden"
    later = shutil.copytree(golden / "0.2", tmp_path / "later")
    record = json.loads((later / "store.json").read_bytes())
    del record["sha256"]
    record["capture"] |= {"residual_layers": None, "blocks": [], "queries": [], "dtypes": {}}
    (later / "store.json").write_bytes(seal_json(record))
    assert len(open_store([golden / "0.2", later]).samples) == 4
    with pytest.raises(UsageError, match=r"capture\.queries: stored .*, asked last_text"):
        open_store([golden / "0.2", golden / "0.3"])


def test_keys_say_their_own_role_also_where_their_tokens_are_not_stored(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "s", capture=("attention",), roles=("image",))
    store = open_store(tiny.path)
    roles = np.concatenate([tiny.samples[sample_id].roles for sample_id in store.samples["sample_id"]])
    np.testing.assert_array_equal(store.attention["role"], roles)
    assert store.attention["role"].attrs["flag_meanings"].split()[2] == "image"
    for sample_id, sample in tiny.samples.items():
        np.testing.assert_array_equal(store.sample(sample_id)["key_role"], sample.roles)


def test_stores_of_formats_with_and_without_roles_of_keys_open_as_one(tmp_path: Path) -> None:
    paths = [
        tiny_store(tmp_path / str(seed), seed=seed, capture=("attention",), key_places=seed == 0).path
        for seed in (0, 1)
    ]
    both = open_store(paths)
    assert both.attention.sizes["key"] == sum(open_store(path).attention.sizes["key"] for path in paths)
    assert "role" not in both.attention.coords
    assert both.attention["token"].values.max() == both.value_norm.sizes["token"] - 1
