import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.reads import plan_reads


@given(st.integers(1, 9), st.integers(1, 50), st.integers(1, 64), st.integers(1, 20), st.integers(1, 3000))
@settings(max_examples=300, deadline=None)
def test_reads_cover_everything_once_in_order_and_in_bounds(
    layers: int, length: int, entry_bytes: int, inner: int, read_bytes: int
) -> None:
    covered = np.zeros((layers, length), int)
    order = []
    for read in plan_reads(layers, length, entry_bytes, inner, read_bytes=read_bytes):
        covered[read.first_layer : read.last_layer, read.start : read.stop] += 1
        order.append((read.first_layer, read.start))
        count = (read.last_layer - read.first_layer) * (read.stop - read.start)
        assert count * entry_bytes <= max(read_bytes, inner * entry_bytes)
        assert read.start % inner == 0 or read.start == 0
        # Several layers at once only when each is whole: sums of a layer are finished by its last read.
        assert read.last_layer - read.first_layer == 1 or (read.start, read.stop) == (0, length)
    assert (covered == 1).all()
    assert order == sorted(order)
