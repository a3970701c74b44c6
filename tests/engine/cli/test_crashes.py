"""SIGKILL during strata extract: the same command again leaves what an extraction without it leaves, to the bit.

The bench row ``crashes`` does the same 200 times.
"""

from pathlib import Path

from tests.crashes import SHORT_STATES, crash_often, find_state


def test_a_killed_extraction_resumes_to_the_same_store(tmp_path: Path) -> None:
    kills = crash_often(tmp_path, 7)
    assert [kill["wrong"] for kill in kills] == [[]] * 7
    found = {kill["state"] for kill in kills}
    assert found >= {*SHORT_STATES, "arrays of a part"}


def test_states_are_told_from_what_lies_on_the_disk(tmp_path: Path) -> None:
    def state(*names: str) -> str:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return find_state(tmp_path)

    staged = ".staging/00000001-x/00000001"
    assert find_state(tmp_path) == "nothing"
    assert state("plan.parquet") == "common files"
    assert state("store.json", "parts/00000000.json") == "whole parts alone"
    assert state(f"{staged}.zarr/token/c/0") == "arrays of a part"
    assert state(f"{staged}.json") == "a whole part, staged"
    assert state("parts/00000001.zarr/c/0") == "arrays without table"
    assert state("parts/00000001.parquet") == "table without manifest"
    assert state("parts/00000001.json") == "manifest, not yet cleared away"
