"""What is laid out run by run equals what the pieces, joined and put in place at once, hold."""

import gc
import itertools
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.capture.part_slabs import slabs

ROWS, LAYERS = 11, 4


def pieces(lengths: list[int], *, dtype: torch.dtype, layers: int, inner: tuple[int, ...]) -> list[list[torch.Tensor]]:
    numbers = torch.arange(layers * sum(lengths) * int(np.prod(inner)))
    whole = (numbers % 251).to(dtype).reshape(layers, sum(lengths), *inner)
    return [list(layer.split(lengths)) for layer in whole]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.sampled_from([None, (0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)]),
    st.booleans(),
    st.data(),
)
def test_every_run_is_what_the_joined_pieces_hold_there(
    lengths: list[int], axes: tuple[int, ...] | None, some_rows: bool, data: st.DataObject
) -> None:
    held = pieces(lengths, dtype=torch.float32, layers=2, inner=(2, 3))
    length = sum(lengths) + (ROWS if some_rows else 0)
    drawn = sorted(data.draw(st.permutations(range(length)))[: sum(lengths)])
    rows = np.array(drawn, np.intp) if some_rows else None
    expected = np.full((2, length, 2, 3), np.nan, np.float32)
    expected[:, slice(None) if rows is None else rows] = np.stack([torch.cat(layer).numpy() for layer in held])
    order = axes or (0, 1, 2)
    expected = np.stack([layer.transpose(np.argsort(order)) for layer in expected])
    laid_out = slabs(held, expected.shape[1:], "float32", axes, rows=rows)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, length), max_size=3))), length]
    for index in range(2):
        slab = laid_out(index)
        assert slab.shape == expected.shape[1:]
        np.testing.assert_array_equal(slab[...], expected[index])
        for start, stop in itertools.pairwise(cuts):
            run = (*(slice(None),) * order[0], slice(start, stop))
            np.testing.assert_array_equal(slab[run], expected[index][run])


@pytest.mark.parametrize(
    ("dtype", "nothing"), [("float16", np.nan), ("bfloat16", np.nan), ("float32", np.nan), ("int32", -1)]
)
def test_leading_indices_that_are_not_kept_hold_nothing(dtype: str, nothing: float) -> None:
    held = pieces([3, 2], dtype=getattr(torch, dtype), layers=2, inner=(4,))
    expected = [torch.cat(layer).float().numpy() for layer in held]
    laid_out = slabs(held, (5, 4), dtype, places=(1, 3))
    for index in range(LAYERS):
        values = laid_out(index)[...]
        if dtype == "bfloat16":
            assert values.dtype == np.uint16
            values = (values.astype(np.uint32) << 16).view(np.float32)
        kept = index in (1, 3)
        np.testing.assert_array_equal(values, expected[index // 2] if kept else np.full((5, 4), nothing))


def test_pieces_of_a_layer_are_freed_with_what_was_laid_out_of_it() -> None:
    held = [[torch.ones(3, 2)], [torch.ones(3, 2)]]
    first = weakref.ref(held[0][0])
    laid_out = slabs(held, (3, 2), "float32")
    slab = laid_out(0)
    assert slab[...].sum() == 6
    del slab
    gc.collect()
    assert first() is None
    assert held[1]


@pytest.mark.parametrize(("places", "rows"), [(5, None), (5, np.array([0, 4])), (2, None)])
def test_rows_that_do_not_fit_are_never_left_out(places: int, rows: np.ndarray | None) -> None:
    laid_out = slabs([[torch.ones(3, 2)]], (places, 2), "float32", rows=rows)
    with pytest.raises(ValueError, match="3 rows were captured for"):
        laid_out(0)
