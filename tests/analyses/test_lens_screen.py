"""Of products that reach their thresholds, the screen finds all, but not too many of a token."""

import numpy as np
import pytest

from analyses.lens_bounds import bound_products
from analyses.lens_codes import encode
from analyses.lens_rounding import norm_bounds
from analyses.lens_screen import _Comparison, _first_places
from tests.analyses.lens_oracle import make, products_of


def test_what_reaches_a_threshold_is_found_in_every_stretch_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyses.lens_screen._COMPARED_AT_ONCE", 50)
    products = products_of("int8")
    assert products is not None
    weights, states = make("outlier dimensions", vocab=200)
    codes = encode(weights, np.arange(200))
    code, bounds = bound_products(states, norm_bounds(states), weights, np.arange(200), codes)
    product = np.empty((70, len(states)), np.int32)
    comparison = _Comparison(*product.shape, products)
    floor = np.full(len(states), 2.0)
    floor[3] = np.inf
    threshold = np.empty((200, len(states)), np.float32)
    bounds.thresholds(slice(0, 200), bounds.with_floor(floor), threshold)
    whole = codes.code.astype(np.int64) @ code.astype(np.int64).T
    for first in (0, 70, 140):
        rows = slice(first, min(first + 70, 200))
        products.multiply(codes.code[rows], code, product[: rows.stop - first])
        reached = comparison.reached(product[: rows.stop - first], first, bounds, floor)
        np.testing.assert_array_equal(reached, whole[rows].astype(np.float32) >= threshold[rows])
        assert reached.any()
        assert not reached[:, 3].any()


def test_a_token_that_too_many_rows_reach_is_cut() -> None:
    reached = np.zeros((50, 3), np.bool_)
    reached[:, 1] = True
    reached[:6, 2] = True
    row, token = _first_places(reached.copy(), 9)
    np.testing.assert_array_equal(np.bincount(token, minlength=3), [0, 10, 6])
    np.testing.assert_array_equal(row[token == 1], np.arange(10))
    reached[10:, 1] = False
    row, token = _first_places(reached, 9)
    np.testing.assert_array_equal(np.stack([row, token]), np.nonzero(reached))
