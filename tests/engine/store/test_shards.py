"""Shards are read back by zarr, and by hand from the bytes as the specification has them."""

import struct
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.blosc import Blosc

from engine.store import layout, shards
from engine.store.codecs import create_array, encode_chunk
from engine.store.layout import ChunkPlan, plan_chunks
from engine.store.manifest import hash_file
from engine.store.shards import write_shards

HIDDEN = ("layer", "token", "dim")


def write(folder: Path, plan: ChunkPlan, dims: Sequence[str], values: np.ndarray) -> dict[Path, dict]:
    group = zarr.create_group(folder)
    create_array(group, "x", plan=plan, dtype=values.dtype.name, dims=dims, attributes={})
    with ThreadPoolExecutor(2) as pool:
        return dict(
            write_shards(folder / "x", plan, values.dtype.name, lambda index: values[index], pool, sync=lambda _: None)
        )


@settings(max_examples=25)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 9)),
    st.sampled_from(["float16", "float32"]),
    st.booleans(),
)
def test_zarr_reads_what_was_written(tmp_path_factory, shape: tuple[int, int, int], dtype: str, one: bool) -> None:
    layers, tokens, dim = shape
    folder = tmp_path_factory.mktemp("shards")
    values = np.random.default_rng(tokens).standard_normal((layers, tokens, dim)).astype(dtype)
    step = max(1, tokens // 3)
    length = -(-tokens // step) * step
    plan = ChunkPlan(values.shape, (1, step, dim), (layers if one else 1, length, dim))
    files = write(folder, plan, HIDDEN, values)
    read = zarr.open_array(folder / "x", mode="r")
    np.testing.assert_array_equal(read[...], values)
    assert read.dtype == values.dtype
    assert sorted(files) == sorted(path for path in (folder / "x" / "c").rglob("*") if path.is_file())
    assert len(files) == (1 if one else layers)
    assert all(hash_file(path) == entry for path, entry in files.items())


class _Late(Executor):
    """Does nothing until it is asked for the result, as threads may that have much else to do."""

    class _Task(Future):
        def result(self, timeout: float | None = None) -> object:
            if not self.done():
                function, arguments = self.work
                self.set_result(function(*arguments))
            return super().result(timeout)

    def submit(self, function, /, *arguments):
        task = self._Task()
        task.work = function, arguments
        return task


@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("one", [True, False])
def test_two_buffers_of_slabs_may_take_turns(tmp_path: Path, tokens: int, one: bool) -> None:
    values = np.random.default_rng(1).standard_normal((5, tokens, 4)).astype(np.float32)
    buffers = np.empty((2, tokens, 4), np.float32)

    def slab(index: int) -> np.ndarray:
        buffers[index % 2] = values[index]
        return buffers[index % 2]

    plan = ChunkPlan(values.shape, (1, 3, 4), (5 if one else 1, -(-tokens // 3) * 3, 4))
    group = zarr.create_group(tmp_path)
    create_array(group, "x", plan=plan, dtype="float32", dims=HIDDEN, attributes={})
    for _ in write_shards(tmp_path / "x", plan, "float32", slab, _Late(), sync=lambda _: None):
        pass
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "x", mode="r")[...], values)


@pytest.mark.parametrize("shape", [(7, 5, 3), (7, 2)])
def test_arrays_without_layers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    dims = ("role", "sample", "dim")[: len(shape)]
    write(tmp_path / "s", plan_chunks(dims, shape, 4), dims, values)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "s" / "x", mode="r")[...], values)


def test_pooled_array_cut_between_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample axis lies inside the slab, so its pieces are not contiguous there."""
    monkeypatch.setattr(layout, "INNER_CHUNK_BYTES", 7 * 2 * 6 * 4)
    values = np.random.default_rng(0).standard_normal((3, 7, 5, 6)).astype(np.float32)
    plan = plan_chunks(("layer", "role", "sample", "dim"), values.shape, 4)
    assert plan.inner == (1, 7, 2, 6)
    write(tmp_path / "s", plan, ("layer", "role", "sample", "dim"), values)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "s" / "x", mode="r")[...], values)


def test_large_slabs_have_a_file_each(tmp_path: Path) -> None:
    values = np.zeros((2, 4200, 4096), np.float16)
    values[1, -1] = 3
    plan = plan_chunks(HIDDEN, values.shape, 2)
    files = write(tmp_path / "s", plan, HIDDEN, values)
    assert [path.relative_to(tmp_path).as_posix() for path in files] == ["s/x/c/0/0/0", "s/x/c/1/0/0"]
    assert (zarr.open_array(tmp_path / "s" / "x", mode="r")[1, -1] == 3).all()


def test_bytes_of_a_shard_by_hand(tmp_path: Path) -> None:
    """Index of offsets and lengths at the end, everything followed by its CRC-32C, padding is NaN."""
    values = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float16)
    plan = ChunkPlan(values.shape, (1, 2, 4), (2, 6, 4))
    write(tmp_path / "s", plan, HIDDEN, values)
    content = (tmp_path / "s/x/c/0/0/0").read_bytes()
    tail = 6 * 16
    index, crc = content[-tail - 4 : -4], content[-4:]
    assert struct.unpack("<I", crc)[0] == google_crc32c.value(index)
    padded = np.full((2, 6, 4), np.nan, np.float16)
    padded[:, :5] = values
    for number, (offset, length) in enumerate(struct.iter_unpack("<QQ", index)):
        chunk = content[offset : offset + length]
        assert struct.unpack("<I", chunk[-4:])[0] == google_crc32c.value(chunk[:-4])
        decoded = np.frombuffer(Blosc().decode(chunk[:-4]), "<f2").reshape(2, 4)
        np.testing.assert_array_equal(decoded, padded[number // 3, number % 3 * 2 : number % 3 * 2 + 2])


@pytest.mark.parametrize("dtype", ["float16", "float32", "int32"])
def test_zarrs_reads_what_was_written(tmp_path: Path, dtype: str) -> None:
    values = (100 * np.random.default_rng(0).standard_normal((2, 700, 512))).astype(dtype)
    plan = plan_chunks(HIDDEN, values.shape, values.itemsize)
    write(tmp_path / "s", plan, HIDDEN, values)
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        np.testing.assert_array_equal(zarr.open_array(tmp_path / "s" / "x", mode="r")[...], values)


def test_a_file_goes_to_the_disk_while_it_grows_and_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_SYNC_BYTES", 1000)
    values = np.random.default_rng(0).integers(0, 2**31, (6, 8, 25), dtype=np.int32)
    plan = ChunkPlan(values.shape, (1, 8, 25), values.shape)
    create_array(zarr.create_group(tmp_path), "x", plan=plan, dtype="int32", dims=HIDDEN, attributes={})
    synced: list[tuple[Path, int]] = []

    def sync(path: Path) -> None:
        synced.append((path, path.stat().st_size))

    with ThreadPoolExecutor(2) as pool:
        ((path, entry),) = write_shards(tmp_path / "x", plan, "int32", values.__getitem__, pool, sync=sync)
    assert {name for name, _ in synced} == {path}
    assert len(synced) == 4
    assert [size for _, size in synced] == sorted(size for _, size in synced)
    assert synced[-1][1] == entry["bytes"] == path.stat().st_size


def test_a_constant_chunk_is_still_written(tmp_path: Path) -> None:
    values = np.full((2, 3, 4), np.nan, np.float16)
    plan = plan_chunks(HIDDEN, values.shape, 2)
    assert len(write(tmp_path / "s", plan, HIDDEN, values)) == 1


def test_no_tokens_no_files(tmp_path: Path) -> None:
    values = np.zeros((2, 0, 4), np.float16)
    assert write(tmp_path / "s", plan_chunks(HIDDEN, values.shape, 2), HIDDEN, values) == {}
    assert zarr.open_array(tmp_path / "s" / "x", mode="r")[...].shape == (2, 0, 4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_not_kept_takes_a_thousandth_of_its_bytes_at_most(dtype: str) -> None:
    chunk = np.full(layout.INNER_CHUNK_BYTES // np.dtype(dtype).itemsize, np.nan, dtype)
    assert len(encode_chunk(chunk, chunk.shape, dtype)) < chunk.nbytes / 1000
