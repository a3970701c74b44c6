from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import xarray as xr

from analyses.phases import find_phases
from analyses.phases_results import PHASES_IMAGES_SCHEMA, PHASES_SCHEMA, to_dataset, to_image_tables, to_table
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


def test_wrong_requests_name_the_store_and_the_rule() -> None:
    short = planted_result(((0, 3, 5), (0, 1, 0)), blocks=6, store="short")
    with pytest.raises(UsageError, match=r"short: 4 segment\(s\) need at least 8 layers and the curve has 6"):
        find_phases([short])
    with pytest.raises(StrataError, match="--bootstraps 0: at least 1"):
        find_phases([short], bootstraps=0)
