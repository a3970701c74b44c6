"""What a record promises is on the disk before the record is: a power failure takes back what was never synced."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.engine.store.builders import tiny_store

RECORDS = ("store.json", "parts/00000000.json", "parts/00000001.json")


class Disk:
    """What was synced: of each inode the time of its last change by then."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.synced: dict[int, int] = {}
        self.before: dict[str, dict[int, int]] = {}  # what was synced when a record got its name
        fsync, link, replace = os.fsync, os.link, os.replace

        def sync(handle: int) -> None:
            status = os.fstat(handle)
            fsync(handle)
            self.synced[status.st_ino] = status.st_mtime_ns

        def naming(original: Any) -> Any:
            def call(source: Path, target: Path, **options: Any) -> None:
                self.before[str(target)] = dict(self.synced)
                original(source, target, **options)

            return call

        patch.setattr(os, "fsync", sync)
        patch.setattr(os, "link", naming(link))
        patch.setattr(os, "replace", naming(replace))


def test_everything_is_durable_before_the_record_that_lists_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    store = tiny_store(tmp_path / "store", capture=("attention",)).path
    for record in RECORDS:
        synced = disk.before[str(store / record)]
        listed = store / "model.zarr" if record == "store.json" else (store / record).with_suffix(".zarr")
        beside = ("plan.parquet", "vocab.parquet") if record == "store.json" else (record.replace(".json", ".parquet"),)
        promised = [listed, *listed.rglob("*"), store / record, *(store / name for name in beside)]
        assert len(promised) > 5
        for path in promised:
            assert synced.get(path.stat().st_ino) == path.stat().st_mtime_ns, path
    for folder in (store, store / "parts"):
        assert disk.synced[folder.stat().st_ino] == folder.stat().st_mtime_ns, "the names themselves"
