"""The store that attacks spoil."""

import shutil
from pathlib import Path

import pytest

from tests.engine.store.builders import tiny_store


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound store of one part."""
    return tiny_store(tmp_path_factory.mktemp("attacks") / "store", layers=2, dim=4, images=1, parts=1).path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "store"))
