import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analyses.cosines import between, within


def unit(seed: int, count: int, dim: int = 5) -> NDArray[np.float64]:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)) + 0.3
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pair_mean(a: NDArray[np.float64], b: NDArray[np.float64], skip_diagonal: bool = False) -> float:
    cosines = [x @ y for i, x in enumerate(a) for j, y in enumerate(b) if not (skip_diagonal and i == j)]
    return float(np.mean(cosines)) if cosines else float("nan")


@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.integers(0, 7))
@settings(max_examples=100)
def test_means_of_unit_vectors_equal_the_full_pair_matrix(seed: int, m: int, n: int) -> None:
    a, b = unit(seed, m), unit(seed + 1, n)
    size_a, size_b = np.array(m), np.array(n)
    np.testing.assert_allclose(between(a.sum(0), size_a, b.sum(0), size_b), pair_mean(a, b), atol=1e-12)
    np.testing.assert_allclose(within(a.sum(0), size_a, self_pairs=True), pair_mean(a, a), atol=1e-12)
    np.testing.assert_allclose(within(a.sum(0), size_a, self_pairs=False), pair_mean(a, a, True), atol=1e-12)


def test_a_set_of_one_token_has_no_intra_value() -> None:
    one = unit(3, 1)
    assert np.isnan(within(one.sum(0), np.array(1), self_pairs=False))
    assert within(one.sum(0), np.array(1), self_pairs=True) == pytest.approx(1.0)


def test_leading_axes_are_kept() -> None:
    sums = np.stack([unit(1, 4).sum(0), unit(2, 3).sum(0)])
    count = np.array([4, 3])
    assert between(sums, count, sums, count).shape == (2,)
    np.testing.assert_allclose(within(sums, count, self_pairs=False)[1], pair_mean(unit(2, 3), unit(2, 3), True))
