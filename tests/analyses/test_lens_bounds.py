"""What codes leave out never exceeds its bound, and no pair that reaches a floor has a product below its threshold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.lens_bounds import Bounds, bound_products
from analyses.lens_codes import LARGEST_CODE, encode
from analyses.lens_exact import exact_logits, pair_sums, rank_pieces
from analyses.lens_rounding import FLOAT64, dot_error, growth, just_below, norm_bounds
from tests.analyses.lens_oracle import KINDS, make


def exact_products(weights: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Logits (row, token) in extended precision."""
    return weights.astype(np.longdouble) @ states.astype(np.longdouble).T


def bounded(kind: str, dtype: type = np.float16) -> tuple[np.ndarray, np.ndarray, np.ndarray, Bounds]:
    weights, states = make(kind, vocab=200, dtype=dtype)
    chosen = np.random.default_rng(2).permutation(200)[:150]
    code, bounds = bound_products(states, norm_bounds(states), weights, chosen, encode(weights, chosen))
    product = bounds.rows.code.astype(np.int64) @ code.astype(np.int64).T
    return exact_products(weights[chosen], states), product, code, bounds


@pytest.mark.parametrize("kind", KINDS)
def test_codes_hold_their_rows_within_the_residual(kind: str) -> None:
    weights, states = make(kind, vocab=200)
    for rows in (weights, states):
        chosen = np.arange(len(rows))[::-1]
        codes = encode(rows, chosen)
        wide = rows[chosen].astype(np.longdouble)
        left_out = wide - codes.code.astype(np.longdouble) * codes.scale[:, np.newaxis]
        assert (codes.residual >= np.sqrt(np.square(left_out).sum(axis=1))).all()
        assert (codes.norm >= np.sqrt(np.square(wide).sum(axis=1))).all()
        assert np.abs(codes.code.astype(int)).max() <= LARGEST_CODE
        ordinary = codes.norm > 1e-6
        assert (codes.residual[ordinary] <= 0.02 * codes.norm[ordinary]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_that_reaches_the_floor_reaches_its_threshold(kind: str) -> None:
    """Floors are the logits themselves: the hardest case, without any room between them."""
    exact, product, _, bounds = bounded(kind)
    for row in range(0, len(exact), 7):
        floor = just_below(exact[row].astype(np.float64))
        held = bounds.hold(floor)
        threshold = np.empty(product.shape, np.float32)
        bounds.thresholds(slice(0, None), bounds.with_floor(floor), threshold)
        reaching = (exact >= floor) & held
        assert (product.astype(np.float32)[reaching] >= threshold[reaching]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_logit_lies_between_its_bounds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyses.lens_bounds._PAIRS_AT_ONCE", 100)
    exact, product, _, bounds = bounded(kind)
    pairs = np.nonzero(np.broadcast_to(bounds.hold(np.zeros(product.shape[1])), product.shape))
    upper, allowance = bounds.of_pairs(*pairs, product[pairs].astype(np.int32))
    assert (upper >= exact[pairs]).all()
    assert (upper - 2 * allowance <= exact[pairs] + 1e-4 * allowance).all()


def test_thresholds_leave_out_what_cannot_reach_them() -> None:
    exact, product, _, bounds = bounded("outlier dimensions")
    floor = np.sort(exact, axis=0)[-5].astype(np.float64)
    threshold = np.empty(product.shape, np.float32)
    bounds.thresholds(slice(0, None), bounds.with_floor(floor), threshold)
    assert (product >= threshold).sum(axis=0).max() <= 8


def test_tokens_without_a_floor_or_with_numbers_beyond_float32_are_not_held() -> None:
    _, product, _, bounds = bounded("gaussian")
    floor = np.zeros(product.shape[1])
    floor[[1, 2, 3]] = -np.inf, np.inf, 1e38
    np.testing.assert_array_equal(np.flatnonzero(~bounds.hold(floor)), [1, 2, 3])


@given(seed=st.integers(0, 2**32 - 1), dim=st.integers(1, 3000))
def test_float32_products_lie_within_their_error(seed: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((3, dim)).astype(np.float32) * np.float32(10.0 ** rng.integers(-15, 10)) for _ in "ab")
    error = dot_error(dim, norm_bounds(a)[:, np.newaxis], norm_bounds(b))
    assert (np.abs(a @ b.T - exact_products(a, b)) <= error).all()


@given(value=st.floats(-1e30, 1e30))
def test_just_below_is_less_than_all_that_round_alike(value: float) -> None:
    below = just_below(np.array([value]))[0]
    assert np.float32(below) < np.float32(value)
    assert np.nextafter(np.float32(below), np.float32(np.inf)) == np.float32(value)


def test_growth_is_the_textbook_bound_rounded_up() -> None:
    assert growth(1000) == pytest.approx(1000 * 2**-24, rel=2e-3)
    assert growth(1000) > 1000 * 2**-24 / (1 - 1000 * 2**-24)
    assert growth(10, FLOAT64) < 1e-14


def test_sums_that_float64_leaves_open_are_summed_once_more() -> None:
    """2^60 + 1 + 2^-24 − 2^60 in float64 is 0 or 1, depending on the order; the logit is neither's."""
    weights = np.array([[2.0**60, 1, 2.0**-24, 2.0**60]], np.float32)
    states = np.array([[1, 1, 1, -1]], np.float32)
    place = np.zeros(1, np.int64)
    sums = pair_sums(weights, states.astype(np.float64), place, place)
    norms = norm_bounds(weights) * norm_bounds(states)
    logit = exact_logits(weights, states, place, place, sums=sums, norms=norms)
    assert logit == np.float32(1 + 2.0**-24)
    assert sums != 1 + 2.0**-24


def test_ranks_go_by_logit_and_then_by_id() -> None:
    token = np.array([1, 0, 1, 0, 1, 3])
    token_id = np.array([9, 4, 2, 7, 5, 8])
    logit = np.array([3.0, 1.0, 3.0, 2.0, 4.0, 0.0])
    np.testing.assert_array_equal(rank_pieces(token, token_id, logit, 2), [3, 1, 4, 2, 5])
