"""Places of a mask's true values are those that NumPy finds one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from analyses.places import places_of


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(0, 30), columns=st.integers(0, 30), share=st.floats(0, 1))
def test_places_are_those_of_numpy(seed: int, rows: int, columns: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < share
    np.testing.assert_array_equal(places_of(mask), np.flatnonzero(mask))
