"""Who of several ranks is how far: divided by hand, and by a count over all parts."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.store import open_store, rank_progress, read_filling, recorded_world_size
from engine.store.commit import staging_folder
from engine.store.progress import Filling
from tests.engine.store.builders import tiny_store


def manifest(rank: object, world_size: object, seconds: float = 2.0) -> dict[str, object]:
    return {"run": {"rank": rank, "world_size": world_size}, "seconds": seconds}


FILLING = Filling(
    planned={0: 10, 1: 10, 2: 10, 3: 10, 4: 6},
    manifests={0: manifest(0, 2), 2: manifest(0, 2, 3.0), 1: manifest(0, 1, 100.0)},
    staged={3: "none", 4: "alive"},
    committed_at={0: 50.0, 2: 70.0},
)


def test_a_share_is_counted_whoever_wrote_it_and_the_rate_is_the_ranks_own() -> None:
    first, second = rank_progress(FILLING, 2)
    assert (first.rank, first.parts, first.committed_parts, first.samples, first.committed_samples) == (0, 3, 2, 26, 20)
    assert (first.by_others, first.staged, first.last_commit) == (0, ((4, "alive"),), 70.0)
    assert first.samples_per_second == 0.5, "20 s from commit to commit, although extraction took 2 s and 3 s"
    assert first.seconds_left == 12.0
    assert (second.rank, second.parts, second.committed_parts, second.samples, second.committed_samples) == (
        (1, 2, 1, 20, 10)
    )
    assert (second.by_others, second.staged, second.last_commit) == (1, ((3, "none"),), None)
    assert second.samples_per_second is None
    assert second.seconds_left is None, "what another run took says nothing of this one"


@pytest.mark.parametrize(
    ("committed_at", "expected"),
    [
        ({}, 4.0),
        ({0: 7.0}, 4.0),
        ({0: 7.0, 2: 7.0, 4: 7.0}, 4.0),
        ({0: 7.0, 2: 9.0, 4: 11.0}, 4.0),
        ({0: 7.0, 2: 17.0, 4: 27.0}, 1.0),
        ({0: 7.0, 2: 17.0, 4: 27.0, 6: 100_000.0}, 1.0),
    ],
)
def test_the_rate_is_that_of_the_slower_of_model_and_writer(committed_at: dict[int, float], expected: float) -> None:
    manifests = {part: manifest(0, 2, 2.5) for part in (0, 2, 4, 6)}
    (first, _) = rank_progress(Filling(dict.fromkeys(range(8), 10), manifests, {}, committed_at), 2)
    assert first.samples_per_second == expected


def test_a_rank_with_nothing_left_needs_no_rate() -> None:
    (only,) = rank_progress(Filling({0: 3}, {0: {"seconds": 0.0}}, {}, {}), 1)
    assert (only.samples_per_second, only.seconds_left, only.by_others) == (None, 0.0, 0)


@given(
    st.dictionaries(st.integers(0, 40), st.integers(1, 9), max_size=20),
    st.sets(st.integers(0, 40)),
    st.one_of(st.integers(1, 9), st.just(10**12)),
)
def test_ranks_together_have_every_part_once(planned: dict[int, int], done: set[int], world_size: int) -> None:
    filling = Filling(planned, {part: manifest(part % 3, 3) for part in done & planned.keys()}, {}, {})
    ranks = rank_progress(filling, world_size)
    assert [rank.rank for rank in ranks] == sorted({part % world_size for part in planned})
    assert sum(rank.parts for rank in ranks) == len(planned)
    assert sum(rank.samples for rank in ranks) == sum(planned.values())
    assert sum(rank.committed_parts for rank in ranks) == len(filling.manifests)
    assert sum(rank.committed_samples for rank in ranks) == sum(planned[part] for part in filling.manifests)


@pytest.mark.parametrize(
    ("manifests", "expected"),
    [
        ([], 1),
        ([{}, {"run": {}}, {"run": ["rank", 3]}], 1),
        ([manifest(0, 4), manifest(3, 4), manifest(0, 1)], 4),
        ([manifest(0, 4), manifest(0, 1)], 4),
        ([manifest(5, 4), manifest("0", "4"), manifest(-1, 4)], 1),
    ],
)
def test_the_number_of_ranks_is_what_most_parts_were_written_by(
    manifests: list[dict[str, object]], expected: int
) -> None:
    assert recorded_world_size(manifests) == expected


def test_a_store_says_what_is_written_and_what_a_crash_left(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store", images=4, parts=4, written=[0, 2]).path
    os.utime(store / "parts/00000002.json", (100, 100))
    (store / ".staging/00000003-dead").mkdir()
    (store / ".staging/00000002-left").mkdir()
    with staging_folder(store, "00000001", alone=True):
        filling = read_filling(open_store(store))
    assert filling.planned == dict.fromkeys(range(4), 2)
    assert filling.staged == {1: "alive", 3: "none"}, "part 2 is committed, whatever else lies there"
    assert filling.committed_at.keys() == {0, 2}
    assert filling.committed_at[2] == 100.0
    assert read_filling(open_store(f"file://{store}")).staged == {}
