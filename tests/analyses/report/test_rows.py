"""Rows of charts against the tidy tables, which other code writes from the same numbers."""

import itertools
import json
import math
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.figure_style import common_axis
from analyses.logit_lens_words_table import WORDS_SCHEMA
from analyses.report.attention_rows import image_rows, mean_rows, place_rows, role_rows
from analyses.report.lens_section import lens_rows
from analyses.report.lens_words import read_words
from analyses.report.packing import number, pack
from analyses.report.phase_rows import curve_rows, layer_rows, normed_rows, phase_rows
from analyses.report.pictures import choose_images, frame_of
from analyses.report.results import Results, open_results
from engine.store import open_store
from tests.analyses.report.conftest import Analysed

CLOSE = {"rel": 6e-4, "abs": 1e-9}  # four digits are kept
PAIRS = {"image–text": "image-text", "image–image": "image-image", "text–text": "text-text"}


@pytest.fixture
def results(deep_and_flat: Analysed) -> Results:
    return open_results(deep_and_flat.results)


def table(results: Results, name: str) -> pd.DataFrame:
    return pd.read_parquet(results.folder / f"{name}.parquet")


def store_of(results: Results, row: dict[str, object]) -> str:
    return results.identities[row["s"]].store  # type: ignore[call-overload,no-any-return]


def of_images(own: pd.DataFrame, value: str) -> pd.Series:
    return own.groupby("image_id")[value].mean()


def test_curves_are_means_and_spreads_over_images(results: Results) -> None:
    rows = curve_rows(results, common_axis([(np.arange(7), 6), (np.arange(10), 9)]))
    cosines = table(results, "contextualization")
    assert len(rows) == (7 + 10) * 2 * 3
    for row in rows:
        keys = {"store": store_of(results, row), "prompt_kind": row["prompt"], "pair": PAIRS[row["pair"]]}
        chosen = ~cosines["normed"] & (cosines["layer"] == row["layer"])
        for name, value in keys.items():
            chosen &= cosines[name] == value
        own = of_images(cosines[chosen], "cosine")
        assert row["mean"] == pytest.approx(own.mean(), **CLOSE)
        assert row["std"] == pytest.approx(own.std(), **CLOSE)
        assert row["images"] == 2
        assert row["x"] == pytest.approx(row["layer"] / (6, 9)[row["s"]], **CLOSE)
    told = layer_rows(rows)
    assert [row["left"] <= row["x"] <= row["right"] for row in told] == [True] * (7 + 10) * 2
    after = normed_rows(results, common_axis([(np.arange(7), 6), (np.arange(10), 9)]))
    assert len(after) == 2 * 2 * 3
    for row in after:
        chosen = cosines["normed"] & (cosines["store"] == store_of(results, row))
        chosen &= cosines["pair"] == PAIRS[row["pair"]]
        own = cosines[chosen & (cosines["prompt_kind"] == results.titles[row["g"]])]
        assert (row["mean"], row["x"]) == (pytest.approx(of_images(own, "cosine").mean(), **CLOSE), 1)


def test_phases_are_those_of_the_table(results: Results) -> None:
    rows = phase_rows(results, common_axis([(np.arange(7), 6), (np.arange(10), 9)]))
    tabled = table(results, "phases")
    tabled = tabled[tabled["pair"] == "image-text"].to_dict("records")
    assert len(rows) == len(tabled) == 16
    for row, expected in zip(rows, tabled, strict=True):
        assert (store_of(results, row), row["prompt"]) == (expected["store"], expected["prompt_kind"])
        for name in ("name", "start", "start_low", "start_high", "end", "end_low", "end_high", "supported"):
            assert row[name] == expected[name]
        assert row["change"] == pytest.approx(expected["change"], **CLOSE)
        blocks = results.blocks[row["s"]]
        assert row["x"] == pytest.approx(expected["start"] / blocks, **CLOSE)
        assert row["x2"] == pytest.approx(expected["end"] / blocks, **CLOSE)
        assert row["inner"] == (expected["phase"] < 4)


def test_words_are_scored_as_in_the_table_and_once_where_the_image_sees_no_prompt(results: Results) -> None:
    rows = lens_rows(results, common_axis([(np.arange(7), 6), (np.arange(10), 9)]))
    scores = table(results, "logit-lens")
    assert {row["prompt"] for row in rows} == {"all prompts"}
    assert len(rows) == (7 + 10) * 3
    for row in rows:
        chosen = (scores["store"] == store_of(results, row)) & (scores["prompt_kind"] == "normal")
        chosen &= (scores["layer"] == row["layer"]) & (scores["variant"] == row["variant"])
        for name in ("precision", "recall", "agreement"):
            own = of_images(scores[chosen], name)
            assert row[name] == pytest.approx(own.mean(), **CLOSE)
            assert row[f"{name}_std"] == pytest.approx(own.std(), **CLOSE)


def test_roles_share_what_the_table_says(results: Results) -> None:
    rows = role_rows(results, common_axis([(np.arange(1, 7), 6), (np.arange(1, 10), 9)], "block"))
    shares = table(results, "norm-attention")
    queries = results.datasets["norm-attention"]["query"].values.tolist()
    sums: dict[tuple[object, ...], float] = {}
    for row in rows:
        chosen = (shares["store"] == store_of(results, row)) & (shares["query"] == queries[row["q"]])
        chosen &= (shares["block"] == row["block"]) & (shares["prompt_kind"] == results.titles[row["g"]])
        if row["role"] == "position 0 and BOS":
            own = shares[chosen].groupby(["image_id", "sample_id"])["sink_norm_share"].sum()
            assert row["norm"] == pytest.approx(own.mean(), **CLOSE)
            continue
        own = shares[chosen & (shares["role"] == row["role"])]
        assert row["norm"] == pytest.approx(of_images(own, "attention_norm_share").mean(), **CLOSE)
        assert row["weight"] == pytest.approx(of_images(own, "attention_share").mean(), **CLOSE)
        key = row["s"], row["g"], row["q"], row["block"]
        sums[key] = sums.get(key, 0) + row["norm"]
    assert list(sums.values()) == pytest.approx([1] * len(sums), abs=2e-3)


def test_positions_lie_beside_each_other_and_say_what_they_are(results: Results) -> None:
    dataset = results.datasets["norm-attention"]
    maps = dataset["position_map"].sel(map_measure="attention_norm_share")
    rows = place_rows(results)
    first = [row for row in rows if (row["s"], row["g"], row["q"], row["block"]) == (0, 0, 0, 2)]
    assert [row["left"] for row in first][1:] == [row["right"] for row in first][:-1]
    assert [row["where"] for row in first[2:6]] == [f"image token {number}" for number in range(4)]
    seen = (dataset["position_samples"].values[0] > 0).any(axis=0)
    expected = np.nan_to_num(maps.isel(curve=0, query=0).values[1][seen])
    assert [row["norm"] or 0 for row in first] == pytest.approx(expected, rel=6e-3)


def test_patches_are_laid_out_in_the_square_that_the_picture_fills(deep_and_flat: Analysed, results: Results) -> None:
    stores = {number: open_store(path) for number, path in enumerate(deep_and_flat.stores)}
    rows = image_rows(results, stores, ["3", "1", "2"], most=10**6)
    assert {(row["s"], row["p"]) for row in rows} == {(0, 2), (0, 3), (1, 1), (1, 3)}
    sample = stores[0].sample("1/normal-1")
    keys = sample["attention_norm"].values[1, 0]  # block 2, last_text
    share = keys[2:6] / np.nansum(keys)
    key = ("s", "p", "q", "block", "g", "prompt")
    own = next(row for row in rows if [row[name] for name in key] == [0, 2, 0, 2, 0, "normal-1"])
    assert own["norm"] == pytest.approx(share, rel=6e-3)
    keys = stores[0].sample("1/noisy-1")["attention_norm"].values[1, 0]
    other = next(row for row in rows if [row[name] for name in key] == [0, 2, 0, 2, 1, "noisy-1"])
    assert other["norm"] == pytest.approx(keys[2:6] / np.nansum(keys), rel=6e-3)
    assert {row["g"] for row in rows if row["q"] == 1} == {None}  # the last image token sees no prompt
    assert len(rows) == 2 * (6 + 9) * 3
    place = [own[name] for name in ("rows", "cols", "left", "top", "cell_width", "cell_height")]
    assert place == pytest.approx([2, 2, 8 / 64, (1 - 48 / 64) / 2, 24 / 64, 24 / 64], abs=1e-4)
    assert {row["p"] for row in image_rows(results, stores, ["3", "1", "2"], most=1)} == {1}
    assert {row["p"] for row in mean_rows(results)} == {0}


def test_words_of_few_samples_are_read_without_the_rest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count, path = 500, tmp_path / "words.parquet"
    logits = rng.standard_normal((2, 9, count)).astype(np.float32)
    order = list(itertools.product(range(2), range(9)))
    with pq.ParquetWriter(path, WORDS_SCHEMA) as writer:
        for store, sample in order:
            texts = {"store": f"store {store}", "sample_id": f"{sample}/normal-1"}
            columns = {
                field.name: pa.array([texts.get(field.name, "x")] * count).dictionary_encode()
                if pa.types.is_dictionary(field.type)
                else pa.array(rng.permutation(count), pa.int32())
                for field in WORDS_SCHEMA
            }
            columns["logit"] = pa.array(logits[store, sample])
            writer.write_table(pa.table(columns, schema=WORDS_SCHEMA))
    wanted = [(1, 7), (1, 3)]
    content, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
    for group, key in enumerate(order):  # whoever reads the logits of the others fails
        pages = metadata.row_group(group).column(WORDS_SCHEMA.names.index("logit"))
        start = pages.dictionary_page_offset or pages.data_page_offset
        if key not in wanted:
            content[start : start + pages.total_compressed_size] = bytes(pages.total_compressed_size)
    path.write_bytes(content)
    found = read_words(path, "store 1", ["7/normal-1", "none", "3/normal-1"])
    assert list(found) == ["7/normal-1", "3/normal-1"]
    for key, own in zip(wanted, found.values(), strict=True):
        assert sorted(own["logit"]) == sorted(logits[key])
        assert own[["layer", "position", "rank"]].apply(tuple, axis=1).is_monotonic_increasing
    with pytest.raises(OSError, match="page header"):
        read_words(path, "store 0", ["7/normal-1"])


def test_a_grid_may_reach_beyond_its_picture_and_tiles_are_no_grid_of_the_whole() -> None:
    grid = {"rows": 3, "cols": 3, "x0": -10.0, "y0": 0.0, "x1": 30.0, "y1": 40.0, "thumbnail": False}
    frame = frame_of({"grids": [grid], "width": 20, "height": 40})
    assert frame is not None
    assert (frame.box, frame.aspect) == ((-0.5, 0, 2, 1), 0.5)
    assert frame_of({"grids": [grid, grid], "width": 20, "height": 40}) is None
    assert frame_of({"grids": [], "width": 20, "height": 40}) is None


@given(st.lists(st.text(max_size=4), max_size=20), st.integers(0, 9), st.integers(0, 9), st.integers(0, 3))
def test_fewer_images_are_the_first_of_more_whatever_the_order(
    names: list[str], few: int, more: int, seed: int
) -> None:
    chosen = choose_images(names, few + more, seed)
    assert choose_images(reversed(names), few, seed) == chosen[:few]
    assert len(chosen) == min(few + more, len(set(names)))
    assert set(chosen) <= set(names)


def test_another_seed_chooses_other_images() -> None:
    names = [str(number) for number in range(200)]
    assert choose_images(names, 20, 0) != choose_images(names, 20, 1)


@given(st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(1, 6))
def test_numbers_keep_their_digits(value: float, digits: int) -> None:
    rounded = number(value, digits)
    if not math.isfinite(value):
        assert rounded is None
    else:
        assert rounded == pytest.approx(value, rel=0.51 * 10 ** (1 - digits), abs=1e-300)
        assert len(repr(rounded).split("e")[0].replace(".", "").strip("-0")) <= digits


@given(st.recursive(st.none() | st.integers(-9, 9) | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_packed_values_are_plain_letters_and_come_back(value: object) -> None:
    packed = pack(value)
    assert set(packed) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
    assert json.loads(zlib.decompress(b64decode(packed))) == value


def test_what_is_not_finite_is_not_packed() -> None:
    with pytest.raises(ValueError, match="JSON"):
        pack([math.nan])


def test_every_variable_of_every_result_says_what_it_is(results: Results) -> None:
    assert set(results.datasets) == {"contextualization", "phases", "norm-attention", "logit-lens"}
    for dataset in results.datasets.values():
        assert [name for name in dataset.data_vars if not dataset[name].attrs.get("long_name")] == []
