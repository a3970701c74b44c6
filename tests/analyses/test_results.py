import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr
from matplotlib.figure import Figure

from analyses.contextualization import analyze_store
from analyses.contextualization_results import StoreResult, from_dataset, to_dataset
from analyses.contextualization_table import CONTEXTUALIZATION_SCHEMA, to_tables
from analyses.identity import identify
from analyses.results import open_dataset, write_dataset, write_figure, write_table
from engine.errors import StrataError
from engine.store import open_store
from tests.engine.store.builders import TinyStore

WrittenStore = Callable[..., TinyStore]


@pytest.fixture
def results(written_store: WrittenStore) -> list[StoreResult]:
    """Two stores with different layers, the second without the last one's normed row."""
    stores = [open_store(written_store(**options).path) for options in ({}, {"layers": (0, 2, 3), "parts": 1})]
    stores[1].record["model"]["blocks"] = 6
    found = [analyze_store(store, self_pairs=True) for store in stores]
    return [StoreResult(identity, result) for identity, result in zip(identify(stores), found, strict=True)]


def test_the_table_is_tidy_and_complete(results: list[StoreResult]) -> None:
    table = pa.concat_tables(to_tables(results)).to_pandas()
    assert list(table.columns) == [
        "store", "model", "source", "prompt_kind", "prompt_id", "sample_id", "image_id", "item_id", "layer", "depth",
        "normed", "pair", "text_roles", "self_pairs", "adjustment", "cosine",
    ]  # fmt: skip
    assert table["store"].nunique() == 2
    key = ["store", "sample_id", "layer", "normed", "pair", "self_pairs"]
    assert not table.duplicated(key).any()
    indexed = table.set_index(key)["cosine"]
    for identity, result in results:
        for s, sample_id in enumerate(result.samples["sample_id"]):
            for r, (pair, self_pairs) in enumerate(result.rows):
                for point, layer in enumerate(result.layers):
                    assert (
                        indexed[identity.store, sample_id, layer, False, pair, self_pairs] == result.cosine[s, point, r]
                    )
                if result.normed is not None:
                    last = (identity.store, sample_id, result.layers[-1], True, pair, self_pairs)
                    assert indexed[last] == result.normed[s, r]
    second = table[table["store"] == results[1].identity.store]
    assert not second["normed"].any()
    np.testing.assert_allclose(second["depth"], second["layer"] / 6)
    assert not table[table["pair"] == "image-text"]["self_pairs"].any()
    row = table.iloc[0]
    assert (row["model"], row["source"], row["prompt_id"]) == ("tiny/llava", "coco", "normal-1")


def test_the_dataset_is_labelled_and_gives_everything_back(results: list[StoreResult], tmp_path: Path) -> None:
    path = write_dataset(tmp_path, "contextualization", to_dataset(results, {"settings": "settings"}))
    dataset = xr.open_zarr(path)
    assert dataset.attrs["settings"] == "settings"
    assert [entry["read_from"] for entry in json.loads(dataset.attrs["stores"])] == ["pooled", "pooled"]
    assert {"units", "long_name"} <= set(dataset["cosine"].attrs)
    assert dataset.sizes["layer"] == 5
    first = dataset.isel(curve=0, row=0)
    expected = results[0].result.cosine[:, :, 0].reshape(3, 2, 5).mean(axis=1)
    np.testing.assert_allclose(first["curve_mean"], expected.mean(axis=0))
    np.testing.assert_allclose(first["curve_std"], expected.std(axis=0, ddof=1))
    opened = open_dataset(tmp_path, "contextualization")
    assert opened is not None
    for before, after in zip(results, from_dataset(opened), strict=True):
        assert before.identity == after.identity
        np.testing.assert_array_equal(before.result.cosine, after.result.cosine)
        np.testing.assert_array_equal(before.result.layers, after.result.layers)
        np.testing.assert_array_equal(before.result.counts, after.result.counts)
        assert (before.result.normed is None) == (after.result.normed is None)
        assert before.result.samples.to_dict("list") == after.result.samples.to_dict("list")
        for field in ("rows", "text_roles", "source", "block_count", "adjustment", "baseline"):
            assert getattr(before.result, field) == getattr(after.result, field)


def test_an_adjustment_and_its_baseline_are_labelled_and_given_back(
    written_store: WrittenStore, tmp_path: Path
) -> None:
    stores = [open_store(written_store(**options).path) for options in ({}, {"layers": 9})]
    found = [analyze_store(store, adjustment="anisotropy") for store in stores]
    before = [StoreResult(identity, result) for identity, result in zip(identify(stores), found, strict=True)]
    write_dataset(tmp_path, "x", to_dataset(before, {}))
    dataset = open_dataset(tmp_path, "x")
    assert dataset is not None
    assert dataset["baseline"].dims == ("baseline_store", "layer", "baseline_pair")
    assert dataset.baseline_store.values.tolist() == [item.identity.store for item in before]
    assert dataset.attrs["adjustment"] == "anisotropy"
    assert "different images" in dataset["baseline"].attrs["long_name"]
    assert np.isnan(dataset["baseline"][0, 5:]).all()
    for old, new in zip(before, from_dataset(dataset), strict=True):
        assert old.result.baseline is not None
        assert new.result.baseline is not None
        for left, right in zip(old.result.baseline, new.result.baseline, strict=True):
            np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(old.result.cosine, new.result.cosine)
        assert (new.result.adjustment, len(new.result.baseline.layers)) == ("anisotropy", len(new.result.layers))
    table = pa.concat_tables(to_tables(before)).to_pandas()
    assert table["adjustment"].eq("anisotropy").all()
    lost = dataset.load().copy()
    lost["baseline"][1] = np.nan
    with pytest.raises(ValueError, match="baseline is missing"):
        from_dataset(lost)


def test_stores_of_one_name_are_told_apart(written_store: WrittenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [open_store(written_store(**options).path) for options in ({}, {"pooled": False})]
    names = [identity.store for identity in identify(stores)]
    assert names == [store.url for store in stores]
    assert identify(stores[:1])[0].store == "store"
    monkeypatch.chdir(stores[0].url)
    assert identify([open_store(".")])[0].store == "store"


def table_of(text: str) -> pa.Table:
    return pa.table({"a": [text]})


def test_results_replace_older_ones_and_leave_nothing_else(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_table(tmp_path, "x", [table_of(text), table_of(text)], table_of(text).schema)
        write_dataset(tmp_path, "x", xr.Dataset(attrs={"text": text}))
        write_figure(tmp_path, "x", Figure(figsize=(1, 1)))
    assert sorted(os.listdir(tmp_path)) == ["x.parquet", "x.png", "x.svg", "x.zarr"]
    assert pd.read_parquet(tmp_path / "x.parquet")["a"].tolist() == ["new", "new"]
    assert xr.open_zarr(tmp_path / "x.zarr").attrs == {"text": "new"}


def test_a_failure_leaves_the_old_result(tmp_path: Path) -> None:
    write_table(tmp_path, "x", [table_of("old")], table_of("old").schema)

    def break_off() -> Iterator[pa.Table]:
        yield table_of("new")
        raise OSError("no space left on device")

    with pytest.raises(StrataError, match=r"x.parquet could not be written \(no space left on device\)"):
        write_table(tmp_path, "x", break_off(), table_of("new").schema)
    assert os.listdir(tmp_path) == ["x.parquet"]
    assert pd.read_parquet(tmp_path / "x.parquet")["a"].tolist() == ["old"]


def test_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    def draw() -> list[bytes]:
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1], [0, 1])
        return [path.read_bytes() for path in write_figure(tmp_path, "x", figure)]

    assert draw() == draw()


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    path = write_table(tmp_path, "x", [], CONTEXTUALIZATION_SCHEMA)
    assert list(pd.read_parquet(path).columns) == CONTEXTUALIZATION_SCHEMA.names
