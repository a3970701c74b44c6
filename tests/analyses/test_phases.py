from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr

from analyses.curves import image_curves
from analyses.phase_detection import cut_each, fixed_shape
from analyses.phases import QUANTILES, find_phases, name_missing
from analyses.phases_results import (
    PHASES_IMAGES_SCHEMA,
    PHASES_SCHEMA,
    PHASES_SCORES_SCHEMA,
    to_dataset,
    to_image_tables,
    to_score_table,
    to_table,
)
from engine.errors import StrataError, UsageError
from tests.analyses.builders import FLAT, planted_result


def test_every_store_kind_and_pair_has_phases() -> None:
    results = [planted_result(kinds=("noisy", "normal")), planted_result(FLAT, store="flat", noise=0.1)]
    found = find_phases(results, bootstraps=100)
    assert [(curve.identity.store, curve.group.kind, curve.pair) for curve in found] == [
        (store, kind, pair)
        for store, kind in (("planted", "normal"), ("planted", "noisy"), ("flat", "normal"))
        for pair in ("image-text", "image-image", "text-text")
    ]
    headline = found[0].detection.phases
    assert [(phase.start, phase.end) for phase in headline] == [(1, 3), (3, 10), (10, 35), (35, 40)]
    assert all(phase.supported for phase in headline)
    assert not any(phase.supported for phase in found[6].detection.phases)


def test_layer_0_joins_only_on_request() -> None:
    without, included = (
        find_phases([planted_result()], bootstraps=20, include_layer_0=flag)[0].detection.phases
        for flag in (False, True)
    )
    assert (without[0].start, included[0].start) == (1, 0)
    assert included[0].change == pytest.approx(0.1, abs=0.02)


def test_several_prompts_of_an_image_count_as_one_image() -> None:
    curve = find_phases([planted_result(prompts=3, images=10)], bootstraps=20)[0]
    assert curve.band.images == 10
    assert curve.samples is not None
    assert len(curve.samples.samples) == 30


def test_samples_without_text_have_no_curve() -> None:
    item = planted_result()
    cosine = item.result.cosine.copy()
    cosine[:5, :, [0, 2]] = np.nan
    found = find_phases([item._replace(result=replace(item.result, cosine=cosine))], bootstraps=20)
    assert [curve.band.images for curve in found] == [35, 40, 35]
    assert found[0].samples is not None
    assert len(found[0].samples.samples) == 35
    cosine[:, :, [0, 2]] = np.nan
    found = find_phases([item._replace(result=replace(item.result, cosine=cosine))], bootstraps=20)
    assert [curve.pair for curve in found] == ["image-image"]


def test_tables_have_the_contracts_columns() -> None:
    found = find_phases([planted_result()], pattern="three", bootstraps=50)
    table = to_table(found, "three", "none").to_pandas()
    assert list(table.columns) == [
        "store", "model", "source", "prompt_kind", "prompt_id", "pair", "pattern", "phase", "name",
        "start", "start_low", "start_high", "end", "end_low", "end_high",
        "change", "change_low", "change_high", "supported", "end_images_q25", "end_images_median", "end_images_q75",
        "images", "items", "adjustment",
    ]  # fmt: skip
    assert table["prompt_id"].eq("").all()
    first = table[table["pair"] == "image-text"]
    assert first["end"].tolist() == [10, 35, 40]
    assert first["name"].tolist() == ["I+II Early Alignment", "III Rise", "IV Decline"]
    images = pa.concat_tables(to_image_tables(found)).to_pandas()
    assert list(images.columns) == PHASES_IMAGES_SCHEMA.names
    assert len(images) == 40 * 3
    assert images.groupby("phase")["end"].median().tolist() == [10, 35, 40]
    assert images[images["sample_id"] == "7/normal-0"]["start"].tolist()[0] == 1


def test_the_dataset_says_what_held_out_images_prefer_also_for_a_fixed_pattern() -> None:
    results = [planted_result(noise=0.005), planted_result(((0, 40), (0.0, 0.4)), store="rise")]
    fixed, auto = (to_dataset(find_phases(results, pattern=name, bootstraps=20), {}) for name in ("four", "auto"))
    assert fixed["preferred_segments"].values.tolist() == [4, 1, 1, 1, 1, 1]
    assert fixed["preferred_first_rises"].values.all()
    for name in ("preferred_segments", "preferred_first_rises", "score", "score_error"):
        xr.testing.assert_identical(fixed[name], auto[name])
    assert "images drawn" in fixed.attrs["interval"]
    assert "left out" in fixed.attrs["supported"]


def test_the_dataset_holds_the_same_numbers_and_the_scores_of_auto() -> None:
    results = [planted_result(noise=0.005), planted_result(((0, 40), (0.0, 0.4)), store="rise")]
    found = find_phases(results, pattern="auto", bootstraps=50)
    dataset = to_dataset(found, {"settings": "x"})
    assert dataset.sizes == {"curve": 6, "phase": 4, "segments": 5, "quantile": 5}
    planted, rise = dataset.isel(curve=0), dataset.isel(curve=3)
    assert planted["end"].values.tolist() == [3, 10, 35, 40]
    assert rise["end"].values.tolist() == [40, -1, -1, -1]
    assert rise["name"].values.tolist() == ["Rise", "", "", ""]
    assert int(planted["score"].argmin("segments")) == 3
    assert float(planted["score_error"][3]) == 0
    assert np.isfinite(dataset["score"]).all()
    assert isinstance(dataset, xr.Dataset)
    assert to_table([], "auto", "none").schema == PHASES_SCHEMA


def test_intervals_and_support_draw_items_and_bands_images() -> None:
    pairs = planted_result(images=12, images_per_item=2, noise=0.1)
    curve = find_phases([pairs], bootstraps=60)[0]
    assert (curve.band.images, curve.band.items) == (12, 6)
    own = image_curves(pairs.result.samples, pairs.result.cosine[:, :, 0])
    fitted = own.curves[:, 1:]
    rng, changes, left_out = np.random.default_rng(0), [], []
    items = own.items.tolist()
    for _ in range(60):
        times = dict(zip(dict.fromkeys(items), rng.multinomial(6, [1 / 6] * 6), strict=True))
        mean = np.mean([fitted[i] for i, item in enumerate(items) for _ in range(times[item])], axis=0)
        start, end = cut_each(mean[None], np.arange(40), fixed_shape("four"))
        changes.append(mean[end[0]] - mean[start[0]])
        others = [fitted[i] for i, item in enumerate(items) if times[item] == 0]
        if others:
            left_out.append(np.mean(others, axis=0)[end[0]] - np.mean(others, axis=0)[start[0]])
    low, high = np.percentile(changes, (2.5, 97.5), axis=0)
    phases = curve.detection.phases
    np.testing.assert_allclose([phase.change_low for phase in phases], low)
    np.testing.assert_allclose([phase.change_high for phase in phases], high)
    low, high = np.percentile(left_out, (2.5, 97.5), axis=0)
    signs = [low[0] > 0, high[1] < 0, low[2] > 0, high[3] < 0]
    assert [phase.supported for phase in phases] == signs
    assert find_phases([planted_result(images=12, noise=0.1)], bootstraps=60)[0].detection != curve.detection


def test_two_identical_images_per_item_change_nothing() -> None:
    one = planted_result(images=9, noise=0.1)
    twice = pd.concat(
        [one.result.samples.assign(image_id=one.result.samples["image_id"] + side) for side in ("a", "b")]
    )
    both = replace(one.result, samples=twice, cosine=np.concatenate([one.result.cosine] * 2))
    single, double = (
        find_phases([item], pattern="auto", bootstraps=40)[0] for item in (one, one._replace(result=both))
    )
    assert double.detection.preferred.scores == pytest.approx(single.detection.preferred.scores)
    for left, right in zip(single.detection.phases, double.detection.phases, strict=True):
        assert left[:8] == right[:8]
        assert left[8:] == pytest.approx(right[8:])
    np.testing.assert_allclose(double.band.high, single.band.high)
    assert (double.band.images, double.band.items) == (18, 9)


def test_one_item_has_no_interval_of_change() -> None:
    phases = find_phases([planted_result(images=2, images_per_item=2)], bootstraps=10)[0].detection.phases
    assert all(np.isnan(phase.change_low) and not phase.supported for phase in phases)


def test_each_prompt_of_the_users_own_has_its_own_phases() -> None:
    item = planted_result(kinds=("normal", "mine", "yours"), images=10)
    found = find_phases([item], bootstraps=10)
    groups = [("normal", ""), ("custom", "mine-0"), ("custom", "yours-0")]
    assert [tuple(curve.group) for curve in found] == [group for group in groups for _ in range(3)]
    table = to_table(found, "four", "none").to_pandas()
    pairs = table[["prompt_kind", "prompt_id"]].drop_duplicates().itertuples(index=False)
    assert [tuple(pair) for pair in pairs] == groups
    alone = item.result.samples["prompt_id"] == "yours-0"
    mean = item.result.cosine[alone, :, 0].mean(axis=0)
    np.testing.assert_allclose(found[6].band.mean, mean)


def test_boundaries_of_images_are_summed_up_as_quantiles() -> None:
    item = planted_result(prompts=2, images=15, noise=0.05)
    found = find_phases([item], bootstraps=10)
    dataset = to_dataset(found, {})
    own = image_curves(item.result.samples, item.result.cosine[:, :, 0]).curves[:, 1:]
    ends = cut_each(own, np.arange(1, 41), fixed_shape("four"))[1]
    for q, quantile in enumerate(QUANTILES):
        expected = [sorted(column)[int(np.ceil(quantile * 15)) - 1] for column in ends.T]
        assert dataset["end_images"][0, :, q].values.tolist() == expected
    table = to_table(found, "four", "none").to_pandas().query("pair == 'image-text'")
    for column, quantile in (("end_images_q25", 1), ("end_images_median", 2), ("end_images_q75", 3)):
        assert table[column].tolist() == dataset["end_images"][0, :, quantile].values.tolist()
    assert table["items"].eq(15).all()


def test_scores_of_the_pattern_are_a_table_too() -> None:
    found = find_phases([planted_result(noise=0.005), planted_result(FLAT, store="flat", noise=0.1)], bootstraps=5)
    table = to_score_table(found).to_pandas()
    dataset = to_dataset(found, {})
    assert list(table.columns) == PHASES_SCORES_SCHEMA.names
    assert len(table) == 6 * 5
    np.testing.assert_array_equal(table["score"].to_numpy().reshape(6, 5), dataset["score"])
    np.testing.assert_array_equal(table["score_error"].to_numpy().reshape(6, 5), dataset["score_error"])
    preferred = table[table["preferred"]]
    assert preferred["segments"].tolist() == dataset["preferred_segments"].values.tolist()
    assert preferred.query("pair == 'image-text'")["segments"].tolist() == [4, 1]


def test_curves_without_images_are_named() -> None:
    item = planted_result(kinds=("normal", "empty"))
    cosine = item.result.cosine.copy()
    chosen = (item.result.samples["prompt_kind"] == "empty").to_numpy()
    cosine[np.ix_(chosen, range(41), [0, 2])] = np.nan
    items = [item._replace(result=replace(item.result, cosine=cosine))]
    found = find_phases(items, bootstraps=5)
    assert [(curve.group.title, curve.pair) for curve in found][3:] == [("empty", "image-image")]
    assert name_missing(items, found) == [
        "planted, empty: no image has a curve image-text or text-text, so it is left out of phases"
    ]


def test_wrong_requests_name_the_store_and_the_rule() -> None:
    short = planted_result(((0, 1, 3), (0, 1, 0)), blocks=4, store="short")
    with pytest.raises(UsageError, match=r"short: 4 segments need at least 5 layers and the curve has 4"):
        find_phases([short])
    with pytest.raises(StrataError, match="--bootstraps 0: at least 1"):
        find_phases([short], bootstraps=0)
