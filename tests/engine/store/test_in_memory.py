"""One layer in memory is what Dask puts together, in half the memory; damage is named."""

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray as xr

from engine.errors import StrataError, UsageError
from engine.store import Store, in_memory, layout, open_store
from engine.store.in_memory import read_leading
from tests.engine.store.builders import tiny_store

LAYERS = [0, 2, 5]


@pytest.fixture(params=["a window is a chunk", "several chunks", "as many as may be"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of several chunks and files, read in windows of this size."""
    monkeypatch.setattr(layout, "INNER_CHUNK_BYTES", 5 * 128 * 2)
    monkeypatch.setattr(layout, "SHARD_BYTES", 3000)
    sizes = {"a window is a chunk": 1, "several chunks": 3000, "as many as may be": 2**25}
    monkeypatch.setattr(in_memory, "_WINDOW_BYTES", sizes[request.param])


def two_stores(folder: Path) -> list[Path]:
    """Uneven parts, one without samples."""
    one = tiny_store(folder / "one", layers=LAYERS, dim=128, images=5, parts=3, empty_parts=1)
    two = tiny_store(folder / "two", seed=1, layers=LAYERS, dim=128, images=3, parts=2, shared_prefix=False)
    return [one.path, two.path]


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("choose", [lambda paths: paths, lambda paths: paths[0]])
def test_it_is_what_dask_gives(tmp_path: Path, choose: Callable[[list[Path]], list[Path] | Path]) -> None:
    store = open_store(choose(two_stores(tmp_path)))
    for layer in LAYERS:
        found = store.load_layer(layer)
        xr.testing.assert_identical(found, store.hidden_states.sel(layer=layer).load())
        assert isinstance(found.data, np.ndarray)
        assert found.data.flags.c_contiguous
        assert found.data.flags.writeable


@pytest.mark.usefixtures("window")
def test_stores_of_other_machines_are_read_through_zarr(tmp_path: Path) -> None:
    [path, _] = two_stores(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(str(path), "/layers/store", recursive=True)
    try:
        xr.testing.assert_identical(open_store("memory://layers/store").load_layer(2), open_store(path).load_layer(2))
    finally:
        memory.rm("/layers", recursive=True)


@pytest.mark.parametrize("layer", [1, -1, 6, 2.5])
def test_a_layer_that_is_not_stored_is_wrong_usage(tmp_path: Path, layer: int) -> None:
    store = open_store(tiny_store(tmp_path / "store", layers=LAYERS, images=2).path)
    with pytest.raises(UsageError, match=rf"layer {layer} is not stored: stored are 0, 2, 5"):
        store.load_layer(layer)


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", layers=LAYERS, images=4, parts=2)
    part = sorted((tiny.path / "parts").glob("*.zarr"))[1]
    files = [path for path in (part / "token" / "hidden_states" / "c").rglob("*") if path.is_file()]
    for path in files:
        content = bytearray(path.read_bytes())
        content[20] ^= 1
        path.write_bytes(content)
    with pytest.raises(StrataError, match=r"00000001\.zarr/token/hidden_states/c/.* has a wrong checksum"):
        open_store(tiny.path).load_layer(0)
    shutil.rmtree(part / "token" / "hidden_states" / "c")
    with pytest.raises(StrataError, match=r"00000001\.zarr/token/hidden_states/c/"):
        open_store(tiny.path).load_layer(0)


def test_no_second_copy_of_the_layer_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "INNER_CHUNK_BYTES", 2**15)
    monkeypatch.setattr(in_memory, "usable_cores", lambda: 2)
    monkeypatch.setattr(in_memory, "_WINDOW_BYTES", 2**16)
    store = open_store(tiny_store(tmp_path / "store", layers=[0], dim=4096, images=40, parts=2).path)

    def peak(read: Callable[[Store], xr.DataArray]) -> float:
        read(store)
        tracemalloc.start()
        size = read(store).nbytes
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most / size

    assert peak(lambda store: store.load_layer(0)) < 1.3
    assert peak(lambda store: store.hidden_states.sel(layer=0).load()) > 1.8, "which is why there is another way"


def test_parts_of_several_dtypes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tiny_store(tmp_path / "store", layers=LAYERS, images=4, parts=2).path)
    entry = store.parts[1].manifest["arrays"]["token/hidden_states"]
    other = {"float16": "float32", "float32": "float16"}[entry["dtype"]]
    monkeypatch.setitem(entry, "dtype", other)
    with pytest.raises(StrataError, match=r"parts of .* hold token/hidden_states as float16 and float32, but a store"):
        read_leading(store.parts, "token/hidden_states", 0)
