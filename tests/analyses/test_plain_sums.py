import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses import token_blocks
from analyses.plain_sums import plain_sums
from analyses.token_blocks import VectorError
from analyses.unit_sums import unit_sums


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.sampled_from([np.float16, np.float32]),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=6),
)
@settings(max_examples=100)
def test_sums_equal_the_loop_whatever_the_block_size(
    seed: int, elements: int, dtype: type, lengths: list[tuple[int, int]]
) -> None:
    edges = np.cumsum([piece for pair in lengths for piece in pair])
    runs = np.stack([edges[::2], edges[1::2]], axis=1)
    states = np.random.default_rng(seed).standard_normal((int(edges[-1]) + 2, 5)).astype(dtype)
    origin = np.random.default_rng(seed + 1).standard_normal(5)
    exact = states.astype(np.float64)
    centred = exact - origin
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_blocks, "SCRATCH_ELEMENTS", elements)
        plain, unit = plain_sums(states, runs), unit_sums(states, runs, origin)
    for run, (start, stop) in enumerate(runs):
        np.testing.assert_allclose(plain[run], exact[start:stop].sum(axis=0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(unit[run], units[start:stop].sum(axis=0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("origin", [None, np.full(6, 3e4), np.full(6, -3e4)])
def test_non_finite_values_are_refused_by_token(value: float, dtype: type, origin: np.ndarray | None) -> None:
    states = np.ones((20, 6), dtype)
    states[13, 4] = value
    runs = np.array([[2, 9], [9, 20]])
    with pytest.raises(VectorError, match="token 13 is not finite"):
        plain_sums(states, runs)
    with pytest.raises(VectorError, match="token 13 is not finite"):
        unit_sums(states, runs, origin)
    without = np.array([[0, 13], [14, 20]])
    np.testing.assert_allclose(plain_sums(states, without), [[13] * 6, [6] * 6])


def test_large_values_do_not_overflow() -> None:
    states = np.full((3, 2), 2e38, np.float32)
    np.testing.assert_allclose(plain_sums(states, np.array([[0, 3]])), [[6e38, 6e38]], rtol=1e-6)


def test_a_state_at_the_origin_has_no_direction() -> None:
    states = np.ones((4, 3), np.float16)
    states[2] = 2
    with pytest.raises(VectorError, match="token 2 is a zero vector"):
        unit_sums(states, np.array([[0, 4]]), np.full(3, 2.0))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        plain_sums(np.ones((2, 2)), np.array([[0, 2]]))
