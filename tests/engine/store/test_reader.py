"""Opening: lazy, labelled, over parts, stores and URLs; and plain xarray opens the same folders."""

import pickle
import shutil
import warnings
from pathlib import Path

import dask
import dask.array as da
import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from engine.errors import StrataError, UsageError
from engine.store import lazy, open_part, open_store
from engine.vocabulary import ROLE_CODES
from tests.bench.stores import write_store
from tests.engine.store.builders import TinyStore, tiny_store, unit
from tests.engine.store.tiny_norm import NORM_EPS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    return tiny_store(tmp_path_factory.mktemp("reader") / "store", layers=[0, 2, 5], parts=2, empty_parts=1)


def by_hand(tiny: TinyStore, sample_id: str, role: str, layer: int) -> np.ndarray:
    sample = tiny.samples[sample_id]
    return unit(sample.states[layer, sample.roles == ROLE_CODES[role]].astype(float)).mean(0)


def test_what_a_store_says_of_itself(tiny: TinyStore) -> None:
    store = open_store(tiny.path)
    assert store.url == str(tiny.path)
    assert store.layers.tolist() == [0, 2, 5]
    assert store.layers.dtype == np.int32
    assert store.block_count == 5
    assert store.complete
    assert [part.name for part in store.parts] == ["00000000", "00000001", "00000002"]
    assert repr(store).endswith("tiny/llava, 6 samples in 3 parts, 3 layers>")
    assert "4 samples, 28 tokens" in repr(store.parts[0])
    assert "rms norm, 8 pieces" in repr(store.model)


def test_sample_table(tiny: TinyStore) -> None:
    samples = open_store(tiny.path).samples
    assert samples["sample_id"].tolist() == list(tiny.samples)
    assert samples["part"].tolist() == [sample.part for sample in tiny.samples.values()]
    assert samples["segments"][1][1] == {"start": 9, "stop": 13}


def test_hidden_states_over_all_parts(tiny: TinyStore) -> None:
    store = open_store(tiny.path)
    states = store.hidden_states
    assert states.dims == ("layer", "token", "dim")
    assert states.layer.values.tolist() == [0, 2, 5]
    assert isinstance(states.data, da.Array)
    np.testing.assert_array_equal(states.part, [0] * 28 + [1] * 13)
    assert set(states.coords) >= {"token_id", "role", "position", "grid", "patch_row", "patch_col"}
    loaded = states.sel(layer=5).compute()
    image = loaded[loaded.role == ROLE_CODES["image"]].values
    expected = [s.states[2, 2:6] for s in tiny.samples.values() if s.prompt_id == "normal-1"]
    np.testing.assert_array_equal(image, np.concatenate(expected))
    assert loaded.role.attrs["flag_meanings"].split()[2] == "image"


def test_pooled_states(tiny: TinyStore) -> None:
    store = open_store(tiny.path)
    assert store.unit_mean.shape == store.mean.shape == (3, 7, 6, 16)
    assert store.token_count.dtype == np.int32
    for column, sample_id in enumerate(tiny.samples):
        pooled = store.unit_mean.sel(layer=2, role=ROLE_CODES["instruction"]).isel(sample=column)
        np.testing.assert_allclose(pooled, by_hand(tiny, sample_id, "instruction", 1), rtol=1e-6)
        count = store.token_count.isel(sample=column).sel(role=ROLE_CODES["instruction"])
        assert count == (tiny.samples[sample_id].roles == ROLE_CODES["instruction"]).sum()
    assert np.isnan(store.mean.sel(role=ROLE_CODES["generated"])).all()


def test_normed_unit_mean(tiny: TinyStore) -> None:
    sample = next(iter(tiny.samples.values()))
    image = sample.states[-1, sample.roles == ROLE_CODES["image"]].astype(float)
    normed = image / np.sqrt((image**2).mean(-1, keepdims=True) + NORM_EPS) * tiny.norm_weight
    stored = open_store(tiny.path).normed_unit_mean.sel(role=ROLE_CODES["image"]).isel(sample=0)
    np.testing.assert_allclose(stored, unit(normed).mean(0), rtol=1e-6)


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_a_sample_is_assembled_from_its_segments(tmp_path: Path, shared_prefix: bool) -> None:
    tiny = tiny_store(tmp_path / "store", shared_prefix=shared_prefix)
    store = open_store(tiny.path)
    for sample_id, sample in tiny.samples.items():
        sequence = store.sample(sample_id)
        np.testing.assert_array_equal(sequence.hidden_states, sample.states)
        np.testing.assert_array_equal(sequence.role, sample.roles)
        np.testing.assert_array_equal(sequence.position, np.arange(len(sample.roles)))
        assert sequence.attrs["prompt_id"] == sample.prompt_id
    stored = sum(part.tokens for part in store.parts)
    assert stored == sum(len(s.roles) for s in tiny.samples.values()) - (6 * 3 if shared_prefix else 0)


def test_one_dask_chunk_per_shard(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", images=1, parts=1, layers=2)
    part = open_store(tiny.path).parts[0]
    part.manifest["arrays"]["token/hidden_states"]["shard"] = [1, 16, 16]
    assert part.open("token").hidden_states.chunks == ((1, 1), (13,), (16,))


def test_a_large_layer_is_read_without_those_that_share_its_file(tmp_path: Path) -> None:
    path = write_store(tmp_path, dtype="float16", parts=1, samples_per_part=1, layers=3, image_tokens=570, dim=1024)
    part = open_store(path).parts[0]
    array = part.array("token/hidden_states")
    assert array.shards[0] == 3
    states = part.open("token").hidden_states
    assert states.chunks == ((1, 1, 1), (600,), (1024,))
    np.testing.assert_array_equal(states[1], array[1])


def test_opening_touches_no_part(tiny: TinyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy.StoredArray, "__getitem__", None)
    monkeypatch.setattr(lazy, "open_checked_array", None)
    store = open_store(tiny.path)
    assert store.complete
    assert repr(store)
    arrays = [part.stored("token/hidden_states").dask((1, 2, 3)) for part in store.parts]
    assert [array.shape[1] for array in arrays] == [28, 13, 0]


def test_a_part_without_manifest_is_never_looked_at(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", written=[1])
    (tiny.path / "parts/00000000.zarr").mkdir()
    (tiny.path / "parts/00000000.parquet").write_bytes(b"torn")
    store = open_store(tiny.path)
    assert not store.complete
    assert store.samples["part"].unique().tolist() == [1]
    assert store.hidden_states.shape[1] == store.parts[0].tokens


def test_a_damaged_manifest(tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "store").path
    (path / "parts/00000001.json").write_text('{"part": 1}')
    with pytest.raises(StrataError, match=r"00000001\.json is damaged or was edited"):
        open_store(path)


def test_a_sample_reads_its_own_tokens_only(tiny: TinyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    read = lazy.StoredArray.__getitem__

    def watch(array: lazy.StoredArray, selection: tuple[slice, ...]) -> np.ndarray:
        asked.append((array.path, array.origin, array.shape))
        return read(array, selection)

    sequence = open_store(tiny.path).sample("001/normal-2").hidden_states
    monkeypatch.setattr(lazy.StoredArray, "__getitem__", watch)
    np.testing.assert_array_equal(sequence.isel(layer=1), tiny.samples["001/normal-2"].states[1])
    path = "token/hidden_states"
    assert sorted(asked) == [(path, (0, 13, 0), (3, 6, 16)), (path, (0, 23, 0), (3, 5, 16))]


def test_a_window_takes_any_index(tiny: TinyStore) -> None:
    whole = open_store(tiny.path).parts[0].stored("token/hidden_states")
    window, values = whole.window(1, 5, 12), whole[...][:, 5:12]
    np.testing.assert_array_equal(window[...], values)
    np.testing.assert_array_equal(window[1, 2:7:2, slice(None)], values[1, 2:7:2])
    np.testing.assert_array_equal(window[slice(0, 2), slice(-3, None), 4], values[:2, -3:, 4])


def test_a_store_made_anew_is_read_anew(tmp_path: Path) -> None:
    """Nothing of the store that was at the same address before is remembered."""
    tiny_store(tmp_path / "store", dtype="float16", layers=3)
    assert open_store(tmp_path / "store").hidden_states.compute().shape[0] == 3
    shutil.rmtree(tmp_path / "store")
    again = tiny_store(tmp_path / "store", dtype="float32", layers=4)
    sample = open_store(again.path).sample("000/normal-1").hidden_states.compute()
    np.testing.assert_array_equal(sample, again.samples["000/normal-1"].states)


def test_no_part_yet(tmp_path: Path) -> None:
    store = open_store(tiny_store(tmp_path / "store", written=[]).path)
    assert store.parts == ()
    for read in (lambda: store.samples, lambda: store.hidden_states, lambda: store.sample("x")):
        with pytest.raises(StrataError, match="committed"):
            read()


def test_what_was_not_captured(tmp_path: Path) -> None:
    store = open_store(tiny_store(tmp_path / "store", residual=False).path)
    assert store.unit_mean.shape[0] == 5
    with pytest.raises(StrataError, match="token/hidden_states"):
        _ = store.hidden_states


def test_unknown_sample(tiny: TinyStore) -> None:
    store = open_store(tiny.path)
    with pytest.raises(UsageError, match="did you mean 001/normal-1"):
        store.sample("001/normal_1")
    with pytest.raises(UsageError, match="column sample_id"):
        store.sample("@@@@@@@@@@@")


@pytest.mark.parametrize("url", ["/nowhere/at/all", "memory://nowhere"])
def test_no_store(url: str) -> None:
    with pytest.raises(StrataError, match="not a strata store"):
        open_store(url)


def test_no_url() -> None:
    with pytest.raises(UsageError, match="no store"):
        open_store([])


def test_a_store_in_memory(tiny: TinyStore) -> None:
    """The same through fsspec: every file copied to another file system."""
    memory = fsspec.filesystem("memory")
    memory.put(str(tiny.path), "/copied", recursive=True)
    store = open_store("memory://copied")
    assert len(store.samples) == 6
    for sample_id, sample in tiny.samples.items():
        np.testing.assert_array_equal(store.sample(sample_id).hidden_states, sample.states)
    assert store.model.unembedding is not None
    np.testing.assert_array_equal(store.model.unembedding, tiny.unembedding)
    assert store.parts[0].array("token/role").shape == (28,)
    memory.rm("/copied", recursive=True)


def test_several_stores_as_one(tmp_path: Path) -> None:
    first, second = (tiny_store(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    store = open_store([first.path, second.path])
    assert len(store.samples) == 12
    assert store.samples["store"].nunique() == 2
    assert store.hidden_states.shape[1] == 2 * 41
    assert "and 1 more" in repr(store)
    with pytest.raises(UsageError, match="2 of these stores"):
        store.sample("000/normal-1")
    np.testing.assert_array_equal(store.hidden_states[:, 41:], open_store(second.path).hidden_states)
    other = tiny_store(tmp_path / "other", layers=3)
    with pytest.raises(UsageError, match=r"capture\.layers: stored 0\.\.4, asked 0\.\.2"):
        open_store([first.path, other.path])


def test_parts_and_arrays_travel_to_workers(tiny: TinyStore) -> None:
    store = open_store(tiny.path)
    part = pickle.loads(pickle.dumps(store.parts[1]))  # our own object, as Dask sends it
    assert part.tokens == 13
    again = open_part(store.url, "00000001")
    assert again.manifest == store.parts[1].manifest
    assert again.number == 1
    with dask.config.set(scheduler="processes", num_workers=1):
        total = store.hidden_states.data.astype("f8").sum().compute()
    assert total == store.hidden_states.data.astype("f8").sum().compute()
    with pytest.raises(StrataError, match="00000009"):
        open_part(store.url, "00000009")


def test_same_bytes_same_dask_keys(tiny: TinyStore, tmp_path: Path) -> None:
    assert open_store(tiny.path).hidden_states.data.name == open_store(tiny.path).hidden_states.data.name
    other = tiny_store(tmp_path / "store", seed=5, layers=[0, 2, 5])
    assert open_store(other.path).hidden_states.data.name != open_store(tiny.path).hidden_states.data.name


@pytest.mark.parametrize("empty_parts", [0, 1])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_plain_xarray_over_all_parts(tmp_path: Path, empty_parts: int, dtype: str) -> None:
    tiny = tiny_store(tmp_path / "store", layers=[1, 4], empty_parts=empty_parts, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = xr.open_mfdataset(
            f"{tiny.path}/parts/*.zarr",
            engine="zarr",
            group="token",
            combine="nested",
            concat_dim="token",
            chunks={"layer": 1, "token": -1},
        )
        samples = xr.open_mfdataset(
            f"{tiny.path}/parts/*.zarr", engine="zarr", group="sample", combine="nested", concat_dim="sample"
        )
    store = open_store(tiny.path)
    assert tokens.layer.values.tolist() == [1, 4]
    assert list(tokens.data_vars) == ["hidden_states"]
    np.testing.assert_array_equal(tokens.hidden_states, store.hidden_states)
    np.testing.assert_array_equal(tokens.role, store.hidden_states.role)
    assert samples.role.dims == ("role",)
    for name in ("unit_mean", "mean", "normed_unit_mean", "token_count"):
        np.testing.assert_array_equal(samples[name], getattr(store, name))


def test_plain_xarray_on_one_group(tiny: TinyStore) -> None:
    for part in open_store(tiny.path).parts:
        for axis in ("token", "sample"):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                plain = xr.open_zarr(f"{tiny.path}/parts/{part.name}.zarr", group=axis)
            xr.testing.assert_identical(plain.load().drop_encoding(), part.open(axis).load())


def test_plain_pandas(tiny: TinyStore) -> None:
    assert pd.read_parquet(tiny.path / "plan.parquet")["part"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert len(pd.read_parquet(tiny.path / "parts/00000000.parquet")) == 4
