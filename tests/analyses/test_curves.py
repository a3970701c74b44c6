import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.curves import band, image_curves
from analyses.prompt_groups import PromptGroup, prompt_groups


def samples_of(images: list[str], items: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame({"image_id": images, "item_id": items or images})


def test_prompts_of_one_image_are_averaged_first() -> None:
    values = np.array([[1.0, 2.0], [5.0, 6.0], [3.0, 6.0], [np.nan, 1.0]])
    own = image_curves(samples_of(["b", "a", "b", "c"], ["x", "y", "x", "z"]), values)
    assert own.images.tolist() == ["b", "a"]  # c has no text, so no curve
    assert own.items.tolist() == ["x", "y"]
    np.testing.assert_allclose(own.curves, [[2.0, 4.0], [5.0, 6.0]])


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
    assert np.isnan([one.std, one.low, one.high]).all()
    item = band(np.array([[0.25, 0.5], [0.75, 0.5]]), np.array(["a", "a"], object))
    np.testing.assert_allclose([item.mean, item.std], [[0.5, 0.5], [0.125**0.5, 0.0]])
    assert np.isnan([item.low, item.high]).all()
    none = band(np.zeros((0, 3)))
    assert none.images == 0
    assert np.isnan([*none.mean, *none.low]).all()


def test_the_interval_draws_items_and_averages_images() -> None:
    rng = np.random.default_rng(1)
    curves, items = rng.normal(size=(7, 3)), np.array(["a", "b", "a", "c", "c", "c", "d"], object)
    got = band(curves, items)
    again, means = np.random.default_rng(0), []
    for _ in range(1000):
        times = dict(zip("abcd", again.multinomial(4, [0.25] * 4), strict=True))
        drawn = [curve for curve, item in zip(curves, items, strict=True) for _ in range(times[item])]
        means.append(np.mean(drawn, axis=0))
    np.testing.assert_allclose([got.low, got.high], np.percentile(means, (2.5, 97.5), axis=0))
    np.testing.assert_allclose(got.std, curves.std(axis=0, ddof=1))  # over images, whatever is drawn
    assert (got.images, got.items) == (7, 4)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
@settings(max_examples=30)
def test_two_identical_images_per_item_have_the_interval_of_one(seed: int, count: int) -> None:
    curves = np.random.default_rng(seed).normal(size=(count, 2))
    items = np.repeat(np.arange(count).astype(str).astype(object), 2)
    one, two = band(curves), band(np.repeat(curves, 2, axis=0), items)
    np.testing.assert_allclose([two.mean, two.low, two.high], [one.mean, one.low, one.high], atol=1e-14)
    assert (one.items, two.items, two.images) == (count, count, 2 * count)


def test_items_of_one_image_change_no_bit() -> None:
    curves = np.random.default_rng(3).normal(size=(30, 4))
    names = np.array([f"item {k}" for k in range(30)], object)
    for without, named in zip(band(curves), band(curves, names), strict=True):
        np.testing.assert_array_equal(without, named)


def kinds_table(kinds: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"prompt_kind": kinds, "prompt_id": [f"p{k}" for k in range(len(kinds))]})


@pytest.mark.parametrize("kinds", [["empty", "x", "normal", "a"], ["x", "a", "normal", "empty", "x"]])
def test_built_in_kinds_come_first(kinds: list[str]) -> None:
    found = prompt_groups(kinds_table(kinds))
    assert [group for group, _ in found] == [PromptGroup(kind, "") for kind in ("normal", "empty", "x", "a")]
    for group, chosen in found:
        assert chosen.tolist() == [kind == group.kind for kind in kinds]


def test_each_prompt_of_the_users_own_is_a_group() -> None:
    table = pd.DataFrame(
        {"prompt_kind": ["custom", "normal", "custom", "normal"], "prompt_id": ["mine", "n1", "yours", "n2"]}
    )
    found = {group.title: chosen.tolist() for group, chosen in prompt_groups(table)}
    assert found == {
        "normal": [False, True, False, True],
        "mine": [True, False, False, False],
        "yours": [False, False, True, False],
    }
