"""Streamed chunks against zarr's own reading of the same array, and against files that were damaged."""

import tracemalloc
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

from engine.errors import StrataError
from engine.store import Part, open_part, stream_chunks
from engine.store.consolidate import consolidate
from engine.store.stream import stream_bytes
from tests.engine.store.builders import tiny_store

PATHS = ("token/hidden_states", "sample/unit_mean", "sample/normed_unit_mean", "sample/token_count")


def shard_of(part: Part) -> Path:
    """The first file of the hidden states."""
    return Path(part.url, "parts", "00000000.zarr", "token", "hidden_states", "c", "0", "0", "0")


def read(part: Part, path: str) -> np.ndarray:
    return np.asarray(part.array(path)[...])


@pytest.mark.parametrize("path", PATHS)
def test_chunks_are_what_zarr_reads_in_order(part: Part, path: str) -> None:
    expected = read(part, path)
    axis = part.manifest["arrays"][path]["dims"].index(path.split("/", 1)[0])
    collected, places = np.zeros_like(expected), []
    for chunk in stream_chunks(part, path):
        place = [slice(None)] * expected.ndim
        place[0] = slice(chunk.first, chunk.first + len(chunk.values))
        place[axis] = slice(chunk.start, chunk.stop)
        collected[tuple(place)] = chunk.values
        places.append((chunk.first if axis else 0, chunk.start))
        assert chunk.values.shape[axis] == chunk.stop - chunk.start
    np.testing.assert_array_equal(collected, expected)
    assert places == sorted(set(places))
    assert path != "token/hidden_states" or len(places) > 2 * len(expected)


def test_one_buffer_serves_all_chunks(part: Part) -> None:
    values = [chunk.values for chunk in stream_chunks(part, "token/hidden_states")]
    assert all(np.shares_memory(values[0], other) for other in values)


def test_memory_is_predicted_within_its_double(tmp_path: Path) -> None:
    tiny_store(tmp_path / "store", images=30, prompts=1, parts=1, dim=4096)
    part = open_part(str(tmp_path / "store"), "00000000")
    sum(1 for _ in stream_chunks(part, "token/hidden_states"))  # imports are not the stream's
    tracemalloc.start()
    chunks = sum(1 for _ in stream_chunks(part, "token/hidden_states"))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chunks == 5
    assert used <= stream_bytes(part, "token/hidden_states") <= 3 * used


def test_an_empty_part_has_no_chunk(tmp_path: Path) -> None:
    tiny_store(tmp_path / "store", images=1, parts=1, empty_parts=1)
    part = open_part(str(tmp_path / "store"), "00000001")
    assert list(stream_chunks(part, "token/hidden_states")) == []
    assert stream_bytes(part, "token/hidden_states") >= 0


@pytest.mark.parametrize(("offset", "what"), [(20, "checksum"), (-20, "checksum"), (-2, "checksum")])
def test_a_flipped_bit_is_found(part: Part, offset: int, what: str) -> None:
    content = bytearray(shard_of(part).read_bytes())
    content[offset] ^= 1
    shard_of(part).write_bytes(content)
    with pytest.raises(StrataError, match=f"hidden_states/c/0/0/0 .*{what}.*strata verify"):
        list(stream_chunks(part, "token/hidden_states"))


def test_a_missing_file_is_named(part: Part) -> None:
    shard_of(part).unlink()
    with pytest.raises(StrataError, match="hidden_states/c/0/0/0"):
        list(stream_chunks(part, "token/hidden_states"))


@pytest.mark.parametrize("length", [0, 3, 30])
def test_a_truncated_file_is_refused(part: Part, length: int) -> None:
    shard_of(part).write_bytes(shard_of(part).read_bytes()[:length])
    with pytest.raises(StrataError, match="hidden_states/c/0/0/0"):
        list(stream_chunks(part, "token/hidden_states"))


def rewrite_index(path: Path, chunks: int, change: int, value: int) -> None:
    """Set one number of a shard's index and make its checksum right."""
    content = path.read_bytes()
    index = np.frombuffer(content[-16 * chunks - 4 : -4], "<u8").copy()
    index[change] = value
    checksum = int(google_crc32c.value(index.tobytes())).to_bytes(4, "little")
    path.write_bytes(content[: -16 * chunks - 4] + index.tobytes() + checksum)


@pytest.mark.parametrize("value", [2**64 - 1, 2**62, 10**6])
def test_an_index_that_leads_nowhere_is_refused(part: Part, value: int) -> None:
    array = part.array("token/hidden_states")
    chunks = int(np.prod(np.array(array.shards) // np.array(array.chunks)))
    rewrite_index(shard_of(part), chunks, 2, value)
    with pytest.raises(StrataError, match="hidden_states/c/0/0/0"):
        list(stream_chunks(part, "token/hidden_states"))


def test_another_encoding_is_refused(part: Part) -> None:
    folder = Path(part.url, "parts", "00000000.zarr")
    states = np.asarray(zarr.open_array(folder / "token/hidden_states", mode="r")[...])
    group = zarr.open_group(folder / "token", mode="r+", use_consolidated=False)
    group.create_array("hidden_states", data=states, chunks=(1, 2, 16), overwrite=True)
    consolidate(folder)
    with pytest.raises(StrataError, match=r"no strata writes such an array.*upgrade strata"):
        list(stream_chunks(part, "token/hidden_states"))
