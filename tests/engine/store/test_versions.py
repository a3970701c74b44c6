"""Parts of other format versions: a newer major one stops everything, an earlier or later minor one nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import StrataError
from engine.store import open_store, repair, verify
from engine.store.layout import FORMAT_VERSION
from engine.store.limits import RECORD_BYTES
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


def test_a_manifest_too_long_to_be_read_may_be_newer_and_is_not_removed(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store", layers=1, dim=4).path
    os.truncate(store / MANIFEST, RECORD_BYTES + 1)
    flip(store / "parts/00000001.parquet")
    before = sorted(store.rglob("*"))
    for action in (verify, repair):
        with pytest.raises(
            StrataError, match=r"00000000\.json has more than 8,388,608 bytes.*upgrade strata if.*move it"
        ):
            action(store)
    assert sorted(store.rglob("*")) == before
    (store / MANIFEST).rename(tmp_path / "moved.json")
    assert repair(store).redone == (0, 1)


@pytest.mark.parametrize("action", [verify, repair])
def test_a_damaged_digit_is_no_newer_format(tmp_path: Path, action: Callable[..., Any]) -> None:
    store = tiny_store(tmp_path / "store", layers=1, dim=4).path
    content = (store / MANIFEST).read_bytes()
    stated = f'"format_version": "{FORMAT_VERSION}"'.encode()
    assert content.count(stated) == 1
    (store / MANIFEST).write_bytes(content.replace(stated, stated.replace(b'"1', b'"9')))
    flip(store / "parts/00000001.parquet")
    found = action(store)
    if action is verify:
        assert [(problem.file, problem.message.split(":")[0]) for problem in found.problems] == [
            (MANIFEST, "does not have the sha256 that it states"),
            ("parts/00000001.parquet", "has another sha256 than when it was written"),
        ]
    else:
        assert (found.redone, [removal.part for removal in found.removals]) == ((0, 1), [0, 1])


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
