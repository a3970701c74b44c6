import numpy as np
import pandas as pd
import pytest

from analyses.curves import band, image_curves, ordered_kinds


def test_prompts_of_one_image_are_averaged_first() -> None:
    ids = pd.Series(["b", "a", "b", "c"])
    values = np.array([[1.0, 2.0], [5.0, 6.0], [3.0, 6.0], [np.nan, 1.0]])
    images, curves = image_curves(ids, values)
    assert images.tolist() == ["b", "a"]  # c has no text, so no curve
    np.testing.assert_allclose(curves, [[2.0, 4.0], [5.0, 6.0]])


def test_band_is_mean_std_and_bootstrap_interval_over_images() -> None:
    curves = np.random.default_rng(0).normal([0.1, 0.5], [0.05, 0.2], (200, 2))
    got = band(curves)
    np.testing.assert_allclose(got.mean, curves.mean(axis=0))
    np.testing.assert_allclose(got.std, [pd.Series(curves[:, k]).std() for k in (0, 1)])
    # Of a mean of 200 values, the percentile interval is close to the normal one.
    half = 1.96 * got.std / np.sqrt(200)
    np.testing.assert_allclose(got.low, got.mean - half, atol=0.3 * half.max())
    np.testing.assert_allclose(got.high, got.mean + half, atol=0.3 * half.max())
    assert got.images == 200


def test_one_image_has_no_spread_and_none_has_nothing() -> None:
    one = band(np.array([[0.25, 0.5]]))
    assert np.isnan(one.std).all()
    np.testing.assert_allclose([one.low, one.high], [[0.25, 0.5]] * 2)
    none = band(np.zeros((0, 3)))
    assert none.images == 0
    assert np.isnan([*none.mean, *none.low]).all()


@pytest.mark.parametrize("kinds", [["empty", "x", "normal", "a"], ["x", "a", "normal", "empty", "x"]])
def test_built_in_kinds_come_first(kinds: list[str]) -> None:
    assert ordered_kinds(pd.Series(kinds)) == ["normal", "empty", "x", "a"]
