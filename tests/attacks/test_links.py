"""Symbolic links that lead out of the store, so that a reader shows, hashes or hands on what is not the store's.

Refused by whoever would follow one; ``verify`` names each.
"""

import shutil
from pathlib import Path

import pytest

from tests.attacks.harness import PART, Refusals, withstand

LINK = "is a symbolic link"
LAZY = Refusals(None, LINK, LINK, None, LINK)
ROOT = Refusals.everywhere(LINK)
RECORD = Refusals(LINK, "has no store.json", "has no store.json", LINK, LINK)


@pytest.mark.parametrize(
    ("name", "refusals"),
    [
        ("store.json", RECORD),
        (f"{PART}.json", ROOT),
        ("parts", ROOT),
        ("plan.parquet", LAZY._replace(inspected=LINK)),
        (f"{PART}.zarr", LAZY),
        (f"{PART}.zarr/token/hidden_states", LAZY),
        (f"{PART}.zarr/token/hidden_states/c/0", LAZY._replace(analysed="is a link or no file")),
        (f"{PART}.zarr/token/role/c/0", LAZY._replace(analysed="is a link or no file")),
    ],
)
def test_a_link(store: Path, tmp_path: Path, name: str, refusals: Refusals) -> None:
    outside = tmp_path / "outside"
    shutil.move(store / name, outside)
    (store / name).symlink_to(outside)
    withstand(store, refusals, tmp_path / "results")
