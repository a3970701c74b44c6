"""Products by torch: exact in int8, the same pairs in float32 and float64, refused where a kernel is not exact."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from analyses import lens_products
from analyses.lens_products import TORCH_BYTES, Int8Products, fast_int8_products, int8_products
from analyses.lens_unembedding import Unembedding, unembedding_bytes


@pytest.fixture
def fresh() -> Iterator[None]:
    """Look at the processor anew, before and after."""
    int8_products.cache_clear()
    yield
    int8_products.cache_clear()


def found() -> Int8Products:
    products = int8_products()
    assert products is not None
    return products


def test_products_are_those_of_whole_numbers() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(-127, 128, (rows, 301)).astype(np.int8) for rows in (77, 13))
    expected = left.astype(np.int64) @ right.astype(np.int64).T
    product = np.empty(expected.shape, np.int32)
    found().multiply(left, right, product)
    np.testing.assert_array_equal(product, expected)
    rounded = np.empty(expected.shape, np.float32)
    found().to_float32(product * 97, rounded)
    np.testing.assert_array_equal(rounded, (expected * 97).astype(np.float32))


def test_the_largest_pairs_exceed_their_thresholds_most_in_units_of_the_row() -> None:
    rng = np.random.default_rng(4)
    product = rng.integers(-(10**6), 10**6, (40, 9)).astype(np.int32)
    threshold = rng.normal(0, 1e5, product.shape).astype(np.float32)
    scale = rng.uniform(0.1, 3, 40).astype(np.float32)
    rows = found().largest(product, threshold, scale, 5)
    expected = np.argsort(-(product - threshold.astype(np.float64)) * scale[:, np.newaxis], axis=0)[:5]
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(expected, axis=0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stored", [np.float16, np.float32])
def test_products_of_pairs_are_dot_products(stored: type, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lens_products, "PAIRED_ROWS_AT_ONCE", 4)
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((40, 33)).astype(stored), rng.standard_normal((9, 33)).astype(dtype)
    a = np.repeat(rng.permutation(40)[:17], rng.integers(1, 4, 17))
    b = rng.integers(0, 9, len(a))
    products = found().of_pairs(left, right, a, b)
    assert products.dtype == dtype
    np.testing.assert_allclose(products, np.vecdot(left[a].astype(np.float64), right[b]), rtol=0, atol=1e-5)
    assert len(found().of_pairs(left, right, a[:0], b[:0])) == 0


def test_a_kernel_that_saturates_is_not_used(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """Processors without dot-product instructions add two products in 16 bits."""

    def saturating(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        pairs = left[:, : left.shape[1] // 2 * 2].int().reshape(len(left), 1, -1, 2)
        pairs = pairs * right[: len(right) // 2 * 2].T.int().reshape(1, right.shape[1], -1, 2)
        return out.copy_(pairs.sum(dim=3).clamp(-(2**15), 2**15 - 1).sum(dim=2))

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert int8_products() is None
    assert fast_int8_products() is None


@pytest.mark.parametrize("fast", [True, False])
def test_rows_are_coded_where_the_processor_is_made_for_it(
    fast: bool, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: fast)
    assert (fast_int8_products() is not None) is fast
    weights = np.ones((300, 4), np.float16)
    assert (Unembedding.prepare(weights, np.ones(300, np.bool_)).coded is not None) is fast
    more = unembedding_bytes(300, 4, 2) - 2 * 300 * 4
    assert (more > TORCH_BYTES) is fast


def test_rows_too_long_for_int32_are_not_coded() -> None:
    dim = 2**31 // 127**2 + 1
    weights = np.ones((2, dim), np.float16)
    assert Unembedding.prepare(weights, np.ones(2, np.bool_), products=found()).coded is None
    assert Unembedding.prepare(weights[:, 1:], np.ones(2, np.bool_), products=found()).coded is not None
