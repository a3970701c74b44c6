"""Boxes of sharded arrays: every one is what zarr reads, however the array is cut, and damage never reads as values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import StrataError
from engine.store import Part
from engine.store.box import plan_pieces


def shard_of(part: Part) -> Path:
    """The file of layer 2 of the hidden states, and perhaps of others."""
    files = sorted(Path(part.url, "parts", "00000000.zarr", "token", "hidden_states", "c").glob("*/0/0"))
    return files[min(2, len(files) - 1)]


def test_boxes_are_what_zarr_reads(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = part.stored("token/hidden_states")
    expected = np.asarray(part.array("token/hidden_states")[...])
    monkeypatch.setattr(zarr.Array, "__getitem__", None)  # zarr is not asked
    _, tokens, dim = expected.shape
    boxes = [
        (slice(None), slice(None), slice(None)),
        (slice(2, 3), slice(None), slice(None)),
        (slice(1, 4), slice(1, tokens - 1), slice(3, 5)),
        (slice(-1, None), slice(tokens - 1, 99), slice(0, dim)),
        (slice(0, 5), slice(3, 3), slice(None)),
        (slice(0, 5), slice(4, 2), slice(None)),
    ]
    for box in boxes:
        found = stored[box]
        np.testing.assert_array_equal(found, expected[box])
        assert found.dtype == expected.dtype
    window = stored.window(1, 2, tokens - 1)
    np.testing.assert_array_equal(window[...], expected[:, 2 : tokens - 1])
    np.testing.assert_array_equal(window[3:4, 1:3, :], expected[3:4, 3:5])
    filled = np.empty((1, 2, dim), expected.dtype)
    window.fill((3, 1, 0), filled)
    np.testing.assert_array_equal(filled, expected[3:4, 3:5])


def test_single_layers_are_boxes_too(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, expected = part.stored("token/hidden_states"), np.asarray(part.array("token/hidden_states")[...])
    lazy = part.variable("token/hidden_states")
    monkeypatch.setattr(zarr.Array, "__getitem__", None)
    np.testing.assert_array_equal(stored[np.int64(-2), 1:, 3], expected[-2, 1:, 3])
    np.testing.assert_array_equal(stored[1, 3:3, :], expected[1, 3:3])
    np.testing.assert_array_equal(lazy[2].values, expected[2])


@pytest.mark.parametrize("tokens", [slice(None, None, 2), [3, 0], [-1], [], [True, False, False, True, False]])
def test_what_is_no_box_is_left_to_zarr(part: Part, tokens: Any) -> None:
    expected = np.asarray(part.array("token/hidden_states")[...])[:, 1:6]
    stored = part.stored("token/hidden_states").window(1, 1, 6)
    np.testing.assert_array_equal(stored[2, tokens, :], expected[2, tokens])


@pytest.mark.parametrize("harm", ["a flipped bit", "no file", "cut short", "empty"])
def test_damage_is_named(part: Part, harm: str) -> None:
    file = shard_of(part)
    content = bytearray(file.read_bytes())
    content[-30 if harm == "a flipped bit" else 0] ^= 1
    kept = {"a flipped bit": len(content), "cut short": 30, "empty": 0}
    file.unlink()
    if harm != "no file":
        file.write_bytes(content[: kept[harm]])
    with pytest.raises(StrataError, match=r"hidden_states/c/\d/0/0.*damaged"):
        part.stored("token/hidden_states")[2:3, :, :]
    with pytest.raises(StrataError, match=r"hidden_states.*damaged"):  # through zarr
        part.stored("token/hidden_states")[2:3, ::2, :]


def test_nothing_is_read_for_nothing(part: Part) -> None:
    content = shard_of(part).read_bytes()
    shard_of(part).write_bytes(bytes(len(content)))
    assert part.stored("token/hidden_states")[2:2, :, :].shape[0] == 0


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=3
    )
)
def test_pieces_cover_a_box_once(axes: list[tuple[int, int, int, int]]) -> None:
    chunks, grid = [step for step, *_ in axes], [count for _, count, *_ in axes]
    starts, stops = [min(ends) for _, _, *ends in axes], [max(ends) for _, _, *ends in axes]
    box = tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    values = np.arange(12 ** len(axes)).reshape((12,) * len(axes))
    padded = np.pad(values, [(0, 12)] * len(axes))
    found = np.full(values[box].shape, -1)
    pieces = plan_pieces(starts, stops, chunks, grid)
    for piece in pieces:
        inside = np.unravel_index(piece.number, grid)
        corner = [
            (file * count + at) * step for file, count, at, step in zip(piece.shard, grid, inside, chunks, strict=True)
        ]
        chunk = padded[tuple(slice(at, at + step) for at, step in zip(corner, chunks, strict=True))]
        assert (found[piece.target] == -1).all()
        found[piece.target] = chunk[piece.source]
    np.testing.assert_array_equal(found, values[box])
    shards = [piece.shard for piece in pieces]
    assert shards == sorted(shards)
