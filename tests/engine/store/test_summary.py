"""The numbers of a store against its files."""

import os
from pathlib import Path

import pytest

from engine.store import open_store, summarise
from tests.engine.store.builders import tiny_store


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_summary_against_the_disk(tmp_path: Path, dtype: str) -> None:
    tiny = tiny_store(tmp_path / "store", dtype=dtype, empty_parts=2, written=[0, 1, 2])
    summary = summarise(open_store(tiny.path))
    assert (summary.planned_parts, summary.committed_parts) == (4, 3)
    assert (summary.planned_samples, summary.samples, summary.tokens) == (10, 6, 41)
    assert [bad["sample_id"] for bad in summary.bad_samples] == ["bad0/normal-1", "bad0/normal-2"]
    assert summary.seconds == 4.5
    unlisted = [tiny.path / "store.json", *(tiny.path / "parts").glob("*.json")]
    every = [Path(folder, name) for folder, _, names in os.walk(tiny.path) for name in names]
    assert summary.stored_bytes == sum(path.stat().st_size for path in every if path not in unlisted)

    states = next(array for array in summary.arrays if array.path == "token/hidden_states")
    assert (states.dims, states.shape) == (("layer", "token", "dim"), (5, 41, 16))
    assert states.captured_dtype == dtype
    assert states.dtype == ("float16" if dtype == "float16" else "float32")
    assert states.raw_bytes == 5 * 41 * 16 * (4 if dtype == "float32" else 2)
    files = [path for path in (tiny.path / "parts").glob("*/token/hidden_states/**/*") if path.is_file()]
    assert states.files == len(files)
    assert states.stored_bytes == sum(path.stat().st_size for path in files)
    assert states.ratio == states.stored_bytes / states.raw_bytes


def test_an_empty_array_has_no_ratio(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", empty_parts=1, written=[2])
    assert all(str(a.ratio) == "nan" for a in summarise(open_store(tiny.path)).arrays if "hidden" in a.path)
