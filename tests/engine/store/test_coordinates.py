"""Coordinates read without opening arrays: what zarr reads, refused where they are damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec

from engine.errors import StrataError
from engine.store import open_store
from engine.store.codecs import checksum
from engine.store.coordinates import read_coordinates
from engine.store.lazy import StoredArray
from tests.engine.store.builders import TinyStore, tiny_store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    return tiny_store(tmp_path_factory.mktemp("coordinates") / "store", empty_parts=1, capture=["attention"])


def test_every_coordinate_is_what_zarr_reads(tiny: TinyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {}
    for part in open_store(tiny.path).parts:
        for path in [*part.coordinates("token"), *part.coordinates("key"), "token/layer", "sample/role"]:
            expected[part.number, path] = part.stored(path)[...]
    monkeypatch.setattr(StoredArray, "__getitem__", None)  # no array is opened
    for part in open_store(tiny.path).parts:
        paths = [path for number, path in expected if number == part.number]
        read = read_coordinates(part, paths)
        assert list(read) == paths
        for path, values in read.items():
            assert values.dtype == np.int32
            np.testing.assert_array_equal(values, expected[part.number, path])


def test_without_consolidated_metadata_zarr_reads_them(tiny: TinyStore, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny.path, tmp_path / "store"))
    root = path / "parts/00000000.zarr/zarr.json"
    root.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    expected = read_coordinates(open_store(tiny.path).parts[0], ["token/role"])["token/role"]
    np.testing.assert_array_equal(read_coordinates(open_store(path).parts[0], ["token/role"])["token/role"], expected)


@pytest.mark.parametrize("codecs", [{"compressors": [ZstdCodec()]}, {"compressors": None}])
def test_what_is_encoded_in_another_way_is_refused(tiny: TinyStore, tmp_path: Path, codecs: dict[str, object]) -> None:
    path = Path(shutil.copytree(tiny.path, tmp_path / "store"))
    part = open_store(path).parts[0]
    values = part.stored("token/role")[...]
    folder = path / "parts" / f"{part.name}.zarr"
    group = zarr.open_group(folder / "token", mode="r+", use_consolidated=False)
    del group["role"]
    group.create_array("role", data=values, filters=None, chunks=values.shape, fill_value=-1, **codecs)
    with pytest.warns(UserWarning, match="not part in the Zarr format 3"):
        zarr.consolidate_metadata(folder)
    with pytest.raises(StrataError, match=r"token/role .* no strata writes such an array"):
        read_coordinates(part, ["token/role"])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def swell(path: Path) -> None:
    """Claim a hundred times as much as the array holds, with a checksum that is right."""
    encoded = bytearray(path.read_bytes()[:-4])
    encoded[4:8] = (100 * int.from_bytes(encoded[4:8], "little")).to_bytes(4, "little")
    path.write_bytes(bytes(encoded) + checksum(bytes(encoded)))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, swell, empty, Path.unlink])
def test_a_damaged_coordinate_is_named(tiny: TinyStore, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = Path(shutil.copytree(tiny.path, tmp_path / "store"))
    damage(path / "parts/00000001.zarr/token/position/c/0")
    with pytest.raises(StrataError, match=r"00000001\.zarr/token/position/c/0"):
        _ = open_store(path).hidden_states
    with pytest.raises(StrataError, match=r"00000001\.zarr/token/position/c/0"):
        list(open_store(path).tokens(layer=0))
