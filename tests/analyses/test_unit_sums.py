import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analyses import token_blocks as module
from analyses.token_blocks import VectorError
from analyses.unit_sums import unit_sums


def oracle(states: NDArray[np.floating], runs: NDArray[np.integer]) -> NDArray[np.float64]:
    exact = states.astype(np.float64)
    sums = np.zeros((len(runs), states.shape[1]))
    for run, (start, stop) in enumerate(runs):
        for token in range(start, stop):
            sums[run] += exact[token] / np.sqrt(np.sum(exact[token] ** 2))
    return sums


@st.composite
def ragged(draw: st.DrawFn) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    lengths = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=8))
    edges = np.cumsum([piece for gap_and_length in lengths for piece in gap_and_length])
    starts, stops = edges[::2], edges[1::2]
    seed, dim = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 9))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    states = np.random.default_rng(seed).standard_normal((int(edges[-1]) + 2, dim)).astype(dtype)
    states[states == 0] = 1
    return states, np.stack([starts, stops], axis=1)


@given(ragged(), st.integers(1, 40))
@settings(max_examples=150)
def test_sums_equal_the_loop_whatever_the_block_size(
    case: tuple[NDArray[np.floating], NDArray[np.integer]], elements: int
) -> None:
    states, runs = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCRATCH_ELEMENTS", elements)
        np.testing.assert_allclose(unit_sums(states, runs), oracle(states, runs), rtol=0, atol=3e-6)


def test_every_finite_float16_is_widened_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    halves = bits.view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(1, -1)
    widened = module.widen(halves, np.empty(halves.shape, np.int32))
    expected = halves.astype(np.float32)
    np.testing.assert_array_equal(widened.view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(module.as_float32(halves).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_as_float32_keeps_what_is_not_finite(value: float) -> None:
    halves = np.array([1.5, value, -65504.0], np.float16)
    np.testing.assert_array_equal(module.as_float32(halves), np.array([1.5, value, -65504.0], np.float32))
    assert module.as_float32(np.empty((0, 4), np.float16)).shape == (0, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("others", [0.0, 1e-4, 1.0, 6e4])
def test_non_finite_values_are_refused_by_token(value: float, dtype: type, others: float) -> None:
    states = np.full((20, 6), others, dtype)
    states[:13] = 1
    states[13, 4] = value
    with pytest.raises(VectorError, match="token 13 is not finite") as caught:
        unit_sums(states, np.array([[2, 9], [9, 20]]))
    assert caught.value.token == 13


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_zero_vector_is_refused_only_inside_a_run(dtype: type) -> None:
    states = np.ones((9, 4), dtype)
    states[5] = 0
    with pytest.raises(VectorError, match="token 5 is a zero vector"):
        unit_sums(states, np.array([[0, 9]]))
    np.testing.assert_allclose(
        unit_sums(states, np.array([[0, 5], [6, 9]])), np.array([[2.5] * 4, [1.5] * 4]), atol=1e-6
    )


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (np.float16, 6e-8),
        (np.float16, 6e4),
        (np.float32, 1e-44),
        (np.float32, 1e-25),
        (np.float32, 1e19),
        (np.float32, 3e38),
    ],
)
def test_extreme_magnitudes_keep_their_direction(dtype: type, scale: float) -> None:
    states = (np.array([[1, 1, 0, -1], [0, 1, 0, 0], [1, 0, 1, 1]]) * scale).astype(dtype)
    runs = np.array([[0, 2], [2, 3]])
    np.testing.assert_allclose(unit_sums(states, runs), oracle(states, runs), atol=1e-6)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        unit_sums(np.ones((2, 2)), np.array([[0, 2]]))
