"""Parts of other format versions: a newer major one stops everything, an earlier or later minor one nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import StrataError
from engine.store import open_store, repair, verify
from engine.store.layout import FORMAT_VERSION
from tests.engine.store.builders import tiny_store
from tests.engine.store.forge import change_record
from tests.engine.store.test_verify import flip

MANIFEST = "parts/00000000.json"


def of_version(version: object) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update(format_version=version)


def versions(folder: Path) -> dict[str, str]:
    return {path.name: json.loads(path.read_bytes())["format_version"] for path in folder.glob("*.json")}


def test_a_part_of_a_newer_major_format_is_neither_read_nor_removed(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store", layers=1, dim=4).path
    change_record(store / MANIFEST, of_version("2.0"))
    change_record(store / MANIFEST, lambda record: record.pop("arrays"))
    flip(store / "parts/00000001.parquet")
    for action in (open_store, verify, repair):
        with pytest.raises(StrataError, match=r"00000000\.json has format 2\.0.*reads up to.*upgrade strata"):
            action(store)
    assert (store / MANIFEST).exists()
    assert (store / "parts/00000001.parquet").exists()


@pytest.mark.parametrize("version", [None, "1", "later"])
def test_a_manifest_without_a_version_is_none(tmp_path: Path, version: object) -> None:
    store = tiny_store(tmp_path / "store", layers=1, dim=4, parts=1).path
    change_record(store / MANIFEST, of_version(version))
    (problem, *_) = verify(store).problems
    assert "has a format_version that is none" in problem.message


@pytest.mark.parametrize("earlier", ["0.4", "1.9"])
def test_a_store_is_continued_by_another_version_of_the_same_plan(tmp_path: Path, earlier: str) -> None:
    whole = tiny_store(tmp_path / "whole", layers=2, dim=4)
    path = tmp_path / "store"
    tiny_store(path, layers=2, dim=4, written=[0])
    for name in ("store.json", MANIFEST):
        change_record(path / name, of_version(earlier))
    before = {name: (path / name).read_bytes() for name in ("store.json", MANIFEST)}
    tiny_store(path, layers=2, dim=4, written=[1])
    assert {name: (path / name).read_bytes() for name in before} == before
    assert versions(path / "parts") == {"00000000.json": earlier, "00000001.json": FORMAT_VERSION}
    assert verify(path, deep=True) == ((), ())
    stored, expected = open_store(path), open_store(whole.path)
    np.testing.assert_array_equal(stored.hidden_states, expected.hidden_states)
    assert stored.complete


def test_a_lost_record_is_written_again_beside_parts_of_another_version(tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "store", layers=1, dim=4).path
    for name in (MANIFEST, "parts/00000001.json"):
        change_record(path / name, of_version("0.4"))
    (path / "store.json").unlink()
    tiny_store(path, layers=1, dim=4, written=[])
    assert versions(path)["store.json"] == FORMAT_VERSION
    assert verify(path, deep=True) == ((), ())
