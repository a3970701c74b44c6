"""What several tests of the store read."""

from pathlib import Path

import pytest

from engine.store import Part, layout, open_part
from tests.engine.store.builders import tiny_store


@pytest.fixture(params=["one file", "a file per layer"])
def part(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Part:
    """A part of 5 layers whose layers take several chunks, the last of them not full."""
    monkeypatch.setattr(layout, "INNER_CHUNK_BYTES", 300)
    monkeypatch.setattr(layout, "SHARD_BYTES", 10**9 if request.param == "one file" else 1)
    tiny_store(tmp_path / "store", images=3, prompts=2, parts=1)
    return open_part(str(tmp_path / "store"), "00000000")
