"""What a store of many parts opens and reads: counted, not timed. The times are rows of the benchmark."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engine.errors import UsageError
from engine.store import Store, lazy, open_store, rank_progress, read_filling, summarise, verify
from engine.store.location import Location
from tests.bench.many_parts import image_name, write_many_parts

PARTS, SAMPLES = 24, 5


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 parts of 5 samples, and one of 2."""
    return write_many_parts(
        tmp_path_factory.mktemp("many") / "store", images=(PARTS - 1) * SAMPLES + 2, images_per_part=5
    )


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is read of a store by the kind of file; parts' numbers are left out."""
    kinds: Counter[str] = Counter()
    lazy._open.cache_clear()
    for name in ("read", "opened"):
        original = getattr(Location, name)

        def counted(self: Location, relative: str, *more: str, name: str = name, original: object = original) -> object:
            kinds[relative.replace("parts/", "").lstrip("0123456789")] += 1
            return original(self, relative, *more)  # type: ignore[operator]

        monkeypatch.setattr(Location, name, counted)
    return kinds


def test_it_is_what_the_writer_makes(path: Path) -> None:
    found = verify(path)
    assert (found.problems, found.notes) == ((), ())
    store = open_store(path)
    assert len(store.parts) == PARTS
    assert store.complete
    assert store.samples["image_id"].tolist() == [image_name(number) for number in range(len(store.samples))]
    assert store.samples["part"].tolist() == [number // SAMPLES for number in range(len(store.samples))]
    assert store.hidden_states.shape == (5, 5 * len(store.samples), 16)


def test_opening_and_inspecting_read_records_and_no_part(path: Path, read: Counter[str]) -> None:
    store = open_store(path)
    assert repr(store)
    assert read == {"store.json": 1}  # and all manifests at once
    assert store.complete
    summary = summarise(store)
    assert (summary.committed_parts, summary.samples) == (PARTS, len(store.plan))
    assert len(rank_progress(read_filling(store), 4)) == 4
    assert read == {"store.json": 1, "plan.parquet": 1}


def test_looking_up_a_sample_reads_its_part_alone(path: Path, read: Counter[str]) -> None:
    store = open_store(path)
    number = 17 * SAMPLES + 3
    found = store.sample(f"{image_name(number)}/normal-1")
    assert found.attrs["image_id"] == image_name(number)
    assert store.thumbnail(image_name(number)) is None
    assert read["plan.parquet"] == 1
    assert read[".parquet"] == 2  # the part's table, once for its samples and once for thumbnails
    np.testing.assert_array_equal(found.hidden_states, store.parts[17].open("token").hidden_states[:, 15:20])


def test_an_unknown_sample_gets_a_hint_of_its_neighbours(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path)
    wrong = f"{image_name(60)}/normal-2"
    monkeypatch.setattr("engine.store.reader._NAMES_COMPARED", 10)
    with pytest.raises(UsageError, match=rf"did you mean .*{image_name(60)}/normal-1"):
        store.sample(wrong)
    with pytest.raises(UsageError, match="see the column image_id"):
        store.thumbnail("?")


def test_the_first_batch_of_tokens_opens_one_part(path: Path, read: Counter[str]) -> None:
    batch = next(open_store(path).tokens(layer=2, batch=SAMPLES))
    assert set(batch.part) == {0}
    # Metadata, three coordinates, states, and which tokens are whose.
    states = ".zarr/token/hidden_states/zarr.json"
    assert read == {"store.json": 1, ".zarr/zarr.json": 1, ".parquet": 1, states: 1} | {
        f".zarr/token/{name}/c/0": 1 for name in ("role", "token_id", "position")
    }


def test_joining_states_reads_coordinates_and_no_array(path: Path, read: Counter[str]) -> None:
    states = open_store(path).hidden_states
    assert read[".zarr/token/layer/c/0"] == 1, "of the first part"
    assert read[".zarr/token/layer/zarr.json"] == read[".zarr/token/hidden_states/zarr.json"] == 0
    assert read[".zarr/zarr.json"] == PARTS + 1
    assert read[".zarr/token/role/c/0"] == PARTS
    assert (states.role.to_numpy() == np.tile(states.role.to_numpy()[:5], len(states.part) // 5)).all()


def test_tables_of_parts_are_joined_as_they_are(path: Path) -> None:
    store: Store = open_store(path)
    expected = pd.concat([part.samples.assign(part=part.number, store=part.url) for part in store.parts])
    pd.testing.assert_frame_equal(store.samples, expected.reset_index(drop=True))
