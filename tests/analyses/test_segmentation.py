import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from analyses.monotone_costs import monotone_costs
from analyses.segmentation import segment_all, segment_curves

# Whole numbers make ties common; the others make them rare.
VALUES = st.one_of(st.integers(-3, 3).map(float), st.floats(-2, 2, width=32))


def scipy_cost(stretch: NDArray[np.float64], rises: bool) -> float:
    return float(np.sum((stretch - isotonic_regression(stretch, increasing=rises).x) ** 2))


def enumerate_all(curve: NDArray[np.float64], segments: int, first_rises: bool) -> tuple[float, tuple[int, ...]]:
    """Every segmentation; the cheapest, among equals the one with the latest last boundary, then the one before."""
    n, best = len(curve), (np.inf, ())
    for cuts in itertools.combinations(range(1, n - 1), segments - 1):
        lasts = (*cuts, n - 1)
        firsts = (0, *cuts)
        cost = sum(
            scipy_cost(curve[first : last + 1], (k % 2 == 0) == first_rises)
            for k, (first, last) in enumerate(zip(firsts, lasts, strict=True))
        )
        equal = abs(cost - best[0]) < 1e-9
        if (not equal and cost < best[0]) or (equal and lasts[::-1] > best[1][::-1]):
            best = (cost, lasts)
    return best


@given(arrays(float, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=VALUES))
@settings(max_examples=60)
def test_costs_equal_scipys_isotonic_regression(curves: NDArray[np.float64]) -> None:
    costs = monotone_costs(curves)
    for c, curve in enumerate(curves):
        for i, j in itertools.product(range(len(curve)), repeat=2):
            expected = scipy_cost(curve[i : j + 1], True) if i <= j else np.inf
            assert costs[c, i, j] == pytest.approx(expected, abs=1e-9)


def test_a_stretch_in_order_costs_exactly_nothing() -> None:
    curve = np.cumsum(np.random.default_rng(0).random((1, 41)), axis=1) * 0.1
    assert (monotone_costs(curve)[0][np.triu_indices(41)] == 0).all()


@given(
    st.integers(1, 4).flatmap(
        lambda k: st.tuples(st.just(k), arrays(float, st.integers(k + 1, 11), elements=st.integers(-3, 3).map(float)))
    ),
    st.booleans(),
)
@settings(max_examples=80)
def test_cuts_equal_the_enumeration_of_all_segmentations(
    case: tuple[int, NDArray[np.float64]], first_rises: bool
) -> None:
    segments, curve = case
    cost, lasts = enumerate_all(curve, segments, first_rises)
    found = segment_curves(curve[None], segments, first_rises=first_rises)
    assert found.cost[0] == pytest.approx(cost, abs=1e-9)
    assert tuple(found.last[0]) == lasts


def test_planted_boundaries_are_recovered_under_noise() -> None:
    curve = np.interp(np.arange(41), [0, 3, 10, 35, 40], [0.0, 0.1, 0.02, 0.5, 0.3])
    assert segment_curves(curve[None], 4).last.tolist() == [[3, 10, 35, 40]]
    noisy = curve + np.random.default_rng(0).normal(0, 0.002, (20, 41))
    assert (np.abs(segment_curves(noisy, 4).last - [3, 10, 35, 40]) <= 1).all()


def test_batches_and_single_curves_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = np.random.default_rng(1).standard_normal((23, 17))
    alone = np.concatenate([segment_curves(curve[None], 4).last for curve in curves])
    monkeypatch.setattr("analyses.segmentation._CURVES_AT_ONCE", 5)
    np.testing.assert_array_equal(segment_curves(curves, 4).last, alone)
    for k, found in enumerate(segment_all(curves, 5), start=1):
        np.testing.assert_array_equal(found.last, segment_curves(curves, k).last)


def test_a_constant_curve_has_boundaries_and_no_cost() -> None:
    found = segment_curves(np.full((1, 10), 0.3), 4)
    assert found.cost[0] == 0
    assert found.last.tolist() == [[6, 7, 8, 9]]


def test_too_few_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="4 segments need 5 layers, the curves have 4"):
        segment_curves(np.zeros((1, 4)), 4)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans())
def test_boundaries_are_the_extrema_however_close_to_each_other_or_to_an_end(steps: list[int], rises: bool) -> None:
    last = np.cumsum(steps)
    slopes = np.concatenate([np.full(n, 1.0 if (k % 2 == 0) == rises else -1.0) for k, n in enumerate(steps)])
    curve = np.concatenate([[0.0], np.cumsum(slopes)])
    found = segment_curves(curve[None], len(steps), first_rises=rises)
    assert found.last.tolist() == [last.tolist()]
    assert found.cost[0] == 0
