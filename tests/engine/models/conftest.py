"""One saved random checkpoint for all tests of this folder; who changes it copies it first."""

import shutil
from pathlib import Path

import pytest

from engine.models.checkpoint import Checkpoint, open_checkpoint
from tests.tiny_llava import save_checkpoint


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-llava")


@pytest.fixture(scope="session")
def checkpoint(saved: Path) -> Checkpoint:
    return open_checkpoint(str(saved))


@pytest.fixture
def own_copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny-llava"))
