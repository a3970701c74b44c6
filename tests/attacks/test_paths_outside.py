"""Records that list files outside of the store, or of another part, so that they are hashed, copied or removed.

Refused as records: nothing that they list is looked at.
"""

from pathlib import Path

import pytest

from tests.attacks.harness import PART, Refusals, withstand
from tests.engine.store.forge import change_record

ENTRY = {"sha256": "0" * 64, "bytes": 1}


@pytest.mark.parametrize(
    "name",
    ["../../secret", "/etc/passwd", "00000000.zarr/../../../secret", "00000001.parquet", "00000000.zarr//x"],
)
def test_a_manifest(store: Path, tmp_path: Path, name: str) -> None:
    change_record(store / f"{PART}.json", lambda record: record["files"].update({name: ENTRY}))
    withstand(store, Refusals.everywhere("which is outside of its part"), tmp_path / "results")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "model.zarr/../../secret"])
def test_the_record(store: Path, tmp_path: Path, name: str) -> None:
    change_record(store / "store.json", lambda record: record["files"].update({name: ENTRY}))
    withstand(store, Refusals.everywhere("has a list of files that is none"), tmp_path / "results")
