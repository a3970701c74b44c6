"""Widening is exact for every bfloat16; rounding keeps the bits it says, with the error it states."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.errors import StrataError
from engine.store import round_mantissa, widen_bfloat16
from engine.store.dtypes import round_to_dtype


def bfloat16_value(bits: int) -> float:
    """The value of a bfloat16 by its definition: sign, 8 bits of exponent, 7 of mantissa."""
    sign = -1.0 if bits >> 15 else 1.0
    exponent, mantissa = (bits >> 7) & 0xFF, bits & 0x7F
    if exponent == 0:
        return sign * mantissa * 2.0**-133
    return sign * (1 + mantissa / 128) * 2.0 ** (exponent - 127)


def test_every_finite_bfloat16_widens_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    finite = bits[(bits >> 7) & 0xFF != 0xFF]
    widened = widen_bfloat16(finite)
    assert widened.dtype == np.float32
    np.testing.assert_array_equal(widened.astype(np.float64), [bfloat16_value(int(value)) for value in finite])
    assert not (widened.view(np.uint32) & 0xFFFF).any()


def test_widening_fills_a_given_buffer() -> None:
    raw = np.array([[0x3F80, 0xC000]], np.uint16)
    out = np.empty((1, 2), np.float32)
    assert widen_bfloat16(raw, out) is out
    assert out.tolist() == [[1.0, -2.0]]


@pytest.mark.parametrize("raw", [np.zeros(2, np.float16), np.zeros(2, np.int16)])
def test_widening_refuses_other_types(raw: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint16"):
        widen_bfloat16(raw)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bits", [1, 4, 9])
def test_rounding_leaves_what_is_not_there(dtype: str, bits: int) -> None:
    values = np.array([np.nan, 1.2345, -np.nan, 0.1], dtype)
    rounded = round_mantissa(values, bits)
    there = round_mantissa(values[1::2].copy(), bits)
    np.testing.assert_array_equal(rounded.values[1::2], there.values)
    assert np.isnan(rounded.values[::2]).all()
    assert rounded[1:] == there[1:]


@settings(max_examples=60)
@given(
    hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-(2.0**100), 2.0**100, width=32)), st.integers(1, 22)
)
def test_rounding_float32_is_nearest(values: np.ndarray, bits: int) -> None:
    rounded = round_mantissa(values.copy(), bits)
    drop = 23 - bits
    assert not (rounded.values.view(np.uint32) & ((1 << drop) - 1)).any()
    normal = np.abs(values) >= np.finfo(np.float32).tiny
    error = np.abs(rounded.values.astype(np.float64) - values)
    assert (error[normal] <= np.abs(values[normal].astype(np.float64)) * 2.0 ** -(bits + 1)).all()
    assert rounded.max_absolute_error == error.max()
    expected = max((e / abs(float(v)) for e, v in zip(error, values, strict=True) if v), default=0.0)
    assert rounded.max_relative_error == pytest.approx(expected)


def test_rounding_float16_ties_to_even() -> None:
    values = np.array([1 + 2**-3, 1 + 3 * 2**-3, 1 + 2**-2], np.float16)
    assert round_mantissa(values, 2).values.tolist() == [1.0, 1.5, 1.25]


def test_rounding_to_all_bits_changes_nothing() -> None:
    values = np.array(struct.unpack("<4f", bytes(range(16))), np.float32)
    rounded = round_mantissa(values, 23)
    np.testing.assert_array_equal(rounded.values.view(np.uint32), values.view(np.uint32))
    assert (rounded.max_absolute_error, rounded.max_relative_error) == (0.0, 0.0)


def test_rounding_empty() -> None:
    assert round_mantissa(np.zeros((0, 4), np.float16), 3).values.shape == (0, 4)


def test_rounding_that_overflows_is_refused() -> None:
    with pytest.raises(StrataError, match="--mantissa-bits"):
        round_mantissa(np.array([65504], np.float16), 2)


@given(hnp.arrays(np.float32, st.integers(0, 30), elements=st.floats(-60000, 60000, width=32)))
def test_another_dtype_keeps_the_nearest_value_and_says_how_near(values: np.ndarray) -> None:
    rounded = round_to_dtype(np.append(values, np.float32("nan")), "float16", "x")
    assert rounded.values.dtype == np.float16
    # Half of the distance between neighbours: 11 significant bits, and 2^-24 between the smallest.
    bound = np.maximum(np.abs(values.astype(np.float64)) * 2.0**-11, 2.0**-25)
    error = np.abs(rounded.values[:-1].astype(np.float64) - values)
    assert (error <= bound).all()
    assert rounded.max_absolute_error == error.max(initial=0)
    assert np.isnan(rounded.values[-1]), "an absent query stays absent, and counts for no error"


def test_a_wider_dtype_is_exact() -> None:
    values = np.array([0.1, 65504, np.nan], np.float16)
    assert round_to_dtype(values, "float32", "x")[1:] == (0, 0)


def test_values_beyond_a_dtype_are_refused_by_name() -> None:
    with pytest.raises(StrataError, match="key/attention_norm holds 70000, too large for float16"):
        round_to_dtype(np.array([1, -70000, np.nan], np.float32), "float16", "key/attention_norm")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_are_rounded_and_compared_within_twice_their_size(dtype: str) -> None:
    values = np.linspace(1, 2, 2**20).astype(dtype)
    tracemalloc.start()
    for round_values in (lambda: round_mantissa(values, 4), lambda: round_to_dtype(values, "float32", "it")):
        tracemalloc.reset_peak()
        round_values()
        assert tracemalloc.get_traced_memory()[1] < 2 * 4 * values.size
    tracemalloc.stop()
