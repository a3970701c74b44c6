"""Named pipes in place of files: whoever opens one waits for ever.

Refused as no files, without being opened.
"""

import os
from pathlib import Path

import pytest

from tests.attacks.harness import PART, Refusals, withstand

MISSING = "is missing"


@pytest.mark.parametrize(
    ("name", "refusals"),
    [
        ("store.json", Refusals.everywhere(r"has no store\.json")),
        (f"{PART}.json", Refusals.everywhere(r"has no parts/00000000\.json|is no manifest")),
        (f"{PART}.parquet", Refusals(None, MISSING, MISSING, None, r"has no parts/00000000\.parquet")),
        (f"{PART}.zarr/token/hidden_states/zarr.json", Refusals(None, MISSING, MISSING, None, "has no .*zarr.json")),
        (f"{PART}.zarr/token/hidden_states/c/0/0/0", Refusals(None, MISSING, MISSING, None, "is a link or no file")),
    ],
)
def test_a_pipe(store: Path, tmp_path: Path, name: str, refusals: Refusals) -> None:
    (store / name).unlink()
    os.mkfifo(store / name)
    withstand(store, refusals, tmp_path / "results")
