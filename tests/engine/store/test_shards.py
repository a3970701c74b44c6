"""Shards are read back by zarr, and by hand from the bytes as the specification has them."""

import struct
import time
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.blosc import Blosc

from engine.store import layout, shards
from engine.store.codecs import create_array, encode_chunk
from engine.store.content import PartArray
from engine.store.layout import INNER_CHUNK_BYTES, ChunkPlan, plan_chunks
from engine.store.manifest import hash_file
from engine.store.shards import write_shards
from engine.store.writer import _Slabs

HIDDEN = ("layer", "token", "dim")


def write(folder: Path, plan: ChunkPlan, dims: Sequence[str], values: np.ndarray) -> dict[Path, dict]:
    group = zarr.create_group(folder)
    create_array(group, "x", plan=plan, dtype=values.dtype.name, dims=dims, attributes={})
    with ThreadPoolExecutor(2) as pool:
        return written(
            write_shards(folder / "x", plan, values.dtype.name, values.__getitem__, pool, sync=lambda _: None)
        )


def written(writing: Sequence[Future]) -> dict[Path, dict]:
    return dict(filter(None, [each.result() for each in writing]))


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


@pytest.mark.parametrize("one", [True, False])
def test_bytes_are_the_same_whichever_thread_is_first(tmp_path: Path, one: bool) -> None:
    """Earlier layers take longer, so that of several threads the later ones are done before."""
    values = np.random.default_rng(1).standard_normal((5, 40, 4)).astype(np.float32)
    plan = ChunkPlan(values.shape, (1, 3, 4), (5 if one else 1, 42, 4))

    def slow(index: int) -> np.ndarray:
        time.sleep(0.02 * (5 - index))
        return values[index]

    files = []
    for threads, slab in ((1, values.__getitem__), (5, slow)):
        folder = tmp_path / str(threads)
        folder.mkdir()
        with ThreadPoolExecutor(threads) as pool:
            writing = write_shards(folder, plan, "float32", slab, pool, sync=lambda _: None)
            files.append({path.relative_to(folder): entry for path, entry in written(writing).items()})
        assert all(hash_file(folder / path) == entry for path, entry in files[-1].items())
    assert files[0] == files[1]
    assert len(files[0]) == (1 if one else 5)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("one", [True, False])
def test_a_layer_that_fails_is_named_and_nothing_waits_for_it(tmp_path: Path, one: bool, threads: int) -> None:
    values = np.zeros((6, 4, 3), np.float32)

    def slab(index: int) -> np.ndarray:
        if index == 2:
            raise ValueError("layer 2")
        return values[index]

    plan = ChunkPlan(values.shape, (1, 4, 3), (6 if one else 1, 4, 3))
    with ThreadPoolExecutor(threads) as pool:
        writing = write_shards(tmp_path, plan, "float32", slab, pool, sync=lambda _: None)
        failures = [each.exception(timeout=60) for each in writing]
    assert failures[:2] == [None, None]
    assert str(failures[2]) == "layer 2"
    assert all(isinstance(each, CancelledError) if one else each is None for each in failures[3:])


def test_layers_before_one_that_fails_are_written(tmp_path: Path) -> None:
    """They are slower, so that it has failed long before their turns."""
    failed = Event()

    def slab(index: int) -> np.ndarray:
        if index == 2:
            failed.set()
            raise ValueError("layer 2")
        failed.wait(60)
        time.sleep(0.05)
        return np.zeros((4, 3), np.float32)

    with ThreadPoolExecutor(3) as pool:
        plan = ChunkPlan((4, 4, 3), (1, 4, 3), (4, 4, 3))
        writing = write_shards(tmp_path, plan, "float32", slab, pool, sync=lambda _: None)
        failures = [each.exception(timeout=60) for each in writing]
    assert failures[:2] == [None, None]
    assert str(failures[2]) == "layer 2"
    assert isinstance(failures[3], CancelledError)


@pytest.mark.parametrize("one", [True, False])
def test_layers_are_asked_for_chunk_by_chunk_in_order(tmp_path: Path, one: bool) -> None:
    values = np.arange(4 * 10 * 3, dtype=np.int32).reshape(4, 10, 3)
    asked: list[tuple[int, int, int]] = []

    class Layer:
        shape, dtype = values.shape[1:], values.dtype

        def __init__(self, index: int) -> None:
            self.index = index

        def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray:
            (run,) = selection
            asked.append((self.index, *run.indices(10)[:2]))
            return values[self.index][selection]

    plan = ChunkPlan(values.shape, (1, 4, 3), (4 if one else 1, 12, 3))
    create_array(zarr.create_group(tmp_path), "x", plan=plan, dtype="int32", dims=HIDDEN, attributes={})
    with ThreadPoolExecutor(1) as pool:
        written(write_shards(tmp_path / "x", plan, "int32", Layer, pool, sync=lambda _: None))
    assert asked == [(index, start, min(start + 4, 10)) for index in range(4) for start in (0, 4, 8)]
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
        writing = write_shards(tmp_path / "x", plan, "int32", values.__getitem__, pool, sync=sync)
        ((path, entry),) = written(writing).items()
    assert {name for name, _ in synced} == {path}
    assert len(synced) == 4
    assert [size for _, size in synced] == sorted(size for _, size in synced)
    assert synced[-1][1] == entry["bytes"] == path.stat().st_size


def test_a_file_with_a_hole_is_not_written(tmp_path: Path) -> None:
    values = np.zeros((1, 4, 3), np.float32)
    with pytest.raises(ValueError, match="1 of its 2 chunks"):
        write(tmp_path, ChunkPlan(values.shape, (1, 4, 3), (1, 8, 3)), HIDDEN, values)


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


@pytest.mark.parametrize("tokens", [3900, 6000])
def test_threads_hold_no_more_than_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Most where values are widened, rounded to another dtype and once more; in files of their own and in one."""
    monkeypatch.setattr(shards, "part_threads", lambda: 1)
    array = PartArray(
        "token/x",
        HIDDEN,
        (3, tokens, 4096),
        "float16",
        lambda index: np.full((tokens, 4096), 0x3F81 + index, np.uint16),
        slab_dtype="bfloat16",
        mantissa_bits=4,
    )
    plan = array.layout.chunk_plan
    one = array.slab(0)[...].nbytes
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(1) as pool:
            written(write_shards(tmp_path, plan, "float16", _Slabs(array), pool, sync=lambda _: None))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert plan.files == (3 if tokens == 6000 else 1)
    assert 2 * INNER_CHUNK_BYTES < peak - one < shards.writing_bytes()
