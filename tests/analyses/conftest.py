from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.store.builders import TinyStore, tiny_store


@pytest.fixture(scope="session")
def written_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyStore]:
    """Write a tiny store once per set of options: committing one waits for the disk. Tests leave it as it is."""
    made: dict[str, TinyStore] = {}

    def make(**options: object) -> TinyStore:
        key = repr(sorted(options.items()))
        if key not in made:
            folder: Path = tmp_path_factory.mktemp("stores") / "store"
            made[key] = tiny_store(folder, **options)
        return made[key]

    return make
